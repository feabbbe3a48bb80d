"""What a run costs beside its steps: saving in the background, and starting a second time with what the first has compiled.

    python benchmarks/overheads.py --config=configs/mae_cifar10.py --turns=5

Stretches of `--every` steps that begin with a save and stretches without one take turns in one process; the median of their differences counts.
"""

import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # configs/ is not installed

import jax
import numpy as np
from absl import app, flags
from turns import trainer

from mim_jax import compile, large_pages
from mim_jax.checkpoint import Checkpoints

CONFIG = flags.DEFINE_string('config', 'configs/mae_cifar10.py', 'what is trained, on zeros')
EVERY = flags.DEFINE_integer('every', 100, 'steps of a stretch')
TURNS = flags.DEFINE_integer('turns', 5, 'pairs of stretches')


def start(folder: Path) -> dict[str, float]:
    """Seconds that a run of two steps takes to trace and to compile its train step."""
    workdir = Path(tempfile.mkdtemp(dir=folder))
    command = [sys.executable, '-m', 'mim_jax.main', f'--config={CONFIG.value}', f'--workdir={workdir}']
    changes = {'total_steps': 2, 'evals_often': '()', 'evals_last': '()', 'data.path': 'builtin:digits'}
    command += [f'--config.{key}={value}' for key, value in changes.items()]
    subprocess.run(command, check=True, env=os.environ | dict(JAX_COMPILATION_CACHE_DIR=str(folder / 'compiled')))
    events = map(json.loads, (workdir / 'events.jsonl').read_text().splitlines())
    return next(event['seconds'] for event in events if event['event'] == 'compilation')


def saving(config, folder: Path) -> list[tuple[float, float]]:
    """Seconds of stretches of steps, (without a save, with one)."""
    step, state = trainer(config)
    batch = jax.device_put({key: np.zeros(x.shape, x.dtype) for key, x in compile.batch_spec(config).items()})
    checkpoints = Checkpoints(folder)

    def stretch(save: bool) -> float:
        nonlocal state
        begin = time.perf_counter()
        for i in range(EVERY.value):
            state, metrics = step(state, batch, np.float32(1))
            if save and i == 0:
                checkpoints.save(int(state.step), state, {})
        metrics['loss'].block_until_ready()
        return time.perf_counter() - begin

    found = [(stretch(False), stretch(True)) for _ in range(TURNS.value + 1)][1:]  # the first save starts threads
    checkpoints.close()
    return found


def main(_):
    config = importlib.import_module(f'configs.{Path(CONFIG.value).stem}').get_config()
    with tempfile.TemporaryDirectory() as name:
        first, second = (start(Path(name)) for _ in range(2))
        found = saving(config, Path(name))
    plain = statistics.median(without for without, _ in found)
    extra = statistics.median(saved - without for without, saved in found)
    print(f'a save every {EVERY.value} steps: {extra:.2f} s beside {plain:.1f} s, {extra / plain:.1%}')
    print(f'compiling: first {first["compile"]:.1f} s, second {second["compile"]:.1f} s, {second["compile"] / first["compile"]:.0%}; '
          f'tracing: {first["trace"]:.1f} s, {second["trace"]:.1f} s')  # fmt: skip


if __name__ == '__main__':
    large_pages.ensure()
    app.run(main)
