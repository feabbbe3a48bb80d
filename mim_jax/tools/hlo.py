"""A compiled program as the compiler prints it: what runs and how often, what the TPU compiler thinks each instruction costs, and which line of ours it comes from.

Loops count as often as they run, of branches the dearest one counts. No estimate is given for physical copies and reshapes that the compiler did not
turn into fusions, which are charged here by the bytes they read and write; nor for Pallas kernels, which are charged what they take at least, by their
bytes and by the FLOPs of their `cost_estimate`; nor for collectives (`hlo_collectives`), sorts, gathers, scatters and other custom calls, which are counted.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from functools import partial
from typing import NamedTuple

SMALL = 1 << 17  # bytes; what moves less is not charged, and without an estimate not listed
MOVES = ('copy', 'reshape', 'transpose')
COLLECTIVES = (
    'all-reduce',
    'all-gather',
    'reduce-scatter',
    'all-to-all',
    'ragged-all-to-all',
    'collective-permute',
    'collective-broadcast',
)
FREE = (
    'after-all',
    'bitcast',
    'call',
    'conditional',
    'constant',
    'get-tuple-element',
    'opt-barrier',
    'parameter',
    'partition-id',
    'tuple',
    'while',
)
KERNEL = 'custom-call tpu_custom_call'  # of Pallas
PREFETCHES = ('copy-start', 'slice-start')  # between HBM and VMEM, beside the rest
WRAPPERS = ('while', 'body', 'cond', 'branch_0_fun', 'branch_1_fun', 'closed_call', 'checkpoint', 'rematted_computation')  # fmt: skip
FREE_CALLS = ('AllocateBuffer', 'AsyncCollectiveStart', 'AsyncCollectiveDone', 'ConcatBitcast')  # custom calls that do no work  # fmt: skip

_INSTRUCTION = re.compile(r'\s*(?:ROOT )?%?([\w.-]+) = (.*?) ([a-z][a-z0-9-]*)\((.*)')
_COMPUTATION = re.compile(r'(ENTRY )?%?([\w.-]+) (?:\(.*)?\{$')
_ARRAY = re.compile(r'\b([a-z]+)(\d+)?\w*\[([\d,]*)\]')


class Instruction(NamedTuple):
    name: str
    shape: str
    op: str
    rest: str  # operands, attributes and all

    def called(self, key: str) -> str:
        """The computation that an attribute names, or ''."""
        found = re.search(rf'\b{key}=%?([\w.-]+)', self.rest)
        return found[1] if found else ''

    @property
    def operands(self) -> list[str]:
        """Names."""
        inside = re.sub(r'/\*.*?\*/|\{[^}]*\}|\[[^]]*\]', '', self.rest).partition(')')[0]
        return [word.split()[-1].lstrip('%') for word in inside.split(',') if word.strip()]

    @property
    def cycles(self) -> int | None:
        """Those that the compiler estimates."""
        found = re.search(r'"estimated_cycles":"(\d+)"', self.rest)
        return int(found[1]) if found else None

    @property
    def label(self) -> str:
        """The path of what was traced: 'jit(train_step)/transpose(jvp(MaskedPrediction))/.../dot_general'."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found[1] if found else self.op


class Program(NamedTuple):
    """Attributes:
    computations: instructions by name, by computation.
    entry: the computation that runs.
    lines: {stack_frame_id: where in the package it comes from, innermost, as 'mim_jax/models/blocks.py:12'}.
    """

    computations: Mapping[str, dict[str, Instruction]]
    entry: str
    lines: Mapping[str, str]

    def line(self, instruction: Instruction) -> str:
        """The line of the package that an instruction comes from, or ''."""
        if found := re.search(r'stack_frame_id=(\d+)', instruction.rest):
            return self.lines.get(found[1], '')
        found = re.search(r'source_file="([^"]*)" source_line=(\d+)', instruction.rest)
        return ours(found[1], found[2]) if found else ''


class Executed(NamedTuple):
    """An instruction, how often it runs in a step, and the instructions of the computation it stands in."""

    instruction: Instruction
    times: int
    beside: Mapping[str, Instruction]


class Cost(NamedTuple):
    """Attributes:
    cycles: estimated ones, and those charged.
    charged: of these, for moves without an estimate.
    kernels: of these, for Pallas kernels, at least.
    lines: cycles by (line of the package, whether of the backward pass, module).
    without_estimate: {operation: (how often it runs, bytes that it reads and writes)}.
    prefetched: bytes copied between HBM and VMEM beside the rest.
    guessed: loops of unknown length, counted once.
    """

    cycles: float
    charged: float
    kernels: float
    lines: Counter
    without_estimate: Mapping[str, tuple[int, int]]
    prefetched: int
    guessed: int


def parse(text: str) -> Program:
    """Reads `compiled.as_text()`."""
    computations, entry, here = defaultdict(dict), '', None
    for line in text.splitlines():
        if (found := _COMPUTATION.match(line)) is not None:
            here = computations[found[2]]
            entry = found[2] if found[1] else entry
        elif here is not None and (found := _INSTRUCTION.match(line)):
            here[found[1]] = Instruction(*found.groups())
    return Program(computations, entry, source_lines(text))


def source_lines(text: str) -> dict[str, str]:
    """{stack_frame_id: line of the package} from the tables at the head of a program; {} where it has none."""
    tables, here = defaultdict(dict), None
    for line in text.splitlines():
        if line in ('FileNames', 'FunctionNames', 'FileLocations', 'StackFrames'):
            here = tables[line]
        elif not line.strip() or here is None:
            here = None
            if 'StackFrames' in tables:
                break
        else:
            number, _, rest = line.partition(' ')
            here[number] = dict(re.findall(r'(\w+)=(\d+)', rest)) if rest.startswith('{') else rest.strip('"')
    files, locations, frames = (tables[name] for name in ('FileNames', 'FileLocations', 'StackFrames'))

    def innermost(frame: str) -> str:
        while told := frames.get(frame):
            where = locations[told['file_location_id']]
            if found := ours(files[where['file_name_id']], where['line']):
                return found
            frame = str(int(told['parent_frame_id']) - 1)  # 1 = none
        return ''

    return {frame: innermost(frame) for frame in frames}


def ours(file: str, line: str) -> str:
    """'mim_jax/models/blocks.py:12', or '' for a file that is not of the package or only passes calls on (`sharding.keep_rows`)."""
    _, found, inside = file.rpartition('/mim_jax/')
    return f'mim_jax/{inside}:{line}' if found and inside != 'sharding.py' else ''


def executed(program: Program) -> Iterator[Executed]:
    """What runs in a step."""
    todo = [(program.entry, 1)]
    while todo:
        name, times = todo.pop()
        here = program.computations[name]
        for instruction in here.values():
            yield Executed(instruction, times, here)
            todo += [(inner, times * count) for inner, count in called(program, instruction)]


def called(program: Program, i: Instruction) -> list[tuple[str, int]]:
    """The computations that an instruction runs apart from itself, and how often."""
    if i.op == 'while':
        return [(i.called('body'), trips(i, program.computations) or 1)]
    if i.op == 'conditional':
        found = re.search(r'branch_computations=\{([^}]*)\}', i.rest)
        found = re.findall(r'[\w.-]+', found[1]) if found else [i.called('true_computation'), i.called('false_computation')]  # fmt: skip
        return [(max(found, key=partial(_cycles, program)), 1)]
    if i.op in ('call', 'async-start') and i.cycles is None:
        return [(i.called('to_apply') or i.called('calls'), 1)]
    return []


def _cycles(program: Program, name: str) -> int:
    """Estimated cycles of a computation, to choose between branches."""
    return sum(
        (i.cycles or 0) + sum(count * _cycles(program, inner) for inner, count in called(program, i))
        for i in program.computations[name].values()
    )


def trips(loop: Instruction, computations: Mapping) -> int | None:
    """Times a loop runs: as the compiler says, or the one constant its condition compares a counter with, which is to count from 0 by 1."""
    if found := re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', loop.rest):
        return int(found[1])
    condition = computations[loop.called('condition')].values()
    constants = [i for i in condition if i.op == 'constant' and i.shape.startswith(('s32[]', 'u32[]'))]
    return int(constants[0].rest.split(')')[0]) if len(constants) == 1 else None


def size(shape: str) -> int:
    """Bytes of the arrays of a shape."""
    return sum(
        math.prod(int(n) for n in dims.split(',') if n) * max(int(bits or 8) // 8, 1)
        for _, bits, dims in _ARRAY.findall(shape)
    )


def moved(i: Instruction, beside: Mapping[str, Instruction]) -> int:
    """Bytes that an instruction reads and writes."""
    sizes = [size(beside[name].shape) for name in i.operands if name in beside]
    return 2 * sizes[1] if i.op == 'dynamic-update-slice' and len(sizes) > 1 else size(i.shape) + sum(sizes)


def cost(program: Program, moves: float, hbm: float, peak: float) -> Cost:
    """What a scheduled program costs a TPU.

    Args:
        moves: bytes a cycle of copies that do have an estimate.
        hbm: bytes a cycle between memory and chip.
        peak: FLOPs a cycle.
    """
    lines, without, charged, kernels, prefetched, guessed = Counter(), defaultdict(lambda: (0, 0)), 0.0, 0.0, 0, 0
    for i, times, beside in executed(program):
        cycles, much = i.cycles, moved(i, beside)
        if i.op == 'while':
            guessed += trips(i, program.computations) is None
        elif i.op in PREFETCHES:
            prefetched += times * size(i.shape) // 2
        elif cycles is None and i.op in MOVES:
            cycles = much / moves * (much >= SMALL)
            charged += times * cycles
        elif cycles is None and (what := unestimated(i, much, program)):
            without[what] = without[what][0] + times, without[what][1] + times * much
            if what == KERNEL:
                cycles = max(much / hbm, told_flops(i) / peak)
                kernels += times * cycles
        if cycles:
            lines[program.line(i), 'transpose(' in i.label, module(i.label)] += times * cycles
    return Cost(sum(lines.values()), charged, kernels, lines, dict(without), prefetched, guessed)


def told_flops(i: Instruction) -> int:
    """Those that a kernel says it does, 0 if it does not say."""
    found = re.search(r'"cost_estimate":\{[^}]*"flops":"(\d+)"', i.rest)
    return int(found[1]) if found else 0


def unestimated(i: Instruction, much: int, program: Program) -> str:
    """What an instruction without an estimate, that moves so many bytes, is called in the report; '' for what is free, small, or a collective."""
    if i.op in FREE or i.op.endswith('-done') or base(i.op) in COLLECTIVES or between_slices(i) or much < SMALL:
        return ''
    if i.op == 'custom-call':
        target = re.search(r'custom_call_target="([^"]*)"', i.rest)[1]
        return '' if target in FREE_CALLS else f'custom-call {target}'
    if i.op == 'fusion':
        inside = {base(inner.op) for inner in program.computations[i.called('calls')].values()}
        told = sorted(inside & {'sort', 'gather', 'scatter'})
        return '' if inside & set(COLLECTIVES) else 'fusion' + f' of {", ".join(told)}' * bool(told)
    return i.op


def between_slices(i: Instruction) -> bool:
    """Whether it sends to or receives from other slices, over the hosts and the data-centre network."""
    return i.op in ('send', 'recv') and 'xla_megascale_runtime' in i.rest


def base(op: str) -> str:
    """'all-gather' of 'all-gather-start'."""
    return op.removesuffix('-start')


def module(label: str) -> str:
    """The module that an operation is part of, 'encoder/blocks/block/mlp/fc1': its path without itself, methods, and what tracing wrapped around it."""
    parts = [part for part in label.split('/')[:-1] if not re.search(r'[().]|->', part) and part not in WRAPPERS]
    return re.sub(r'block_\d+', 'block', '/'.join(parts))
