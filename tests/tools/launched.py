"""What launched machines are tried with: no cloud is called, commands of the services are stand-ins on PATH."""

import json
import re
import shlex
import subprocess
from pathlib import Path

import yaml

from mim_jax.tools.launch import TARGETS, main

ODD = """python -m mim_jax.main --config=configs/mae.py "--workdir=/disk/my run" '--config.note=it costs $HOME, "a lot" `ls` *' --config.x=a\\'b"""


def written(tmp_path, *words) -> dict[str, str]:
    """Files by path after a launch."""
    assert main([*words, f'--out={tmp_path}']) == 0
    return {str(path.relative_to(tmp_path)): path.read_text() for path in sorted(tmp_path.rglob('*')) if path.is_file()}


ON_BUCKETS = 'tpu_vm', 'tpu_pod', 'queued', 'gke', 'xpk', 'skypilot'
MOUNTED_BY_THE_SERVICE = 'gke', 'xpk'


def shell_of(name: str, text: str) -> str:
    """The shell script in a file: a notebook's, a pod's or a task's is inside."""
    if name.endswith('.ipynb'):
        cells = [''.join(cell['source']) for cell in json.loads(text)['cells']]
        return next(cell.removeprefix('%%writefile job.sh\n') for cell in cells if cell.startswith('%%writefile'))
    if name.endswith('jobset.yaml'):
        return pod(yaml.safe_load(text))['containers'][0]['command'][-1]
    if name.endswith('job.yaml'):
        task = yaml.safe_load(text)
        return f'(\n{task["setup"]})\n{task["run"]}'
    return text


def pod(jobset: dict) -> dict:
    return jobset['spec']['replicatedJobs'][0]['template']['spec']['template']['spec']


def program(folder: Path, name: str, text: str) -> None:
    """A stand-in for a program."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f'#!/usr/bin/env bash\n{text}')
    (folder / name).chmod(0o755)


def bash(script: str, env: dict, cwd: Path, **more) -> subprocess.CompletedProcess:
    return subprocess.run(['bash', '-c', script], env=env | more, cwd=cwd, capture_output=True, text=True, timeout=60)


def commands(script: str) -> dict[str, list[str]]:
    """The arrays at the head of a script."""
    return {name: shlex.split(words) for name, words in re.findall(r'^(\w+)=\((.*)\)$', script, re.M)}


MACHINE = dict.fromkeys(TARGETS, 'start.sh') | dict(
    colab='mim-jax.ipynb',
    kaggle='mim-jax.ipynb',
    gke='jobset.yaml',
    xpk='run.sh',
    skypilot='job.yaml',
    slurm='job.sbatch',
)


def on_machine(target: str, tmp_path: Path, *keys: str) -> str:
    """What a machine of the target comes to run, with buckets in the folder of the test."""
    name = f'{target}/{MACHINE[target]}'
    script = shell_of(name, written(tmp_path / 'files', target, *keys)[name]).replace('/mnt/gcs', f'{tmp_path}/gcs')
    if target in MOUNTED_BY_THE_SERVICE:
        for bucket in re.findall(r'mountpoint -q (\S+)', script):
            Path(bucket).mkdir(parents=True, exist_ok=True)
            (Path(bucket) / 'mounted').touch()
    if target == 'xpk':
        line = commands(script)['workload'][-1].removeprefix('--command=')
        return f"trap 'kill -TERM $!' TERM\n({line}) &\nwait $! || wait $!"  # as the template of xpk has it
    return script
