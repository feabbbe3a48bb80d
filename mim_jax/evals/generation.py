"""What a model of tokens writes and draws, and how its statistics compare with the data's."""

from collections.abc import Callable, Mapping
from functools import partial

import jax
import numpy as np
from jax import Array
from scipy import stats

from mim_jax import build, samplers
from mim_jax.errors import InputError
from mim_jax.evals.features import everywhere, records, spread
from mim_jax.evals.pictures import sheet
from mim_jax.masks import schedule
from mim_jax.samplers.draw import DRAWS
from mim_jax.samplers.masked import RULES

DRAW = ('temperature', 'top_k', 'top_p', 'method')  # options of a sampler that are those of `samplers.token`
HOLE = '\u27e6', '\u27e7'  # around what was filled in
LIMITS = dict(  # of options of a sampler
    steps=(lambda x: x >= 1 and x == int(x), 'a whole number, 1 or more'),
    block=(lambda x: x >= 0 and x == int(x), 'a whole number, 0 or more'),
    temperature=(lambda x: x >= 0, '0 or more'),
    top_k=(lambda x: x >= 0 and x == int(x), 'a whole number, 0 or more'),
    top_p=(lambda x: 0 < x <= 1, 'above 0 and at most 1'),
    method=(lambda x: x in DRAWS, ' or '.join(DRAWS)),
    eta=(lambda x: 0 <= x <= 1, 'between 0 and 1'),
    rule=(lambda x: x in RULES, ' or '.join(RULES)),
    noise=(lambda x: x >= 0, '0 or more'),
)


def make_sampler(objective, spec: Mapping) -> Callable:
    """`(params, key, ids i32[B, N], hidden bool[B, N], label i32[B] | None) -> i32[B, N]`, jitted, by what a config says.

    Args:
        objective: has `answer(ids, hidden, level, label) -> logits`.
        spec: `name` of a sampler and its options; besides, those of `DRAW`, `schedule` and
            `power` of `masks.schedule`, and `guidance`, the scale of `samplers.guide`; 1 = none.

    Raises:
        InputError: unknown sampler, option or schedule, an option out of range, or guidance of a model that knows no classes.
    """
    check_sampler(objective, spec)
    options, guidance = dict(spec), spec.get('guidance', 1.0)
    how = {key: options.pop(key) for key in DRAW if key in options}
    kind = [options.pop(key, default) for key, default in (('schedule', 'linear'), ('power', 1.0))]
    options.pop('guidance', None)
    try:
        offered = build.wanted('samplers', spec, dict(share=schedule(*kind).share))
    except ValueError as error:
        raise InputError(f'sampler: {error}') from error
    draw = partial(samplers.token, **how)
    sampler = build.part('samplers', options, where='evals, sampler', draw=draw, **offered)
    if 'steps' not in spec and build.wanted('samplers', spec, dict(steps=None)):
        raise InputError(f'sampler {spec["name"]!r} needs steps=...')

    @jax.jit
    def sample(params: dict, key: Array, ids: Array, hidden: Array, label: Array | None = None) -> Array:
        def logits_fn(ids, hidden, level):
            answer = partial(objective.apply, {'params': params}, ids, hidden, level, method='answer')
            return answer(label) if guidance == 1 else samplers.guide(answer(label), answer(None), guidance)

        return sampler(key, logits_fn, ids, hidden)

    return sample


def check_sampler(objective, spec: Mapping) -> None:
    """Looks at what `make_sampler` is given, before anything is drawn.

    Raises:
        InputError: as `make_sampler`.
    """
    name = spec.get('name')
    if name and not build.wanted('samplers', spec, dict(logits_fn=None)):
        raise InputError(f'sampler {name!r} is none of tokens: use ancestral, first_hitting, confidence or remasking')
    for option, (holds, words) in LIMITS.items():
        if option in spec and not holds(spec[option]):
            raise InputError(f'sampler {name!r}: {option}={spec[option]}: it has to be {words}')
    if spec.get('guidance', 1.0) != 1 and not objective.num_classes:
        raise InputError(
            f'sampler {name!r}: guidance={spec["guidance"]} needs a model that is told classes (condition.num_classes)'
        )
    if objective.exact and (name, spec.get('block')) != ('first_hitting', 1):
        raise InputError(
            f"sampler {name!r} draws in any order: an autoregressive model takes name='first_hitting', block=1"
        )


def generation(
    objective, data, *, sampler: Mapping, rows: int = 16, show: int = 8, seed: int = 0, hole: float = 0.5
) -> Callable:
    """`params -> {name: value}`: samples, a filled hole, and their statistics beside those of as many validation records, evenly spaced.

    Texts: 'sample', `show` of them, and 'infilling', the first document of validation with its middle hidden and drawn again. Images: 'sample', a sheet
    of all, a column for each class where the model knows classes. Numbers, of samples and of data: 'eval/sample_unigram_bits' and
    'eval/data_unigram_bits', entropies of the distribution of tokens, the same of pairs of neighbours ('bigram'), and
    'eval/unigram_distance' and 'eval/bigram_distance', the total variation between both.

    Args:
        sampler: see `make_sampler`.
        rows: samples, and records they are compared with.
        show: texts that are written out.
        seed: of the samples.
        hole: share of a record that is hidden to be filled in; 0 = none.
    """
    sample, classes = make_sampler(objective, sampler), objective.num_classes

    def evaluate(params: dict) -> dict:
        batch = records(data.val(rows, count=rows), rows)
        given, segment = batch['ids'], batch.get('segment', np.ones_like(batch['ids'])) * batch['valid'][:, None]
        label = np.arange(rows, dtype=np.int32) % classes if classes else None
        drawn = run(params, seed, np.zeros((rows, given.shape[1]), np.int32), True, label)
        found = statistics(drawn, given, segment)
        if data.decode is None:
            return found
        shown = data.decode(drawn)
        if not isinstance(shown[0], str):
            names = data.class_names or [str(i) for i in range(classes)]
            return found | dict(sample=sheet(shown, names[:classes]))
        found['sample'] = '\n\n'.join(f'--- sample {i}\n{text}' for i, text in enumerate(shown[:show])) + '\n'
        if hole and not objective.exact:
            found['infilling'] = filled(params, given, segment == 1)
        return found

    def run(params, seed, ids, hidden, label=None):
        rows, hidden = len(ids), np.broadcast_to(hidden, ids.shape)
        arrays = spread(dict(ids=ids, hidden=hidden) | ({} if label is None else dict(label=label)))
        out = sample(params, jax.random.key(seed), arrays['ids'], arrays['hidden'], arrays.get('label'))
        return everywhere(out)[:rows]

    def filled(params, given, first):
        length = int(first[0].sum())
        start = round(length * (1 - hole) / 2)
        hidden = (np.arange(given.shape[1]) >= start) & (np.arange(given.shape[1]) < length - start)
        drawn = run(params, seed, given[:1], hidden | ~first[:1])
        before, inside, after = (data.decode(x)[0] for x in np.split(drawn[:, :length], [start, length - start], 1))
        truth = data.decode(given[:1, start : length - start])[0]
        return f'{before}{HOLE[0]}{inside}{HOLE[1]}{after}\n\n--- hidden was\n{truth}\n'

    return evaluate


def statistics(samples: np.ndarray, given: np.ndarray, segment: np.ndarray) -> dict[str, float]:
    """Entropies in bits of the unigrams and bigrams of i32[R, N] samples and of data i32[R, N], and the total variation between both.

    Args:
        segment: i32[R, N], which document of its row a token of the data belongs to, 0 = none. No bigram is of two documents.
    """
    found = {}
    for name, width in (('unigram', 1), ('bigram', 2)):
        grams = [np.lib.stride_tricks.sliding_window_view(x, width, 1) for x in (samples, given, segment)]
        grams = [
            grams[0].reshape(-1, width),
            grams[1][(grams[2] > 0).all(-1) & (grams[2] == grams[2][..., :1]).all(-1)],
        ]
        kinds, place = np.unique(np.concatenate(grams), axis=0, return_inverse=True)
        parts = np.split(place.ravel(), [len(grams[0])])
        p, q = (np.bincount(part, minlength=len(kinds)) / max(len(part), 1) for part in parts)
        for whose, x in (('sample', p), ('data', q)):
            found[f'eval/{whose}_{name}_bits'] = float(stats.entropy(x, base=2))
        found[f'eval/{name}_distance'] = float(np.abs(p - q).sum() / 2)
    return found
