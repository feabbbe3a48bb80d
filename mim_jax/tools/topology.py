"""TPUs that are not there: what their names mean, what a device of each generation has, and the device objects the compiler takes for them.

No JAX is imported before `prepare` has set the environment it wakes up in.
"""

import difflib
import importlib.util
import math
import os
import re
from typing import NamedTuple

from mim_jax.errors import InputError

GIB = 1 << 30
FLAT = ('1x1', '2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16')
CUBES = ('2x2x1', '2x2x2', '2x2x4', '2x4x4', '4x4x4', '4x4x8', '4x8x8', '8x8x8', '8x8x16', '8x16x16', '16x16x16')
ALIASES = {'v5litepod': 'v5e', 'v7x': 'tpu7x'}


class Chip(NamedTuple):
    """One JAX device of a generation: a chip, but for tpu7x, whose chips are two devices each.

    Attributes:
        clock: Hz at which large bf16 products meet the public peak; public for v4.
        memory: bytes of HBM that the compiler lets a program have.
        ici: bytes a second that it sends to its neighbours, over all links together: half of the published bandwidth, which is of both directions.
        dcn: bytes a second that it sends to other slices: its share of the published network cards of a host. An assumption, for other traffic takes of it.
        hbm: bytes a second between memory and chip, as published.
        moves: bytes a cycle of the copies that the compiler has an estimate for.
        shapes: usual slices.
        cores: of a chip as accelerator types count them ('v5p-128' is 64 chips).
        options: for the compiler's client.
    """

    clock: float
    memory: float
    ici: float
    dcn: float
    hbm: float
    moves: float
    shapes: tuple[str, ...]
    cores: int = 1
    options: dict = {}


# docs.cloud.google.com/tpu/docs/tpu7x has the links of v5p, v6e and tpu7x (1200, 800 and 1200 GB/s a chip, both directions), /v5e those of v5e (400), arXiv 2304.01433 those of v4.
# The same two pages have the network between slices: 50, 100 and 100 Gbit/s a chip, and 25 for v5e; none is published of v4, which gets those of v5e.
CHIPS = {
    'v4': Chip(1.05e9, 30.75 * GIB, 300e9, 3.125e9, 1228e9, 340, CUBES, 2, dict(chip_config_name='megacore')),
    'v5e': Chip(1.50e9, 15.75 * GIB, 200e9, 3.125e9, 819e9, 140, FLAT),
    'v5p': Chip(1.75e9, 95.73 * GIB, 600e9, 6.25e9, 2765e9, 300, CUBES, 2),
    'v6e': Chip(1.75e9, 31.24 * GIB, 400e9, 12.5e9, 1640e9, 200, FLAT),
    'tpu7x': Chip(2.20e9, 94.74 * GIB, 300e9, 6.25e9, 3690e9, 240, CUBES, 2),
}


def slices_of(name: str) -> tuple[int, str]:
    """How many slices '2xv5e:4x4' asks for, and each; a name without a number is one."""
    count, _, one = name.partition('x')
    return (int(count), one) if count.isdecimal() and int(count) else (1, name)


def chip_of(name: str) -> Chip | None:
    """What a device of a topology has; None for the devices of this machine.

    Raises:
        InputError: there is no such topology.
    """
    many, one = slices_of(name)
    kind, _, shape = one.partition(':')
    if name == 'here' or kind == 'cpu' and many == 1 and (not shape or shape.isdecimal() and int(shape)):
        return None
    if kind in CHIPS and re.fullmatch(r'[1-9]\d*(x[1-9]\d*){1,2}', shape):
        return CHIPS[kind]
    raise InputError(f'--topology={name}: there is no such topology. {near(name)}')


def near(name: str) -> str:
    """What may have been meant by the name of a topology."""
    many, one = slices_of(name.lower())
    kind, _, rest = one.removeprefix('tpu-').replace('-', ':').partition(':')
    close = difflib.get_close_matches(ALIASES.get(kind, kind), CHIPS, 1)
    if not close:
        return f'Use GENERATION:SHAPE, as v5e:4x4 or v5p:2x2x2, with one of {", ".join(CHIPS)}, as 2xv5e:4x4 for two slices, or cpu, cpu:8, here'
    chip = CHIPS[close[0]]
    sizes = [int(n) for n in re.findall(r'\d+', rest)] or [1]
    chips = math.prod(sizes) / (chip.cores if 'x' not in rest else 1)
    best = sorted(chip.shapes, key=lambda shape: abs(math.log(volume(shape) / max(chips, 1))))[:2]
    return f'Did you mean {" or ".join(f"{many}x" * (many > 1) + f"{close[0]}:{shape}" for shape in best)}?'


def volume(shape: str) -> int:
    """Chips of a slice."""
    return math.prod(map(int, shape.split('x')))


def prepare(name: str) -> None:
    """Sets the environment that JAX and the TPU compiler read when they wake up.

    Raises:
        InputError: there is no such topology, or no TPU compiler.
    """
    if chip_of(name) is None:
        if name != 'here':
            count = name.partition(':')[2] or '1'
            os.environ['JAX_PLATFORMS'] = 'cpu'
            os.environ['XLA_FLAGS'] = (
                f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count={count}'
            )
        return
    if importlib.util.find_spec('libtpu') is None and 'TPU_LIBRARY_PATH' not in os.environ:
        raise InputError(
            f"--topology={name}: the TPU compiler is not installed (no TPU is needed): pip install -e '.[tpu]'"
        )
    os.environ['JAX_PLATFORMS'] = 'cpu'  # of what runs, which is nothing
    wanted = dict(TPU_SKIP_MDS_QUERY='1', TPU_WORKER_HOSTNAMES='localhost', TPU_ACCELERATOR_TYPE='v5litepod-4')
    for key, value in (wanted | dict(ALLOW_MULTIPLE_LIBTPU_LOAD='1')).items():  # it touches no TPU
        os.environ.setdefault(key, value)


def devices(name: str) -> list:
    """The devices of a topology, or those of this machine.

    Raises:
        InputError: the compiler does not know the slice, or another process holds its lock.
    """
    import jax
    from jax.experimental import topologies

    chip, (many, one) = chip_of(name), slices_of(name)
    if chip is None:
        return here(name)
    try:
        return topologies.get_topology_desc(one, 'tpu', num_slices=many, **chip.options).devices
    except jax.errors.JaxRuntimeError as error:
        if 'lockfile' in str(error):
            raise InputError(
                'another process holds the lock of the TPU compiler, /tmp/libtpu_lockfile: wait for it, '
                'or set ALLOW_MULTIPLE_LIBTPU_LOAD=1, for nothing here touches a TPU'
            ) from error
        why = str(error).partition('\n')[0].partition(': ')[2]
        raise InputError(f'--topology={name}: the TPU compiler refuses it ({why}). {near(name)}') from error


def here(name: str) -> list:
    """The devices of this process, or as many of its CPU devices as the name says.

    Raises:
        InputError: it has fewer.
    """
    import jax

    if name == 'here':
        return jax.devices()
    count, found = int(name.partition(':')[2] or 1), jax.devices('cpu')
    if count > len(found):
        raise InputError(f'--topology={name}: JAX was started with {len(found)} CPU devices')
    return found[:count]
