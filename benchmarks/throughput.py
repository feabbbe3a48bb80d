"""Trains the same MAE or VideoMAE with this code and with transformers + PyTorch, in turns, and prints the ratio of step times.

    python benchmarks/throughput.py                          # synthetic input, 8 x 64 px and 16 x 224 px
    python benchmarks/throughput.py --cases=2x16x112         # 2 clips of 16 frames of 112 px
    python benchmarks/throughput.py --input=jpeg --path=DIR  # each reads the JPEG files its own way
    python benchmarks/throughput.py --pipeline --path=DIR    # our loader against the bare decoding of the same files

ViT 192 x 12, f32, AdamW. Images: decoder 128 x 4, 16-px patches, 75% masked; clips: decoder 96 x 4, 2 x 16 x 16 tubelets,
tubes over 90%, synthetic only. Both stay resident and take turns of a few steps,
so that a change of the machine's speed meets both. Synthetic input compares the fastest steps; JPEG input the mean ones,
as a loader works ahead of the steps. Without --path, images like those of ImageNet in size are made and thrown away.
"""

import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from itertools import repeat
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))  # configs/ is not installed

import numpy as np
from absl import app, flags
from PIL import Image
from turns import compare, same_batch, stepping, trainer

from configs import mae, videomae
from configs.base import vit
from mim_jax import build, large_pages
from mim_jax.data import ImageReader, pipeline, sources

CASES = flags.DEFINE_list('cases', ['8x64', '16x224'], 'images x pixels, or clips x frames x pixels')
TURNS = flags.DEFINE_integer('turns', 4, 'turns of each')
STEPS = flags.DEFINE_integer('steps', 5, 'steps of a turn')
INPUT = flags.DEFINE_enum('input', 'synthetic', ['synthetic', 'jpeg'], 'what is trained on')
PATH = flags.DEFINE_string('path', '', 'folder of JPEG files')
PIPELINE = flags.DEFINE_bool('pipeline', False, 'measure the input pipeline alone')

CORES = len(os.sched_getaffinity(0))
WIDTH, DEPTH, HEADS, PATCH, TUBELET, CANVAS = 192, 12, 3, 16, 2, 256
DECODERS = dict(image=dict(width=128, depth=4, heads=4), video=dict(width=96, depth=4, heads=3))
IMAGES = 4096  # of a turn of --pipeline


class Case(NamedTuple):
    """What a step trains on: rows of images, or of clips where there are frames."""

    rows: int
    side: int
    frames: int = 0

    @classmethod
    def parse(cls, text: str):
        rows, *frames, side = map(int, text.split('x'))
        return cls(rows, side, *frames)

    @property
    def media(self) -> str:
        return 'video' if self.frames else 'image'

    def __str__(self):
        return ' x '.join(str(n) for n in (self.rows, self.frames, self.side) if n) + ' px'


def configuration(case: Case):
    """The config of the method, of the size of this comparison."""
    if case.frames:
        config = videomae.get_config('tiny')
        grid = (case.frames // TUBELET, case.side // PATCH, case.side // PATCH)
        config.encoder = vit(width=WIDTH, depth=DEPTH, heads=HEADS, class_token=False, positions='sinusoid', grid=grid)
        config.tokenizer.update(patch=(TUBELET, PATCH, PATCH), native=grid)
        config.terms.pixels.predictor.grid = grid
        config.data.reader.frames = case.frames
    else:
        config = mae.get_config('tiny')
        config.tokenizer.patch = (PATCH, PATCH)
    config.terms.pixels.predictor.update(DECODERS[case.media])
    config.data.update(batch_size=case.rows, image_size=(case.side, case.side))
    if INPUT.value == 'jpeg':
        config.data.canvas = (CANVAS, CANVAS)
    else:
        config.data.canvas = (case.side, case.side)
        config.augment.update(crop=None, flip=False)
    return config


def ours(case: Case):
    """() -> None, one training step."""
    config = configuration(case)
    if INPUT.value == 'jpeg':
        source = sources.open_source(PATH.value, labels='none')
        batches = (batch for batch, _ in pipeline.batches(source, build.reader(config), batch_size=case.rows))
    else:
        batches = same_batch(config, case.media, 256)
    return stepping(*trainer(config), batches)


def theirs(case: Case):
    """() -> None, one training step of the model of transformers."""
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(CORES)
    model = (torch_videomae if case.frames else torch_mae)(case).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.05, fused=True)
    shape = (case.rows, *([case.frames] if case.frames else []), 3, case.side, case.side)
    batches = torch_batches(case.rows, case.side) if INPUT.value == 'jpeg' else repeat(torch.randn(shape))

    def run():
        optimizer.zero_grad(set_to_none=True)
        model(next(batches)).loss.backward()
        optimizer.step()

    return run


def torch_shape(case: Case) -> dict:
    """What the configs of both models call alike."""
    decoder = DECODERS[case.media]
    return dict(
        image_size=case.side,
        patch_size=PATCH,
        norm_pix_loss=True,
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH,
        decoder_hidden_size=decoder['width'],
        decoder_num_hidden_layers=decoder['depth'],
        decoder_num_attention_heads=decoder['heads'],
        decoder_intermediate_size=4 * decoder['width'],
    )


def torch_mae(case: Case):
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    return ViTMAEForPreTraining(ViTMAEConfig(**torch_shape(case)))


def torch_videomae(case: Case):
    """VideoMAEForPreTraining that draws a tube mask for each clip and step."""
    import torch
    from transformers import VideoMAEConfig, VideoMAEForPreTraining

    class Masked(VideoMAEForPreTraining):
        def forward(self, pixel_values):
            places = (case.side // PATCH) ** 2
            hidden = torch.rand(case.rows, places).argsort(1) < int(0.9 * places)
            return super().forward(pixel_values, bool_masked_pos=hidden.repeat(1, case.frames // TUBELET))

    return Masked(VideoMAEConfig(**torch_shape(case), num_frames=case.frames, tubelet_size=TUBELET))


class TorchImages:
    """A map-style data set: decoded, randomly cropped (area 0.2 to 1), flipped and normalised by Pillow and NumPy."""

    def __init__(self, side: int):
        self.side, self.files = side, sorted(Path(PATH.value).rglob('*.jp*g'))

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index: int):
        rng = np.random.default_rng()
        image = Image.open(self.files[index]).convert('RGB')
        share, aspect = rng.uniform(0.2, 1), np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        area = share * image.width * image.height
        width, height = min(image.width, (area * aspect) ** 0.5), min(image.height, (area / aspect) ** 0.5)
        left, top = rng.uniform(0, image.width - width), rng.uniform(0, image.height - height)
        box = (left, top, left + width, top + height)
        image = np.asarray(image.resize((self.side, self.side), Image.Resampling.BICUBIC, box), np.float32)
        image = (image[:, ::-1] if rng.random() < 0.5 else image) / 255
        return ((image - 0.45) / 0.225).transpose(2, 0, 1)


def torch_batches(batch: int, side: int):
    from torch.utils.data import DataLoader

    images = TorchImages(side)
    options = dict(num_workers=CORES, persistent_workers=True, multiprocessing_context='spawn')
    loader = DataLoader(images, batch, shuffle=True, drop_last=True, **options)
    while True:
        yield from loader


def loader_rate(source, canvas: tuple[int, int], batch: int = 64) -> float:
    """Images per second of our loader, from its start on."""
    start = time.perf_counter()
    for _ in pipeline.batches(source, ImageReader(canvas=canvas), batch_size=batch, steps=IMAGES // batch):
        pass
    return IMAGES / (time.perf_counter() - start)


def bare_rate(source) -> float:
    """Images per second decoded to arrays by Pillow alone, in as many threads as there are cores; nothing is kept."""

    def decode(i):
        np.asarray(Image.open(BytesIO(source[i % len(source)].data)))

    start = time.perf_counter()
    with ThreadPoolExecutor(CORES) as pool:
        list(pool.map(decode, range(IMAGES)))
    return IMAGES / (time.perf_counter() - start)


def compare_pipeline():
    """Prints the share of the bare decode rate that the loader delivers into batches as large as the largest image."""
    source = sources.open_source(PATH.value, labels='none')
    sizes = [Image.open(BytesIO(source[i].data)).size[::-1] for i in range(len(source))]
    canvas = tuple(int(side) for side in np.max(sizes, 0))
    bare, own = zip(*((bare_rate(source), loader_rate(source, canvas)) for _ in range(TURNS.value)), strict=True)
    print(
        f'{len(source)} images up to {canvas[0]} x {canvas[1]} px, {CORES} cores: bare decoding {max(bare):.0f} images/s, ',
        end='',
    )
    print(f'loader {max(own):.0f} images/s: {max(own) / max(bare):.0%}')


def make_jpegs(folder: str, count: int = 512):
    """Smooth noise of 500 x 375 pixels."""
    rng = np.random.default_rng(0)
    for i in range(count):
        small = rng.integers(0, 256, (24, 32, 3), np.uint8)
        Image.fromarray(small).resize((500, 375), Image.Resampling.BICUBIC).save(f'{folder}/{i:04}.jpg', quality=90)


def main(_):
    with tempfile.TemporaryDirectory() as folder:
        if not PATH.value and (PIPELINE.value or INPUT.value == 'jpeg'):
            flags.FLAGS.path = folder
            make_jpegs(folder)
        if PIPELINE.value:
            return compare_pipeline()
        print('| input | case | transformers + PyTorch, ms | mim_jax, ms | ratio |\n|---|---|---|---|---|')
        typical = np.min if INPUT.value == 'synthetic' else np.mean
        for case in map(Case.parse, CASES.value):
            compare(f'{INPUT.value} | {case}', theirs(case), ours(case), TURNS.value, STEPS.value, typical)


if __name__ == '__main__':
    large_pages.ensure()
    app.run(main)
