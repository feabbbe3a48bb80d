"""What a compiled program sends between devices: bytes by kind of collective and by axes of the mesh."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from mim_jax.tools.hlo import COLLECTIVES, Executed, Instruction, Program, base, executed, size

SENT = {  # bytes a device sends on a ring of n, for each byte of its operands
    'all-reduce': lambda n: 2 * (n - 1) / n,
    'all-gather': lambda n: n - 1,
    'reduce-scatter': lambda n: (n - 1) / n,
    'all-to-all': lambda n: (n - 1) / n,
    'ragged-all-to-all': lambda n: (n - 1) / n,
    'collective-permute': lambda n: 1,
    'collective-broadcast': lambda n: 1,
}


class Traffic(NamedTuple):
    """Collectives of a kind over the same axes, such as 'data' or 'data+fsdp'; `sent` is the bytes that a device sends in a step."""

    kind: str
    axes: str
    times: int
    sent: float


def traffic(program: Program, mesh: Mapping[str, int]) -> list[Traffic]:
    """All that a step sends, most first.

    Args:
        mesh: sizes of its axes, in their order; devices are numbered along the last axis first.
    """
    found = defaultdict(lambda: (0, 0.0))
    for kind, i, times, operands in collectives(program):
        groups = groups_of(i.rest, int(np.prod(list(mesh.values()))))
        axes, members = axes_of(groups, mesh), groups.shape[1]
        if members > 1:
            often, sent = found[kind, axes]
            found[kind, axes] = often + times, sent + times * operands * SENT[kind](members)
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
    shape, _, order = text.strip('[').partition(']T')
    ids = np.arange(np.prod(shape := list(map(int, shape.strip(']').split(','))))).reshape(shape)
    return (ids.transpose(list(map(int, order.strip('()').split(',')))) if order else ids).reshape(-1)


def _over_axes(sizes: str, ids: str | None, axes: str) -> np.ndarray:
    """Groups along axes of a mesh 'a'=2,'b'=4, whole or in part: 'b':(2)2 is the part of size 2 that has size 2 before it."""
    sizes = {name: int(n) for name, n in re.findall(r'([^,=]+)=(\d+)', sizes)}
    parts, names, members = [], [], []
    wanted = defaultdict(list)
    for name, before, n in re.findall(r'([^,:()]+)(?::\((\d+)\)(\d+))?', axes):
        wanted[name.strip()].append((int(before or 1), int(n or sizes[name.strip()])))
    for name, whole in sizes.items():
        done = 1
        for before, n in sorted(wanted[name]):
            parts += [before // done, n]
            names += [False, True]
            done = before * n
        parts.append(whole // done)
        names.append(False)
    order = _iota(ids) if ids and ids.startswith('[') else np.array(ids.split(','), int) if ids else np.arange(np.prod(parts))  # fmt: skip
    members = [axis for axis, member in enumerate(names) if member]
    others = [axis for axis, member in enumerate(names) if not member]
    count = int(np.prod([parts[axis] for axis in members]))
    return order.reshape(parts).transpose(others + members).reshape(-1, count)


def axes_of(groups: np.ndarray, mesh: Mapping[str, int]) -> str:
    """The axes along which the members of a group differ: 'fsdp', 'data+fsdp'."""
    places = np.unravel_index(groups, list(mesh.values()))
    return '+'.join(name for name, at in zip(mesh, places, strict=True) if (at != at[:, :1]).any())
