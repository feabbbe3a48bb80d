"""What every method must pass; each check raises AssertionError with the reason."""

import importlib
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mim_jax import build, optim, step
from mim_jax.tokenizers import patchify

CONFIGS = sorted(
    p.stem for p in (Path(__file__).parents[1] / 'configs').glob('*.py') if p.stem not in ('__init__', 'base')
)
ROWS = 4


def shipped(name: str) -> ConfigDict:
    return importlib.import_module(f'configs.{name}').get_config()


def having(*objectives: str) -> list[str]:
    return [name for name in CONFIGS if shipped(name).objective.name in objectives]


MASKED, TOKENS = having('MaskedPrediction'), having('TokenDiffusion', 'Sequence')
DENOISED = having('Denoise', 'MaskedAutoregression')


def tiny(name: str) -> ConfigDict:
    """A shipped config with every width and depth as small as its parts allow."""
    config = shipped(name)
    small = dict(width=16, depth=2, heads=2)
    if 'decoder' in config:  # of convolutions
        small = dict(widths=(8, 8), depth=1)
        config.decoder.update(small)
    for slot in [name for name in ('encoder', 'mixer') if name in config]:
        config[slot] = {k: v for k, v in config[slot].items() if k not in ('size', *small)} | small
    predictors = [term.predictor for term in config.get('terms', {}).values() if 'predictor' in term]
    predictors += [config.predictor] if 'predictor' in config else []
    for predictor in predictors:
        predictor.update({k: v for k, v in dict(width=16, depth=1, heads=2).items() if k in predictor})
    config.data.batch_size = ROWS
    if config.tokenizer.name == 'ids':
        tokens_of(config)
    else:
        patches_of(config, predictors)
    config.total_steps, config.dtype = 2, 'float32'
    config.schedule.warmup_steps = 0
    return config


def tokens_of(config: ConfigDict) -> None:
    """Rows of eight tokens of text, or of a grid of 4 x 4 codes."""
    if 'length' in config.data.reader:
        config.data.reader.update(length=8, alphabet='abc')
    else:
        config.data.reader.update(shape=(4, 4), vocab=11)
        config.tokenizer.grid = (4, 4)


def patches_of(config: ConfigDict, predictors) -> None:
    """A grid of four patches along each axis."""
    for spec, key in ((config.tokenizer, 'native'), *((spec, 'grid') for spec in (config.encoder, *predictors))):
        if spec.get(key):
            spec[key] = (4,) * len(config.tokenizer.patch)
    *time, h, w = (4 * p for p in config.tokenizer.patch)
    config.data.update(image_size=(h, w), canvas=(h, w))
    if time:
        config.data.reader.frames = time[0]


def token_batch(config: ConfigDict, seed: int = 0) -> dict:
    """Rows of tokens; of text, two documents and padding in each."""
    reader, rng = build.reader(config), np.random.default_rng(seed)
    batch = {name: np.ones((ROWS, *shape), dtype) for name, (shape, dtype) in reader.row.items()}
    batch['ids'] = rng.integers(0, reader.vocab, batch['ids'].shape, np.int32)
    if 'segment' in batch:
        batch['segment'][:] = (1, 1, 1, 2, 2, 2, 2, 0)
    return batch | dict(label=np.zeros(ROWS, np.int32), valid=np.ones(ROWS, bool))


def raw_batch(config: ConfigDict, seed: int = 0) -> dict:
    """Records as the input pipeline delivers them."""
    if config.tokenizer.name == 'ids':
        return token_batch(config, seed)
    rng = np.random.default_rng(seed)
    canvas, key = tuple(config.data.canvas), config.tokenizer.key
    time = (config.data.reader.frames,) if key == 'video' else ()
    return dict(
        {key: rng.integers(0, 256, (ROWS, *time, *canvas, config.data.channels), np.uint8)},
        size=np.full((ROWS, len(canvas)), canvas, np.int32),
        label=np.zeros(ROWS, np.int32),
        valid=np.ones(ROWS, bool),
    )


def parts(config: ConfigDict):
    """(objective, initial state, train step) of a config."""
    objective, augment = build.objective(config), build.augment(config)
    tx_of = build.optimizer(config)
    make = partial(step.init, config.seed, objective=objective, augment=augment, tx_of=tx_of, ema=bool(config.ema))
    state = jax.jit(make)(raw_batch(config))
    train = partial(step.train_step, seed=config.seed, loss=step.make_loss(objective, augment), tx=tx_of(state.params),
                    schedule=build.schedule(config), ema=build.ema(config))  # fmt: skip
    return objective, state, train


def any_params(objective, batch) -> dict:
    """Parameters of the right shapes with random values: quicker than compiling their initialisation."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: objective.init(jax.random.key(0), batch, jax.random.key(1), train=False))['params']
    return jax.tree.map(lambda x: jnp.asarray(0.3 * rng.standard_normal(x.shape), x.dtype), shapes)


def applied(module, *args, **how):
    """`module.apply(*args, **how)` as one program, which compiles quicker than its operations one by one."""
    return jax.jit(partial(module.apply, *args, **how))()


def view(config: ConfigDict) -> dict:
    """A batch as the objective gets it."""
    return jax.jit(partial(build.augment(config), train=False))(jax.random.key(0), raw_batch(config))


def two_steps(state, train, config):
    """Two steps on different batches: finite, and compiled once. -> the new state."""
    jitted = jax.jit(train)
    for i in range(2):
        state, metrics = jitted(state, raw_batch(config, i), jnp.ones(()))
        assert metrics['finite'], f'step {i}: loss {metrics["loss"]}, gradient norm {metrics["grad_norm"]}'
    assert jitted._cache_size() == 1, f'the train step was compiled {jitted._cache_size()} times'
    return state


def every_parameter_learns(objective, params, batch):
    """The loss has a gradient that is not zero in every parameter array."""
    keys = step.row_keys(0, 0, ROWS)
    grads = jax.jit(jax.grad(lambda p: objective.apply({'params': p}, batch, keys, train=False)[0]))(params)
    largest = {
        optim.path_str(path): np.abs(g).max() for path, g in jax.tree_util.tree_leaves_with_path(jax.device_get(grads))
    }
    median = np.median(list(largest.values()))
    dead = [path for path, g in largest.items() if not g > 1e-6 * median]  # below it is rounding noise
    assert not dead, f'no gradient reaches {", ".join(dead)}'


def nothing_leaks(objective, params, batch, **how):
    """No prediction depends on hidden input, and every prediction depends on what is visible; `how` is passed to `predict`."""
    keys = step.row_keys(0, 0, ROWS)
    mask = (objective.clean_mask if how.get('clean') else objective.mask)(keys, objective.tokenizer(batch).grid)
    source, patch = (objective.tokenizer.keywords[name] for name in ('key', 'patch'))

    def predictions(values, cotangent):
        out = objective.apply({'params': params}, batch | {source: values}, keys, mask=mask, method='predict', **how)
        found = out['answers'].values() if 'answers' in out else [term['prediction'] for term in out['terms'].values()]
        keyed = enumerate(found)
        return sum((x * jax.random.normal(jax.random.fold_in(cotangent, i), x.shape)).sum() for i, x in keyed)

    grad = jax.jit(jax.grad(predictions))(batch[source], jax.random.key(1))
    reach = jnp.abs(patchify(grad, patch)).max(-1)  # f32[B, N]
    assert not reach[mask.hidden].any(), f'{int((reach[mask.hidden] > 0).sum())} hidden patches reach the prediction'
    assert (reach[~mask.hidden] > 0).all(), 'some visible patches do not reach the prediction'
