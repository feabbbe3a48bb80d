"""What every reader of records is."""

from collections.abc import Callable, Mapping

from mim_jax.data.sources.base import Source


class Reader:
    """Makes rows of a batch out of records: `reader(data, draw, out)` fills `clips` rows of the arrays `out`, gives notes.

    Attributes:
        media: what it reads, as `open_source` is told.
        own_processes: whether it decodes in processes of its own, one for each thread that calls it.
        clips: rows of a record.
        row: shape and type of each array of a row.
    """

    media: str
    own_processes = False
    clips = 1

    def divide(self, source: Source) -> Source:
        """The records that are dealt out to training and validation."""
        return source

    def arrange(self, source: Source) -> Source:
        """The records that batches are made of."""
        return source

    @classmethod
    def settle(cls, options: Mapping, records: Callable[..., Source]) -> dict:
        """Options that `options` leave open and the training records decide; `records(divide)` opens them, divided so."""
        return {}
