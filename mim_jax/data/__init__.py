"""From files to batches of NumPy arrays. Nothing here touches a device."""

from mim_jax.data.bad_samples import Bad, Report
from mim_jax.data.pipeline import batches, one_pass
from mim_jax.data.sources import Source, find_splits, hold_out, open_source, open_splits

__all__ = ['Bad', 'Report', 'Source', 'batches', 'find_splits', 'hold_out', 'one_pass', 'open_source', 'open_splits']
