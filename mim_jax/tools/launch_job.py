"""What `launch` is told: a job, and the TPUs it may ask for."""

import difflib
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields

from mim_jax.errors import InputError
from mim_jax.tools.topology import CHIPS, volume


@dataclass(frozen=True)
class Family:
    """What Google Cloud calls a generation of TPUs (docs.cloud.google.com/tpu/docs: v4, v5e, v5p, v6e, tpu7x, runtimes; for tpu7x also
    docs.cloud.google.com/kubernetes-engine/docs/concepts/tpu-ironwood).
    """

    chip: str  # in CHIPS
    runtime: str  # of Cloud TPU VMs; '' = there are none
    node: str  # label of GKE nodes
    machine: str  # of GKE nodes, less the chips
    policy: bool = False  # whether GKE places several hosts by a workload policy
    xpk_from: int = 1  # chips (github.com/AI-Hypercomputer/xpk: src/xpk/core/system_characteristics.py)


FAMILIES = {
    'v4': Family('v4', 'tpu-ubuntu2204-base', 'tpu-v4-podslice', 'ct4p-hightpu'),
    'v5litepod': Family('v5e', 'v2-alpha-tpuv5-lite', 'tpu-v5-lite-podslice', 'ct5lp-hightpu', xpk_from=8),
    'v5p': Family('v5p', 'v2-alpha-tpuv5', 'tpu-v5p-slice', 'ct5p-hightpu'),
    'v6e': Family('v6e', 'v2-alpha-tpuv6e', 'tpu-v6e-slice', 'ct6e-standard'),
    'tpu7x': Family('tpu7x', '', 'tpu7x', 'tpu7x-standard', policy=True),
}


@dataclass(frozen=True)
class Slice:
    """The chips of one accelerator."""

    family: Family
    chips: int
    topology: str
    hosts: int


@dataclass(frozen=True)
class Job:
    """What is to run, and where; a target reads the keys that concern it. Words in capitals are for the user to replace."""

    command: str = (
        'python -m mim_jax.main --config=configs/mae.py:vit_b16 --workdir=gs://BUCKET/mae_b16 --config.data.path=DATA'
    )
    name: str = 'mim-jax'  # of the job, and of what it makes in the cloud
    repository: str = 'https://github.com/OWNER/mim_jax.git'  # '' = the image has the code, in its working directory
    revision: str = 'main'  # branch, tag or commit
    extras: str = 'tpu'  # of the installation
    accelerator: str = 'v5litepod-16'
    slices: int = 1  # of that accelerator
    spot: bool = True
    project: str = 'PROJECT'
    zone: str = 'us-west4-a'
    runtime: str = ''  # of Cloud TPU VMs; '' = that of the accelerator
    image: str = 'python:3.12'  # of containers
    cluster: str = 'CLUSTER'  # of GKE
    queue: str = 'mim-jax'  # the LocalQueue of Kueue
    service_account: str = 'default'  # of Kubernetes: it has to be allowed to use the buckets
    nodes: int = 2  # of SLURM
    gpus: int = 8  # of a node
    cpus: int = 8  # for each GPU
    time: str = '24:00:00'
    partition: str = ''


CIFAR10 = '--config=configs/mae_cifar10.py --config.data.path=hf:uoft-cs/cifar10'
DEFAULTS = {  # of a target, where those of Job make no sense
    'colab': dict(
        command=f'python -m mim_jax.main {CIFAR10} --workdir=/content/drive/MyDrive/mae_cifar10', extras='tpu,hub'
    ),
    'kaggle': dict(command=f'python -m mim_jax.main {CIFAR10} --workdir=/kaggle/working/mae_cifar10', extras='tpu,hub'),
    'tpu_vm': dict(accelerator='v5litepod-8'),
    'slurm': dict(command=Job.command.replace('gs://BUCKET', 'runs')),
}
ONE_SLICE = ('tpu_vm', 'tpu_pod', 'skypilot')
ON_GKE = ('gke', 'xpk')
ON_TPUS = (*ONE_SLICE, 'queued', *ON_GKE)
NO_BUCKETS = {
    'slurm': 'the nodes of SLURM share a file system, so name a folder of it',
    'colab': 'name a folder of Drive, or of a bucket that a cell of yours mounts',
    'kaggle': 'name a folder of /kaggle/working, or of a bucket that a cell of yours mounts',
}
FOLDERS = '/mnt/gcs'  # where machines have the buckets
BRING_THEIR_OWN = ('gke', 'xpk', 'slurm')  # code: in the image, or on the disk


def slice_of(accelerator: str) -> Slice:
    """Chips, topology and hosts of an accelerator of Cloud TPU: v5litepod-16 has 16 chips, v5p-16 has 16 cores on 8.

    Raises:
        InputError: there is no such accelerator.
    """
    name, _, count = accelerator.partition('-')
    if name not in FAMILIES or not count.isdigit():
        hint = ' (v5e is called v5litepod)' if name == 'v5e' else ''
        raise InputError(
            f'accelerator={accelerator}: it has to be one of {", ".join(f"{n}-N" for n in FAMILIES)}{hint}'
        )
    family, chip = FAMILIES[name], CHIPS[FAMILIES[name].chip]
    shapes = {volume(shape): shape for shape in chip.shapes}
    chips, odd = divmod(int(count), chip.cores)
    if odd or chips not in shapes:
        sizes = ', '.join(str(chips * chip.cores) for chips in shapes)
        cores = f' (it counts cores, {chip.cores} a chip)' if chip.cores > 1 else ''
        raise InputError(f'accelerator={accelerator}: the sizes of {name} are {sizes}{cores}')
    one = chips < 4 or shapes[chips] == '2x4'  # VMs have four chips, but for these
    return Slice(family, chips, shapes[chips], 1 if one else chips // 4)


def job_of(target: str, given: Mapping[str, object]) -> Job:
    """The job, checked.

    Args:
        target: keys that are not given have its defaults.
        given: values by key; those of a command line are text.

    Raises:
        InputError: no such key, a value it cannot have, or a job that the target cannot run.
    """
    kinds = {field.name: field.type for field in fields(Job)}
    for key in given:
        if key not in kinds:
            close = difflib.get_close_matches(key, kinds, 1)
            raise InputError(
                f'a job has no key {key!r}: ' + (f'did you mean {close[0]!r}?' if close else ', '.join(kinds))
            )
    job = Job(**DEFAULTS.get(target, {}) | {key: value_of(key, kinds[key], value) for key, value in given.items()})
    named = buckets(words(job))
    if named and target in NO_BUCKETS:
        raise InputError(f'gs://{named[0]} is not mounted on {target}: {NO_BUCKETS[target]}')
    if not job.repository and target not in BRING_THEIR_OWN:
        raise InputError(f'repository is empty: on {target} the code comes from there')
    if target in ON_TPUS:
        check_tpu(target, job)
    return job


def value_of(key: str, kind: type, value: object) -> object:
    """The value of a key.

    Raises:
        InputError: it cannot have this one.
    """
    text = str(value)
    if kind is bool and text.lower() in ('true', 'false'):
        return text.lower() == 'true'
    if kind is int and re.fullmatch('[1-9][0-9]*', text):
        return int(text)
    if kind is str and isinstance(value, str):
        form, wanted = FORMS.get(key, WORD)
        if re.fullmatch(form, value):
            return value
        raise InputError(f'{key}={value!r}: it has to be {wanted}')
    raise InputError(f'{key}={value!r}: it has to be {KINDS[kind]}')


KINDS = {bool: 'True or False', int: 'a whole number above 0', str: 'text'}
WORD = r'[\w./:@,+=-]*', 'one word, without quotes, spaces and what a shell would take for its own'
FORMS = {  # of texts: they end up in scripts and YAML
    'command': (r'[^\n]+', 'one line'),
    'name': ('[a-z]([a-z0-9-]{0,38}[a-z0-9])?', 'small letters, digits and hyphens, a letter first, 40 at most'),
    'extras': (r'[\w,]+', 'names from setup.py with commas between them'),
    'zone': ('[a-z]+-[a-z]+[0-9]+-[a-z]', 'a zone, as us-west4-a'),
    'time': ('[0-9:-]+', 'a time of SLURM, as 24:00:00'),
}


def words(job: Job) -> list[str]:
    """The words of the command, as a shell would split it; nothing in them is expanded.

    Raises:
        InputError: a quote that does not close, or no workdir.
    """
    try:
        split = shlex.split(job.command)
    except ValueError as error:
        raise InputError(f'command={job.command!r}: {error}'.replace('No closing', 'there is no closing')) from error
    if not option(split, 'workdir'):
        raise InputError(f'command={job.command!r}: it has no --workdir=DIR, from which it would go on')
    return split


def buckets(split: list[str]) -> list[str]:
    """Names of the buckets among words that are gs://BUCKET/... or --NAME=gs://BUCKET/..., each once.

    Raises:
        InputError: no bucket can have such a name.
    """
    found = [match[1] for word in split if (match := re.match(r'(?:--[\w.]+=)?gs://([^/]*)', word))]
    for name in found:
        if not re.fullmatch(r'[A-Za-z0-9][\w.-]+', name, re.ASCII):
            raise InputError(f'gs://{name}: no bucket can be called {name!r}')
    return list(dict.fromkeys(found))


def run_words(job: Job) -> list[str]:
    """The words of the command as machines run it: folders in place of buckets."""
    return [re.sub(r'^(--[\w.]+=)?gs://', rf'\1{FOLDERS}/', word) for word in words(job)]


def option(split: list[str], name: str) -> str:
    """The value of --NAME=VALUE among words, '' where there is none; the last one counts."""
    return next((word.partition('=')[2] for word in reversed(split) if word.startswith(f'--{name}=')), '')


def check_tpu(target: str, job: Job) -> None:
    """Refuses what a target cannot run, and what would be lost with its machines.

    Raises:
        InputError: one of these.
    """
    of, workdir = slice_of(job.accelerator), option(words(job), 'workdir')
    hosts, family = of.hosts, of.family
    if not family.runtime and target not in ON_GKE:
        raise InputError(
            f'accelerator={job.accelerator}: there are no Cloud TPU VMs of it, so take {" or ".join(ON_GKE)}'
        )
    if target == 'xpk' and of.chips < family.xpk_from:
        raise InputError(
            f'accelerator={job.accelerator}: xpk has those of {family.xpk_from} chips and more, so take gke'
        )
    if target == 'tpu_vm' and hosts > 1:
        raise InputError(f'accelerator={job.accelerator}: it has {hosts} hosts, so take tpu_pod or queued')
    if job.slices > 1 and target in ONE_SLICE:
        raise InputError(f'slices={job.slices}: {target} has one, so take queued, gke or xpk')
    if '://' in workdir and not workdir.startswith('gs://'):
        raise InputError(f'--workdir={workdir}: only buckets of gs:// are mounted')
    if not workdir.startswith(('gs://', '/')) and (target != 'tpu_vm' or job.spot):
        raise InputError(
            f'--workdir={workdir} goes away with its machine: it has to be gs://BUCKET/..., or /... of a disk that all machines have'
        )
