"""What pretraining gives on a small budget: probes against an untrained encoder, fine-tuning against training from scratch.

    python benchmarks/gains.py --recipe=cifar10 --data=cifar10_train.parquet --val=cifar10_test.parquet
    python benchmarks/gains.py --recipe=actions --data=depth_actions/labels.csv

For each seed it runs `python -m mim_jax.main --config=configs/...` with fewer steps, and writes a table of means and standard
deviations with the CPU time of pretraining. A seed that is done is only read.
"""

import os
import platform
import statistics
from pathlib import Path
from typing import NamedTuple

from absl import app, flags
from runs import run

RECIPE = flags.DEFINE_enum('recipe', 'cifar10', ['cifar10', 'actions'], 'what is trained')
DATA = flags.DEFINE_string('data', None, 'data.path', required=True)
VAL = flags.DEFINE_string('val', '', 'data.val_path')
OUT = flags.DEFINE_string('out', '', "table; '' = benchmarks/results/RECIPE.md")
RUNS = flags.DEFINE_string('runs', '', "where the runs live; '' = runs/RECIPE")
SEEDS = flags.DEFINE_list('seeds', ['0', '1', '2'], 'seeds')


class Recipe(NamedTuple):
    """A config, its budget, and the evaluations whose steps, batch and seed are set."""

    config: str
    steps: int
    batch: int
    tune_steps: int
    tune_batch: int
    tunings: tuple[str, ...]


RECIPES = dict(
    cifar10=Recipe('configs/mae_cifar10.py', 3000, 128, 500, 64, ('finetune', 'scratch')),
    actions=Recipe('configs/videomae_actions.py', 2000, 64, 2000, 32, ('finetune', 'scratch', 'still')),
)
COLUMNS = (  # heading, metric of the pretrained encoder, metric it is compared with
    ('linear probe', 'eval/linear_top1', 'eval/linear_top1_untrained'),
    ('fine-tuning', 'eval/finetune_top1', 'eval/scratch_top1'),
    ('fine-tuning on one frame', 'eval/still_top1', None),
    ('kNN', 'eval/knn_top1', None),
)


def result(recipe: Recipe, seed: int) -> dict:
    """Metrics of a seed, with 'cpu_minutes' of its pretraining."""
    changes = dict(seed=seed, total_steps=recipe.steps, eval_every=0, checkpoint_every=500)
    changes |= {'data.path': DATA.value, 'data.val_path': VAL.value, 'data.batch_size': recipe.batch}
    changes['schedule.warmup_steps'] = recipe.steps // 20
    for name in recipe.tunings:
        how = dict(steps=recipe.tune_steps, batch_size=recipe.tune_batch, seed=seed)
        changes |= {f'evals.{name}.{key}': value for key, value in how.items()}
    return run(recipe.config, Path(RUNS.value or f'runs/{RECIPE.value}') / str(seed), changes)


def percent(values: list[float]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f'{100 * statistics.mean(values):.1f} ± {100 * spread:.1f}'


def main(_):
    recipe = RECIPES[RECIPE.value]
    results = [result(recipe, int(seed)) for seed in SEEDS.value]
    lines = ['| | pretrained | without | gain |', '|---|---|---|---|']
    for heading, name, without in COLUMNS:
        if name not in results[0]:
            continue
        values = [r[name] for r in results]
        if without is None:
            lines.append(f'| {heading} | {percent(values)} | | |')
            continue
        others = [r[without] for r in results]
        gains = [a - b for a, b in zip(values, others, strict=True)]
        lines.append(f'| {heading} | {percent(values)} | {percent(others)} | {percent(gains)} |')
    minutes = max(r['cpu_minutes'] for r in results)
    lines += [
        '',
        f'Top-1 accuracy in %, mean ± standard deviation of {len(results)} seeds. Without: an untrained encoder for the probe, training '
        f'from scratch with as many steps for fine-tuning. {recipe.steps} steps of {recipe.batch} records of pretraining, at most {minutes:.1f} CPU '
        f'minutes; {recipe.tune_steps} steps of {recipe.tune_batch} of fine-tuning. {platform.machine()}, {os.cpu_count()} cores.',
    ]
    Path(OUT.value or f'benchmarks/results/{RECIPE.value}.md').write_text('\n'.join(lines) + '\n')
    print('\n'.join(lines))


if __name__ == '__main__':
    app.run(main)
