"""MAE on CIFAR-10 on a small budget: linear probe against an untrained encoder, fine-tuning against training from scratch.

    python benchmarks/cifar10.py --train=cifar10_train.parquet --test=cifar10_test.parquet --out=benchmarks/results/cifar10.md

For each seed it runs `python -m mim_jax.main --config=configs/mae_cifar10.py` with fewer steps, and writes a table of means and standard
deviations with the CPU time of each part. A seed that is done is not run again.
"""

import json
import os
import platform
import resource
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


def cpu_seconds() -> float:
    """CPU time of the child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def run(seed: int, workdir: Path) -> float:
    """One process of the trainer -> its CPU seconds."""
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
    before = cpu_seconds()
    command = [sys.executable, '-m', 'mim_jax.main', '--config=configs/mae_cifar10.py', f'--workdir={workdir}']
    subprocess.run(command + [f'--config.{k}={v}' for k, v in changes.items()], check=True)
    return cpu_seconds() - before


def result(seed: int) -> dict:
    """Metrics of a seed, with 'cpu_minutes' of the whole and 'pretraining_cpu_minutes'."""
    workdir = Path(RUNS.value) / str(seed)
    known = workdir / 'result.json'
    if not known.exists():
        seconds = run(seed, workdir)
        values = {}
        for line in (workdir / 'metrics.jsonl').read_text().splitlines():
            values |= json.loads(line)
        events = map(json.loads, (workdir / 'events.jsonl').read_text().splitlines())
        saved = max(e['cpu_seconds'] for e in events if e['event'] == 'save')
        known.write_text(json.dumps(values | dict(cpu_minutes=seconds / 60, pretraining_cpu_minutes=saved / 60)))
    return json.loads(known.read_text())


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
    lines += ['', f'Top-1 accuracy in %, mean ± standard deviation of {len(results)} seeds; "without" is an untrained encoder for the probe, '
              'training from scratch with the same steps for fine-tuning.',
              f'{STEPS.value} steps of {BATCH} images; {TUNE_STEPS.value} steps of {TUNE_BATCH} images of fine-tuning.',
              f'{platform.machine()}, {os.cpu_count()} cores; {max(r["pretraining_cpu_minutes"] for r in results):.1f} CPU minutes of pretraining at most, '
              f'{statistics.mean(r["cpu_minutes"] for r in results):.1f} a seed with all evaluations.']  # fmt: skip
    Path(OUT.value).write_text('\n'.join(lines) + '\n')
    print('\n'.join(lines))


if __name__ == '__main__':
    app.run(main)
