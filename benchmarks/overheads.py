"""What a run costs beside its steps: saving in the background, and starting a second time with what the first has compiled.

    python benchmarks/overheads.py --config=configs/mae_cifar10.py --steps=400 --turns=2

Runs without saves and runs that save every `--every` steps take turns; the best of each counts. Every run lives in a temporary folder.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from absl import app, flags

CONFIG = flags.DEFINE_string('config', 'configs/quickstart.py', 'what is trained')
STEPS = flags.DEFINE_integer('steps', 400, 'of each run')
EVERY = flags.DEFINE_integer('every', 100, 'steps between saves')
TURNS = flags.DEFINE_integer('turns', 2, 'pairs of runs')


def run(folder: Path, steps: int, every: int) -> tuple[float, float]:
    """(examples a second from the second step on, seconds from the start to the end of the compilation) of a run."""
    workdir = Path(tempfile.mkdtemp(dir=folder))
    command = [sys.executable, '-m', 'mim_jax.main', f'--config={CONFIG.value}', f'--workdir={workdir}']
    changes = dict(
        total_steps=steps, checkpoint_every=every, log_every=steps, eval_every=0, evals_often='()', evals_last='()'
    )
    command += [f'--config.{key}={value}' for key, value in changes.items()]
    subprocess.run(command, check=True, env=os.environ | dict(JAX_COMPILATION_CACHE_DIR=str(folder / 'compiled')))
    last = json.loads((workdir / 'metrics.jsonl').read_text().splitlines()[-1])
    events = map(json.loads, (workdir / 'events.jsonl').read_text().splitlines())
    at = {event['event']: event['time'] for event in events if event['event'] in ('start', 'compilation')}
    return last['train/examples_per_sec'], at['compilation'] - at['start']


def main(_):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first, second = (run(folder, 2, 2)[1] for _ in range(2))
        rates = {every: [] for every in (STEPS.value, EVERY.value)}
        for _ in range(TURNS.value):
            for every, found in rates.items():
                found.append(run(folder, STEPS.value, every)[0])
    never, often = (max(found) for found in rates.values())
    print(
        f'examples a second without saves {never:.1f}, with a save every {EVERY.value} steps {often:.1f}: {1 - often / never:.1%} slower'
    )
    print(
        f'from the start to the compiled step, first time {first:.1f} s, second time {second:.1f} s: {second / first:.0%}'
    )


if __name__ == '__main__':
    app.run(main)
