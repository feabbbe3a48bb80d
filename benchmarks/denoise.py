"""Diffusion of images: training step beside PyTorch, masked methods beside the unmasked one, samplers beside the textbook's loop.

    python benchmarks/denoise.py                         # training, DiT of cifar10 (64 images) and of s4 (8 images)
    python benchmarks/denoise.py --methods               # DiT, UMD and MaskDiT: what they compute and how long it takes
    python benchmarks/denoise.py --samplers              # images a second of each sampler

Configs of dit.py, umd.py and maskdit.py in f32, without augmentation. All take turns as in throughput.py, and the fastest calls are compared. Before PyTorch's
DiT is timed it has to give our loss and gradient for the same weights, noise, times and labels.
"""

import math
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parents[1]))  # configs/ is not installed

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from turns import compare, same_batch, stepping, take_turns, trainer

from configs import dit, maskdit, umd
from mim_jax import large_pages, sharding, train
from mim_jax.evals.sampling import make_image_sampler
from mim_jax.models.blocks import Blocks
from mim_jax.optim import path_str

CASES = flags.DEFINE_list('cases', [], 'variant x images; empty = cifar10x64, and s4x8 for training')
TURNS = flags.DEFINE_integer('turns', 4, 'turns of each')
STEPS = flags.DEFINE_integer('steps', 5, 'training steps of a turn')
METHODS = flags.DEFINE_bool('methods', False, 'measure the methods')
SAMPLERS = flags.DEFINE_bool('samplers', False, 'measure the samplers')
CALLS = flags.DEFINE_integer('calls', 50, 'calls of the network of a sampler')

CORES = len(os.sched_getaffinity(0))
GUIDANCE = 1.5


def configuration(method, variant: str, rows: int):
    config = method.get_config(variant)
    config.dtype, config.data.batch_size = 'float32', rows
    config.augment.update(crop=None, flip=False)
    return config


def images_of(config) -> tuple[int, ...]:
    """Shape of a batch of images."""
    return (config.data.batch_size, *config.data.image_size, config.data.channels)


def model(config):
    """The objective of a config and random parameters of it, none of which is 0 as they are at first."""
    objective, _, abstract = train.parts(config, sharding.make_mesh(data=1))
    rng = np.random.default_rng(0)

    def draw(path, x):
        return np.float32(path_str(path).endswith('scale')) + 0.05 * rng.standard_normal(x.shape, np.float32)

    return objective, jax.tree_util.tree_map_with_path(draw, abstract.params)


def theirs(config):
    """() -> None, one training step of the DiT of a config in PyTorch."""
    import torch
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
    from torch_models import DiT, noise_loss, patches

    torch.manual_seed(0)
    torch.set_num_threads(CORES)
    objective, params = model(config)
    (rows, side, _, channels), patch, classes = images_of(config), config.tokenizer.patch[0], objective.num_classes
    net = DiT(*objective.encoder.shape, side // patch, patch**2 * channels, classes)
    net.load_state_dict(carried(params))
    images, label = 2 * torch.rand(images_of(config)) - 1, (classes - torch.arange(rows)) % (classes + 1)
    check(objective, params, images.numpy(), label.numpy(), net, noise_loss)
    weights = [p for p in net.parameters() if p.ndim > 1]
    others = dict(params=[p for p in net.parameters() if p.ndim == 1], weight_decay=0.0)
    spec = config.optimizer
    optimizer = torch.optim.AdamW(
        [dict(params=weights), others], lr=1e-3, betas=(spec.b1, spec.b2), weight_decay=spec.weight_decay, fused=True
    )
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(config.ema))

    def run():
        clean = patches(images, patch)
        t = 1 - (torch.rand(1) + torch.arange(rows) / rows) % 1
        told = torch.where(torch.rand(rows) < config.condition.label_dropout, classes, label)
        optimizer.zero_grad(set_to_none=True)
        noise_loss(net, clean, torch.randn(clean.shape), t, told).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), spec.clip)
        optimizer.step()
        average.update_parameters(net)

    return run


def carried(params: dict) -> dict:
    """Our parameters under PyTorch's names: kernels transposed, and q, k, v in one with a bias of 0 for k."""
    import torch

    found = {}
    for path, x in jax.tree_util.tree_leaves_with_path(params):
        *rooms, kind = path_str(path).split('/')
        if rooms[-1] == 'qkv':
            x = np.concatenate([y.T for y in x] if kind == 'kernel' else [x[0], 0 * x[0], x[1]])
        elif kind == 'kernel':
            x = x.T
        rooms = rooms[:-1] if rooms[-2:] == ['modulation', 'out'] else rooms
        rooms = [r for r in rooms if r not in ('encoder', 'attention', 'mlp', 'condition', 'predictor')]
        name = '.'.join(rooms).replace('block_', '')
        found[f'{name}.{"bias" if kind == "bias" else "weight"}'] = torch.tensor(x)
    return found


def check(objective, params: dict, images, label, net, loss: Callable) -> None:
    """Says how much the loss of a PyTorch network and the norm of its gradient differ from ours for the same inputs.

    Raises:
        ValueError: by more than 1e-4 of ours.
    """
    import torch

    batch = dict(image=images, label=np.where(label == objective.num_classes, -1, label))

    @jax.jit
    @partial(jax.value_and_grad, has_aux=True)
    def ours(params):
        def told(module):
            out = module.predict(batch, jax.random.key(0))
            return module.losses(batch, out, module.terms)['noise'][0], (out['tokens'].raw, out['noise'], out['t'])

        return nn.apply(told, objective)({'params': params})

    (own, inputs), grads = ours(params)
    other = loss(net, *(torch.tensor(np.asarray(x)) for x in inputs), torch.tensor(label))
    slopes = torch.autograd.grad(other, list(net.parameters()))
    pairs = [(other.item(), own), (torch.nn.utils.get_total_norm(slopes).item(), optax.global_norm(grads))]
    for name, (a, b) in zip(('loss', 'norm of the gradient'), pairs, strict=True):
        apart = abs(a / float(b) - 1)
        print(f'{name}: PyTorch {a:.7f}, mim_jax {b:.7f}, apart {apart:.1e}', file=sys.stderr)
        if not apart < 1e-4:
            raise ValueError(f'{name}: PyTorch has {a}, mim_jax {b}')


def compare_methods(variant: str, rows: int) -> None:
    """Prints what each method computes and how long a step takes, beside DiT."""
    configs = {method.__name__.split('.')[1]: configuration(method, variant, rows) for method in (dit, umd, maskdit)}
    trained = {name: trainer(config) for name, config in configs.items()}
    flops = {name: step.cost_analysis()['flops'] for name, (step, _) in trained.items()}
    runs = {name: stepping(*trained[name], same_batch(config, 'image', 256)) for name, config in configs.items()}
    ms = {name: 1e3 * min(times) for name, times in take_turns(runs, TURNS.value, STEPS.value).items()}
    for name, config in configs.items():
        encoder, decoder = (f'{n / rows:.0f}' for n in tokens_of(config))
        foreseen, found = flops['dit'] / flops[name], ms['dit'] / ms[name]
        print(
            f'| {variant} x {rows} | {name} | {encoder} | {decoder} | {flops[name] / 1e9:.2f} | {ms[name]:.1f} | {foreseen:.2f} | {found:.2f} |',
            flush=True,
        )


def tokens_of(config) -> list[int]:
    """Tokens of a batch that the blocks of encoder and decoder process, registers included."""
    objective, _, abstract = train.parts(config, sharding.make_mesh(data=1))
    seen = dict(encoder=0, predictor=0)

    def count(call, args, kwargs, context):
        if isinstance(context.module, Blocks) and context.method_name == '__call__':
            seen[context.module.path[0]] += math.prod(args[0].shape[:2])
        return call(*args, **kwargs)

    batch = dict(image=jax.ShapeDtypeStruct(images_of(config), jnp.float32))
    with nn.intercept_methods(count):
        jax.eval_shape(lambda p, b: objective.apply({'params': p}, b, jax.random.key(0)), abstract.params, batch)
    return list(seen.values())


def textbook(network: Callable, schedule, x, label, steps: int, guidance: float) -> np.ndarray:
    """DDIM as papers print it, with clean values kept within those of pixels."""
    alpha, sigma = (np.asarray(z) for z in schedule.level(1 - jnp.arange(steps + 1) / steps))
    for i in range(steps):
        t = np.full(len(x), 1 - i / steps, np.float32)
        noise = network(x, t, label)
        if guidance != 1:
            without = network(x, t, np.full_like(label, -1))
            noise = without + guidance * (noise - without)
        clean = np.clip((x - sigma[i] * noise) / alpha[i], -1, 1)
        x = alpha[i + 1] * clean + sigma[i + 1] * (x - alpha[i] * clean) / sigma[i]
    return x


def compare_samplers(variant: str, rows: int) -> None:
    """Prints images a second of each sampler, and its ratio to the textbook's with the same guidance.

    Raises:
        ValueError: DDIM draws other images than the textbook's.
    """
    config = configuration(dit, variant, rows)
    objective, params = model(config)
    params, key, shape = jax.device_put(params), jax.random.key(0), images_of(config)
    label = np.arange(rows, dtype=np.int32) % objective.num_classes
    start = np.asarray(jax.random.normal(jax.random.split(key)[0], shape))
    answer = jax.jit(lambda params, x, t, label: objective.apply({'params': params}, x, t, label, method='denoise')[1])
    data = SimpleNamespace(mean=config.data.mean, std=config.data.std, decode=None)
    steps, drawn = CALLS.value, {}
    specs = {
        'DDIM': dict(name='ddim', steps=steps),
        'DDPM': dict(name='ddim', steps=steps, eta=1.0),
        'Euler': dict(name='ode', steps=steps, order=1),
        'Heun': dict(name='ode', steps=steps // 2, order=2),
    }

    def run(name, sample):
        drawn[name] = np.asarray(sample())  # waits

    for guidance in (1.0, GUIDANCE):
        book = partial(textbook, lambda *x: np.asarray(answer(params, *x)), objective.schedule, start, label)
        samples = {"textbook's DDIM": partial(book, steps, guidance)}
        for name, spec in specs.items():
            sample = make_image_sampler(objective, data, spec | dict(guidance=guidance, clip=True))
            samples[name] = partial(sample, params, key, shape, label)
        runs = {name: partial(run, name, sample) for name, sample in samples.items()}
        rate = {name: rows / min(times) for name, times in take_turns(runs, TURNS.value, 1).items()}
        for name in runs:
            taken = specs.get(name, specs['DDIM'])['steps']
            ratio = rate[name] / rate["textbook's DDIM"]
            print(
                f'| {variant} x {rows} | {name}, {taken} steps | {guidance} | {rate[name]:.2f} | {ratio:.2f} |',
                flush=True,
            )
        apart = np.abs(drawn['DDIM'] - drawn["textbook's DDIM"]).mean()
        print(f"DDIM is {apart:.1e} from the textbook's", file=sys.stderr)
        if not apart < 1e-2:
            raise ValueError(f"DDIM draws other images than the textbook's, {apart} apart")


def compare_steps(variant: str, rows: int) -> None:
    """Prints how long a step of PyTorch's DiT takes and of ours."""
    config = configuration(dit, variant, rows)
    ours = stepping(*trainer(config), same_batch(config, 'image', 256))
    compare(f'{variant} x {rows}', theirs(config), ours, TURNS.value, STEPS.value)


def main(_):
    cases, measure, columns = ['cifar10x64', 's4x8'], compare_steps, ['case', 'PyTorch, ms', 'mim_jax, ms', 'ratio']
    if METHODS.value:
        cases, measure = cases[:1], compare_methods
        columns = ['case', 'method', 'tokens an image: encoder', 'decoder', 'GFLOP by XLA', 'ms', 'foreseen', 'found']
    if SAMPLERS.value:
        cases, measure, columns = cases[:1], compare_samplers, ['case', 'sampler', 'guidance', 'images/s', 'ratio']
    print('| ' + ' | '.join(columns) + ' |\n' + '|---' * len(columns) + '|')
    for case in CASES.value or cases:
        variant, rows = case.rsplit('x', 1)
        measure(variant, int(rows))


if __name__ == '__main__':
    large_pages.ensure()
    app.run(main)
