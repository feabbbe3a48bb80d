"""Runs of the trainer, from outside."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path


def run(config: str, workdir: Path, changes: Mapping) -> dict:
    """One process of the trainer, which only reads a run that is done: its last metrics, and 'cpu_minutes' of the training.

    Args:
        config: 'configs/NAME.py[:variant]'.
        workdir: where it lives.
        changes: of the config, by 'key.key'.
    """
    command = [sys.executable, '-m', 'mim_jax.main', f'--config={config}', f'--workdir={workdir}']
    subprocess.run(command + [f'--config.{key}={value}' for key, value in changes.items()], check=True)
    values = {}
    for line in (workdir / 'metrics.jsonl').read_text().splitlines():
        values |= json.loads(line)
    events = map(json.loads, (workdir / 'events.jsonl').read_text().splitlines())
    return values | dict(cpu_minutes=max(e['cpu_seconds'] for e in events if e['event'] == 'save') / 60)
