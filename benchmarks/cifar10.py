"""MAE on CIFAR-10 on a small budget: linear probe against an untrained encoder, fine-tuning against training from scratch.

    python benchmarks/cifar10.py --train=cifar10_train.parquet --test=cifar10_test.parquet --out=benchmarks/results/cifar10.md

For each seed it runs `python -m mim_jax.main --config=configs/mae_cifar10.py` with fewer steps, and writes a table of means and standard
deviations with the CPU time of pretraining. A seed that is done is only read.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

from absl import app, flags

TRAIN = flags.DEFINE_string('train', None, 'training records', required=True)
TEST = flags.DEFINE_string('test', None, 'test records', required=True)
OUT = flags.DEFINE_string('out', 'benchmarks/results/cifar10.md', 'table')
RUNS = flags.DEFINE_string('runs', 'runs/cifar10', 'where the runs live')
SEEDS = flags.DEFINE_list('seeds', ['0', '1', '2'], 'seeds')
STEPS = flags.DEFINE_integer('steps', 3000, 'steps of pretraining')
TUNE_STEPS = flags.DEFINE_integer('tune_steps', 500, 'steps of fine-tuning, and of training from scratch')

BATCH, TUNE_BATCH = 128, 64
COLUMNS = (  # heading, metric of the pretrained encoder, metric it is compared with
    ('linear probe', 'eval/linear_top1', 'eval/linear_top1_untrained'),
    ('fine-tuning', 'eval/finetune_top1', 'eval/scratch_top1'),
    ('kNN', 'eval/knn_top1', None),
)


def run(seed: int, workdir: Path) -> None:
    """One process of the trainer."""
    changes = dict(seed=seed, total_steps=STEPS.value, eval_every=0, checkpoint_every=500)
    changes |= {
        'data.path': TRAIN.value,
        'data.val_path': TEST.value,
        'data.batch_size': BATCH,
        'schedule.warmup_steps': STEPS.value // 20,
    }
    for name in ('finetune', 'scratch'):
        changes |= {
            f'evals.{name}.steps': TUNE_STEPS.value,
            f'evals.{name}.batch_size': TUNE_BATCH,
            f'evals.{name}.seed': seed,
        }
    command = [sys.executable, '-m', 'mim_jax.main', '--config=configs/mae_cifar10.py', f'--workdir={workdir}']
    subprocess.run(command + [f'--config.{k}={v}' for k, v in changes.items()], check=True)


def result(seed: int) -> dict:
    """Metrics of a seed, with 'cpu_minutes' of its pretraining."""
    workdir = Path(RUNS.value) / str(seed)
    run(seed, workdir)
    values = {}
    for line in (workdir / 'metrics.jsonl').read_text().splitlines():
        values |= json.loads(line)
    events = map(json.loads, (workdir / 'events.jsonl').read_text().splitlines())
    return values | dict(cpu_minutes=max(e['cpu_seconds'] for e in events if e['event'] == 'save') / 60)


def percent(values: list[float]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f'{100 * statistics.mean(values):.1f} ± {100 * spread:.1f}'


def main(_):
    results = [result(int(seed)) for seed in SEEDS.value]
    lines = ['| | pretrained | without | gain |', '|---|---|---|---|']
    for heading, name, without in COLUMNS:
        values = [r[name] for r in results]
        if without is None:
            lines.append(f'| {heading} | {percent(values)} | | |')
            continue
        others = [r[without] for r in results]
        lines.append(
            f'| {heading} | {percent(values)} | {percent(others)} | {percent([a - b for a, b in zip(values, others, strict=True)])} |'
        )
    minutes = max(r['cpu_minutes'] for r in results)
    lines += [
        '',
        f'Top-1 accuracy in %, mean ± standard deviation of {len(results)} seeds. Without: an untrained encoder for the probe, training '
        f'from scratch with as many steps for fine-tuning. {STEPS.value} steps of {BATCH} images of pretraining, at most {minutes:.1f} CPU '
        f'minutes; {TUNE_STEPS.value} steps of {TUNE_BATCH} images of fine-tuning. {platform.machine()}, {os.cpu_count()} cores.',
    ]
    Path(OUT.value).write_text('\n'.join(lines) + '\n')
    print('\n'.join(lines))


if __name__ == '__main__':
    app.run(main)
