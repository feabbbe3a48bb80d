"""Taking turns, so that a change of the machine's speed meets all contenders; and our training step as one of them."""

import time
from collections.abc import Callable, Mapping

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


def trainer(config) -> tuple[Callable, object]:
    """(compiled step, fresh state) of a config on all devices."""
    mesh = sharding.make_mesh()
    with jax.set_mesh(mesh):
        objective, augment, abstract = train.parts(config, mesh)
        step = compile.train_step(config, objective, augment, abstract, mesh).call
        empty = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), compile.batch_spec(config, 2))
        return step, jax.jit(train.initial(config, objective, augment))(empty)
