"""What the environment says of the hosts of a run: whether there are several, which this one is, and where the first is."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from glob import glob
from urllib import error, request

from mim_jax.errors import InputError

METADATA = 'http://metadata.google.internal/computeMetadata/v1/instance/attributes/'


@dataclass(frozen=True)
class Launch:
    """What started this process beside others, and what the environment says of them; None is left to JAX.

    Attributes:
        said: 'SLURM_STEP_NUM_TASKS=4', by which it was known.
        count: of hosts.
        number: of this one.
        address: of host 0, 'NAME:PORT'.
        local: (number, count) of the processes on this machine.
        method: of `jax.distributed.initialize` to find the rest by.
    """

    said: str
    count: int | None = None
    number: int | None = None
    address: str | None = None
    local: tuple[int, int] | None = None
    method: str | None = None


def launched(env: Mapping[str, str]) -> Launch | None:
    """Whether the environment tells of several hosts; None = there is this one alone.

    Raises:
        InputError: it says it by half.
    """
    count, number = whole(env, 'JAX_NUM_PROCESSES'), whole(env, 'JAX_PROCESS_ID')
    if count == 1:
        return None
    found = by_mpi(env) or by_slurm(env) or by_tpu(env)
    address = env.get('JAX_COORDINATOR_ADDRESS') or None
    if count is None and address is None and number is None:
        return found
    count = count if count is not None else found and found.count
    number = number if number is not None else found and found.number
    given = {'JAX_COORDINATOR_ADDRESS': address or found, 'JAX_NUM_PROCESSES': count, 'JAX_PROCESS_ID': number}
    missing = [name for name, value in given.items() if value is None]
    if missing and not (found and found.number is None):
        there = ', '.join(f'{name}={env[name]}' for name in given if env.get(name))
        raise InputError(f'{there} but {" and ".join(missing)} missing: several hosts need all three (NAME:PORT of host 0, '
                         'how many there are, and which one this is, from 0); for one host set none of them')  # fmt: skip
    if number is not None and not 0 <= number < count:
        raise InputError(f'JAX_PROCESS_ID={number} has to be from 0 to {count - 1}, for JAX_NUM_PROCESSES={count}')
    said = f'JAX_NUM_PROCESSES={count}' if env.get('JAX_NUM_PROCESSES') else found.said
    return Launch(said, count, number, address, found and found.local, found and found.method)


def whole(env: Mapping[str, str], name: str) -> int | None:
    """The whole number that a variable holds; None where it is not set.

    Raises:
        InputError: something else.
    """
    if not env.get(name):
        return None
    if not env[name].isdecimal():
        raise InputError(f'{name}={env[name]} is not a whole number')
    return int(env[name])


def by_mpi(env: Mapping[str, str]) -> Launch | None:
    """Open MPI, or MPICH and what descends from it; the address of the first process is in the environment of Open MPI 4 alone."""
    for size, rank, local_rank, local_size in (
        ('OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_LOCAL_RANK', 'OMPI_COMM_WORLD_LOCAL_SIZE'),
        ('PMI_SIZE', 'PMI_RANK', 'MPI_LOCALRANKID', 'MPI_LOCALNRANKS'),
    ):
        count, number = whole(env, size), whole(env, rank)
        if count and count > 1 and number is not None and not (size == 'PMI_SIZE' and 'SLURM_STEP_NUM_TASKS' in env):
            here = whole(env, local_rank), whole(env, local_size)
            method = 'ompi' if 'OMPI_MCA_orte_hnp_uri' in env else 'mpi4py'
            return Launch(f'{size}={count}', count, number, None, None if None in here else here, method)
    return None


def by_slurm(env: Mapping[str, str]) -> Launch | None:
    """Tasks of one `srun`. SLURM_NTASKS is not asked: shells of salloc and batch scripts have it too, and are one process."""
    count, number = whole(env, 'SLURM_STEP_NUM_TASKS'), whole(env, 'SLURM_PROCID')
    if not count or count == 1 or number is None:
        return None
    local, here = whole(env, 'SLURM_LOCALID'), None
    tasks = [int(tasks) for n, times in re.findall(r'(\d+)(?:\(x(\d+)\))?', env.get('SLURM_STEP_TASKS_PER_NODE', '')) for tasks in [n] * int(times or 1)]  # fmt: skip
    node = whole(env, 'SLURM_NODEID') or 0
    if local is not None and node < len(tasks):
        here = local, tasks[node]
    return Launch(f'SLURM_STEP_NUM_TASKS={count}', count, number, None, here, 'slurm')


def by_tpu(env: Mapping[str, str]) -> Launch | None:
    """Workers of a Cloud TPU slice, or of several slices. One worker is one host, whatever else is set (notebooks, single TPU VMs)."""
    named = 'TPU_PROCESS_ADDRESSES' if env.get('TPU_PROCESS_ADDRESSES') else 'TPU_WORKER_HOSTNAMES'
    workers, slices = names(env.get(named, '')), whole(env, 'MEGASCALE_NUM_SLICES') or 1
    if (
        not workers
        and named not in env
        and 'TPU_SKIP_MDS_QUERY' not in env
        and (glob('/dev/accel*') or glob('/dev/vfio/[0-9]*'))
    ):
        named = 'worker-network-endpoints'
        workers = names(metadata(named))
        told = re.search(r"MEGASCALE_NUM_SLICES: '(\d+)'", metadata('tpu-env') if workers else '')
        slices = int(told[1]) if told else slices
    count = max(len(workers), 1) * slices
    said = f'MEGASCALE_NUM_SLICES={slices}' if slices > 1 else f'{named}={",".join(workers)}'
    method = 'gcetpu' if named == 'worker-network-endpoints' else 'gketpu'
    return Launch(said, count, method=method) if count > 1 else None


def names(listed: str) -> list[str]:
    """'a, b' -> ['a', 'b']."""
    return [name.strip() for name in listed.split(',') if name.strip()]


def metadata(key: str) -> str:
    """What the metadata server of a Google Cloud machine says; '' where there is none or it does not know."""
    ask = request.Request(METADATA + key, headers={'Metadata-Flavor': 'Google'})
    try:
        with request.build_opener(request.ProxyHandler({})).open(ask, timeout=3) as answer:
            return answer.read().decode()
    except (error.URLError, OSError):
        return ''


def devices_of(local: tuple[int, int] | None, env: Mapping[str, str]) -> list[int] | None:
    """Which GPUs of this machine the process takes: an even share of those it sees. [] = all, None = one, which JAX chooses.

    JAX itself gives every process of SLURM or MPI one GPU, also where it is alone on its machine or sees no other.
    """
    if env.get('JAX_LOCAL_DEVICE_IDS'):
        return [int(i) for i in names(env['JAX_LOCAL_DEVICE_IDS'])]
    if local is None or local[1] == 1:
        return []
    number, count = local
    seen = len(names(env.get('CUDA_VISIBLE_DEVICES', '')))
    if seen == 1:  # bound to its own by the launcher
        return []
    share = seen // count
    return list(range(number * share, (number + 1) * share)) or None


def place(launch: Launch, timeout: float) -> tuple[str, int, int, list[int] | None]:
    """Address of host 0, number of hosts, number of this one, and its devices; what the environment left open is for JAX to find.

    Raises:
        InputError: JAX does not find it.
    """
    from jax._src.clusters import ClusterEnv

    found, why = (launch.address, launch.count, launch.number), ''
    if None in found:
        try:
            found = ClusterEnv.auto_detect_unset_distributed_params(*found, [], launch.method, int(timeout))[:3]
        except (RuntimeError, ImportError) as problem:
            why = f' ({problem})'
    if None in found:
        hint = {'gketpu': "is JAX installed for TPU (pip install 'mim_jax[tpu]')? Or set",
                'mpi4py': 'pip install mpi4py, or set'}.get(launch.method, 'set')  # fmt: skip
        raise InputError(
            f'{launch.said} tells of several hosts, but not where the first is{why}: {hint} JAX_COORDINATOR_ADDRESS=NAME:PORT'
        )
    return *found, devices_of(launch.local, os.environ)
