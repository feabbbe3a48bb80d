"""What a run tells: numbers, pictures and events, in JSON lines always, TensorBoard and Weights & Biases besides."""

import json
import logging
import math
import os
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from mim_jax.errors import RunError


class Writer:
    """Writes DIR/metrics.jsonl, DIR/events.jsonl and TensorBoard files; on process 0 only, elsewhere it does nothing.

    A line is one `write`, so a kill leaves at most one broken line at the end; it is dropped on the next start.

    Args:
        workdir: the DIR of the run.
        step: the step the run goes on from; numbers of later steps are dropped.
        tensorboard: write TensorBoard files.
        wandb: Weights & Biases project; '' = off. Without a network it logs offline, and a resumed run keeps its id.
        config: shown beside the curves.

    Raises:
        RunError: DIR cannot be written.
    """

    def __init__(
        self, workdir, *, step: int = 0, tensorboard: bool = True, wandb: str = '', config: Mapping | None = None
    ):
        self.workdir, self._tensorboard, self._wandb = Path(workdir), None, None
        self._active = jax.process_index() == 0
        if not self._active:
            return
        self._guard(lambda: self.workdir.mkdir(parents=True, exist_ok=True))
        self.rewind(step)
        self._guard(lambda: _keep_lines(self.workdir / 'events.jsonl', lambda event: True))
        if tensorboard:
            self._tensorboard = _optional('TensorBoard', lambda: _TensorBoard(self.workdir, step))
        if wandb:
            self._wandb = _optional('Weights & Biases', lambda: _start_wandb(self.workdir, wandb, config))
        if config is not None and self._tensorboard:
            self._tensorboard.text('config', '    ' + json.dumps(config, indent=2, default=str).replace('\n', '\n    '))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One line of metrics.jsonl: {"step": step, name: number, ...}; what is not finite becomes null."""
        if not self._active:
            return
        numbers = {name: float(value) for name, value in values.items()}
        line = {'step': int(step)} | {name: x if math.isfinite(x) else None for name, x in numbers.items()}
        self._guard(lambda: _append(self.workdir / 'metrics.jsonl', line))
        if self._tensorboard:
            self._guard(lambda: self._tensorboard.scalars(step, numbers))
        if self._wandb:
            self._wandb.log(numbers, step=step)

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Pictures u8[H, W, C] for TensorBoard and Weights & Biases."""
        if self._tensorboard:
            self._guard(lambda: self._tensorboard.images(step, images))
        if self._wandb:
            import wandb

            self._wandb.log({name: wandb.Image(image) for name, image in images.items()}, step=step)

    def event(self, kind: str, **fields) -> None:
        """One line of events.jsonl: {"time": seconds since 1970, "event": kind, ...}. Nothing is ever dropped from it."""
        if self._active:
            line = {'time': round(time.time(), 3), 'event': kind} | fields
            self._guard(lambda: _append(self.workdir / 'events.jsonl', line))

    def rewind(self, step: int) -> None:
        """Drops the numbers of steps after `step`: the run goes back there."""
        if not self._active:
            return
        self._guard(lambda: _keep_lines(self.workdir / 'metrics.jsonl', lambda line: line['step'] <= step))
        if self._tensorboard:
            self._guard(lambda: self._tensorboard.purge(step))

    def close(self) -> None:
        """Closes the files."""
        if self._tensorboard:
            self._guard(self._tensorboard.close)
        if self._wandb:
            self._wandb.finish()

    def _guard(self, write) -> None:
        try:
            write()
        except OSError as error:
            raise RunError(f'{self.workdir} could not be written: {error.strerror or error}') from error


def _append(path: Path, line: Mapping) -> None:
    with path.open('a') as file:
        file.write(json.dumps(line, default=lambda x: x.item() if hasattr(x, 'item') else str(x)) + '\n')


def _keep_lines(path: Path, wanted) -> None:
    """Rewrites a file of JSON lines with those that are whole and wanted; at once, so a kill loses nothing."""
    if not path.exists():
        return
    whole = [line for line in path.read_text().split('\n')[:-1] if line]
    kept = [line for line in whole if wanted(json.loads(line))]
    text = ''.join(f'{line}\n' for line in kept)
    if len(text) != path.stat().st_size:
        fresh = path.with_name(f'{path.name}.tmp')
        fresh.write_text(text)
        os.replace(fresh, path)


def _optional(name: str, start):
    """A second place for the numbers must not stop the run: metrics.jsonl has them all."""
    try:
        return start()
    except Exception as error:  # third parties raise anything here: no network, no key, no package
        logging.warning('no %s, metrics.jsonl has everything: %s', name, str(error).partition('\n')[0])
        return None


class _TensorBoard:
    """Event files through tensorboardX, written at once: its own queue hangs when the disk is full."""

    def __init__(self, workdir: Path, step: int):
        from tensorboardX import event_file_writer, summary
        from tensorboardX.proto import event_pb2

        self._summary, self._event = summary, event_pb2.Event
        self._log_start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._file = event_file_writer.EventsWriter(str(workdir / 'events'), f'.{os.getpid()}')
        if step:
            self.purge(step)

    def purge(self, step: int) -> None:
        self._write(session_log=self._log_start, step=step + 1)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._write(summary=self._summary.scalar(name, value), step=step)

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        for name, image in images.items():
            self._write(summary=self._summary.image(name, image, dataformats='HWC'), step=step)

    def text(self, name: str, text: str) -> None:
        self._write(summary=self._summary.text(name, text))

    def close(self) -> None:
        self._file.close()

    def _write(self, **fields) -> None:
        self._file.write_event(self._event(wall_time=time.time(), **fields))
        self._file.flush()


def _start_wandb(workdir: Path, project: str, config: Mapping | None):
    try:
        import wandb
    except ImportError as error:
        raise ImportError("pip install 'mim_jax[wandb]'") from error
    known = workdir / 'wandb_id.txt'
    if not known.exists():
        known.write_text(wandb.util.generate_id())
    options = dict(project=project, dir=str(workdir), id=known.read_text(), resume='allow', config=dict(config or {}))
    try:
        return wandb.init(**options)
    except Exception as error:  # no key or no network: `wandb sync` can send it later
        logging.warning('Weights & Biases logs offline: %s', str(error).partition('\n')[0])
        return wandb.init(mode='offline', **options)


class Compilations:
    """Counts what XLA compiles, by function name; a second compilation of the step is a bug.

    Args:
        on_compile: called with (name, times so far, seconds) of each.
    """

    def __init__(self, on_compile=lambda name, times, seconds: None):
        self.counts, self._on_compile = Counter(), on_compile
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, seconds: float, **about) -> None:
        if event == '/jax/core/compile/backend_compile_duration':
            name = about.get('fun_name', '').removeprefix('jit(').removesuffix(')')
            self.counts[name] += 1
            self._on_compile(name, self.counts[name], seconds)

    def close(self) -> None:
        """Stops counting."""
        jax.monitoring.unregister_event_duration_listener(self._listen)


def feature_health(features: np.ndarray) -> dict[str, float]:
    """Standard deviation and effective rank of pooled features; both fall when the encoder collapses.

    Args:
        features: f32[n, D], one row a sample.

    Returns:
        'features/std': standard deviation over samples, mean over dimensions. 'features/rank': exp of the entropy of the
        normalised singular values, between 1 and min(n, D) (RankMe, arXiv 2210.02885). NaN where features are not finite.
    """
    features = np.asarray(features, np.float32)
    if not np.isfinite(features).all():
        return {'features/std': math.nan, 'features/rank': math.nan}
    singular = np.linalg.svd(features, compute_uv=False)
    share = singular / (singular.sum() + 1e-12) + 1e-7
    return {
        'features/std': float(features.std(0).mean()),
        'features/rank': float(np.exp(-(share * np.log(share)).sum())),
    }
