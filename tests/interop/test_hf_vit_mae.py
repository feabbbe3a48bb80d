"""Parity with transformers' ViTMAEForPreTraining: same weights, same mask, f32."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.errors import InputError
from mim_jax.hiding.hide import drop
from mim_jax.interop import hf_vit_mae
from mim_jax.losses.regression import mse
from mim_jax.masks.mask import ask_hidden
from mim_jax.models import SelfAttention, ViT
from mim_jax.objectives.masked_prediction import MaskedPrediction, Term
from mim_jax.targets.pixels import pixels
from mim_jax.tokenizers import patches

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

WIDTH, DEPTH, HEADS = 24, 2, 3
DECODER = dict(width=16, depth=2, heads=2)
BATCH, EPS = 3, 1e-12


def reference_positions(grid, width):
    """MAE's table by its own recipe, in float64, class token first: columns fill the first half."""
    omega = 10000.0 ** (-np.arange(width // 4) / (width // 4))
    rows, columns = np.meshgrid(*(np.arange(n) for n in grid), indexing='ij')
    angles = [axis.reshape(-1, 1) * omega for axis in (columns, rows)]
    table = np.concatenate([f(a) for a in angles for f in (np.sin, np.cos)], 1)
    return torch.tensor(np.concatenate([np.zeros((1, width)), table])[None], dtype=torch.float32)


def reference_model(size, patch, norm_pix):
    config = transformers.ViTMAEConfig(
        image_size=size,
        patch_size=patch,
        norm_pix_loss=norm_pix,
        layer_norm_eps=EPS,
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH,
        decoder_hidden_size=DECODER['width'],
        decoder_num_hidden_layers=DECODER['depth'],
        decoder_num_attention_heads=DECODER['heads'],
        decoder_intermediate_size=4 * DECODER['width'],
    )
    torch.manual_seed(0)
    model = transformers.ViTMAEForPreTraining(config)
    grid = [s // patch for s in size]
    with torch.no_grad():
        for name, p in model.named_parameters():
            # transformers fills these for square grids only
            if name.endswith('position_embeddings'):
                p.copy_(reference_positions(grid, WIDTH))
            elif name.endswith('decoder_pos_embed'):
                p.copy_(reference_positions(grid, DECODER['width']))
            else:
                p.add_(0.05 * torch.randn_like(p))  # biases and norms too
    plain = model.patchify
    model.patchify = lambda images, interpolate_pos_encoding=False: plain(images, interpolate_pos_encoding=True)
    return model


def our_objective(patch, norm_pix):
    return MaskedPrediction(
        tokenizer=partial(patches, patch=(patch, patch)),
        mask=None,
        hide=drop,
        encoder=ViT(width=WIDTH, depth=DEPTH, heads=HEADS, eps=EPS),
        predictor={'pixels': SelfAttention(**DECODER, eps=EPS)},
        terms={'pixels': Term(partial(pixels, norm=norm_pix), mse, 'hidden', 1.0)},
    )


def grads_by_name(model):
    return {
        name: np.zeros(p.shape, np.float32) if p.grad is None else p.grad.numpy()
        for name, p in model.named_parameters()
    }


@pytest.mark.parametrize('norm_pix', [False, True])
@pytest.mark.parametrize(('size', 'patch'), [((32, 32), 8), ((24, 24), 4), ((16, 64), 8)])
def test_loss_prediction_and_gradients_agree(size, patch, norm_pix):
    model = reference_model(size, patch, norm_pix)
    rng = np.random.default_rng(1)
    images = rng.standard_normal((BATCH, *size, 3)).astype(np.float32)
    count = (size[0] // patch) * (size[1] // patch)
    noise = rng.random((BATCH, count)).astype(np.float32)

    theirs = model(torch.tensor(images.transpose(0, 3, 1, 2)), noise=torch.tensor(noise))
    theirs.loss.backward()
    hidden = theirs.mask.numpy().astype(bool)
    mask = ask_hidden(jnp.asarray(hidden), int(hidden[0].sum()))

    objective = our_objective(patch, norm_pix)
    params = hf_vit_mae.params({k: v.numpy() for k, v in model.state_dict().items()})
    key = jax.random.key(0)

    @jax.jit
    def ours(params):
        out = objective.apply({'params': params}, {'image': images}, key, mask=mask, method=MaskedPrediction.predict)[
            'terms'
        ]['pixels']
        return mse(out['prediction'], out['goal'], out['weight']), out['prediction']

    (loss, prediction), grads = jax.value_and_grad(ours, has_aux=True)(params)
    np.testing.assert_allclose(loss, theirs.loss.item(), rtol=1e-5)
    np.testing.assert_allclose(prediction, theirs.logits.detach().numpy()[hidden].reshape(prediction.shape), atol=1e-4)

    their_grads = grads_by_name(model)
    goals = hf_vit_mae.params(their_grads)
    assert jax.tree.structure(goals) == jax.tree.structure(grads)
    for (path, goal), grad in zip(jax.tree.leaves_with_path(goals), jax.tree.leaves(grads), strict=True):
        error = np.linalg.norm(grad - goal) / np.linalg.norm(goal)
        assert error < 1e-4, f'{jax.tree_util.keystr(path)}: {error:.2e}'
    for name, grad in their_grads.items():  # the one parameter ours lacks
        assert not name.endswith('k_proj.bias') or np.abs(grad).max() < 1e-6, name


def test_names_of_released_checkpoints_are_understood():
    model = reference_model((16, 16), 8, False)
    today = {k: v.numpy() for k, v in model.state_dict().items()}
    released = {}
    for name, value in today.items():
        name = name.replace('vit.layers.', 'vit.encoder.layer.')
        for letter, word in (('q', 'query'), ('k', 'key'), ('v', 'value')):
            name = name.replace(f'.attention.{letter}_proj.', f'.attention.attention.{word}.')
        name = name.replace('.attention.o_proj.', '.attention.output.dense.')
        released[name.replace('.mlp.fc1.', '.intermediate.dense.').replace('.mlp.fc2.', '.output.dense.')] = value
    assert released.keys() != today.keys()
    jax.tree.map(np.testing.assert_array_equal, hf_vit_mae.params(released), hf_vit_mae.params(today))


def test_a_missing_tensor_is_named():
    with pytest.raises(InputError, match='vit.embeddings.cls_token'):
        hf_vit_mae.params({})
