"""The report of tools.fit for people."""

from collections.abc import Mapping

from mim_jax.tools.topology import GIB


def lines(found: dict, top: int) -> list[str]:
    """The report for people; `top` lines of source."""
    versions = ', '.join(f'{name} {version}' for name, version in found['versions'].items() if version)
    mesh, seconds = found['mesh'], found.get('collective_seconds')
    out = [
        f'{found["config"]} on {found["topology"]}: {found["devices"]} x {found["device_kind"]} ({versions})',
        f'  batch        {found["batch"]} = {mesh["data"] * mesh["fsdp"]} shards ({axes(mesh)}) x {found["micro_batches"]} micro-batches x {found["rows"]} rows',
        *memory(found['memory'], found['state']),
        f'  model FLOPs  {found["model_flops"] / 1e12:.3g} T a device and step',
        *(speed(found) if 'cycles' in found else ['  cycles       unknown: only the TPU compiler estimates them']),
        '  collectives  ' + ('sent by a device in a step:' if found['collectives'] else 'none'),
    ]
    for t in found['collectives']:
        time = f', {t["seconds"] * 1e3:.2f} ms' if seconds else ''
        out.append(f'    {t["kind"]:20} over {t["axes"]:16} {t["sent"] / 1e6:10.2f} MB, {t["times"]:5} times{time}')
    if found.get('lines') and top:
        out += dearest(found, top)
    if 'search' in found:
        out += searched(found)
    return [line for line in out if line]


def memory(said: dict, state: int) -> list[str]:
    """What a device holds, in GiB; `state` are the bytes of parameters and optimiser state."""
    m = {name: f'{n / GIB:.4g}' for name, n in said.items()}
    return [
        f'  memory       fits: {m["total"]} GiB a device, of {m["device"]} (training takes at most {m["room"]})',
        f'    arguments  {m["arguments"]}, of which {state / GIB:.4g} are parameters and optimiser state, the rest a batch',
        f'    temporary  {m["temporaries"]}',
        f'    output     {m["output"]}, of which {m["shared"]} take the place of arguments',
        f'    program    {m["program"]}, not counted above' if said['program'] else '',
    ]


def speed(found: dict) -> list[str]:
    """What the estimate says of time."""
    seconds, exchange = found['seconds'], found['collective_seconds']
    between = sum(t['seconds'] for t in found['collectives'] if t['kind'] == 'between slices')
    rate = [found['batch'] / s for s in (seconds + exchange, seconds)]
    unknown = ', '.join(f'{name} {n["times"]} times ({n["bytes"] / 1e6:.1f} MB)' for name, n in found['without_estimate'].items())  # fmt: skip
    return [
        f'  cycles       {found["cycles"] / 1e6:.1f} M = {seconds * 1e3:.1f} ms at {found["clock"] / 1e9:.2f} GHz',
        f'    charged    {found["charged"] / 1e6:.1f} M of them, for moves without an estimate' if found['charged'] else '',
        f'    kernels    {found["kernels"] / 1e6:.1f} M of them, the least that Pallas kernels take: they have no estimate' if found['kernels'] else '',
        f'  exchange     {exchange * 1e3:.2f} ms at the published bandwidth',
        f'    between    {between * 1e3:.2f} ms of it, between slices, at {found["between_slices_rate"] / 1e9:.3g} GB/s a device: an assumption, its share of the network cards of a host' if between else '',
        f'  implied      MFU {found["mfu_exposed"]:.1%} if no collective hides behind the rest, {found["mfu"]:.1%} if all do; {rate[0]:.0f} to {rate[1]:.0f} examples/s',
        f'  not counted  {unknown}' if unknown else '',
        f'  loops        {found["loops_of_unknown_length"]} of unknown length, counted once' if found['loops_of_unknown_length'] else '',
        '  compiled without gathers on the SparseCore, with which a program cannot be read' if found['without_sparse_core'] else '',
    ]  # fmt: skip


def dearest(found: dict, top: int) -> list[str]:
    """The lines of source that cost most."""
    out = ['  dearest      M cycles, share, pass, line, module']
    for each in found['lines'][:top]:
        share, way = each['cycles'] / found['cycles'], 'backward' if each['backward'] else 'forward'
        where = each['line'] or '(no source)'
        out.append(f'    {each["cycles"] / 1e6:10.3f} {share:6.1%}  {way:8} {where:36} {each["module"]}')
    return out


def searched(found: dict) -> list[str]:
    """What was tried, and what to paste."""
    shown = sorted(found['search'], key=lambda each: each['seconds'] or float('inf'))
    out = [f'  tried        {len(shown)}, best first:', *(f'    {each["row"]}' for each in shown)]
    if not found['paste']:
        return [*out, 'the config is the best as it is']
    return [*out, 'paste:', f'  {found["paste"]}']


def axes(mesh: Mapping[str, int]) -> str:
    """'data 4 x fsdp 2'."""
    return ' x '.join(f'{name} {n}' for name, n in mesh.items() if n > 1) or 'one device'
