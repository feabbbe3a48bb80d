"""The sum of the TPU compiler's `estimated_cycles` over a scheduled program, each loop body as often as it runs.

No estimate is given for physical copies and reshapes that the compiler did not turn into fusions, which are charged here by the
bytes they read and write; nor for collectives, sorts, gathers, scatters and custom calls, which are counted.
"""

import math
import re
from collections import Counter, defaultdict
from typing import NamedTuple

BYTES_PER_CYCLE = dict(v5e=140, v5p=300, v6e=200)  # what copies that do have an estimate reach
CLOCK = dict(v5e=1.50e9, v5p=1.75e9, v6e=1.75e9)  # at which large bf16 products meet the public peak
WITHOUT_ESTIMATE = ('sort', 'gather', 'scatter')
FREE_CALLS = (
    'AllocateBuffer',
    'AsyncCollectiveStart',
    'AsyncCollectiveDone',
)  # the compiler's own custom calls, which do no work
MOVES = ('copy', 'reshape', 'transpose')
SMALL = 1 << 17  # bytes; moves of less are not charged

_INSTRUCTION = re.compile(r'\s+(?:ROOT )?%?([\w.-]+) = (.*?) ([a-z][a-z0-9-]*)\((.*)')
_COMPUTATION = re.compile(r'(ENTRY )?%?([\w.-]+) \(.*\{$')
_ARRAY = re.compile(r'\b([a-z]+)(\d+)?\w*\[([\d,]*)\]')


class Instruction(NamedTuple):
    shape: str
    op: str
    rest: str  # operands, attributes and all

    def called(self, key: str) -> str:
        found = re.search(rf'\b{key}=%?([\w.-]+)', self.rest)
        return found[1] if found else ''

    @property
    def cycles(self) -> int | None:
        found = re.search(r'"estimated_cycles":"(\d+)"', self.rest)
        return int(found[1]) if found else None

    @property
    def name(self) -> str:
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found[1] if found else self.op


class Cost(NamedTuple):
    """Attributes:
    cycles: estimated ones, and those charged for moves without an estimate.
    charged: the latter alone.
    top: cycles by (name of the operation, shape of its result).
    without_estimate: how often each operation of `WITHOUT_ESTIMATE`, custom call and collective stands in the program.
    guessed: loops of unknown length, counted once.
    """

    cycles: float
    charged: float
    top: Counter
    without_estimate: Counter
    guessed: int


def parse(text: str) -> tuple[dict[str, dict[str, Instruction]], str]:
    """Instructions by name, by computation; and the name of the entry."""
    computations, entry, here = defaultdict(dict), '', None
    for line in text.splitlines():
        if (found := _COMPUTATION.match(line)) is not None:
            here = computations[found[2]]
            entry = found[2] if found[1] else entry
        elif here is not None and (found := _INSTRUCTION.match(line)):
            here[found[1]] = Instruction(*found.groups()[1:])
    return computations, entry


def size(shape: str) -> int:
    """Bytes of the arrays of a shape."""
    return sum(
        math.prod(int(n) for n in dims.split(',') if n) * max(int(bits or 8) // 8, 1)
        for _, bits, dims in _ARRAY.findall(shape)
    )


def trips(loop: Instruction, computations: dict) -> int | None:
    """Times a loop runs: as the compiler says, or the one constant its condition compares a counter with, which is to count from 0 by 1."""
    if found := re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', loop.rest):
        return int(found[1])
    condition = computations[loop.called('condition')].values()
    constants = [i for i in condition if i.op == 'constant' and i.shape.startswith(('s32[]', 'u32[]'))]
    return int(constants[0].rest.split(')')[0]) if len(constants) == 1 else None


def cost(text: str, generation: str) -> Cost:
    """What a scheduled program costs on a chip.

    Args:
        text: `compiled.as_text()`.
        generation: a key of `BYTES_PER_CYCLE`.
    """
    computations, entry = parse(text)
    top, without, charged, guessed = Counter(), Counter(), 0.0, 0
    todo = [(entry, 1)]
    while todo:
        name, times = todo.pop()
        here = computations[name]
        for i in here.values():
            if i.op == 'while':
                count = trips(i, computations)
                guessed += count is None
                todo.append((i.called('body'), times * (count or 1)))
            elif i.op == 'conditional':
                branches = re.search(r'branch_computations=\{([^}]*)\}', i.rest)
                branches = branches[1].replace('%', '').split(', ') if branches else [i.called('true_computation'), i.called('false_computation')]  # fmt: skip
                todo += [(branch, times) for branch in branches]
            elif i.op == 'call' and i.cycles is None:
                todo.append((i.called('to_apply'), times))
            elif i.cycles is not None:
                top[i.name, i.shape] += times * i.cycles
            elif i.op in MOVES:
                operand = here.get(re.match(r'%?([\w.-]*)', i.rest)[1])
                moved = size(i.shape) + (size(operand.shape) if operand else 0)
                charged += times * moved / BYTES_PER_CYCLE[generation] * (moved >= SMALL)
            if re.match(r'all-|reduce-scatter|collective-', i.op) and not i.op.endswith('-done'):
                without[i.op] += times
    for op in WITHOUT_ESTIMATE:
        without[op] += len(re.findall(rf' {op}\(', text))
    for target in re.findall(r'custom_call_target="([^"]*)"', text):
        without['custom-call' if target not in FREE_CALLS else target] += 1
    return Cost(sum(top.values()) + charged, charged, top, without, guessed)
