"""From a config to the parts it names: dict(name=f, **kw) -> f(**kw) for a module or class, partial(f, **kw) for a function."""

import difflib
import importlib
import inspect
import math
from collections.abc import Callable, Mapping
from functools import partial, reduce

import flax.linen as nn
import optax

from mim_jax.augment.mix import mixup_cutmix
from mim_jax.data import image
from mim_jax.errors import InputError
from mim_jax.losses import nll
from mim_jax.models.blocks import xavier
from mim_jax.models.condition import Condition
from mim_jax.models.heads import Classifier
from mim_jax.objectives import (
    Answer,
    Autoencoding,
    Classification,
    Denoise,
    MaskedAutoregression,
    MaskedPrediction,
    Sequence,
    Term,
    TokenDiffusion,
)
from mim_jax.targets import normalised
from mim_jax.tokenizers import field, unpatchify

DTYPES = ('float32', 'bfloat16', 'float16')  # of the computation
LIMITS = {  # of numbers, both included
    'seed': (0, 2**31 - 1),
    'total_steps': (1, None),
    'log_every': (1, None),
    'eval_every': (0, None),
    'checkpoint_every': (1, None),
    'keep_checkpoints': (1, None),
    'micro_batch': (0, None),
    'max_bad_steps': (1, None),
    'ema': (0, 1),
    'end_ema': (0, 1),
    'data.batch_size': (1, None),
    'data.channels': (1, None),
    'data.workers': (0, None),
    'data.min_side': (1, None),
    'data.holdout': (0, 1),
    'data.max_bad_share': (0, 1),
    'encoder.depth': (0, None),
    'schedule.lr': (0, None),
    'schedule.warmup_steps': (0, None),
    'schedule.start_lr': (0, None),
    'schedule.end_lr': (0, None),
    'optimizer.weight_decay': (0, None),
    'optimizer.end_weight_decay': (0, None),
    'optimizer.clip': (0, None),
}


def check(config) -> None:
    """Looks at the values that no part looks at.

    Raises:
        InputError: one is out of range.
    """
    for key, (least, most) in LIMITS.items():
        value = reduce(lambda node, name: node.get(name), key.split('.'), config)
        if value is not None and not least <= value <= (math.inf if most is None else most):
            wanted = f'at least {least}' if most is None else f'between {least} and {most}'
            raise InputError(f'config.{key}={value}: it has to be {wanted}')
    if config.get('end_ema') and not config.ema:
        raise InputError(
            f'config.end_ema={config.end_ema}, but config.ema=0 keeps no average: set config.ema too, or config.end_ema=0'
        )
    for key in ('image_size', 'canvas'):
        if len(config.data[key]) != 2 or min(config.data[key]) < 1:
            raise InputError(
                f'config.data.{key}={tuple(config.data[key])}: it has to be height and width in pixels, as "(224, 224)"'
            )
    if min(config.data.std) <= 0:
        raise InputError(f'config.data.std={tuple(config.data.std)}: every number has to be above 0')
    values = (('dtype', config.dtype, DTYPES), ('data.dtype', config.data.dtype, image.DTYPES),
              ('init_part', config.init_part, ('encoder', 'all')))  # fmt: skip
    for key, given, known in values:
        if given not in known:
            raise InputError(f'config.{key}={given}: it has to be one of {", ".join(known)}')


def nearest(word: str, known) -> str:
    """' Did you mean X?' or the list of what there is."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, 1)
    return f'Did you mean {close[0]!r}?' if close else f'There are: {", ".join(known)}.'


def find(room: str, name: str) -> Callable:
    """What `mim_jax.ROOM` exports as `name`.

    Raises:
        InputError: there is no such part; the sentence has the nearest name.
    """
    package = importlib.import_module(f'mim_jax.{room}')
    if name not in package.__all__:
        raise InputError(f'mim_jax.{room} has no {name!r}. {nearest(name, package.__all__)}')
    return getattr(package, name)


def part(room: str, spec: Mapping, *, where: str = '', bind: bool = True, **extra):
    """The part `spec` = dict(name, **options) describes, found in `mim_jax.ROOM`.

    Args:
        room: the sub-package.
        spec: its name and options.
        where: path of the spec in the config, for messages.
        bind: give back `partial(f, **options)` for a function; False gives `f(**options)` of anything.
        extra: options given by the caller, over those of the spec.

    Raises:
        InputError: unknown name or option; the sentence has the nearest one.
    """
    where = where or room
    options = dict(spec)
    if 'name' not in options:
        raise InputError(f'config.{where} has no name: it needs name=..., one of what mim_jax.{room} exports')
    f = find(room, options.pop('name'))
    parameters = inspect.signature(f).parameters
    taken = {
        name
        for name, p in parameters.items()
        if inspect.isclass(f) or p.kind == p.KEYWORD_ONLY or p.default is not p.empty
    } - {'parent'}
    for name in options:
        if name not in taken and not any(p.kind == p.VAR_KEYWORD for p in parameters.values()):
            raise InputError(f'config.{where}.{name}: {spec["name"]} takes no such option. {nearest(name, taken)}')
    options |= extra
    if inspect.isclass(f) or not bind:
        return f(**options)
    return partial(f, **options)


def objective(config):
    """The objective of a config with all its parts.

    Raises:
        InputError: a part or an option that does not exist.
    """
    name = config.objective.name
    if name not in OBJECTIVES:
        raise InputError(f'config.objective.name={name}: there is no such objective. {nearest(name, OBJECTIVES)}')
    return OBJECTIVES[name](config)


def masked_prediction(config) -> MaskedPrediction:
    """See `objective`."""
    if not config.terms:
        raise InputError('config.terms is empty: a method needs at least one dict(predictor, target, loss)')
    terms, predictors = {}, {}
    for name, term in config.terms.items():
        where = f'terms.{name}'
        terms[name] = Term(part('targets', term.target, where=f'{where}.target'), part('losses', term.loss, where=f'{where}.loss'),
                           term.get('on', 'hidden'), term.get('weight', 1.0))  # fmt: skip
        predictors[name] = part('models', term.predictor, where=f'{where}.predictor', dtype=config.dtype)
    return MaskedPrediction(
        tokenizer=part('tokenizers', config.tokenizer, where='tokenizer'),
        mask=part('masks', config.mask, where='mask'),
        hide=part('hiding', config.hide, where='hide'),
        encoder=part('models', config.encoder, where='encoder', dtype=config.dtype),
        predictor=predictors,
        terms=terms,
    )


def classification(config) -> Classification:
    """See `objective`."""
    options = config.objective.to_dict()
    classes, pool = options['num_classes'], options['pool']
    mix = {name: options[name] for name in ('mixup', 'cutmix', 'smoothing')}
    encoder = part('models', config.encoder, where='encoder', dtype=config.dtype)
    return classifier(part('tokenizers', config.tokenizer, where='tokenizer'), encoder, classes, pool, **mix)


def classifier(tokenizer, encoder, num_classes: int, pool: str, **mix) -> Classification:
    """An encoder with a head on top, and how its batches are mixed (options of `mixup_cutmix`)."""
    mix = partial(mixup_cutmix, num_classes=num_classes, **mix)
    return Classification(tokenizer, Classifier(encoder, num_classes, pool), mix, field(tokenizer))


def token_model(config) -> dict:
    """The parts of objectives over ids."""
    encoder = part('models', config.encoder, where='encoder', dtype=config.dtype, vocab=reader(config).vocab)
    told = config.condition
    condition = Condition(encoder.shape[0], told.level, told.num_classes) if told.level or told.num_classes else None
    return dict(
        tokenizer=part('tokenizers', config.tokenizer, where='tokenizer'),
        encoder=encoder,
        head=nn.Dense(encoder.vocab, dtype=config.dtype, kernel_init=xavier),
        condition=condition,
        nll=nll,
        label_dropout=told.label_dropout,
    )


def token_diffusion(config) -> TokenDiffusion:
    """See `objective`."""
    weighting = config.objective.weighting
    if weighting not in ('bound', 'mean'):
        raise InputError(f"config.objective.weighting={weighting}: it has to be 'bound' or 'mean'")
    model = token_model(config)
    offered = wanted('hiding', config.hide, dict(vocab=model['encoder'].vocab))
    return TokenDiffusion(
        mask=part('masks', config.mask, where='mask'),
        hide=part('hiding', config.hide, where='hide', **offered),
        weighting=weighting,
        smoothing=config.objective.smoothing,
        **model,
    )


def sequence(config) -> Sequence:
    """See `objective`."""
    return Sequence(**token_model(config))


def autoencoding(config) -> Autoencoding:
    """See `objective`."""
    shape = dict(patch=tuple(config.tokenizer.patch), dtype=config.dtype)
    tokenizer = part('tokenizers', config.tokenizer, where='tokenizer')
    losses = [(part('losses', dict(name=name)), share) for name, share in config.losses.items() if share]
    return Autoencoding(
        tokenizer=tokenizer,
        encoder=part('models', config.encoder, where='encoder', **shape),
        bottleneck=part('models', config.bottleneck, where='bottleneck'),
        decoder=part('models', config.decoder, where='decoder', channels=config.data.channels, **shape),
        losses=losses,
        mean=tuple(config.data.mean),
        std=tuple(config.data.std),
        field=field(tokenizer),
    )


def denoise(config) -> Denoise:
    """See `objective`."""
    encoder = part('models', config.encoder, where='encoder', dtype=config.dtype)
    answers = tuple(config.answers)

    def answer(where, spec):
        if spec.on not in ('visible', 'hidden', 'all'):
            raise InputError(f"config.{where}.on={spec.on}: it has to be 'visible', 'hidden' or 'all'")
        if spec.of not in answers:
            raise InputError(f'config.{where}.of={spec.of}: config.answers has {", ".join(answers)}')
        return Answer(spec.of, spec.on, spec.weight, spec.weighting, normalised if spec.noised else None)

    terms = {name: answer(f'terms.{name}', spec) for name, spec in config.terms.items()}
    clean = {name: answer(f'clean_terms.{name}', spec) for name, spec in config.get('clean_terms', {}).items()}
    return Denoise(
        **continuous(config, answers[-1]),
        spread=config.noise.spread,
        mixer=part('models', config.mixer, where='mixer', dtype=config.dtype) if 'mixer' in config else None,
        mask=part('masks', config.mask, where='mask'),
        encoder=encoder,
        predictor=part('models', config.predictor, where='predictor', dtype=config.dtype, seen=True),
        condition=Condition(encoder.shape[0], True, config.condition.num_classes),
        answers=answers,
        terms=terms,
        clean_every=config.objective.clean_every,
        clean_mask=part('masks', config.clean_mask, where='clean_mask') if clean else None,
        clean_terms=clean,
    )


def masked_autoregression(config) -> MaskedAutoregression:
    """See `objective`."""
    encoder = part('models', config.encoder, where='encoder', dtype=config.dtype)
    classes = config.condition.num_classes
    return MaskedAutoregression(
        **continuous(config, config.objective.answer),
        mask=part('masks', config.mask, where='mask'),
        hide=part('hiding', config.hide, where='hide'),
        encoder=encoder,
        predictor=part('models', config.predictor, where='predictor', dtype=config.dtype),
        head=part('models', config.head, where='head', dtype=config.dtype),
        condition=Condition(encoder.shape[0], num_classes=classes) if classes else None,
        answer=config.objective.answer,
        weighting=config.objective.weighting,
        draws=config.objective.draws,
    )


def continuous(config, answer: str) -> dict:
    """What objectives of noised tokens have in common; `answer` is what samplers read."""
    tokenizer = part('tokenizers', config.tokenizer, where='tokenizer')
    schedule = part('noise', config.noise.schedule, where='noise.schedule', bind=False)
    if answer == 'noise' and schedule.ends_in_noise:
        raise InputError(
            f"config.noise.schedule.name={config.noise.schedule.name} ends in noise alone, of which the answer 'noise' says "
            "nothing of the data: answer 'flow', 'velocity' or 'clean', or take another schedule"
        )
    return dict(
        tokenizer=tokenizer,
        untokenize=lambda raw, shape: unpatchify(raw, tuple(config.tokenizer.patch), shape),
        schedule=schedule,
        times=part('noise', config.noise.times, where='noise.times'),
        label_dropout=config.condition.label_dropout,
        field=field(tokenizer),
    )


OBJECTIVES = dict(
    Autoencoding=autoencoding,
    Classification=classification,
    Denoise=denoise,
    MaskedAutoregression=masked_autoregression,
    MaskedPrediction=masked_prediction,
    Sequence=sequence,
    TokenDiffusion=token_diffusion,
)


def reader(config, **options):
    """The reader of records, with options over those of `data.reader`."""
    c, spec = config.data, {**config.data.reader, **options}
    pixels = dict(channels=c.channels, dtype=c.dtype, canvas=tuple(c.canvas), min_side=c.min_side)
    return part('data', spec, where='data.reader', **wanted('data', spec, pixels))


def wanted(room: str, spec: Mapping, offered: Mapping) -> dict:
    """Those of the options offered that the part of a spec takes."""
    taken = inspect.signature(find(room, spec['name'])).parameters if 'name' in spec else {}
    return {name: value for name, value in offered.items() if name in taken}


def augment(config) -> Callable:
    """`(key, batch, train) -> batch`: raw records on the device to normalised arrays."""
    return part('augment', config.augment, where='augment', image_size=tuple(config.data.image_size),
                mean=tuple(config.data.mean), std=tuple(config.data.std))  # fmt: skip


def optimizer(config, **options) -> Callable:
    """`(params) -> optax transformation`, without the learning rate."""
    return part('optim', config.optimizer, where='optimizer', total_steps=config.total_steps, **options)


def ema(config) -> optax.Schedule:
    """`(step) -> decay` of the moving average."""
    return optax.linear_schedule(config.ema, config.end_ema or config.ema, config.total_steps)


def schedule(config) -> Callable:
    """`(step) -> learning rate`."""
    return part(
        'optim',
        config.schedule,
        where='schedule',
        bind=False,
        batch_size=config.data.batch_size,
        total_steps=config.total_steps,
    )
