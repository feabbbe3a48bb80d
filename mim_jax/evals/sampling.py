"""What a model of noised images draws."""

from collections.abc import Callable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mim_jax import build, masks, samplers
from mim_jax.errors import InputError
from mim_jax.evals.features import everywhere, records, spread
from mim_jax.evals.pictures import Column, figure, sheet
from mim_jax.evals.reconstruction import display
from mim_jax.objectives import MaskedAutoregression

FILLED = 8  # images that are cut and drawn again


def make_image_sampler(objective, data, spec: Mapping) -> Callable:
    """`(params, key, shape, label i32[B] | None, given=None) -> f32[B, H, W, C]` normalised as the data, jitted, by what a config says.

    given = (values f32[B, H, W, C], known bool[B, H, W, 1]) keeps what is known: with `Denoise` as `samplers.known` does, with
    `MaskedAutoregression` whole patches.

    Args:
        objective: `Denoise` or `MaskedAutoregression`.
        data: LabelledData.
        spec: `name` of a sampler of `samplers.denoising` and its options; besides, `steps` and `grid` of times ('even', 'rooted'),
            `guidance` and its `interval` of times, see `samplers.guided`, and `clip`, whether clean values are kept within those of pixels.
            For `MaskedAutoregression` 'random_order': `steps`, `denoising` one of those others, `guidance` that grows to its value with
            the share of known tokens, and `clip`.

    Raises:
        InputError: unknown sampler, grid or option, or one that is not for this objective.
    """
    in_order = isinstance(objective, MaskedAutoregression)
    if (spec['name'] == 'random_order') != in_order:
        raise InputError(
            f'sampler {spec["name"]!r} is not one for the objective {type(objective).__name__}: '
            "'random_order' is for MaskedAutoregression, 'ddim' and 'ode' are for Denoise"
        )
    return jax.jit((_in_random_order if in_order else _at_once)(objective, data, spec), static_argnums=2)


def image_shape(objective, data, batch: dict) -> tuple[int, int, int]:
    """(height, width, channels) of what the model gets for a batch of records."""
    view = partial(data.augment, train=False)
    return jax.eval_shape(view, jax.random.key(0), batch)[objective.field].shape[1:]


def _at_once(objective, data, spec: Mapping) -> Callable:
    """Of `Denoise`: every value in every step."""
    options = dict(spec)
    guidance, interval = options.pop('guidance', 1.0), tuple(options.pop('interval', (0.0, 1.0)))
    clip = _clipped(objective.schedule, data) if options.pop('clip', False) else lambda network: network
    walk = _walk(objective.schedule, options)

    def sample(params: dict, key: Array, shape: tuple[int, ...], label: Array | None, given=None) -> Array:
        def told(label):
            return lambda x, t: objective.apply({'params': params}, x, t, label, method='denoise')

        network = told(label) if guidance == 1 else samplers.guided(told(label), told(None), guidance, interval)
        start, key = jax.random.split(key)
        pin = {} if given is None else dict(pin=samplers.known(*given))
        return walk(key, clip(network), jax.random.normal(start, shape), **pin)

    return sample


def _in_random_order(objective, data, spec: Mapping) -> Callable:
    """Of `MaskedAutoregression`: some tokens in each step, each by all steps of denoising."""
    options = dict(spec)
    guidance, walk = options.pop('guidance', 1.0), _walk(objective.schedule, needed(options, 'denoising'))
    clip = _clipped(objective.schedule, data) if options.pop('clip', False) else lambda network: network
    order = build.part('samplers', options, where='evals, sampler')

    def sample(params: dict, key: Array, shape: tuple[int, ...], label: Array | None, given=None) -> Array:
        run, labels = partial(objective.apply, {'params': params}), (label,) if guidance == 1 else (label, None)
        values, known = (
            (jnp.zeros(shape), jnp.zeros(shape)) if given is None else (given[0], given[1] + jnp.zeros(shape))
        )
        tokens, hidden = (objective.tokenizer({objective.field: x}) for x in (values, known))
        hidden = ~(hidden.raw > 0).all(-1)

        def tell(raw, hidden):
            return [run(tokens.replace(raw=raw), masks.asking(hidden), label, method='tell')[0] for label in labels]

        def draw(key, told, share):
            flat = [z.reshape(-1, z.shape[-1]) for z in told]
            networks = [lambda x, t, z=z: run(x, t, z, method='denoise') for z in flat]
            network = networks[0] if guidance == 1 else samplers.guided(*networks, 1 + (guidance - 1) * share)
            start, key = jax.random.split(key)
            noise = jax.random.normal(start, (len(flat[0]), tokens.raw.shape[-1]))
            return walk(key, clip(network), noise).reshape(*told[0].shape[:2], -1)

        raw = order(key, tell, draw, tokens.raw, hidden)
        return objective.untokenize(raw, shape)

    return sample


def _walk(schedule, spec: Mapping) -> Callable:
    """`(key, denoise_fn, x) -> x` of a sampler's name, its options, `steps` and `grid`."""
    options = dict(spec)
    steps, grid = needed(options, 'steps'), options.pop('grid', 'even')
    if steps < 1:
        raise InputError(f'evals, sampler: steps={steps}: it takes one or more')
    times = build.part(
        'noise', dict(name=grid), where='evals, sampler, grid', bind=False, schedule=schedule, steps=steps
    )
    if options.get('variable') == 'ratio' and schedule.level(times[0])[0] == 0:
        raise InputError(
            "evals, sampler: variable='ratio' divides by alpha, which is 0 at the first time of this schedule: use variable='time' or grid='rooted'"
        )
    return build.part('samplers', options, where='evals, sampler', schedule=schedule, times=times)


def needed(options: dict, name: str):
    """Takes an option that has no default.

    Raises:
        InputError: it is not there.
    """
    if name not in options:
        raise InputError(f'evals, sampler: {options["name"]!r} needs {name}=...')
    return options.pop(name)


def _clipped(schedule, data) -> Callable:
    """`denoise_fn -> denoise_fn` whose clean values are those of pixels; the last axis of x holds channels, or patches of them."""
    if data.decode:
        raise InputError(
            'sampler: clip=True keeps values within those of pixels, but the data are latents: set clip=False'
        )
    low, high = ((x - np.asarray(data.mean)) / np.asarray(data.std) for x in (0.0, 1.0))

    def clip(network):
        def denoise(x, t):
            count = x.shape[-1] // len(low)
            clean = jnp.clip(network(x, t)[0], np.tile(low, count), np.tile(high, count))
            alpha, sigma = (z.reshape(-1, *[1] * (x.ndim - 1)) for z in schedule.level(t))
            return clean, (x - alpha * clean) / jnp.maximum(sigma, 1e-6)

        return denoise

    return clip


def sampling(objective, data, *, sampler: Mapping, rows: int = 80, seed: int = 0, hole: float = 0.0) -> Callable:
    """`params -> {'sample': uint8[H, W, 3]}`: images drawn by the model, a column for each class where it knows classes; latents are decoded.

    Args:
        sampler: see `make_image_sampler`.
        rows: images.
        seed: of them.
        hole: share of the height and width of eight validation images that is cut out of their middle and drawn again, told no class:
            'inpainting' uint8[H, W, 3]. 0 = none.
    """
    sample, classes = make_image_sampler(objective, data, sampler), objective.num_classes
    show, names = data.decode or display(data.mean, data.std), data.class_names or [str(i) for i in range(classes)]

    def evaluate(params: dict) -> dict:
        shape = (rows, *image_shape(objective, data, next(iter(data.val(1)))))
        label = spread(dict(label=np.arange(rows, dtype=np.int32) % classes))['label'][:rows] if classes else None
        drawn = sample(params, jax.random.key(seed), shape, label)
        found = dict(sample=sheet(show(everywhere(drawn)), names[:classes] if classes <= rows else ()))
        return found | (dict(inpainting=inpainted(params)) if hole else {})

    def inpainted(params: dict) -> np.ndarray:
        batch = records(data.val(FILLED), FILLED)
        real = batch['valid']
        image = data.augment(jax.random.key(0), spread(batch), train=False)[objective.field]
        inside = [abs(np.arange(n) + 0.5 - n / 2) < hole * n / 2 for n in image.shape[1:3]]
        cut = np.broadcast_to(inside[0][:, None] & inside[1], image.shape[:3])
        drawn = sample(params, jax.random.key(seed), image.shape, None, (image, ~cut[..., None]))
        whole, drawn, cut = (x[: len(real)][real] for x in (show(everywhere(image)), show(everywhere(drawn)), cut))
        blank = np.zeros(whole.shape[:3], bool)
        given = cut if data.decode is None else blank  # what latents hide is not a part of the picture
        columns = ('input', '', whole, blank), ('known', '', whole, given), ('drawn', '', drawn, blank)
        return figure([Column(*column) for column in columns])

    return evaluate
