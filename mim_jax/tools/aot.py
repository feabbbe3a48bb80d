"""The train step of a config compiled ahead of time, from shapes alone, for devices that need not be there; and what the compiler says of it."""

import math
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax

from mim_jax import build, compile, record, sharding, train
from mim_jax.compile import DoesNotFit
from mim_jax.errors import InputError, RunError
from mim_jax.progress import peak_flops
from mim_jax.tools import hlo, hlo_collectives, topology
from mim_jax.tools.fit_text import axes
from mim_jax.tools.topology import GIB

TOP = 40  # lines of the package that a report keeps


class Place(NamedTuple):
    """Where a step is compiled for: its devices, what each has (None: the machine itself), and the bytes of memory of each."""

    name: str
    devices: list
    chip: topology.Chip | None
    memory: float

    @property
    def platform(self) -> str:
        """Of its devices."""
        return self.devices[0].platform

    @property
    def slices(self) -> int:
        """Of TPUs."""
        return topology.slices_of(self.name)[0]


def place(name: str) -> Place:
    """The place of a name, see `topology`.

    Raises:
        InputError: there is no such place.
    """
    devices, chip = topology.devices(name), topology.chip_of(name)
    return Place(name, devices, chip, chip.memory if chip else compile.device_memory())


class OutOfTries(Exception):
    """As many compilations as were asked for are done."""


class Compiler:
    """Compiles for a place, says how it goes, and keeps count.

    Args:
        say: what takes a line for the user.
        most: compilations, after which it raises OutOfTries.
    """

    def __init__(self, place: Place, say: Callable[[str], None] = lambda line: None, most: float = math.inf):
        self.place, self.say, self.most, self.count = place, say, most, 0

    def __call__(self, lowered: jax.stages.Lowered) -> jax.stages.Compiled:
        """The program.

        Raises:
            JaxRuntimeError: it does not compile; RESOURCE_EXHAUSTED = it is too large.
        """
        start = time.time()
        try:
            call = compile.compiled(lowered, self.place.platform)
        except jax.errors.JaxRuntimeError as error:
            if 'RESOURCE_EXHAUSTED' not in str(error):
                raise RunError(f'the compiler failed: {str(error).splitlines()[0]}') from error
            self.say(f'  too large for the compiler: temporaries of {compile.asked(str(error)) / GIB:.1f} GiB')
            raise
        self.say(f'  {memory(call)["total"] / GIB:.3g} GiB, {time.time() - start:.0f} s')
        return call

    def of(self, what: str, lower: Callable[[int], jax.stages.Lowered], rows: int) -> Callable:
        """`lower`, announced."""

        def announced(accumulate: int):
            if self.count >= self.most:
                raise OutOfTries
            self.count += 1
            self.say(f'compiling {self.count}: {what}, {accumulate} micro-batches of {rows // accumulate} rows')
            return lower(accumulate)

        return announced


def settled(config, origin: Mapping) -> None:
    """Checks that the command line says what training would find out from its data, which are not read here.

    Args:
        origin: keys that the command line gave.

    Raises:
        InputError: something of the shapes is open; the sentence has the key.
    """
    c, reader = config.data, config.data.reader
    why = 'which training finds out from the data, and no data are read here: give'
    if reader.name == 'LatentReader' and 'data.channels' not in origin and len(c.mean) != c.channels:
        raise InputError(f'the shapes depend on config.data.channels, {why} --config.data.channels=4, or as many as the latents have')  # fmt: skip
    if reader.name == 'TokenReader' and not reader.vocab:
        shape = tuple(config.tokenizer.get('grid') or (256,))
        raise InputError(f"the shapes depend on config.data.reader.shape and .vocab, {why} --config.data.reader.shape='{shape}' "
                         '--config.data.reader.vocab=1000, or what they are')  # fmt: skip
    if reader.get('tokenizer') == 'characters' and not reader.alphabet:
        raise InputError(f'the shapes depend on config.data.reader.alphabet, {why} --config.data.reader.alphabet=abcdefghijklmnopqrstuvwxyz, or what it is')  # fmt: skip


def measure(config, compiler: Compiler, least: int = 1) -> tuple[dict, str]:
    """Compiles the step as training would, with the fewest micro-batches that fit, and reads what came out.

    Args:
        compiler: of the place.
        least: micro-batches to begin with.

    Returns:
        report: see `report`.
        text: the program.

    Raises:
        DoesNotFit: nor does one row at a time, or the micro-batch of the config.
        InputError: the config is wrong.
    """
    build.check(config)
    place, start = compiler.place, time.time()
    mesh = sharding.make_mesh(**config.mesh, devices=place.devices)
    with jax.set_mesh(mesh):
        objective, augment, abstract = train.parts(config, mesh)
        rows, room = config.data.batch_size // (mesh.shape['data'] * mesh.shape['fsdp']), room_of(place)
        cuts = [n for n in compile.cuts(rows, config.micro_batch) if n >= least or config.micro_batch] or [rows]
        if (state := compile.bytes_of(abstract)) > room:
            raise DoesNotFit(rows // cuts[-1], state, room)
        lower = compile.lowering(config, objective, augment, abstract, mesh)
        announced = compiler.of(axes(mesh.shape) + describe(config), lower, rows)
        arguments = compile.bytes_of((abstract, compile.batch_on(config, mesh)))
        step = compile.fit(announced, rows, cuts, room, arguments, compiler)
        flops = compile.model_flops(config, objective, augment, abstract.params)
        text, trimmed = printed(step, lower)
    told = dict(batch=config.data.batch_size, micro_batches=step.accumulate, rows=rows // step.accumulate,
                state=state, compile_seconds=round(time.time() - start, 1), without_sparse_core=trimmed)  # fmt: skip
    return told | report(step.call, text, place, mesh, flops * config.data.batch_size / mesh.size), text


def room_of(place: Place) -> float:
    """Bytes of a device that training lets a step take."""
    return compile.MEMORY_SHARE * place.memory


def printed(step: compile.Step, lower: Callable) -> tuple[str, bool]:
    """The program as text, and whether it had to be compiled again to have it: with gathers on the SparseCore it cannot be printed."""
    try:
        return step.call.as_text(), False
    except jax.errors.JaxRuntimeError:
        again = compile.compiled(lower(step.accumulate), 'tpu', xla_tpu_offload_gather_to_sparsecore='false')
        return again.as_text(), True


def describe(config) -> str:
    """', remat full, layers scanned' of an encoder that has the choice; one of convolutions has none."""
    remat, scanned = config.encoder.get('remat'), config.encoder.get('scan')
    return f', remat {remat}' * bool(remat) + ', layers scanned' * bool(scanned)


def memory(call: jax.stages.Compiled) -> dict[str, int]:
    """Bytes of a device; `total` counts what the output takes the place of once, and leaves the program itself out."""
    m = call.memory_analysis()
    sizes = dict(arguments=m.argument_size_in_bytes, temporaries=m.temp_size_in_bytes, output=m.output_size_in_bytes)
    shared = m.alias_size_in_bytes
    return sizes | dict(shared=shared, program=m.generated_code_size_in_bytes, total=sum(sizes.values()) - shared)


def report(call: jax.stages.Compiled, text: str, place: Place, mesh, flops: float) -> dict:
    """What the compiler says of a program, in numbers: bytes, seconds, and shares of 1.

    Args:
        flops: of the model, of a device and step.
    """
    program, kind = hlo.parse(text), place.devices[0].device_kind
    traffic = [t._asdict() for t in hlo_collectives.traffic(program, mesh.shape, place.slices)]
    for t in traffic if place.chip else []:
        t['seconds'] = t['sent'] / (place.chip.dcn if t['kind'] == hlo_collectives.BETWEEN_SLICES else place.chip.ici)
    found = dict(
        topology=place.name, slices=place.slices, devices=len(place.devices), device_kind=kind, mesh=dict(mesh.shape), fits=True,
        versions=versions(), memory=memory(call) | dict(room=room_of(place), device=place.memory), model_flops=flops, collectives=traffic,
    )  # fmt: skip
    return found | (timing(program, traffic, flops, place.chip, kind) if place.chip else {})


def timing(program: hlo.Program, traffic: list[dict], flops: float, chip: topology.Chip, kind: str) -> dict:
    """Cycles, seconds and the shares of the peak that they imply: if collectives hide behind the rest, and if none does."""
    peak = peak_flops(kind)
    spent = hlo.cost(program, chip.moves, chip.hbm / chip.clock, peak / chip.clock)
    seconds, exchange = spent.cycles / chip.clock, sum(t['seconds'] for t in traffic)
    lines = [dict(line=key[0], backward=key[1], module=key[2], cycles=n) for key, n in spent.lines.most_common(TOP)]
    unknown = {name: dict(times=times, bytes=much) for name, (times, much) in spent.without_estimate.items()}
    return dict(
        cycles=spent.cycles, charged=spent.charged, kernels=spent.kernels, clock=chip.clock, seconds=seconds, collective_seconds=exchange,
        mfu=flops / peak / seconds, mfu_exposed=flops / peak / (seconds + exchange),
        between_slices_rate=chip.dcn, loops_of_unknown_length=spent.guessed, without_estimate=unknown, prefetched=spent.prefetched, lines=lines,
    )  # fmt: skip


def versions() -> dict[str, str]:
    """Of JAX, of the TPU compiler and of the code; '' where there is none."""
    return dict(jax=jax.__version__, libtpu=record.version('libtpu'), revision=record.git_revision())
