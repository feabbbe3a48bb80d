"""I-JEPA (arXiv 2301.08243) against the same step in PyTorch, made of transformers' IJepaModel: same weights, same masks, f32."""

from functools import partial

import jax
import numpy as np
import optax
import pytest

from mim_jax import hiding, losses, masks, optim, step, targets
from mim_jax.interop.reader import Reader
from mim_jax.models import SelfAttention, ViT
from mim_jax.models.positions import sincos
from mim_jax.objectives import MaskedPrediction, Term
from mim_jax.tokenizers import patches

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

WIDTH, NARROW, PATCH, SIDE, ROWS, EPS = 24, 16, 4, 32, 3, 1e-6
GRID = (ROWS, SIDE // PATCH, SIDE // PATCH)


def theirs(width, heads, depth, seed):
    """An IJepaModel with random weights, biases and norms too, and the fixed positions of the paper."""
    torch.manual_seed(seed)
    config = transformers.IJepaConfig(hidden_size=width, num_attention_heads=heads, num_hidden_layers=depth, intermediate_size=4 * width,
                                      image_size=SIDE, patch_size=PATCH, layer_norm_eps=EPS)  # fmt: skip
    model = transformers.IJepaModel(config, add_pooling_layer=False)
    places = np.stack(np.meshgrid(*map(np.arange, GRID[1:]), indexing='ij'), -1).reshape(-1, 2)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
        model.embeddings.position_embeddings.copy_(
            torch.tensor(np.array(sincos(places.astype(np.float32), width)))[None]
        )
    return model.requires_grad_(True)


def through(model, x):
    for layer in model.layers:
        x = layer(x)
        x = x[0] if isinstance(x, tuple) else x
    return model.layernorm(x)


def reference(student, teacher, predictor, extra, images, mask):
    """The loss, row by row and rectangle by rectangle, so that nothing is padded."""
    pixels = torch.tensor(images.transpose(0, 3, 1, 2))
    with torch.no_grad():
        goals = torch.nn.functional.layer_norm(through(teacher, teacher.embeddings(pixels)), (WIDTH,))
    embedded, positions, errors = student.embeddings(pixels), predictor.embeddings.position_embeddings[0], []
    for row in range(ROWS):
        visible = np.flatnonzero(~mask.hidden[row])
        z = through(student, embedded[row : row + 1, visible])
        context = extra['embed'](z) + positions[visible]
        for target, asked in zip(np.split(mask.target[row], 4), np.split(mask.asked[row], 4), strict=True):
            places = target[asked]
            queries = (extra['mask_token'] + positions[places])[None]
            answer = extra['head'](through(predictor, torch.cat([context, queries], 1))[:, len(visible) :])
            errors.append(torch.nn.functional.smooth_l1_loss(answer[0], goals[row, places], reduction='none'))
    return torch.cat(errors).mean()


def params_of(student, predictor, extra, value=lambda x: x.detach().numpy()):
    """Weights, or by `value` their gradients, as parameters of ours."""
    encoder = Reader({k: value(v) for k, v in student.named_parameters()}, 'IJepaModel')
    narrow = Reader({k: value(v) for k, v in predictor.named_parameters()}, 'IJepaModel')
    layers = Reader(
        {f'{name}.{k}': value(v) for name in ('embed', 'head') for k, v in extra[name].named_parameters()}, 'predictor'
    )
    return dict(
        encoder=dict(embed=encoder.stem('embeddings.patch_embeddings.projection'), blocks=encoder.blocks('layers'), norm=encoder.norm('layernorm')),
        predictor_features=dict(mask_token=value(extra['mask_token']), embed=layers.dense('embed'), blocks=narrow.blocks('layers'),
                                norm=narrow.norm('layernorm'), head=layers.dense('head')),
    )  # fmt: skip


@pytest.fixture(scope='module')
def method():
    return MaskedPrediction(
        tokenizer=partial(patches, patch=(PATCH, PATCH)),
        mask=masks.multiblock,
        hide=hiding.drop,
        encoder=ViT(width=WIDTH, depth=2, heads=3, class_token=False, eps=EPS),
        predictor=dict(features=SelfAttention(width=NARROW, depth=2, heads=2, eps=EPS)),
        terms=dict(features=Term(targets.features, losses.smooth_l1, 'hidden', 1.0)),
    )


@pytest.fixture(scope='module')
def images():
    return np.random.default_rng(0).standard_normal((ROWS, SIDE, SIDE, 3)).astype(np.float32)


@pytest.fixture(scope='module')
def networks():
    torch.manual_seed(5)
    extra = dict(embed=torch.nn.Linear(WIDTH, NARROW), head=torch.nn.Linear(NARROW, WIDTH),
                 mask_token=torch.nn.Parameter(torch.randn(NARROW)))  # fmt: skip
    return theirs(WIDTH, 3, 2, 0), theirs(WIDTH, 3, 2, 1), theirs(NARROW, 2, 2, 2), extra


def test_loss_and_gradients_agree(method, images, networks):
    student, teacher, predictor, extra = networks
    mask = jax.device_get(masks.multiblock(jax.random.key(3), GRID, keep=0.4))
    loss = reference(student, teacher, predictor, extra, images, mask)
    loss.backward()
    average = params_of(teacher, predictor, extra)

    @jax.jit
    def ours(params):
        encode = partial(method.apply, {'params': average}, method='encode')
        return method.apply({'params': params}, {'image': images}, jax.random.key(0), mask=mask, teacher=encode)

    (found, aux), grads = jax.value_and_grad(ours, has_aux=True)(params_of(student, predictor, extra))
    np.testing.assert_allclose(found, loss.item(), rtol=1e-5)
    assert aux['baseline'] > 0.3  # of targets of variance 1
    goals = params_of(student, predictor, extra, lambda p: np.zeros(p.shape) if p.grad is None else p.grad.numpy())
    for (path, goal), grad in zip(jax.tree.leaves_with_path(goals), jax.tree.leaves(grads), strict=True):
        error = np.linalg.norm(grad - goal) / np.linalg.norm(goal)
        assert error < 1e-4, f'{jax.tree_util.keystr(path)}: {error:.2e}'


def test_the_teacher_of_a_step_is_the_average_and_follows_its_schedule(method, images):
    batch = dict(image=images, valid=np.ones(ROWS, bool))
    loss = step.make_loss(method, lambda key, batch, train: batch)
    start = partial(
        step.init, 0, objective=method, augment=lambda key, batch, train: batch, tx_of=optim.adamw, ema=True
    )
    state = jax.jit(start)(batch)
    state = state.replace(
        ema=jax.tree.map(lambda p: p + 0.1 * jax.random.normal(jax.random.key(1), p.shape), state.ema)
    )
    options = dict(seed=0, loss=loss, tx=optim.adamw(state.params), schedule=optax.constant_schedule(1e-3))
    train = jax.jit(partial(step.train_step, ema=optax.linear_schedule(0.5, 1.0, 2), **options))
    after, metrics = train(state, batch, 1.0)
    keys = step.row_keys(0, state.step, ROWS)
    expected, itself = (jax.jit(loss)(state.params, batch, keys, teacher)[0] for teacher in (state.ema, None))
    np.testing.assert_allclose(metrics['loss'], expected, rtol=1e-6)
    assert abs(expected - itself) > 1e-3
    last, _ = train(after, batch, 1.0)
    for decay, old, new in ((0.5, state, after), (0.75, after, last)):
        wanted = jax.tree.map(lambda a, p, decay=decay: decay * a + (1 - decay) * p, old.ema, new.params)
        jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), new.ema, wanted)


def test_an_answer_knows_nothing_of_other_groups(method, images):
    mask = masks.multiblock(jax.random.key(3), GRID)
    params = jax.jit(method.init)(jax.random.key(1), {'image': images}, jax.random.key(2))

    @jax.jit
    def answers(mask):
        return method.apply(params, {'image': images}, jax.random.key(0), mask=mask, method='predict')['terms'][
            'features'
        ]['prediction']

    groups = mask.target.reshape(ROWS, 4, -1)
    other = mask.replace(target=groups.at[:, 2].set(groups[:, 2] // 2).reshape(ROWS, -1))
    plain, changed = (np.asarray(answers(m)).reshape(ROWS, 4, -1, WIDTH) for m in (mask, other))
    np.testing.assert_array_equal(np.delete(changed, 2, 1), np.delete(plain, 2, 1))
    assert np.abs(changed[:, 2] - plain[:, 2]).max() > 1e-3
    together = np.asarray(answers(other.replace(groups=1))).reshape(plain.shape)
    assert np.abs(together[:, 0] - plain[:, 0]).max() > 1e-5
