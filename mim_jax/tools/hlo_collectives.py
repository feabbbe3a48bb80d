"""What a compiled program sends between devices: bytes by kind of collective and by axes of the mesh."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from mim_jax.tools.hlo import COLLECTIVES, Executed, Instruction, Program, base, between_slices, executed, size

SENT = {  # bytes a device sends on a ring of n, for each byte of its operands
    'all-reduce': lambda n: 2 * (n - 1) / n,
    'all-gather': lambda n: n - 1,
    'reduce-scatter': lambda n: (n - 1) / n,
    'all-to-all': lambda n: (n - 1) / n,
    'ragged-all-to-all': lambda n: (n - 1) / n,
    'collective-permute': lambda n: 1,
    'collective-broadcast': lambda n: 1,
    'one-to-one': lambda n: 1,
}
BETWEEN_SLICES = 'between slices'


class Traffic(NamedTuple):
    """Collectives of a kind over the same axes, such as 'data' or 'data+fsdp'; those between slices are a kind of their own. `sent` is the bytes that
    a device sends in a step.
    """

    kind: str
    axes: str
    times: int
    sent: float


def traffic(program: Program, mesh: Mapping[str, int], slices: int = 1) -> list[Traffic]:
    """All that a step sends, most first.

    Args:
        mesh: sizes of its axes, in their order; devices are numbered along the last axis first.
        slices: of TPUs, over which `data` is cut before all else. The program is that of one of them: groups are of its devices, and what the
            others get is handed to the hosts.
    """
    found = defaultdict(lambda: (0, 0.0))
    mesh = {name: n // slices if name == 'data' else n for name, n in mesh.items()}
    for kind, i, times, operands in collectives(program):
        groups = groups_of(i.rest, int(np.prod(list(mesh.values()))))
        axes, members = axes_of(groups, mesh), groups.shape[1]
        if members > 1:
            often, sent = found[kind, axes]
            found[kind, axes] = often + times, sent + times * operands * SENT[kind](members)
    for i, times, beside in executed(program):
        if i.op == 'send' and between_slices(i):
            kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', i.rest)[1].lower().replace('_', '-')
            operand, (often, sent) = size(beside[i.operands[0]].shape), found[BETWEEN_SLICES, 'data']
            found[BETWEEN_SLICES, 'data'] = often + times, sent + times * operand * SENT[kind](slices)
    return sorted((Traffic(*key, *value) for key, value in found.items()), key=lambda t: -t.sent)


def collectives(program: Program) -> Iterator[tuple[str, Instruction, int, int]]:
    """(kind, instruction, how often it runs, bytes of its operands) of each."""
    for run in executed(program):
        for kind, i, beside in _inside(program, run):
            yield kind, i, run.times, sum(size(beside[name].shape) for name in i.operands if name in beside)


def _inside(program: Program, run: Executed) -> Iterator[tuple[str, Instruction, Mapping]]:
    """The collectives that an instruction is or, as a fusion, has; an overlapped one stands in every fusion that carries it on, and counts where it starts."""
    i = run.instruction
    if base(i.op) in COLLECTIVES:
        yield base(i.op), i, run.beside
    elif i.op == 'fusion':
        inside = program.computations[i.called('calls')]
        starts = {name for each in inside.values() if '"AsyncCollectiveStart"' in each.rest for name in each.operands}
        cut = any(each.op == 'dynamic-slice' for each in inside.values())  # what is left of an all-reduce is a part
        for each in inside.values():
            if (kind := base(each.op)) in COLLECTIVES and ('chain_id=' not in each.rest or each.name in starts):
                yield 'reduce-scatter' if kind == 'all-reduce' and cut else kind, each, inside


def groups_of(text: str, devices: int) -> np.ndarray:
    """Which devices take part together, i64[groups, members], from the attributes of a collective, in any of the forms that XLA prints."""
    if found := re.search(r'source_target_pairs=\{(.*?)\}\}', text):
        return np.array([list(map(int, pair.split(','))) for pair in re.findall(r'\{([\d,]+)', found[1])])
    if found := re.search(r'replica_groups=\{(\{.*?\})\}', text):
        return np.array([list(map(int, group.split(','))) for group in re.findall(r'\{([\d,]+)\}', found[1])])
    if found := re.search(r'replica_groups=\[(\d+),(\d+)\]<=(\S+?)(?:,\s|$)', text):
        return _iota(found[3]).reshape(int(found[1]), int(found[2]))
    if found := re.search(r'replica_groups=mesh\[(.*?)\](?:, device_ids=\((.*?)\))? \{(.*?)\}', text):
        return _over_axes(*found.groups())
    return np.arange(devices)[None]


def _iota(text: str) -> np.ndarray:
    """Devices in the order that '[4,2]T(1,0)' stands for: 0, 1, ... laid out so, then transposed."""
    shape, order = ([int(n) for n in re.findall(r'\d+', part)] for part in text.partition('T')[::2])
    ids = np.arange(np.prod(shape)).reshape(shape)
    return ids.transpose(order or range(ids.ndim)).reshape(-1)


def _over_axes(mesh: str, ids: str | None, axes: str) -> np.ndarray:
    """Groups along axes of a mesh 'a'=2,'b'=4, whole or in part: 'b':(2)2 is the part of size 2 that has size 2 before it."""
    wanted, shape, members = defaultdict(list), [], []
    for name, before, n in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", axes):
        wanted[name].append((int(before or 1), int(n or 0)))
    for name, whole in re.findall(r"'([^']+)'=(\d+)", mesh):
        done = 1
        for before, n in sorted(wanted[name]):
            members.append(len(shape) + 1)
            shape += [before // done, n or int(whole)]
            done = before * shape[-1]
        shape.append(int(whole) // done)
    if ids:
        devices = _iota(ids) if ids.startswith('[') else np.array(ids.split(','), int)
    else:
        devices = np.arange(np.prod(shape))
    others = [axis for axis in range(len(shape)) if axis not in members]
    count = int(np.prod([shape[axis] for axis in members]))
    return devices.reshape(shape).transpose(others + members).reshape(-1, count)


def axes_of(groups: np.ndarray, mesh: Mapping[str, int]) -> str:
    """The axes along which the members of a group differ: 'fsdp', 'data+fsdp'."""
    places = np.unravel_index(groups, list(mesh.values()))
    return '+'.join(name for name, at in zip(mesh, places, strict=True) if (at != at[:, :1]).any())
