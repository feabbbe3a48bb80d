"""Clips a second of the input pipeline, against bare PyAV on the same cores, and of packed videos against raw ones.

    python benchmarks/video_input.py --videos=FOLDER --out=benchmarks/results/video_input.md

Bare decoding opens each file, goes to the key frame before the clip, decodes to the last frame the clip needs, converts its 16
frames to RGB arrays and drops them, in as many processes as there are cores. All ways take turns with the same clips.
"""

import os
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

import av
import numpy as np
import psutil
from absl import app, flags

from mim_jax.data import VideoReader, batches, open_source
from mim_jax.data.decoders import Info
from mim_jax.data.image import fit
from mim_jax.data.pipeline import shuffled
from mim_jax.data.video import moments
from mim_jax.tools.pack import pack

VIDEOS = flags.DEFINE_string('videos', None, 'folder of short videos', required=True)
OUT = flags.DEFINE_string('out', 'benchmarks/results/video_input.md', 'table')
WORK = flags.DEFINE_string('work', '/tmp/video_input', 'where packed copies and the long video go')
CANVAS = flags.DEFINE_list('canvas', ['120', '160'], 'height and width that hold the frames of the short videos')
TURNS = flags.DEFINE_integer('turns', 5, 'turns of each, after one to warm up')
LONG_TURNS = flags.DEFINE_integer('long_turns', 3, 'the same of the long video')
CLIPS = flags.DEFINE_integer('clips', 480, 'clips of a turn')
LONG_CLIPS = flags.DEFINE_integer('long_clips', 16, 'clips of a turn of the long video; 0 = leave it out')
SECONDS = flags.DEFINE_integer('seconds', 20, 'of the long video')

FRAMES, BATCH, SIDE, KEYFRAMES = 16, 16, 256, 12
CORES = len(os.sched_getaffinity(0))


def bare(source, times: dict, canvas: tuple[int, int], sample: int) -> int:
    """Frames of a clip, by a plain loop over the decoder."""
    record, taken = source[shuffled(sample, len(source), 0)], 0
    with av.open(record.data.file) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        rate, duration = float(stream.average_rate), float(stream.duration * stream.time_base)
        wanted = moments(Info(duration, rate, stream.height, stream.width), (0, sample), **times)
        height, width = fit(stream.height, stream.width, canvas)
        if wanted[0] > 1:
            container.seek(int(wanted[0] / stream.time_base), stream=stream)
        for picture in container.decode(stream):
            while taken < len(wanted) and picture.time + 1 / rate > wanted[taken]:
                picture.reformat(width, height, 'rgb24', threads=1).to_ndarray()
                taken += 1
            if taken == len(wanted):
                break
        for _ in range(taken, len(wanted)):  # the last frame is held
            picture.reformat(width, height, 'rgb24', threads=1).to_ndarray()
    return taken


def all_bare(pool, source, reader: VideoReader, count: int) -> None:
    for _ in pool.imap_unordered(partial(bare, source, reader.times, reader.size['canvas']), range(count), 4):
        pass


def piped(source, reader: VideoReader, count: int) -> None:
    """The same clips in batches."""
    for batch, report in batches(source, reader, batch_size=BATCH, steps=count // BATCH):
        assert batch['valid'].all(), report.bad


def take_turns(ways: dict[str, Callable], count: int, turns: int) -> dict[str, list[tuple[float, float]]]:
    """(clips a second, milliseconds of CPU time a clip) of each turn of each way."""
    found = {name: [] for name in ways}
    for turn in range(turns + 1):
        for name, way in ways.items():
            start, before = time.perf_counter(), cpu_seconds()
            way()
            result = count / (time.perf_counter() - start), 1e3 * (cpu_seconds() - before) / count
            print(f'{name}: {result[0]:.1f} clips/s, {result[1]:.2f} ms', flush=True)
            found[name] += [result] * (turn > 0)
    return found


def cpu_seconds() -> float:
    """Of this process and its children."""
    this = psutil.Process()
    return sum(sum(process.cpu_times()[:2]) for process in (this, *this.children(recursive=True)))


def long_video(folder: Path) -> Path:
    """A textured scene that moves: H.264, 1080 lines, 30 frames per second, key frames where x264 puts them."""
    path, part = folder / 'scene.mp4', folder / 'scene.part'
    if path.exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    scene = np.kron(rng.integers(0, 256, (70, 130, 3), np.uint8), np.ones((32, 32, 1), np.uint8))
    scene += rng.integers(0, 24, scene.shape, np.uint8)
    with av.open(str(part), 'w', format='mp4') as container:
        stream = container.add_stream('libx264', rate=30, options=dict(preset='veryfast'))
        stream.width, stream.height, stream.pix_fmt = 1920, 1080, 'yuv420p'
        for k in range(30 * SECONDS.value):
            top, left = (3 * k) % 1000, (5 * k) % 2000
            view = np.ascontiguousarray(scene[top : top + 1080, left : left + 1920])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(view, format='rgb24')))
        container.mux(stream.encode())
    part.rename(path)
    return folder


def packed(source: Path, name: str, **how):
    """The records of a packed copy, which is made once."""
    copy = Path(WORK.value) / name
    if not copy.exists():
        pack(str(source), copy, 'video', dict(how, timeout=600.0), workers=CORES)
    return open_source(str(copy), media='video')


def measure(folder: Path, count: int, turns: int, copies: dict[str, dict], **how) -> dict[str, list]:
    """Bare, piped, and piped from packed copies."""
    source, reader = open_source(str(folder), media='video'), VideoReader(frames=FRAMES, timeout=600.0, **how)
    with get_context('spawn').Pool(CORES) as pool:
        ways = {
            'bare PyAV': partial(all_bare, pool, source, reader, count),
            'pipeline': partial(piped, source, reader, count),
        }
        for name, options in copies.items():
            copy = packed(folder, f'{folder.name}_{"_".join(map(str, options.values()))}', **options)
            ways[f'pipeline, packed {name}'] = partial(piped, copy, reader, count)
        return take_turns(ways, count, turns)


def table(found: dict[str, list]) -> list[str]:
    base = found['bare PyAV']
    lines = [
        '| | clips/s, best turn | share of bare | CPU ms a clip, median | share of bare |',
        '|---|---|---|---|---|',
    ]
    for name, turns in found.items():
        best, cpu = max(rate for rate, _ in turns), statistics.median(ms for _, ms in turns)
        share = best / max(rate for rate, _ in base), statistics.median(ms for _, ms in base) / cpu
        lines.append(f'| {name} | {best:.1f} | {share[0]:.0%} | {cpu:.2f} | {share[1]:.0%} |')
    return lines


def long_part() -> list[str]:
    folder = long_video(Path(WORK.value) / f'long_{SECONDS.value}')
    keyed = dict(short_side=SIDE, keyframes=KEYFRAMES)
    copies = {f'at short side {SIDE} with a key frame every {KEYFRAMES}': keyed}
    found = measure(folder, LONG_CLIPS.value, LONG_TURNS.value, copies, canvas=(SIDE, 456), stride=4)
    return [
        f'\nOne video of {SECONDS.value} s, 1920 × 1080, 30 frames a second, stride 4, {LONG_CLIPS.value} clips a turn, '
        f'{LONG_TURNS.value} turns:\n',
        *table(found),
    ]


def machine() -> str:
    info = Path('/proc/cpuinfo').read_text().splitlines()
    cpu = next((line.split(': ')[1] for line in info if 'model name' in line), platform.machine())
    return (
        f'{CORES} cores of {cpu}, load {os.getloadavg()[1]:.1f} in the last five minutes; Python {platform.python_version()}, '
        f'PyAV {version("av")}, NumPy {version("numpy")}, Grain {version("grain")}.'
    )


def main(_):
    name, canvas = Path(VIDEOS.value).name, tuple(map(int, CANVAS.value))
    copies = {'as they are': {}, f'with a key frame every {KEYFRAMES}': dict(short_side=SIDE, keyframes=KEYFRAMES)}
    short = measure(Path(VIDEOS.value), CLIPS.value, TURNS.value, copies, canvas=canvas, stride=3)
    long = long_part() if LONG_CLIPS.value else []
    lines = [
        f'# Input of videos\n\n    python benchmarks/video_input.py --videos={name} --canvas={",".join(CANVAS.value)}\n',
        f'Clips of {FRAMES} frames at random places, batches of {BATCH}; all ways take turns. {machine()} The CPU time counts all '
        'processes, and depends less on what else the machine does than the clips a second do.\n',
        f'`{name}`: short videos, stride 3, canvas {canvas[0]} × {canvas[1]}, {CLIPS.value} clips a turn, {TURNS.value} turns:\n',
        *table(short),
        *long,
    ]
    Path(OUT.value).write_text('\n'.join(lines) + '\n')
    print('\n'.join(lines))


if __name__ == '__main__':
    app.run(main)
