"""Trains the same MAE with this code and with transformers + PyTorch, in turns, and prints the ratio of their step times.

    python benchmarks/throughput.py                      # synthetic input, 8 x 64 px and 16 x 224 px
    python benchmarks/throughput.py --input=jpeg --path=DIR
    python benchmarks/throughput.py --pipeline --path=DIR

ViT 192 x 12, decoder 128 x 4, 16 px patches, 75% masked, f32, one AdamW step. Both stay resident and take turns of a
few steps, so that a change of the machine's speed meets both; the ratio is of the fastest steps. With --input=jpeg each
reads the files through its own natural pipeline (ours: mim_jax.data; theirs: a torch DataLoader and PIL), and the
ratio is of the mean time of a step. --pipeline compares our loader with the bare decoding of the same files by as many threads.
"""

import time

import jax
import numpy as np
from absl import app, flags

from configs import mae
from mim_jax import compile, sharding, train
from mim_jax.data import pipeline, sources

CASES = flags.DEFINE_list('cases', ['8x64', '16x224'], 'images x pixels')
TURNS = flags.DEFINE_integer('turns', 4, 'turns of each')
STEPS = flags.DEFINE_integer('steps', 4, 'steps of a turn')
INPUT = flags.DEFINE_enum('input', 'synthetic', ['synthetic', 'jpeg'], 'what is trained on')
PATH = flags.DEFINE_string('path', '', 'folder of JPEG files')
PIPELINE = flags.DEFINE_bool('pipeline', False, 'measure the input pipeline alone')
THREADS = len(__import__('os').sched_getaffinity(0))
WIDTH, DEPTH, HEADS, DECODER, PATCH = 192, 12, 3, dict(width=128, depth=4, heads=4), 16


def configuration(batch: int, side: int):
    config = mae.get_config('tiny')
    config.tokenizer.patch = (PATCH, PATCH)
    config.terms.pixels.predictor.update(DECODER)
    config.data.update(batch_size=batch, image_size=(side, side), canvas=(side, side), dtype='float32')
    config.augment.update(crop=None, flip=False)
    if INPUT.value == 'jpeg':
        config.data.update(path=PATH.value, canvas=(2 * side, 2 * side), dtype='uint8')
        config.augment.update(crop='random_resized', flip=True)
    return config


def ours(batch: int, side: int):
    """() -> None, one training step."""
    config = configuration(batch, side)
    mesh = sharding.make_mesh()
    with jax.set_mesh(mesh):
        objective, augment, abstract = train.parts(config, mesh)
        step = compile.train_step(config, objective, augment, abstract, mesh).call
        empty = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), compile.batch_spec(config, 2))
        state = jax.jit(train.initial(config, objective, augment))(empty)
    if INPUT.value == 'jpeg':
        batches = (batch for batch, _ in loader(config))
    else:
        images = np.random.default_rng(0).standard_normal((batch, side, side, 3), np.float32)
        one = dict(
            image=images,
            size=np.full((batch, 2), side, np.int32),
            label=np.zeros(batch, np.int32),
            valid=np.ones(batch, bool),
        )
        batches = iter(lambda one=jax.device_put(one): one, None)
    scale = np.float32(1)

    def run():
        nonlocal state
        state, metrics = step(state, next(batches), scale)
        metrics['loss'].block_until_ready()

    return run


def theirs(batch: int, side: int):
    """() -> None, one training step of transformers' ViTMAEForPreTraining."""
    import torch
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    torch.manual_seed(0)
    torch.set_num_threads(THREADS)
    model = ViTMAEForPreTraining(
        ViTMAEConfig(
            image_size=side,
            patch_size=PATCH,
            norm_pix_loss=True,
            hidden_size=WIDTH,
            num_hidden_layers=DEPTH,
            num_attention_heads=HEADS,
            intermediate_size=4 * WIDTH,
            decoder_hidden_size=DECODER['width'],
            decoder_num_hidden_layers=DECODER['depth'],
            decoder_num_attention_heads=DECODER['heads'],
            decoder_intermediate_size=4 * DECODER['width'],
        )
    ).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.05, fused=True)
    if INPUT.value == 'jpeg':
        batches = torch_loader(batch, side)
    else:
        images = torch.randn(batch, 3, side, side)
        batches = iter(lambda: images, None)

    def run():
        optimizer.zero_grad(set_to_none=True)
        model(next(batches)).loss.backward()
        optimizer.step()

    return run


def loader(config):
    return pipeline.batches(
        sources.open_source(PATH.value), batch_size=config.data.batch_size, canvas=tuple(config.data.canvas)
    )


def compare(batch: int, side: int):
    contenders = dict(ours=ours(batch, side), theirs=theirs(batch, side))
    times = {name: [] for name in contenders}
    for turn in range(TURNS.value + 1):
        for name, run in contenders.items():
            for _ in range(STEPS.value):
                start = time.perf_counter()
                run()
                if turn:  # the first turn warms up
                    times[name].append(time.perf_counter() - start)
    best = np.min if INPUT.value == 'synthetic' else np.mean
    ms = {name: 1e3 * best(t) for name, t in times.items()}
    print(
        f'| {INPUT.value} | {batch} x {side} px | {ms["theirs"]:.1f} | {ms["ours"]:.1f} | {ms["theirs"] / ms["ours"]:.2f} |'
    )


def main(_):
    if PIPELINE.value:
        return compare_pipeline()
    print('| input | case | transformers + PyTorch, ms | mim_jax, ms | ratio |\n|---|---|---|---|---|')
    for case in CASES.value:
        compare(*map(int, case.split('x')))


if __name__ == '__main__':
    app.run(main)
