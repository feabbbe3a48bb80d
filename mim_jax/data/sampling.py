"""Which moments of a video make a clip: `(info, rng, *, frames, stride, clips, fps) -> f64[clips, frames]` in seconds.

`rng` draws for training; None gives the fixed views of a test, spread evenly. Every moment is the middle of a frame, so
rounded timestamps do not matter; past the end of a short video the last frame stays.
"""

import numpy as np

from mim_jax.data.decoders import Info

Rng = np.random.Generator | None


def dense(info: Info, rng: Rng, *, frames: int, stride: float, clips: int, fps: float = 0.0) -> np.ndarray:
    """`frames` moments `stride` frames apart (SlowFast, arXiv 1812.03982; VideoMAE, 2203.12602).

    With `fps` the stride counts frames of that rate, whatever the rate of the file. For training each clip starts anywhere;
    for a test the clips are spread from the first possible start to the last, one clip lies in the middle.
    """
    step = stride * info.rate / fps if fps else stride  # in frames of the file
    room = max(_count(info) - 1 - (frames - 1) * step, 0)
    if rng is None:
        start = np.linspace(0, room, clips) if clips > 1 else np.array([room / 2])
    else:
        start = rng.uniform(0, room + 1, clips)
    return _seconds(np.floor(start)[:, None] + np.arange(frames) * step, info)


def segment(info: Info, rng: Rng, *, frames: int, stride: float, clips: int, fps: float = 0.0) -> np.ndarray:
    """One moment of each of `frames` equal parts of the video (TSN, arXiv 1608.00859), whatever the stride.

    For training anywhere in its part; for a test clip i of K at (i + 1) / (K + 1) of each part.
    """
    del stride, fps
    part = _count(info) / frames
    inside = np.arange(1, clips + 1)[:, None] / (clips + 1) if rng is None else rng.uniform(0, 1, (clips, frames))
    return _seconds((np.arange(frames) + inside) * part - 0.5, info)


def still(info: Info, rng: Rng, *, frames: int, stride: float, clips: int, fps: float = 0.0) -> np.ndarray:
    """One frame, held: what a model does without motion. For training any frame, for a test those of `segment`."""
    moments = segment(info, rng, frames=1, stride=stride, clips=clips, fps=fps)
    return np.repeat(moments, frames, 1)


def _count(info: Info) -> int:
    """Frames of the video."""
    return max(round(info.duration * info.rate), 1)


def _seconds(frame: np.ndarray, info: Info) -> np.ndarray:
    return (np.clip(np.round(frame), 0, _count(info) - 1) + 0.5) / info.rate


SAMPLINGS = dict(dense=dense, segment=segment, still=still)
