"""Parity with transformers' VideoMAE: same weights, same tube mask, f32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax import masks
from mim_jax.errors import InputError
from mim_jax.hiding.hide import drop
from mim_jax.interop import hf_videomae
from mim_jax.losses.regression import mse
from mim_jax.models import SelfAttention, ViT
from mim_jax.models.heads import Classifier
from mim_jax.objectives.masked_prediction import MaskedPrediction, Term
from mim_jax.targets.pixels import pixels
from mim_jax.tokenizers import patches

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

BATCH, EPS = 2, 1e-6
IMAGENET = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], np.float32)  # mean, deviation
SIZES = {  # grid of tokens, patch, shape of the encoder, shape of the decoder
    'small': ((2, 3, 4), (2, 4, 4), dict(width=24, depth=2, heads=3), dict(width=16, depth=1, heads=2)),
    'long': ((4, 2, 3), (1, 8, 8), dict(width=16, depth=1, heads=2), dict(width=12, depth=2, heads=3)),
}
sizes = pytest.mark.parametrize('name', SIZES)


def reference_model(kind, name, **options):
    grid, patch, encoder, decoder = SIZES[name]
    config = transformers.VideoMAEConfig(
        image_size=[grid[1] * patch[1], grid[2] * patch[2]],
        patch_size=patch[1],
        num_frames=grid[0] * patch[0],
        tubelet_size=patch[0],
        layer_norm_eps=EPS,
        hidden_size=encoder['width'],
        num_hidden_layers=encoder['depth'],
        num_attention_heads=encoder['heads'],
        intermediate_size=4 * encoder['width'],
        decoder_hidden_size=decoder['width'],
        decoder_num_hidden_layers=decoder['depth'],
        decoder_num_attention_heads=decoder['heads'],
        decoder_intermediate_size=4 * decoder['width'],
        **options,
    )
    torch.manual_seed(0)
    model = getattr(transformers, kind)(config)
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = EPS  # of the original; transformers leaves PyTorch's in two of them
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))  # biases and norms too
    return model


def clips(name):
    """f32[B, T, H, W, C], and the same as transformers takes it."""
    grid, patch, *_ = SIZES[name]
    shape = (BATCH, *(n * p for n, p in zip(grid, patch, strict=True)), 3)
    video = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    return video, torch.tensor(video.transpose(0, 1, 4, 2, 3))


def our_encoder(name):
    grid, _, encoder, _ = SIZES[name]
    return ViT(**encoder, class_token=False, positions='sinusoid', grid=grid, eps=EPS)


def target(batch, tokens, teacher, *, norm):
    """Transformers undoes the normalisation of the input first."""
    mean, std = (np.tile(x, tokens.raw.shape[-1] // 3) for x in IMAGENET)
    tokens = tokens.replace(raw=tokens.raw * std + mean)
    return pixels(batch, tokens, teacher, norm='channel' if norm else False, key='video')


def our_objective(name, norm):
    grid, patch, _, decoder = SIZES[name]
    return MaskedPrediction(
        tokenizer=lambda batch: patches(batch, key='video', patch=patch),
        mask=None,
        hide=drop,
        encoder=our_encoder(name),
        predictor={'pixels': SelfAttention(**decoder, positions='sinusoid', grid=grid, eps=EPS)},
        terms={'pixels': Term(lambda *args: target(*args, norm=norm), mse, 'hidden', 1.0)},
    )


def arrays(model, grads=False):
    if not grads:
        return {name: value.numpy() for name, value in model.state_dict().items()}
    return {name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}


def gradients_agree(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for (path, goal), grad in zip(jax.tree.leaves_with_path(theirs), jax.tree.leaves(ours), strict=True):
        error = np.linalg.norm(grad - goal) / np.linalg.norm(goal)
        assert error < 1e-4, f'{jax.tree_util.keystr(path)}: {error:.2e}'


@sizes
@pytest.mark.parametrize('norm', [True, False])
def test_loss_prediction_and_gradients_of_pretraining_agree(name, norm):
    model = reference_model('VideoMAEForPreTraining', name, norm_pix_loss=norm, use_mean_pooling=False)
    video, pixel_values = clips(name)
    mask = masks.tube(jax.random.key(0), (BATCH, *SIZES[name][0]), ratio=0.7)
    theirs = model(pixel_values, bool_masked_pos=torch.tensor(np.asarray(mask.hidden)))
    theirs.loss.backward()
    objective = our_objective(name, norm)

    @jax.jit
    def ours(params):
        out = objective.apply({'params': params}, {'video': video}, jax.random.key(0), mask=mask, method='predict')
        out = out['terms']['pixels']
        return mse(out['prediction'], out['goal'], out['weight']), out['prediction']

    (loss, prediction), grads = jax.value_and_grad(ours, has_aux=True)(hf_videomae.params(arrays(model)))
    np.testing.assert_allclose(loss, theirs.loss.item(), rtol=1e-5)
    np.testing.assert_allclose(prediction, theirs.logits.detach().numpy(), atol=1e-4)
    goals = hf_videomae.params(arrays(model, grads=True))
    for tree in (grads, goals):
        del tree['predictor_pixels']['embed']['bias']  # the one parameter the original lacks
    gradients_agree(grads, goals)


@sizes
def test_logits_and_gradients_of_classification_agree(name):
    model = reference_model('VideoMAEForVideoClassification', name, use_mean_pooling=True, num_labels=5)
    video, pixel_values = clips(name)
    theirs = model(pixel_values).logits
    (theirs**2).sum().backward()
    classifier = Classifier(our_encoder(name), 5)
    tokens = patches({'video': jnp.asarray(video)}, key='video', patch=SIZES[name][1])

    @jax.jit
    def ours(params):
        logits, _ = classifier.apply({'params': params}, tokens.raw, tokens.pos)
        return (logits**2).sum(), logits

    (_, logits), grads = jax.value_and_grad(ours, has_aux=True)(hf_videomae.classifier(arrays(model)))
    np.testing.assert_allclose(logits, theirs.detach().numpy(), atol=1e-5)
    gradients_agree(grads, hf_videomae.classifier(arrays(model, grads=True)))


def test_names_of_released_checkpoints_are_understood():
    model = reference_model('VideoMAEForPreTraining', 'small', use_mean_pooling=False)
    today, released = arrays(model), {}
    for name, value in today.items():
        for letter, word in (('q', 'query'), ('v', 'value')):
            name = name.replace(f'.attention.attention.{word}.bias', f'.attention.attention.{letter}_bias')
        released[name] = value
    assert released.keys() != today.keys()
    jax.tree.map(np.testing.assert_array_equal, hf_videomae.params(released), hf_videomae.params(today))


def test_a_missing_tensor_is_named():
    with pytest.raises(InputError, match=r'encoder_to_decoder.*VideoMAEForPreTraining'):
        hf_videomae.params({})
    with pytest.raises(InputError, match=r'projection.*VideoMAEForVideoClassification'):
        hf_videomae.classifier({})
