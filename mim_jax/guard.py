"""Watches every step from one behind: a non-finite one is counted, named and its batch kept; too many in a row call for a rollback."""

from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

KEPT = 20  # batches of skipped steps kept in a run


class Guard:
    """Looks at the step before the last one, whose numbers are ready, so that the device never waits.

    Args:
        workdir: batches of skipped steps go to WORKDIR/bad_batches/STEP.npz (STEP.HOST.npz for hosts after the first).
        names: path of each parameter, in the order of `leaf_norms`.
        event: called as event('skipped_step', step=, parameter=, loss=, grad_norm=, batch=).
        skipped: steps skipped before this process.
        judge: called with the number of good rows of each batch, on all hosts together; may raise.
    """

    def __init__(
        self,
        workdir: Path,
        names: Sequence[str],
        event,
        skipped: int = 0,
        judge: Callable[[int], None] | None = None,
    ):
        self.directory, self.names, self.event, self.judge = workdir / 'bad_batches', names, event, judge
        self.skipped, self.in_a_row, self.first_bad = skipped, 0, ''
        self._pending = None

    def watch(self, step: int, batch: dict, metrics: dict) -> int:
        """Takes the step just launched and looks at the one before.

        Args:
            step: number of the step just launched.
            batch: its NumPy rows on this host.
            metrics: what it returned, not ready yet.

        Returns:
            Non-finite steps in a row, up to the one before.
        """
        before, self._pending = self._pending, (step, batch, metrics)
        if before is not None:
            self._look(*before)
        return self.in_a_row

    def flush(self) -> int:
        """Waits for the last step and looks at it."""
        if self._pending is not None:
            self._look(*self._pending)
        self._pending = None
        return self.in_a_row

    def forget(self) -> None:
        """Starts anew after a rollback."""
        self._pending, self.in_a_row = None, 0

    def _look(self, step: int, batch: dict, metrics: dict) -> None:
        if self.judge:
            self.judge(int(metrics['examples']))
        if bool(metrics['finite']):
            self.in_a_row = 0
            return
        self.skipped += 1
        self.in_a_row += 1
        bad = ~np.isfinite(np.asarray(metrics['leaf_norms']))
        self.first_bad = self.names[int(bad.argmax())] if bad.any() else 'the loss'
        kept = self._keep(step, batch)
        self.event('skipped_step', step=step, parameter=self.first_bad, batch=kept,
                   loss=str(float(metrics['loss'])), grad_norm=str(float(metrics['grad_norm'])))  # fmt: skip

    def _keep(self, step: int, batch: dict) -> str | None:
        if self.skipped > KEPT:
            return None
        host = jax.process_index()
        path = self.directory / (f'{step}.{host}.npz' if host else f'{step}.npz')
        path.parent.mkdir(exist_ok=True)
        np.savez_compressed(path, **batch)
        return str(path)
