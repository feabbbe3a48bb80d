"""What a run writes about itself: its config, where each value came from, and on what it ran."""

import json
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import jax

from mim_jax.errors import InputError

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
