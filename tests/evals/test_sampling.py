"""Sheets of images drawn by a model of noise, and the options of their samplers."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import dit, mar
from mim_jax import build, noise
from mim_jax.errors import InputError
from mim_jax.evals import fidelity, sampling
from mim_jax.evals.sampling import make_image_sampler
from tests import checks

DATA = SimpleNamespace(
    mean=(0.5,), std=(0.25,), class_names=['a', 'b', 'c'], decode=None,
    val=lambda rows: iter([dict(image=np.zeros((1, 6, 4, 3)))]), augment=lambda key, batch, train: batch,
)  # fmt: skip


class Constant:
    """A model whose every clean image is `params` + the label."""

    num_classes, schedule, field = 3, noise.flow(), 'image'

    @staticmethod
    def apply(variables, x, t, label, method):
        assert method == 'denoise'
        label = jnp.zeros(len(x)) if label is None else label
        clean = jnp.broadcast_to((variables['params'] + label).reshape(-1, 1, 1, 1), x.shape)
        alpha, sigma = (z.reshape(-1, 1, 1, 1) for z in Constant.schedule.level(t))
        return clean, (x - alpha * clean) / sigma


@pytest.mark.parametrize('spec', [
    dict(name='ddim', steps=4), dict(name='ddim', steps=4, eta=1.0), dict(name='ode', steps=4, order=2),
    dict(name='ode', steps=4, grid='rooted', variable='ratio'),
], ids=str)  # fmt: skip
def test_all_samplers_end_where_the_model_points(spec):
    sample = make_image_sampler(Constant, DATA, spec)
    found = sample(jnp.float32(0.3), jax.random.key(0), (3, 6, 4, 1), jnp.arange(3))
    np.testing.assert_allclose(found, np.broadcast_to(0.3 + np.arange(3).reshape(3, 1, 1, 1), (3, 6, 4, 1)), atol=2e-2)
    sample(jnp.float32(0.1), jax.random.key(1), (3, 6, 4, 1), jnp.arange(3))
    assert sample._cache_size() == 1


def test_guidance_goes_beyond_the_class_and_clipping_stops_at_white():
    guided = dict(name='ddim', steps=4, guidance=3.0)
    far = make_image_sampler(Constant, DATA, guided)(jnp.float32(0.0), jax.random.key(0), (3, 6, 4, 1), jnp.arange(3))
    np.testing.assert_allclose(far[:, 0, 0, 0], [0, 3, 6], atol=1e-4)
    plain = dict(name='ddim', steps=4, clip=True)
    near = make_image_sampler(Constant, DATA, plain)(jnp.float32(1.5), jax.random.key(0), (3, 6, 4, 1), jnp.arange(3))
    np.testing.assert_allclose(near[:, 0, 0, 0], [1.5, 2, 2], atol=1e-4)  # 2 is white: (1 - 0.5) / 0.25


def test_a_sheet_has_a_column_for_each_class():
    found = sampling(Constant, DATA, sampler=dict(name='ddim', steps=2), rows=6)(jnp.float32(0.0))
    assert found['sample'].dtype == np.uint8 and found['sample'].ndim == 3


@pytest.mark.parametrize(('spec', 'why'), [
    (dict(name='ddpm', steps=4), "has no 'ddpm'"), (dict(name='ddim'), "'ddim' needs steps=..."), (dict(name='random_order', steps=4), "'random_order' is not one for the objective type"), (dict(name='ddim', steps=4, grid='odd'), "has no 'odd'"),
    (dict(name='ddim', steps=0), 'steps=0: it takes one or more'), (dict(name='ode', steps=4, variable='ratio'), "'ratio' divides by alpha, which is 0"),
    (dict(name='ddim', steps=4, etta=1.0), "etta: ddim takes no such option. Did you mean 'eta'"),
], ids=str)  # fmt: skip
def test_a_sampler_that_cannot_be_is_named(spec, why):
    with pytest.raises(InputError, match=why):
        make_image_sampler(Constant, DATA, spec)


def test_images_are_judged_as_tokens_are(make_data, digit_arrays):
    """Samples that are the data get their class, and a distance far below that of noise."""
    pixels, labels = digit_arrays
    data = make_data(np.round(pixels * 255).astype(np.uint8).reshape(-1, 8, 8, 1), labels, 1000)
    data = replace(data, augment=partial(data.augment, pad=1))
    config = dit.get_config('tiny')
    objective = build.objective(config)
    spec = dict(name='ddim', steps=1)
    first = [jnp.asarray(data.augment(jax.random.key(0), b, train=False)['image']) for b in data.val(400)][0]
    by_class = jnp.stack([first[np.flatnonzero(labels[1000:1400] == i)[:20]] for i in range(10)], 1).reshape(
        -1, 8, 8, 1
    )

    class Copies:
        """Images of the class asked for, or noise."""

        num_classes, field, schedule = 10, 'image', objective.schedule
        tokenizer, encoder = staticmethod(objective.tokenizer), objective.encoder

        @staticmethod
        def apply(variables, x, t, label, method):
            clean = jnp.where(variables['params'], by_class[: len(x)], jax.random.normal(jax.random.key(3), x.shape))
            alpha, sigma = (z.reshape(-1, 1, 1, 1) for z in objective.schedule.level(t))
            return clean, (x - alpha * clean) / sigma

    measure = fidelity(
        Copies,
        data,
        sampler=spec,
        samples=200,
        batch_size=200,
        steps=200,
        lr=4e-3,
        judge=dict(name='ViT', width=32, depth=2, heads=2, class_token=False),
    )
    real, noise = measure(jnp.array(True)), measure(jnp.array(False))
    assert real['eval/class_agreement'] > 0.6 and real['eval/classifier_top1'] > 0.6
    assert noise['eval/class_agreement'] < 0.3
    assert 20 * real['eval/frechet'] < noise['eval/frechet'] and real['eval/precision'] > 0.8 > noise['eval/precision']


@pytest.mark.parametrize('name', ['dit', 'mar'])
def test_what_is_known_stays(name, digits):
    config = {'dit': dit, 'mar': mar}[name].get_config('tiny')
    for part in [config[slot] for slot in ('encoder', 'predictor') if 'width' in config[slot]]:
        part.update(width=16, depth=1, heads=2)
    objective, spec = build.objective(config), config.evals.sampling.sampler.to_dict()
    spec['steps'] = 3
    for each in [spec, *([spec['denoising']] if 'denoising' in spec else [])]:
        each['steps'] = 3
    params = checks.any_params(objective, dict(image=jnp.zeros((4, 8, 8, 1))))
    image = digits.augment(jax.random.key(0), next(digits.val(8)), train=False)['image']
    known = np.ones((8, 8, 8, 1), bool)
    known[:, 2:6, 2:6] = False
    sample = make_image_sampler(objective, digits, spec)
    drawn = sample(params, jax.random.key(0), image.shape, None, (image, known))
    np.testing.assert_allclose(drawn[:, :2], image[:, :2], atol=1e-6)
    assert jnp.abs(drawn - image)[:, 2:6, 2:6].mean() > 0.05
    found = sampling(objective, digits, sampler=spec, rows=4, hole=0.5)(params)
    assert found['inpainting'].dtype == np.uint8 and found['inpainting'].ndim == 3
