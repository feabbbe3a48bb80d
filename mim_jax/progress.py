"""How fast a run goes: time spent waiting for data, FLOPs, and the line that tells both."""

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import jax
from jax.extend import core

# Peak bf16 FLOP/s of one JAX device, by part of its `device_kind`; the first match counts.
PEAK_FLOPS = (
    ('TPU7x', 2307e12 / 2),  # two devices a chip
    ('TPU v6', 918e12),
    ('TPU v5 lite', 197e12),
    ('TPU v5e', 197e12),
    ('TPU v5', 459e12),
    ('TPU v4', 275e12),
    ('TPU v3', 123e12 / 2),
    ('TPU v2', 46e12 / 2),
    ('H200', 989e12),
    ('H100 PCIe', 756e12),
    ('H100', 989e12),
    ('A100', 312e12),
)
INPUT_BOUND = 0.05  # share of wall time from which the line advises


def peak_flops(device_kind: str) -> float | None:
    """Peak bf16 FLOP/s of one device of this kind, or None where it is not known."""
    return next((peak for kind, peak in PEAK_FLOPS if kind in device_kind), None)


def matmul_flops(fn: Callable, *args) -> int:
    """Floating-point operations of all matrix products and convolutions in `fn(*args)`, a multiply-add being two.

    Args:
        fn: traced, not run; loops count their length, `while` once, branches the most costly one (where the platform
            decides, the one for all others: TPU forms of a gather are products nobody asked for).
        args: arrays or shapes.
    """
    return _flops(jax.make_jaxpr(fn)(*args).jaxpr)


def _flops(jaxpr: core.Jaxpr) -> int:
    return sum(_equation_flops(equation) for equation in jaxpr.eqns)


def _equation_flops(equation: core.JaxprEqn) -> int:
    name, params = equation.primitive.name, equation.params
    if name == 'dot_general':
        (contract, _), _ = params['dimension_numbers']
        shape = equation.invars[0].aval.shape
        return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(shape[i] for i in contract)
    if name == 'conv_general_dilated':
        kernel, numbers = equation.invars[1].aval.shape, params['dimension_numbers']
        return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // kernel[numbers.rhs_spec[0]]
    if name == 'cond':
        platforms = params.get('branches_platforms') or [''] * len(params['branches'])
        counted = zip(params['branches'], platforms, strict=True)
        return max(_flops(branch.jaxpr) for branch, of in counted if of in ('', None))
    inner = sum(_flops(jaxpr) for jaxpr in core.jaxprs_in_params(params))
    return inner * params['length'] if name == 'scan' else inner


class Clock:
    """Measures windows of steps: examples per second, and the share of wall time the device waited for data.

    A fetch that ends while the device still works costs nothing, however long it took; what counts is the time from the
    end of the previous step to the arrival of the next batch. A thread notes when steps end, so the loop never waits.
    """

    def __init__(self):
        self._watch = ThreadPoolExecutor(1, 'step-clock')
        self._last: Future | None = None
        self.restart()

    def restart(self) -> None:
        """Begins a window; call it after what is not training (evaluation, a save one waited for)."""
        self._start, self._examples, self._waits = time.perf_counter(), 0, []

    def fetch(self, batches: Iterator):
        """The next batch, its wait noted."""
        before = time.perf_counter()
        batch = next(batches)
        self._waits.append((before, time.perf_counter(), self._last))
        return batch

    def launched(self, output: jax.Array, examples: int) -> None:
        """A step was dispatched; `output` is any of its results that nothing donates."""
        self._examples += examples
        self._last = self._watch.submit(_end, output)

    def read(self) -> dict[str, float]:
        """'train/examples_per_sec', 'train/data_wait' of the window up to the end of the last step; begins the next."""
        end = self._last.result() if self._last else time.perf_counter()
        seconds = max(end - self._start, 1e-9)
        waited = sum(_exposed(before, after, last, self._start) for before, after, last in self._waits)
        found = {'train/examples_per_sec': self._examples / seconds, 'train/data_wait': min(waited / seconds, 1.0)}
        self.restart()
        return found

    def close(self) -> None:
        """Lets go of the thread."""
        self._watch.shutdown(wait=False)


def _end(output: jax.Array) -> float:
    output.block_until_ready()
    return time.perf_counter()


def _exposed(before: float, after: float, last: Future | None, start: float) -> float:
    """Seconds of a fetch in which the device had nothing to do."""
    idle_from = max(before, start, last.result() if last else 0.0)
    return max(after - idle_from, 0.0)


class Progress:
    """The progress line: in place on a terminal, one line a window elsewhere.

    Args:
        total_steps: where the run ends.
        devices: that it takes.
        flops_per_example: model FLOPs of forward and backward; 0 = not shown.
        advice: said once when the device waits for data more than a twentieth of the time.
        stream: where to.
    """

    def __init__(
        self,
        total_steps: int,
        *,
        devices: int = 1,
        flops_per_example: float = 0.0,
        advice: str = 'try data.workers=2 or more, or pack the data: python -m mim_jax.tools.pack',
        stream=None,
    ):
        self.total_steps, self.flops_per_example, self._advice = total_steps, flops_per_example, advice
        self._stream, self._width, self._windows = stream or sys.stderr, 0, 0
        self._begin = (
            math.inf,
            0.0,
        )  # step and time from which the rest is judged: the first line, compilation behind it
        peak = peak_flops(jax.devices()[0].device_kind)
        self._peak = peak and peak * devices

    def speed(self, examples_per_sec: float) -> dict[str, float]:
        """'train/flops_per_sec' and, where the peak of the device is known, 'train/mfu'."""
        flops = examples_per_sec * self.flops_per_example
        return {'train/flops_per_sec': flops} | ({'train/mfu': flops / self._peak} if self._peak else {})

    def show(self, step: int, metrics: Mapping[str, float]) -> None:
        """Prints the line from metrics of the names in the docs; on process 0 only."""
        self._windows += 1
        if jax.process_index() != 0:
            return
        rate = metrics['train/examples_per_sec']
        speed = f'{rate:.0f} examples/s  ' if rate >= 10 else f'{rate:.2g} examples/s  '
        if self.flops_per_example and self._peak:
            speed += f'MFU {metrics["train/mfu"]:.1%}  '
        elif self.flops_per_example:
            speed += f'{metrics["train/flops_per_sec"] / 1e9:.1f} GFLOP/s  '
        waited, skipped = metrics['train/data_wait'], metrics.get('train/skipped_steps', 0)
        line = f'step {step}/{self.total_steps}  eta {self._eta(step)}  loss {metrics["train/loss"]:.4f}  '
        line += f'{speed}data wait {waited:.1%}  skipped {skipped:.0f}'
        self._print(line)
        if waited > INPUT_BOUND and self._windows > 1 and self._advice:
            self.say(f'input-bound: the device waits for data {waited:.0%} of the time; {self._advice}')
            self._advice = ''

    def say(self, text: str) -> None:
        """Prints a line of its own, below the progress line."""
        if jax.process_index() == 0:
            print(('\n' if self._width else '') + text, file=self._stream, flush=True)
            self._width = 0

    def _eta(self, step: int) -> str:
        now = time.perf_counter()
        if step <= self._begin[0]:  # the first line, or after a rollback
            self._begin = step, now
            return '-'
        begin, since = self._begin
        left = int((now - since) / (step - begin) * (self.total_steps - step))
        return f'{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}'

    def _print(self, line: str) -> None:
        if not self._stream.isatty():
            print(line, file=self._stream, flush=True)
            return
        self._stream.write('\r' + line.ljust(self._width))
        self._stream.flush()
        self._width = len(line)
