"""Whether a config fits a TPU, and how fast the compiler thinks it is: the real train step, compiled for chips that need not be there.

    pip install -e '.[tpu]'
    python -m mim_jax.tools.fit --config=configs/mae.py:vit_l16 --topology=v5e:4x4 [--batch=N] [--config.KEY=VALUE ...]
                                [--search [--tries=12]] [--out=FILE.json] [--hlo=FILE] [--top=N]

--topology is a slice, as v5p:4x4x4, or cpu, cpu:N (N devices) or here (those of this machine). No data are read. --search tries meshes, micro-batches
and remat policies and prints the best that fits as options to paste. docs/performance.md says what the numbers can and cannot tell.
Exit status 0 = it fits, 2 = it does not, or something is wrong.
"""

import json
import sys
from pathlib import Path

from absl import flags

from mim_jax.errors import InputError, RunError
from mim_jax.main import failed, load, read
from mim_jax.tools import topology
from mim_jax.tools.topology import GIB

_TOPOLOGY = flags.DEFINE_string('topology', None, 'The slice to compile for, as v5e:4x4; cpu, cpu:N or here.')
_BATCH = flags.DEFINE_integer('batch', None, 'data.batch_size, the global batch.', lower_bound=1)
_SEARCH = flags.DEFINE_bool('search', False, 'Look for the mesh, micro-batch and remat policy with the fewest cycles.')
_TRIES = flags.DEFINE_integer('tries', 12, 'Compilations of a search, at most.', lower_bound=1)
_OUT = flags.DEFINE_string('out', '', 'Where to write the report as JSON too.')
_HLO = flags.DEFINE_string('hlo', '', 'Where to write the compiled program.')
_TOP = flags.DEFINE_integer('top', 12, 'Lines of source to show.', lower_bound=0)


def main(argv: list[str]) -> int:
    """Prints the report, and gives the exit status."""
    try:
        if not read(argv):
            raise InputError('--config=configs/NAME.py is missing: it says what to compile')
        if not _TOPOLOGY.value:
            raise InputError('--topology=GENERATION:SHAPE is missing: where it should fit, as v5e:4x4, or cpu')
        topology.prepare(_TOPOLOGY.value)
        config, origin = load()
        if _BATCH.value:
            config.data.batch_size, origin = _BATCH.value, origin | {'data.batch_size': 'command line'}
        return run(config, origin)
    except (InputError, RunError) as error:
        return failed(error, 2 if isinstance(error, InputError) else 1)
    except OSError as error:
        return failed(error, 1)


def run(config, origin: dict) -> int:
    """What `main` does once the flags are read."""
    from mim_jax import train  # JAX wakes up after `prepare`
    from mim_jax.tools import aot, fit_search

    place = aot.place(_TOPOLOGY.value)
    if place.chip is None:  # as training does on this machine
        for line in train.for_this_machine(config, origin | {'data.path': ''}):
            say(line)
    aot.settled(config, origin)
    try:
        if _SEARCH.value:
            found, text = fit_search.search(config, place, _TRIES.value, say)
        else:
            found, text = aot.measure(config, aot.Compiler(place, say))
    except aot.DoesNotFit as refusal:
        sentence = fit_search.refused(config, place, refusal)
        write(dict(config=origin['config'], topology=place.name, fits=False, need=refusal.need, room=refusal.limit, why=sentence))  # fmt: skip
        raise InputError(sentence) from refusal
    found = dict(config=origin['config'], changed=changed(config, origin)) | found
    write(found)
    if _HLO.value:
        Path(_HLO.value).write_text(text)
    print('\n'.join(lines(found, _TOP.value)))
    return 0


def say(line: str) -> None:
    """A line beside the report."""
    print(line, file=sys.stderr, flush=True)


def changed(config, origin: dict) -> dict:
    """The keys that the command line gave, and their values."""
    from mim_jax.tools.fit_search import at

    return {key: at(config, key) for key in origin if key != 'config'}


def write(found: dict) -> None:
    """The report as JSON, where --out says."""
    if _OUT.value:
        Path(_OUT.value).write_text(json.dumps(found, indent=1, default=str) + '\n')


def lines(found: dict, top: int) -> list[str]:
    """The report for people; `top` lines of source."""
    m, mesh = {key: n / GIB for key, n in found['memory'].items()}, found['mesh']
    per = ' x '.join(f'{name} {n}' for name, n in mesh.items() if n > 1) or 'one device'
    versions = ', '.join(f'{name} {version}' for name, version in found['versions'].items() if version)
    out = [
        f'{found["config"]} on {found["topology"]}: {found["devices"]} x {found["device_kind"]} ({versions})',
        f'  batch        {found["batch"]} = {mesh["data"] * mesh["fsdp"]} shards ({per}) x {found["micro_batches"]} micro-batches x {found["rows"]} rows',
        f'  memory       fits: {m["total"]:.2f} GiB a device, of {m["device"]:.2f} (training takes at most {m["room"]:.2f})',
        f'    arguments  {m["arguments"]:.2f}, of which {found["state"] / GIB:.2f} are parameters and optimiser state, the rest a batch',
        f'    temporary  {m["temporaries"]:.2f}',
        f'    output     {m["output"]:.2f}, of which {m["shared"]:.2f} take the place of arguments',
        f'    program    {m["program"]:.2f}, not counted above' if m['program'] else '',
        f'  model FLOPs  {found["model_flops"] / 1e12:.3g} T a device and step',
    ]
    if 'cycles' in found:
        out += speed(found)
    else:
        out.append('  cycles       unknown: only the TPU compiler estimates them')
    out.append('  collectives  ' + ('sent by a device in a step:' if found['collectives'] else 'none'))
    ici = sum(t['sent'] for t in found['collectives']) / found['collective_seconds'] if found.get('collective_seconds') else 0  # fmt: skip
    out += [
        f'    {t["kind"]:20} over {t["axes"]:16} {t["sent"] / 1e6:10.2f} MB, {t["times"]:5} times'
        + (f', {t["sent"] / ici * 1e3:.2f} ms' if ici else '')  # fmt: skip
        for t in found['collectives']
    ]
    if found.get('lines') and top:
        out += dearest(found, top)
    if 'search' in found:
        out += searched(found)
    return [line for line in out if line]


def speed(found: dict) -> list[str]:
    """What the estimate says of time."""
    seconds, exchange = found['seconds'], found['collective_seconds']
    rate = [found['batch'] / s for s in (seconds + exchange, seconds)]
    unknown = ', '.join(f'{name} {n["times"]} times ({n["bytes"] / 1e6:.1f} MB)' for name, n in found['without_estimate'].items())  # fmt: skip
    return [
        f'  cycles       {found["cycles"] / 1e6:.1f} M = {seconds * 1e3:.1f} ms at {found["clock"] / 1e9:.2f} GHz',
        f'    charged    {found["charged"] / 1e6:.1f} M of them, for moves without an estimate' if found['charged'] else '',
        f'    kernels    {found["kernels"] / 1e6:.1f} M of them, the least that Pallas kernels take: they have no estimate' if found['kernels'] else '',
        f'  exchange     {exchange * 1e3:.2f} ms at the published bandwidth',
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


if __name__ == '__main__':
    sys.exit(main(sys.argv))
