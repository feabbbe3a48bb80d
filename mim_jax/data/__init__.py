"""From files to batches of NumPy arrays. Nothing here touches a device."""

from mim_jax.data.bad_samples import Bad, Report
from mim_jax.data.image import ImageReader
from mim_jax.data.latents import LatentReader
from mim_jax.data.pipeline import batches, one_pass
from mim_jax.data.sources import Source, find_splits, hold_out, open_source, open_splits
from mim_jax.data.text import TextReader
from mim_jax.data.tokens import TokenReader
from mim_jax.data.video import VideoReader

__all__ = [
    'Bad', 'ImageReader', 'LatentReader', 'Report', 'Source', 'TextReader', 'TokenReader', 'VideoReader', 'batches', 'find_splits',
    'hold_out', 'one_pass', 'open_source', 'open_splits',
]  # fmt: skip
