"""Which mesh, micro-batch and remat policy of a config fits a place with the least time, and what to say where none does."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from mim_jax import sharding, train
from mim_jax.compile import DoesNotFit, batch_on, bytes_of, cuts
from mim_jax.errors import InputError
from mim_jax.models.vit import SIZES
from mim_jax.tools import aot
from mim_jax.tools.topology import GIB

POLICIES = ('none', 'dots', 'full')
KEPT = dict(none=1.0, dots=0.9, full=0.4)  # of the activations, with a policy of remat: a guess on the careful side
FSDP = (8, 4, 16, 2, 32)  # parts of a copy of the parameters, besides all or none
MODEL = (2, 4, 8)
FEW = 8  # rows at once, below which a TPU is badly used


class Trial(NamedTuple):
    """What was tried: keys of the config and their values; the report, or what it would need; the program."""

    changes: Mapping[str, object]
    report: dict | None
    refusal: DoesNotFit | None
    text: str = ''

    @property
    def seconds(self) -> float:
        """Of a step in which no collective hides."""
        return self.report['seconds'] + self.report['collective_seconds'] if self.report else math.inf


def search(config, place: aot.Place, tries: int, say: Callable[[str], None]) -> tuple[dict, str]:
    """The best that fits.

    Args:
        tries: compilations, at most.
        say: takes a line for the user.

    Returns:
        report: of the best, with 'search' (what was tried) and 'paste' (options for it; '' = the config as it is).
        text: its program.

    Raises:
        DoesNotFit: nothing does.
        InputError: there are no cycles to rank by.
    """
    if place.chip is None:
        raise InputError(f'--search ranks by estimated cycles, which only the TPU compiler gives: --topology={place.name} has none')  # fmt: skip
    compiler, trials = aot.Compiler(place, say, tries), []
    try:
        for changes in candidates(config, place, trials):
            trials.append(attempt(config, changes, compiler, fewest(config, place, changes, trials)))
            say(f'  {row(trials[-1])}')
    except aot.OutOfTries:
        say(f'stopped after --tries={tries} compilations')
    if not trials:
        raise InputError(
            f'--tries={tries} is too few: the first mesh and remat policy needs more to see whether they fit'
        )
    best = min(trials, key=lambda trial: trial.seconds)
    if best.report is None:
        raise min((trial.refusal for trial in trials), key=lambda refusal: refusal.need)
    tried = [dict(changes=dict(t.changes), seconds=t.seconds if t.report else None, row=row(t)) for t in trials]
    return best.report | dict(search=tried, paste=paste(config, best)), best.text


def candidates(config, place: aot.Place, trials: list[Trial]) -> Iterator[dict]:
    """What to try, likely best first: as shipped; for each mesh the least remat that fits; then less rows at once, and unrolled layers, of the best."""
    n, batch = len(place.devices), config.data.batch_size
    free = {'micro_batch': 0} if config.micro_batch else {}
    data, fsdp, _ = sizes(config.mesh, n)
    if batch % (data * fsdp) == 0 and data % place.slices == 0:
        yield {}
    for mesh in meshes(config, place, trials):
        for policy in policies(config):
            changes = mesh | policy | free
            same = not free and sizes(mesh_of(mesh), n) == sizes(config.mesh, n) and remat(config, policy) == remat(config, {})  # fmt: skip
            if not same and hopeless(config, place, changes, trials):
                continue
            if not same:
                yield changes
            trial = trials[0] if same else trials[-1]
            if trial.report and trial.report['micro_batches'] == 1:
                break  # more remat only computes more
    best = min(trials, key=lambda trial: trial.seconds, default=None)
    if best and best.report and best.report['rows'] % 2 == 0:
        yield {**best.changes, 'micro_batch': best.report['rows'] // 2}
    scanned = {key: False for key in found(config, 'scan') if at(config, key)}
    if best and best.report and scanned:
        yield {**best.changes, **scanned}


def hopeless(config, place: aot.Place, changes: Mapping, trials: list[Trial]) -> bool:
    """Whether one row, with as much remat, was too much on another mesh that shares no products, and would be here."""
    rows = [
        t.refusal.need - fixed_bytes(applied(config, t.changes), place)[0]
        for t in trials
        if t.refusal and t.refusal.rows == 1 and remat(config, t.changes) == remat(config, changes)
    ]
    if not rows or changes['mesh.model'] > 1:
        return False
    return fixed_bytes(applied(config, changes), place)[0] + min(rows) > aot.room_of(place)


def remat(config, changes: Mapping) -> list[str]:
    """The policies of all slots, with changes."""
    return [changes.get(key, at(config, key)) for key in found(config, 'remat')]


def meshes(config, place: aot.Place, trials: list[Trial]) -> Iterator[dict]:
    """Meshes that the batch divides over: copies; parts of one copy, or of one a slice; both; and, while nothing fits, shares of matrix products."""
    n, batch = len(place.devices), config.data.batch_size
    each = n // place.slices
    for fsdp in dict.fromkeys((1, each, *FSDP)):
        if each % fsdp == 0 and batch % n == 0:
            yield {'mesh.data': -1, 'mesh.fsdp': fsdp, 'mesh.model': 1}
    for model in MODEL:
        if each % model == 0 and batch % (n // model) == 0 and all(h % model == 0 for h in heads(config)):
            if any(trial.report for trial in trials):
                return
            yield {'mesh.data': -1, 'mesh.fsdp': each // model, 'mesh.model': model}


def policies(config) -> list[dict]:
    """Remat policies of all slots that have one, least first; [{}] where none has."""
    keys = found(config, 'remat')
    return [dict.fromkeys(keys, policy) for policy in POLICIES] if keys else [{}]


def heads(config) -> list[int]:
    """Heads of attention of all slots."""
    slots = [at(config, key.rpartition('.')[0]) for key in found(config, 'heads')]
    return [slot.heads or SIZES[slot.size][2] for slot in slots]


def found(config, name: str) -> list[str]:
    """Paths of the slots' options of that name, such as 'encoder.remat' and 'terms.pixels.predictor.remat'."""

    def walk(node, path):
        for key, value in node.items():
            if key == name:
                yield '.'.join((*path, key))
            elif hasattr(value, 'items') and key != 'evals':
                yield from walk(value, (*path, key))

    return list(walk(config, ()))


def at(config, path: str):
    """The value at 'a.b'."""
    for key in path.split('.'):
        config = config[key]
    return config


def applied(config, changes: Mapping):
    """A copy of the config with changes."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.update_from_flattened_dict(dict(changes))
    return config


def mesh_of(changes: Mapping) -> dict:
    """The mesh that changes ask for."""
    return {key.removeprefix('mesh.'): value for key, value in changes.items() if key.startswith('mesh.')}


def sizes(mesh: Mapping, n: int) -> tuple[int, ...]:
    """(data, fsdp, model) of a mesh whose -1 is what is left of n devices."""
    given = [mesh[axis] for axis in sharding.AXES]
    left = n // math.prod(size for size in given if size != -1)
    return tuple(left if size == -1 else size for size in given)


def attempt(config, changes: Mapping, compiler: aot.Compiler, least: int) -> Trial:
    """Compiles the config with changes."""
    try:
        report, text = aot.measure(applied(config, changes), compiler, least)
    except DoesNotFit as refusal:
        return Trial(changes, None, refusal)
    return Trial(changes, report, None, text)


def fewest(config, place: aot.Place, changes: Mapping, trials: list[Trial]) -> int:
    """Micro-batches to begin with, from what was measured with as much remat on another mesh: activations are proportional to rows."""
    like = [t for t in trials if t.report and remat(config, t.changes) == remat(config, changes)]
    changed = applied(config, changes)
    if not like or changed.micro_batch:
        return 1
    known = like[-1].report
    fixed, rows = fixed_bytes(changed, place)
    each = (known['memory']['temporaries'] - known['state'] / 3) / known['rows']
    room = known['memory']['room'] - fixed
    return next((n for n in cuts(rows, 0) if each * rows / n <= room), rows)


def fixed_bytes(config, place: aot.Place) -> tuple[float, int]:
    """Bytes of a device that no micro-batch makes smaller, arguments and gradients; and the rows of the batch on a device."""
    mesh = sharding.make_mesh(**config.mesh, devices=place.devices)
    abstract = train.parts(config, mesh)[2]
    rows = config.data.batch_size // (mesh.shape['data'] * mesh.shape['fsdp'])
    return bytes_of((abstract, batch_on(config, mesh), abstract.params)), rows


def row(trial: Trial) -> str:
    """One trial for people."""
    what = ' '.join(f'{key}={value}' for key, value in trial.changes.items()) or 'as shipped'
    if not trial.report:
        return f'{what}: does not fit, needs {trial.refusal.need / GIB:.1f} GiB'
    r = trial.report
    return (
        f'{what}: {r["micro_batches"]} x {r["rows"]} rows, {r["memory"]["total"] / GIB:.1f} GiB, '
        f'{r["seconds"] * 1e3:.1f} ms + {r["collective_seconds"] * 1e3:.1f} ms exchange, MFU {r["mfu_exposed"]:.1%}'
    )


def paste(config, best: Trial) -> str:
    """The options that make the config the best trial; '' where it is that already."""
    changes = dict(best.changes)
    if changes and best.report['micro_batches'] > 1:
        changes['micro_batch'] = best.report['rows']
    return ' '.join(f'--config.{key}={value}' for key, value in changes.items() if at(config, key) != value)


def refused(config, place: aot.Place, refusal: DoesNotFit) -> str:
    """The sentence for a config that does not fit, with what should."""
    if math.isinf(refusal.need):
        return 'it does not fit, and the compiler does not say by how much: try less rows at once, encoder.remat=full or a larger mesh.fsdp (--search does)'
    need = f'{refusal.need / GIB:.1f} GiB'
    lead = (f'{refusal.rows} rows at once need {need} a device, and of the {place.memory / GIB:.2f} of {place.name} '
            f'training takes at most {refusal.limit / GIB:.2f}')  # fmt: skip
    for changes, guess in guesses(config, place, refusal):
        if guess <= refusal.limit:
            options = ' '.join(f'--config.{key}={value}' for key, value in changes.items() if at(config, key) != value)
            return f'it does not fit: {lead}. By a rough guess this would, with {guess / GIB:.1f} GiB: {options} (--search tries)'
    return f'it does not fit: {lead}. Nor, by a rough guess, would less rows at once, remat or a larger mesh.fsdp: take more devices or a smaller model'


def guesses(config, place: aot.Place, refusal: DoesNotFit) -> list[tuple[dict, float]]:
    """Changes, and the bytes of a device that they should leave, the mildest first."""
    n, keys, batch = len(place.devices), found(config, 'remat'), config.data.batch_size
    least = min((POLICIES.index(at(config, key)) for key in keys), default=0)
    whole = {'mesh.data': -1, 'mesh.fsdp': n // place.slices, 'mesh.model': 1}
    fixed = fixed_bytes(config, place)[0]
    each = max(refusal.need - fixed, 0) / refusal.rows
    out = []
    for mesh in [{}, whole] if batch % n == 0 else [{}]:
        kept, rows = fixed_bytes(applied(config, mesh), place) if mesh else (fixed, refusal.rows)
        for policy in POLICIES[least:] if keys else POLICIES[:1]:
            for cut in cuts(min(rows, refusal.rows), 0) if config.micro_batch else [1]:
                micro = min(rows, refusal.rows) // cut
                changes = mesh | dict.fromkeys(keys, policy) | ({'micro_batch': micro} if config.micro_batch else {})
                out.append((changes, kept + each * micro * KEPT[policy] / KEPT[POLICIES[least]]))
    few = [min(changes.get('micro_batch', FEW), FEW) for changes, _ in out]  # then rather remat than fewer rows
    return [out[i] for i in sorted(range(len(out)), key=lambda i: (-few[i], i))]
