"""Taking turns, so that a change of the machine's speed meets all contenders; and our training step as one of them."""

import time
from collections.abc import Callable, Iterator, Mapping
from itertools import repeat

import jax
import numpy as np

from mim_jax import compile, sharding, train


def take_turns(contenders: Mapping[str, Callable[[], object]], turns: int, steps: int) -> dict[str, list[float]]:
    """Seconds of each call: `steps` calls a turn, after one turn to warm up that does not count."""
    times = {name: [] for name in contenders}
    for turn in range(turns + 1):
        for name, run in contenders.items():
            for _ in range(steps):
                start = time.perf_counter()
                run()
                if turn:
                    times[name].append(time.perf_counter() - start)
    return times


def compare(case: str, theirs: Callable, ours: Callable, turns: int, steps: int, typical: Callable = min) -> None:
    """Prints one row of a table: milliseconds of both, and how many times ours go into theirs."""
    times = take_turns(dict(theirs=theirs, ours=ours), turns, steps)
    theirs_ms, ours_ms = (1e3 * typical(seconds) for seconds in times.values())
    print(f'| {case} | {theirs_ms:.1f} | {ours_ms:.1f} | {theirs_ms / ours_ms:.2f} |', flush=True)


def trainer(config) -> tuple[Callable, object]:
    """(compiled step, fresh state) of a config on all devices."""
    mesh = sharding.make_mesh()
    with jax.set_mesh(mesh):
        objective, augment, abstract = train.parts(config, mesh)
        step = compile.train_step(config, objective, augment, abstract, mesh).call
        empty = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), compile.batch_spec(config, 2))
        return step, jax.jit(train.initial(config, objective, augment))(empty)


def stepping(step: Callable, state, batches: Iterator[dict]) -> Callable[[], None]:
    """() -> None, one training step of `trainer` on the next batch."""

    def run():
        nonlocal state
        state, metrics = step(state, next(batches), np.float32(1))
        metrics['loss'].block_until_ready()

    return run


def same_batch(config, name: str, high: int) -> Iterator[dict]:
    """One batch on the device for ever: random whole numbers below `high` in the array `name`, ones in the others."""
    full = {key: np.ones(x.shape, x.dtype) for key, x in compile.batch_spec(config).items()}
    full[name] = np.random.default_rng(0).integers(0, high, full[name].shape, full[name].dtype)
    return repeat(jax.device_put(full))
