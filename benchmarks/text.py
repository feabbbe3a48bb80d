"""Masked diffusion against the autoregressive model of the same size, steps and held-out text, in bits a byte.

    python benchmarks/text.py --data=python_stdlib.txt --separator='^# ==== ' --steps=3000

For each config and seed it runs `python -m mim_jax.main`, and writes a table of means and standard deviations. A run that is done is only read.
"""

import os
import platform
import statistics
from pathlib import Path

from absl import app, flags
from runs import run

DATA = flags.DEFINE_string('data', None, 'text; a twentieth of its documents is held out', required=True)
SEPARATOR = flags.DEFINE_string('separator', '', 'data.reader.separator')
STEPS = flags.DEFINE_integer('steps', 3000, 'of each run')
CONFIGS = flags.DEFINE_list('configs', ['mdlm', 'autoregressive'], 'configs, of variant tiny; the last is the baseline')
SEEDS = flags.DEFINE_list('seeds', ['0', '1', '2'], 'seeds')
OUT = flags.DEFINE_string('out', '', "table; '' = benchmarks/results/text_NAME.md")
RUNS = flags.DEFINE_string('runs', 'runs/text', 'where the runs live')


def result(config: str, seed: str) -> dict:
    """Last metrics of a run, with 'cpu_minutes'."""
    workdir = Path(RUNS.value) / Path(DATA.value).stem / f'{config}_{seed}'
    changes = {'seed': seed, 'total_steps': STEPS.value, 'eval_every': 0, 'data.path': DATA.value, 'data.holdout': 0.05}
    changes |= {'data.reader.separator': SEPARATOR.value, 'data.reader.documents': 'cut'}
    return run(f'configs/{config}.py:tiny', workdir, changes)


def spread(values: list[float]) -> str:
    return f'{statistics.mean(values):.3f} ± {statistics.stdev(values) if len(values) > 1 else 0:.3f}'


def main(_):
    found = {config: [result(config, seed) for seed in SEEDS.value] for config in CONFIGS.value}
    base = [r['eval/bits_per_byte'] for r in found[CONFIGS.value[-1]]]
    lines = ['| | bits a byte | above the baseline | error of the bound | CPU minutes |', '|---|---|---|---|---|']
    for config, results in found.items():
        bits, minutes = [r['eval/bits_per_byte'] for r in results], max(r['cpu_minutes'] for r in results)
        gaps = [a - b for a, b in zip(bits, base, strict=True)]
        error = max(r.get('eval/nelbo_nats_error', 0.0) for r in results) / 0.6931
        lines.append(f'| `{config}.py` | {spread(bits)} | {spread(gaps)} | {error:.4f} | {minutes:.1f} |')
    lines += ['', f'`{Path(DATA.value).name}`, {STEPS.value} steps, mean ± standard deviation of {len(SEEDS.value)} seeds. {platform.machine()}, {os.cpu_count()} cores.']  # fmt: skip
    Path(OUT.value or f'benchmarks/results/text_{Path(DATA.value).stem}.md').write_text('\n'.join(lines) + '\n')
    print('\n'.join(lines))


if __name__ == '__main__':
    app.run(main)
