"""What a run writes about itself: its config, where each value came from, and on what it ran."""

import contextlib
import errno
import fcntl
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import jax

from mim_jax.errors import InputError

NO_LOCKS = (errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS)  # what flock gives where the file system has none
PACKAGES = ('mim_jax', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy')


def make_workdir(workdir: Path) -> None:
    """Makes the directory of the run.

    Raises:
        InputError: it cannot be made.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f'--workdir={workdir} cannot be made: {error.strerror}') from error


@contextlib.contextmanager
def alone(workdir: Path) -> Iterator[None]:
    """Keeps other trainers out of the directory, by a lock that ends with the process however it ends.

    Network file systems and mounted buckets lock for one machine alone; where there are no locks at all, it is said.

    Raises:
        InputError: another one is at work.
    """
    if jax.process_index():
        yield
        return
    folder = os.open(workdir, os.O_RDONLY)
    try:
        lock(folder, workdir)
        yield
    finally:
        os.close(folder)


def lock(folder: int, workdir: Path) -> None:
    """Takes the lock of an open directory, where its file system has one to give.

    Raises:
        InputError: another process has it.
    """
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InputError(
            f'another process is training in --workdir={workdir}: wait for it, or choose another directory'
        ) from error
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        print(f'--workdir={workdir} is on a file system without locks: see to it that no other run trains there', file=sys.stderr)  # fmt: skip


def saved(workdir: Path) -> dict:
    """What WORKDIR/config.json says, as {'a.b': 1}; {} where there is none."""
    path = workdir / 'config.json'
    return flat(json.loads(path.read_text())) if path.exists() else {}


def changes(workdir: Path, config) -> dict[str, tuple]:
    """Keys whose values differ from those of the run before: {key: (before, now)}."""
    before = saved(workdir)
    now = as_saved(config)
    keys = [key for key in before | now if not key.startswith(('origin.', 'environment.'))]
    return {key: (before.get(key), now.get(key)) for key in keys if before and before.get(key) != now.get(key)}


def as_saved(config) -> dict:
    """What config.json would say of it, as {'a.b': 1}."""
    return flat(json.loads(json.dumps(config.to_dict(), default=str)))


def flat(tree: dict, prefix: str = '') -> dict:
    """{'a': {'b': 1}} -> {'a.b': 1}."""
    pairs = (
        flat(value, f'{prefix}{key}.').items() if isinstance(value, dict) else [(f'{prefix}{key}', value)]
        for key, value in tree.items()
    )
    return {key: value for some in pairs for key, value in some}


def write_config(workdir: Path, config, origin: dict, data) -> None:
    """WORKDIR/config.json: the whole config, the `origin` of each changed value, and the `environment`."""
    if jax.process_index():
        return
    device = jax.devices()[0]
    environment = dict(
        packages={name: version(name) for name in PACKAGES},
        python=platform.python_version(),
        device=f'{jax.device_count()} x {device.device_kind}',
        hosts=jax.process_count(),
        git=git_revision(),
        records=data.train_size,
        classes=data.labelled.num_classes,
    )
    text = json.dumps(config.to_dict() | dict(origin=origin, environment=environment), indent=2, default=str)
    fresh = workdir / 'config.json.tmp'
    fresh.write_text(text + '\n')
    os.replace(fresh, workdir / 'config.json')


def version(package: str) -> str:
    """Installed version, or '' where it runs from a folder."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ''


def git_revision() -> str:
    """Revision of the code, with '+' if it was changed since; '' outside a repository."""
    command = ['git', '-C', str(Path(__file__).parent), 'describe', '--always', '--dirty=+']
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ''
