"""The loop: next batch, step, log, evaluate, save."""

import json
import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import flax
import jax
import jax.numpy as jnp
import numpy as np

from mim_jax import build, guard, metrics, sharding, step
from mim_jax.checkpoint import Checkpoints
from mim_jax.data import pipeline
from mim_jax.errors import InputError, RunError
from mim_jax.evals import table

PREEMPTED = 143  # exit status of a run that saved because it was told to stop


def run(config, workdir: str, mode: str, origin: dict) -> int:
    """Trains to the end, or evaluates the newest checkpoint.

    Args:
        config: ConfigDict with the keys of configs/base.py.
        workdir: where the run lives.
        mode: 'train' or 'eval'.
        origin: where each value that is not the config file's comes from.

    Returns:
        Exit status: 0 when the run reached its end, 143 when it saved and left on a signal.

    Raises:
        InputError: wrong config or input.
        RunError: the run cannot go on.
    """
    workdir = Path(workdir)
