"""Checkpoints: the train state and the data position, saved together by Orbax in the background."""

import contextlib
import errno
import logging
from collections.abc import Iterator

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from mim_jax import hosts
from mim_jax.errors import InputError, RunError


def _ours(record: logging.LogRecord) -> bool:
    """Orbax's threads print a traceback of every failure; this module says it in one sentence."""
    return 'orbax' not in record.pathname


class Checkpoints:
    """The checkpoints of a run: DIR/checkpoints/STEP/{state,progress}.

    A checkpoint is written beside its place and renamed when complete, so one that was cut short is never found: the file
    system has to rename folders at once. It may be written on any number of devices and read on any other.

    Args:
        workdir: the DIR of the run, a path; of a bucket, that of its mount (docs/launch.md).
        keep: checkpoints kept, the newest; older ones are deleted after a newer one is complete.
        read_only: look only; leaves what another process may be writing.
    """

    def __init__(self, workdir, *, keep: int = 3, read_only: bool = False):
        logging.getLogger('absl').addFilter(_ours)
        self.directory = epath.Path(workdir).absolute() / 'checkpoints'
        options = ocp.CheckpointManagerOptions(
            read_only=read_only,
            cleanup_tmp_directories=not read_only,
            preservation_policy=None if read_only else ocp.checkpoint_managers.LatestN(keep),
        )
        handlers = dict(state=ocp.StandardCheckpointHandler(), progress=ocp.JsonCheckpointHandler())
        with self._as_run_error('opened'):
            self._manager = ocp.CheckpointManager(self.directory, item_handlers=handlers, options=options)
        # hosts agree on where to stop by a count of questions, which Orbax, asking with steps, would muddle
        self._manager.reached_preemption = lambda step: False

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints on disk, ascending."""
        return sorted(s for s in self._manager.all_steps(read=True) if self._metadata(s).exists())

    def latest(self) -> int | None:
        """Step of the newest complete checkpoint, or None; of several hosts, all take the word of the first."""
        found = hosts.first(max(self.steps(), default=-1))
        return None if found < 0 else found

    def save(self, step: int, state, progress: dict) -> bool:
        """Starts a save, after the one before it is done; returns as soon as `state` may be donated.

        Args:
            step: names the checkpoint.
            state: tree of arrays.
            progress: what JSON can hold: next sample, skipped steps, ...

        Returns:
            False if there is a checkpoint of this step already: it is left as it is.

        Raises:
            RunError: this save, or the one before it, could not be written (a full disk); older checkpoints stay.
        """
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(progress))
        self.wait()
        if hosts.first(self._metadata(step).exists()):
            return False
        with self._as_run_error('written'):
            return self._manager.save(step, args=args, force=True)  # force: in spite of stray newer folders

    def restore(self, abstract, step: int | None = None):
        """The state of a checkpoint on the devices the target names, and its progress.

        Args:
            abstract: tree of jax.ShapeDtypeStruct with shardings.
            step: which; None = the newest.

        Raises:
            InputError: there is none, or it belongs to another architecture.
            RunError: it cannot be read.
        """
        step = self._pick(step)
        with self._as_run_error(f'read (step {step}; delete its folder to go on from an older one)'):
            saved = self._manager.item_metadata(step).state.tree
        self._check_same_architecture(saved, abstract, step)
        return self._read(step, abstract)

    def read(self, step: int | None = None):
        """(nested dict of NumPy arrays, progress) of a checkpoint of any architecture, on this host alone."""
        step = self._pick(step)
        saved = self._manager.item_metadata(step).state.tree
        return self._read(step, jax.tree.map(lambda x: np.empty(x.shape, x.dtype), saved))

    def wait(self) -> None:
        """Returns when the save under way is complete on disk.

        Raises:
            RunError: it could not be written.
        """
        with self._as_run_error('written'):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and lets go of the threads."""
        try:
            self.wait()
        finally:
            with self._as_run_error('written'):
                self._manager.close()

    def _metadata(self, step: int) -> epath.Path:
        return self.directory / str(step) / '_CHECKPOINT_METADATA'  # written before anything else, deleted with all

    def _pick(self, step: int | None) -> int:
        self.wait()
        steps, newest = self.steps(), self.latest() if step is None else step
        if newest is None or step is not None and newest not in steps:  # the newest of host 0 may show late on others
            have = f'only of steps {", ".join(map(str, steps))}' if steps else 'none'
            raise InputError(
                f'{self.directory} has no checkpoint{"" if newest is None else f" of step {newest}"}: there is {have}'
            )
        return newest

    def _read(self, step: int, target):
        args = ocp.args.Composite(state=ocp.args.StandardRestore(target), progress=ocp.args.JsonRestore())
        with self._as_run_error(f'read (step {step}; delete its folder to go on from an older one)'):
            found = self._manager.restore(step, args=args)
        return found.state, found.progress

    def _check_same_architecture(self, saved, wanted, step: int) -> None:
        saved, wanted = _shapes(saved), _shapes(wanted)
        paths = sorted(saved.keys() | wanted.keys(), key=lambda path: (not path.startswith('params/'), path))
        for path in paths:
            if saved.get(path) != wanted.get(path):
                there, here = (x.get(path, 'no such array') for x in (saved, wanted))
                raise InputError(f'{self.directory / str(step)} is of another architecture: {path} is {there} there and {here} in this '
                                 f'configuration; choose another --workdir, or the configuration in {self.directory.parent / "config.json"}')  # fmt: skip

    @contextlib.contextmanager
    def _as_run_error(self, done: str) -> Iterator[None]:
        """What Orbax and its threads raise becomes one sentence."""
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            full = getattr(error, 'errno', None) == errno.ENOSPC or 'No space left on device' in str(error)
            reason = 'no space left on device' if full else str(error).partition('\n')[0]
            raise RunError(f'checkpoint in {self.directory} could not be {done}: {reason}') from error


def _shapes(tree) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator='/'): tuple(x.shape) for path, x in leaves}
