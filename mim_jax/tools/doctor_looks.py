"""The looks of `doctor` that could hang, each in a process of its own: one JSON object a line says what comes next, or what was seen."""

import glob
import json
import os
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from mim_jax import hosts
from mim_jax.errors import InputError, RunError, refuse_url
from mim_jax.launched import launched
from mim_jax.main import failed, load, read

_DATA = flags.DEFINE_string('data', '', 'What data.path would be; with --config the default is that of the config.')
_HOSTS = flags.DEFINE_integer('hosts', 0, 'How many hosts there should be; 0 = as many as the environment says.')
_TIMEOUT = flags.DEFINE_float('timeout', 120.0, 'Seconds for each look, and to wait for the other hosts.')
_LOOK = flags.DEFINE_enum('look', 'files', ['files', 'devices'], 'What the second process looks at.')

WRITTEN = 16 << 20  # bytes that are written to see how fast it goes
READ, SECONDS = 256 << 20, 5.0  # bytes of the data, or seconds, after which it is clear
MOST = 100_000  # files that are listed
FREE = 20e9  # bytes of a disk below which checkpoints may not find room for long
REDUCED = dict(cpu=1 << 20, gpu=64 << 20, tpu=64 << 20)  # bytes of each device that are summed over all
SLOW = 1e9  # bytes per second between hosts with accelerators below which training waits for the network
CLOCKS = 5.0  # seconds that clocks may differ
REMOTE = re.compile(r'^\w+://')


class Line(NamedTuple):
    """One line of the table."""

    check: str
    state: str  # 'ok', 'warn' or 'FAIL'
    seen: str
    advice: str = ''  # the likely cause, and what to do


def main(argv: list[str]) -> int:
    """Looks, and prints."""
    try:
        read(argv)
        return look(load()[0] if flags.FLAGS['config'].value is not None else None)
    except (InputError, RunError) as error:
        return failed(error, 1)


def look(config) -> int:
    """What `main` does once the flags are read."""
    workdir, expected, timeout = flags.FLAGS.workdir or '', _HOSTS.value, _TIMEOUT.value
    path = _DATA.value or (config.data.path if config else '')
    if _LOOK.value == 'files':
        say('workdir', of_workdir(workdir) if workdir else [])
        say('compile cache', of_cache(Path(workdir) if workdir else None, expected > 1))
        say('data', of_data(path) if path else [])
        return 0
    count = of_hosts(workdir, expected, timeout)
    if count is None:
        return 0
    if workdir and count > 1 and not REMOTE.match(workdir):
        say('workdir', of_shared(Path(workdir)))
    if say('devices', of_devices(count)):
        hosts.leave('its devices are not as they should be', 1)  # the others would wait for them
        return 0
    say('all-reduce', of_reduce())
    if count > 1:
        say('clocks', of_clocks())
    if config:
        say('loader', of_loader(config, path))
    return hosts.finish(0)


def tell(**fields) -> None:
    """One object to the first process."""
    print(json.dumps(fields), flush=True)


def say(check: str, lines: Iterator[Line]) -> bool:
    """Tells lines as they come, and gives whether one is a FAIL. What goes wrong is a line too."""
    tell(at=check)
    bad = False
    try:
        for line in lines:
            tell(**line._asdict())
            bad |= line.state == 'FAIL'
    except (InputError, RunError, OSError) as error:
        hosts.leave(str(error), 1)  # the others would wait at the next look
        tell(**Line(check, 'FAIL', str(error))._asdict())
        return True
    return bad


def of_workdir(workdir: str) -> Iterator[Line]:
    """Whether it can be written, how fast, and how much room is left."""
    refuse_url(workdir, '--workdir=')
    folder = Path(workdir)
    mark, start = folder / f'.doctor.{platform.node()}.{os.getpid()}', time.perf_counter()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        mark.write_bytes(os.urandom(WRITTEN))
        with open(mark, 'rb') as file:
            os.fsync(file.fileno())
        rate = WRITTEN / (time.perf_counter() - start)
        mark.unlink()
    except OSError as error:
        yield Line('workdir', 'FAIL', f'{workdir} cannot be written: {error.strerror or error}',
                   'do path and permissions exist, of this user or of the service account of this machine?')  # fmt: skip
        return
    seen = f'{workdir} can be written, {rate / 1e6:.0f} MB/s'
    free = shutil.disk_usage(workdir).free
    yield Line('workdir', 'ok' if free > FREE else 'warn', f'{seen}, {free / 1e9:.1f} GB free',
               '' if free > FREE else 'a checkpoint takes 12 bytes a parameter, 16 with an average; keep_checkpoints of them are kept')  # fmt: skip


def of_cache(workdir: Path | None, several: bool) -> Iterator[Line]:
    """Whether compilations can be kept, those of a run in `workdir` on one host or several."""
    from mim_jax import compile

    compile.keep_compilations(workdir, several)
    import jax

    folder = jax.config.jax_compilation_cache_dir
    if not folder or not jax.config.jax_enable_compilation_cache:
        yield Line('compile cache', 'warn', 'off', 'every start compiles anew: unset JAX_ENABLE_COMPILATION_CACHE')
        return
    if REMOTE.match(folder):
        yield Line('compile cache', 'ok', folder)
        return
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        size = sum(entry.stat().st_size for entry in os.scandir(folder))
        yield Line('compile cache', 'ok', f'{folder}, {size / 1e6:.0f} MB')
    except OSError as error:
        yield Line('compile cache', 'warn', f'{folder} cannot be written: {error.strerror}',
                   'every start compiles anew: set JAX_COMPILATION_CACHE_DIR to a folder that can')  # fmt: skip


def of_data(path: str) -> Iterator[Line]:
    """How fast the files can be read that training would read, past the memory of the system where it lets go of them."""
    if re.match(r'^(builtin|hf|tfds):', path):
        yield Line('data', 'ok', f'{path} is no file of this machine')
        return
    refuse_url(path, '')
    found = files(path)
    if not found:
        yield Line('data', 'FAIL', f'{path}: no file there', 'is the path right, and is the disk mounted on this host?')
        return
    sizes, start = 0, time.perf_counter()
    order = np.random.default_rng(os.getpid()).permutation(len(found))  # other files than the hosts beside this one
    for looked in range(1, len(found) + 1):
        sizes += drained(found[order[looked - 1]])
        if sizes > READ or time.perf_counter() - start > SECONDS:
            break
    rate = sizes / (time.perf_counter() - start) / 1e6
    yield Line('data', 'ok', f'{path}: {len(found)}{"+" if len(found) == MOST else ""} files, {rate:.0f} MB/s over {looked} of them, '
               f'{sizes / looked / 1e3:.1f} kB each')  # fmt: skip


def files(path: str) -> list[Path]:
    """Those that a path of the data stands for, a sample where there are very many."""
    found = [Path(name) for name in sorted(glob.glob(str(Path(path).expanduser())))]
    inside = (file for folder in found if folder.is_dir() for file in folder.rglob('*') if file.is_file())
    return [*(file for file in found if file.is_file()), *(file for file, _ in zip(inside, range(MOST), strict=False))]


def drained(file) -> int:
    """Bytes of a file, read to its end or to the most that is needed."""
    with file.open('rb') as stream:
        if hasattr(os, 'posix_fadvise'):
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        size = 0
        while size <= READ and (piece := stream.read(1 << 20)):
            size += len(piece)
    return size


def of_hosts(workdir: str, expected: int, timeout: float) -> int | None:
    """Meets the other hosts, and says how many there are; None where they do not come together."""
    tell(at='hosts')
    start = time.perf_counter()
    try:
        launch = launched(os.environ)
        hosts.start(ConfigDict(), workdir, 'doctor', timeout)
    except (InputError, RunError) as error:
        tell(**Line('hosts', 'FAIL', str(error))._asdict())
        return None
    import jax

    count = jax.process_count() if launch else 1
    line = Line('hosts', 'ok', 'this one alone')
    if launch:
        seconds = time.perf_counter() - start
        line = Line(
            'hosts', 'ok', f'{count} by {launch.said}, together after {seconds:.0f} s; this is {jax.process_index()}'
        )
    if expected and expected != count:
        line = Line('hosts', 'FAIL', f'{count} instead of {expected}', not_told(os.environ))
    elif not launch and int(os.environ.get('SLURM_NTASKS') or 1) > 1:
        line = Line('hosts', 'warn', 'this one alone, in a SLURM job of several tasks', not_told(os.environ))
    tell(**line._asdict())
    return count


def not_told(env) -> str:
    """Why the environment tells of fewer hosts than there should be."""
    if 'SLURM_JOB_ID' in env:
        return 'this process was not started by srun, which starts one for each task'
    return ('nothing in the environment tells of others: start it by srun or mpirun, on a Cloud TPU slice, or set JAX_COORDINATOR_ADDRESS, '
            'JAX_NUM_PROCESSES and JAX_PROCESS_ID')  # fmt: skip


def of_shared(workdir: Path) -> Iterator[Line]:
    """Whether all hosts see the same folder."""
    hosts.check_shared(workdir)
    yield Line('workdir', 'ok', 'the same folder on all hosts')


def of_devices(count: int) -> Iterator[Line]:
    """What JAX sees, beside what the machine has."""
    from jax._src import hardware_utils

    tpus, _ = hardware_utils.num_available_tpu_chips_and_device_id()
    gpus = len(glob.glob('/proc/driver/nvidia/gpus/*'))
    import jax

    try:
        devices = jax.devices()
    except RuntimeError as error:
        yield Line('devices', 'FAIL', str(error).partition('\n')[0], trouble('tpu' if tpus else 'gpu', tpus))
        return
    kind, sees = devices[0].device_kind, devices[0].platform
    memory = (jax.local_devices()[0].memory_stats() or {}).get('bytes_limit', 0)
    seen = f'{len(devices)} x {kind}' + (f', {jax.local_device_count()} of this host' if count > 1 else '')
    seen += f', {memory / 2**30:.1f} GiB each' if memory else ''
    has = 'tpu' if tpus else 'gpu' if gpus else 'cpu'
    if sees != has and sees == 'cpu':
        yield Line('devices', 'FAIL', f'{seen}, but the machine has {tpus or gpus} {has.upper()}s', trouble(has, tpus))
    elif sees == 'gpu' and jax.local_device_count() < gpus and count == 1:
        yield Line(
            'devices', 'warn', f'{seen}, but the machine has {gpus} GPUs', 'CUDA_VISIBLE_DEVICES hides the others'
        )
    else:
        yield Line('devices', 'ok', seen)


def trouble(has: str, tpus: int) -> str:
    """Why JAX may not see an accelerator that is there."""
    if os.environ.get('JAX_PLATFORMS') and has not in os.environ['JAX_PLATFORMS'].replace('cuda', 'gpu'):
        return f'JAX_PLATFORMS={os.environ["JAX_PLATFORMS"]} hides it: unset it'
    if has == 'gpu':
        return "JAX is installed without CUDA, or its driver is too old: pip install -e '.[cuda]', and see nvidia-smi"
    holders = [pid for pid in holding() if pid != os.getpid()]
    if holders:
        return f'process {", ".join(map(str, holders))} of this machine holds the TPU: end it'
    return "JAX is installed without libtpu (pip install -e '.[tpu]'), or another process holds the TPU: look for older runs"


def holding() -> Iterator[int]:
    """Processes that have a TPU open, as far as this user may see."""
    for pid in filter(str.isdecimal, os.listdir('/proc')):
        try:
            opened = [os.readlink(entry.path) for entry in os.scandir(f'/proc/{pid}/fd')]
        except OSError:
            continue
        if any(re.match(r'/dev/(accel|vfio/)\d+', name) for name in opened):
            yield int(pid)


def of_reduce() -> Iterator[Line]:
    """How fast all devices add up what each has, as gradients are."""
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    devices = jax.devices()
    if len(devices) == 1:
        return
    mesh = jax.make_mesh((len(devices),), ('all',))
    size = REDUCED.get(devices[0].platform, 1 << 20)
    whole, cut = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec('all'))
    ones = jax.jit(lambda: jax.numpy.ones((len(devices), size // 4)), out_shardings=cut)()
    total = jax.jit(lambda x: x.sum(0), out_shardings=whole)
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        out = total(ones).block_until_ready()
        seconds.append(time.perf_counter() - start)
    right = float(np.asarray(out[0])) == len(devices)
    rate = size / min(seconds[1:])
    slow = rate < SLOW and devices[0].platform != 'cpu'
    yield Line('all-reduce', 'FAIL' if not right else 'warn' if slow else 'ok', f'{rate / 1e9:.2f} GB/s over {len(devices)} devices' + ('' if right else ', and the sum is wrong'),
               'slow for accelerators: NCCL_DEBUG=INFO tells whether it found the fast network' if slow else '')  # fmt: skip


def of_clocks() -> Iterator[Line]:
    """How far the clocks of the hosts are apart."""
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices('mim_jax: clocks')
    now = np.array(divmod(time.time_ns() // 10**6, 10**6), np.int32)  # thousands of seconds, and milliseconds
    table = np.asarray(multihost_utils.process_allgather(now)).astype(np.int64)
    apart = np.ptp(table[:, 0] * 10**6 + table[:, 1]) / 1e3
    yield Line('clocks', 'ok' if apart < CLOCKS else 'warn', f'at most {apart:.1f} s apart',
               '' if apart < CLOCKS else 'times of events and files will not tell what came first: is there a time service?')  # fmt: skip


def of_loader(config, path: str) -> Iterator[Line]:
    """How many records a second the input pipeline of a config gives on this host."""
    from mim_jax import build, inputs

    with config.unlocked():
        config.data.path = path
    build.check(config)
    inputs.check(config)
    with tempfile.TemporaryDirectory() as folder:
        inputs.settle(config, Path(folder))
        batches = inputs.Data(config, Path(folder), build.augment(config)).train(0)
        rows, _ = next(batches)
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < SECONDS:
            count += len(next(batches)[0]['valid'])
        rate = count / (time.perf_counter() - start)
        batches.close()
    bad = int((~rows['valid']).sum())
    yield Line('loader', 'warn' if bad else 'ok', f'{rate:.0f} records/s on this host with data.workers={config.data.workers}',
               f'{bad} of the first {len(rows["valid"])} cannot be read: python -m mim_jax.tools.check {path}' if bad else '')  # fmt: skip


if __name__ == '__main__':
    sys.exit(main(sys.argv))
