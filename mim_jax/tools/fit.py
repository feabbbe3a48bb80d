"""Whether a config fits a TPU, and how fast the compiler thinks it is: the real train step, compiled for chips that need not be there.

    pip install -e '.[tpu]'
    python -m mim_jax.tools.fit --config=configs/mae.py:vit_l16 --topology=v5e:4x4 [--batch=N] [--config.KEY=VALUE ...]
                                [--search [--tries=12]] [--out=FILE.json] [--hlo=FILE] [--top=N]

--topology is a slice, as v5p:4x4x4, several, as 2xv5e:4x4, or cpu, cpu:N (N devices) or here (those of this machine). No data are read. --search tries meshes, micro-batches
and remat policies and prints the best that fits as options to paste. docs/performance.md says what the numbers can and cannot tell.
Exit status 0 = it fits, 2 = it does not, or something is wrong.
"""

import json
import sys
from pathlib import Path

from absl import flags

from mim_jax.errors import InputError, RunError
from mim_jax.main import failed, load, read
from mim_jax.tools import fit_text, topology

_TOPOLOGY = flags.DEFINE_string(
    'topology', None, 'The slice to compile for, as v5e:4x4, or slices, as 2xv5e:4x4; cpu, cpu:N or here.'
)
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
    print('\n'.join(fit_text.lines(found, _TOP.value)))
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


if __name__ == '__main__':
    sys.exit(main(sys.argv))
