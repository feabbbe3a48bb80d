"""Which evaluations run when, and the table at the end."""

import json
from dataclasses import replace
from pathlib import Path

import jax

from mim_jax import build, hosts
from mim_jax.errors import InputError
from mim_jax.evals import LABEL_FREE
from mim_jax.evals.pictures import file_of, save

ROWS = (  # heading of the final table, metric, metric of an untrained encoder where it is not the same
    ('loss', 'train/loss', None),
    ('loss of the mean predictor', 'baseline/mean_predictor_loss', None),
    ('kNN top-1', 'eval/knn_top1', None),
    ('linear probe top-1', 'eval/linear_top1', 'eval/linear_top1_untrained'),
    ('attentive probe top-1', 'eval/attentive_top1', ''),
    ('fine-tuned top-1', 'eval/finetune_top1', 'eval/scratch_top1'),
    ('fine-tuned on one frame, top-1', 'eval/still_top1', ''),
    ('top-1', 'eval/top1', None),
    ('linear probe top-1 of the best block and noise', 'eval/layer_noise_top1', None),
    ('bound in nats a token', 'eval/nelbo_nats', None),
    ('bits a token', 'eval/bits_per_token', None),
    ('bits a byte', 'eval/bits_per_byte', None),
    ('bits a number', 'eval/bits_per_dim', None),
    ('perplexity', 'eval/perplexity', None),
    ('pseudo-likelihood, nats a token', 'eval/pseudo_nats', None),
    ('bits of unigrams of samples', 'eval/sample_unigram_bits', None),
    ('bits of unigrams of the data', 'eval/data_unigram_bits', None),
    ('unigrams of samples less the data', 'eval/unigram_distance', None),
    ('bigrams of samples less the data', 'eval/bigram_distance', None),
    ('samples of the class they were asked for', 'eval/class_agreement', None),
    ('top-1 of the classifier that says so', 'eval/classifier_top1', ''),
    ('Fréchet distance in its features', 'eval/frechet', None),
    ('FID', 'eval/fid', None),
    ('precision', 'eval/precision', None),
    ('recall', 'eval/recall', None),
    ('PSNR in dB', 'eval/psnr', None),
    ('share of codes in use', 'eval/codebook_use', None),
    ('perplexity of the codes', 'eval/code_perplexity', None),
)
SAID = 600  # characters of a text that are also printed


class Evaluation:
    """The evaluators of a config: `evals_often` at the start, every `eval_every` steps and at the end, `evals_last` at the end.

    Args:
        config: with `evals`, and the two lists of their names.
        objective: what they evaluate.
        data: inputs.Data; where it has no labels, evaluators that need them are left out, and where it has no validation records,
            the others are of the training records; it says so once.
        workdir: where metrics.jsonl is, and pictures go.
        progress: where lines are said.

    Raises:
        InputError: an evaluator or an option that does not exist.
    """

    def __init__(self, config, objective, data, workdir: Path, progress):
        self.workdir, self.progress = workdir, progress
        often, last = config.evals_often, config.evals_last
        if unknown := sorted({*often, *last} - set(config.evals.keys())):
            raise InputError(f'config.evals has no {unknown[0]!r}. {build.nearest(unknown[0], config.evals)}')
        needs_labels = {name for name in (*often, *last) if config.evals[name].name not in LABEL_FREE}
        left_out = needs_labels if data.unlabelled else set()
        if left_out:
            progress.say(f'without {", ".join(sorted(left_out))}: {data.unlabelled}')
        if data.val_source is None and (reading := sorted({*often, *last} - left_out)):
            progress.say(
                f'warning: {", ".join(reading)} will be of the training records, as {data.path} has no validation records: '
                'set data.val_path or data.holdout'
            )

        told, there = getattr(objective, 'num_classes', 0), data.labelled.num_classes
        if told and there and told != there:
            raise InputError(
                f'config.condition.num_classes={told}, but {data.path} has {there} classes: they have to be as many'
            )

        labelled = replace(data.labelled, say=progress.say)

        def built(names):
            return {name: build.part('evals', config.evals[name], where=f'evals.{name}', bind=False, objective=objective, data=labelled)
                    for name in names if name not in left_out}  # fmt: skip

        self._often, self._last = built(often), built(last)

    def during(self, state, writer) -> dict:
        """Runs `evals_often`, gives what they measure to the writer, and back."""
        return self._run(self._often, state, writer)

    def final(self, state, writer, again: bool = False) -> None:
        """Runs all, unless they have been before or should be `again`, and prints the table of the run."""
        if again or not self.measured(int(state.step)):
            self._run(self._often | self._last, state, writer)
        if jax.process_index() == 0:
            self.progress.say(table(self.workdir))

    def measured(self, step: int) -> bool:
        """Whether the evaluations of this step are in metrics.jsonl; all hosts take the word of the first."""
        lines = logged(self.workdir) if jax.process_index() == 0 else []
        found = any(name.startswith('eval/') for line in lines if line['step'] == step for name in line)
        return bool(hosts.first(found))

    def _run(self, evaluators: dict, state, writer) -> dict:
        step, params = int(state.step), state.params if state.ema is None else state.ema
        values, pictures = {}, {}
        for label, evaluator in evaluators.items():
            measured = evaluator(params)
            numbers = {
                name: float(x) for name, x in measured.items() if not isinstance(x, str) and not getattr(x, 'ndim', 0)
            }
            if numbers:
                said = ', '.join(f'{name.removeprefix("eval/")} {x:.4g}' for name, x in numbers.items())
                self.progress.say(f'step {step}  {label}: {said}')
            for name, text in measured.items():
                if isinstance(text, str):
                    self.progress.say(f'{name}: {text[:SAID]}')
            values |= numbers
            pictures |= {name: x for name, x in measured.items() if name not in numbers}
        for name, picture in pictures.items() if jax.process_index() == 0 else ():
            save(picture, self.workdir / file_of(name, picture, step))
        writer.images(step, {name: x for name, x in pictures.items() if not isinstance(x, str) and x.ndim == 3})
        if values:
            writer.scalars(step, values)
        return values


def logged(workdir: Path) -> list[dict]:
    """What metrics.jsonl holds; a line that is being written does not count."""
    path = workdir / 'metrics.jsonl'
    return [json.loads(line) for line in path.read_text().split('\n')[:-1]] if path.exists() else []


def table(workdir: Path) -> str:
    """First and last value of what a run measured, as text that can be pasted into Markdown."""
    start, last = {}, {}
    for line in logged(workdir):
        values = {k: v for k, v in line.items() if v is not None}
        start |= values if line['step'] <= 1 else {}
        last |= values
    lines = [('', 'untrained', 'trained')]
    for heading, name, untrained in ROWS:
        if name in last:
            before = start.get(name) if untrained is None else last.get(untrained)
            lines.append((heading, '' if before is None else f'{before:.4f}', f'{last[name]:.4f}'))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = [
        '| ' + ' | '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + ' |' for line in lines
    ]
    rows.insert(1, '|' + '|'.join('-' * (width + 2) for width in widths) + '|')
    newest = dict(pictures='reconstructions/*.png', samples='samples/*.*', infillings='infillings/*.txt',
                  inpaintings='inpaintings/*.png', probes='layer_noise_probes/*.png')  # fmt: skip
    files = {
        name: max(workdir.glob(kind), key=lambda path: int(path.stem), default=None) for name, kind in newest.items()
    }
    return '\n'.join([*rows, *(f'{name}: {path}' for name, path in files.items() if path), f'everything: {workdir}'])
