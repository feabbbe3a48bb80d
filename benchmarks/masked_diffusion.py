"""What masking gives diffusion at equal compute: probes and samples of UMD and MaskDiT beside the unmasked DiT of the same size.

    python benchmarks/masked_diffusion.py --data=FOLDER_OF_CIFAR10 --steps=2000

DiT trains for `steps` steps, the others for as many FLOPs (by XLA's count of their compiled step). One classifier, the same for all, judges
samples. For each method and seed it runs `python -m mim_jax.main`; a run that is done is only read.
"""

import os
import platform
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # configs/ is not installed

from absl import app, flags
from runs import run
from turns import trainer

from configs import dit, maskdit, umd

DATA = flags.DEFINE_string('data', None, 'data.path', required=True)
STEPS = flags.DEFINE_integer('steps', 2000, 'of DiT')
ROWS = flags.DEFINE_integer('rows', 32, 'images of a batch')
VARIANT = flags.DEFINE_string('variant', 'cifar10', 'of the configs')
SHAPE = flags.DEFINE_list('shape', ['128', '4', '4'], 'width, depth and heads of encoders')
JUDGE = flags.DEFINE_integer('judge', 500, 'steps of the classifier')
SAMPLES = flags.DEFINE_integer('samples', 1000, 'images drawn by each')
METHODS = flags.DEFINE_list('methods', ['dit', 'umd', 'maskdit'], 'which of them')
SEEDS = flags.DEFINE_list('seeds', ['0'], 'seeds')
OUT = flags.DEFINE_string('out', 'benchmarks/results/masked_diffusion.md', 'table')
RUNS = flags.DEFINE_string('runs', 'runs/masked_diffusion', 'where the runs live')
COLUMNS = {
    'linear probe': 'eval/linear_top1', 'untrained': 'eval/linear_top1_untrained', 'class agreement': 'eval/class_agreement',
    'Fréchet': 'eval/frechet', 'precision': 'eval/precision', 'recall': 'eval/recall', 'inception score': 'eval/inception_score',
}  # fmt: skip


def changes_of(method) -> dict:
    """What makes a config small: decoders keep their share of the encoder's depth and width."""
    config = method.get_config(VARIANT.value)
    width, depth, heads = map(int, SHAPE.value)
    changes = {f'{where}.{key}': value for where in ('encoder', 'evals.fidelity.judge')
               for key, value in dict(width=width, depth=depth, heads=heads).items()}  # fmt: skip
    if 'depth' in config.predictor:
        share = config.predictor.width / config.encoder.width
        changes |= {'predictor.width': round(width * share), 'predictor.heads': max(1, round(heads * share)),
                    'predictor.depth': max(1, depth // 4)}  # fmt: skip
    return changes | {'data.batch_size': ROWS.value}


def flops(method) -> float:
    """Of a training step."""
    config = method.get_config(VARIANT.value)
    config.update_from_flattened_dict(changes_of(method))
    return trainer(config)[0].cost_analysis()['flops']


def result(method, steps: int, seed: str) -> dict:
    """Last metrics of a run, with its steps and 'cpu_minutes'."""
    name = method.__name__.split('.')[1]
    changes = changes_of(method) | dict(seed=seed, total_steps=steps, eval_every=0, checkpoint_every=500)
    changes |= {'data.path': DATA.value, 'schedule.warmup_steps': steps // 20, 'evals.fidelity.steps': JUDGE.value,
                'evals.fidelity.samples': SAMPLES.value, 'evals_often': "('sampling',)"}  # fmt: skip
    found = run(f'configs/{name}.py:{VARIANT.value}', Path(RUNS.value) / f'{name}_{seed}', changes)
    return found | dict(steps=steps)


def cell(values: list[float]) -> str:
    return f'{statistics.mean(values):.3f}' + (f' ± {statistics.stdev(values):.3f}' if len(values) > 1 else '')


def main(_):
    methods = [dict(dit=dit, umd=umd, maskdit=maskdit)[name] for name in METHODS.value]
    budget = STEPS.value * flops(dit)
    lines = ['| | steps | CPU minutes | ' + ' | '.join(COLUMNS) + ' |', '|---' * (len(COLUMNS) + 3) + '|']
    for method in methods:
        steps = round(budget / flops(method))
        found = [result(method, steps, seed) for seed in SEEDS.value]
        cells = [cell([r[name] for r in found]) for name in COLUMNS.values()]
        minutes = max(r['cpu_minutes'] for r in found)
        lines.append(f'| `{method.__name__.split(".")[1]}.py` | {steps} | {minutes:.1f} | ' + ' | '.join(cells) + ' |')
    told = f'{VARIANT.value}, encoders of width x depth {SHAPE.value[0]} x {SHAPE.value[1]}, batches of {ROWS.value}, {len(SEEDS.value)} seed(s), {SAMPLES.value} samples each; '
    told += f'a classifier of {JUDGE.value} steps judges them, right on {100 * found[0]["eval/classifier_top1"]:.1f}% of validation images. {platform.machine()}, {os.cpu_count()} cores.'
    Path(OUT.value).write_text('\n'.join([*lines, '', told]) + '\n')
    print('\n'.join([*lines, '', told]))


if __name__ == '__main__':
    app.run(main)
