"""python -m mim_jax.main --config=configs/NAME.py[:variant] --workdir=DIR [--mode=train|eval] [--config.key=value ...]"""

import difflib
import json
import logging
import re
import sys
import threading
import traceback
from functools import reduce
from operator import getitem
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from mim_jax import hosts, large_pages
from mim_jax.errors import InputError, RunError, refuse_url

_CONFIG = config_flags.DEFINE_config_file('config', None, 'What to train: configs/NAME.py[:variant].', lock_config=True)
_WORKDIR = flags.DEFINE_string('workdir', None, 'Where the run lives; the same command resumes it.')
_MODE = flags.DEFINE_enum(
    'mode', 'train', ['train', 'eval'], 'Train, or evaluate the newest checkpoint of workdir again.'
)
_JOIN_TIMEOUT = flags.DEFINE_float(
    'join_timeout', hosts.JOIN, 'Seconds to wait at the start for the other hosts of a run.'
)
_TRACEBACK = flags.DEFINE_bool('traceback', False, 'Show where an error comes from, not only what it says.')

KINDS = {  # of values, as the command line takes them
    bool: 'True or False',
    int: 'a whole number',
    float: 'a number',
    tuple: 'a list, as "(8, 8)"',
    ConfigDict: 'set key by key, as --config.encoder.name=ViT',
}
REPOSITORY = Path(__file__).parents[1]  # config files import each other as `configs.NAME`


def read(argv: list[str]) -> str:
    """Reads the flags, and gives what --config is. An unknown key or a value of the wrong type is an InputError with the nearest right name."""
    if str(REPOSITORY) not in sys.path:
        sys.path.insert(0, str(REPOSITORY))
    try:
        rest = flags.FLAGS(argv)
    except FileNotFoundError as error:
        raise InputError(f'no config file {error.filename!r}: configs/ has the ready ones') from error
    except (flags.Error, ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(sentence(error, argv)) from error
    given = next((arg for arg in reversed(argv) if arg.startswith('--config=')), '').removeprefix('--config=')
    path = given.partition(':')[0]
    if path and not Path(path).exists():
        known = [p.name for p in Path(path).parent.glob('*.py')] if Path(path).parent.is_dir() else []
        close = difflib.get_close_matches(Path(path).name, known, 1)
        raise InputError(
            f'no config file {path}' + (f': did you mean {Path(path).with_name(close[0])}?' if close else '')
        )
    if len(rest) > 1:
        raise InputError(f'cannot make sense of {rest[1]!r}: options look like --config.key=value')
    return given


def parse(argv: list[str]) -> None:
    """As `read`, and settles where the run lives."""
    given = read(argv)
    if _WORKDIR.value is None and given and _MODE.value == 'train':
        flags.FLAGS.workdir = f'runs/{Path(given).name.replace(".py", "").replace(":", "_")}'
        print(f'no --workdir: the run lives in {_WORKDIR.value}', file=sys.stderr)
    if not _WORKDIR.value:
        raise InputError('--workdir=DIR is missing: it holds the checkpoints, metrics and pictures of the run')
    refuse_url(_WORKDIR.value, '--workdir=')


def sentence(error: Exception, argv: list[str]) -> str:
    """What was wrong with the flags, without the traceback some of these errors carry in their text."""
    text = str(error.args[0] if error.args else error).strip()
    key = re.search(r'\w+', text) if isinstance(error, KeyError | AttributeError) else None
    if key and (flag := next((arg for arg in argv if key[0] in arg.partition('=')[0].split('.')), None)):
        close = re.search(r'Did you mean "(\w+)"', text)
        hint = (
            f'Did you mean {close[1]!r}?'
            if close
            else 'An option that the config file leaves out has to be written there first.'
        )
        return f'{flag}: the config has no key {key[0]!r}. {hint}'
    flag = next((arg for arg in argv if arg.startswith('--config.') and text.startswith(f'flag {arg}:')), None)
    if flag and (
        kind := KINDS.get(type(reduce(getitem, flag.partition('=')[0].split('.')[1:], flags.FLAGS['config'].value)))
    ):
        return f'{flag}: it has to be {kind}'
    return text.splitlines()[-1].removeprefix('ValueError: ') if 'Traceback' in text else ' '.join(text.split())


def load() -> tuple[ConfigDict, dict]:
    """The config, and where each value that is not the file's comes from."""
    if _CONFIG.value is not None:
        for key in ('data.path', 'data.val_path', 'init'):
            refuse_url(reduce(getitem, key.split('.'), _CONFIG.value), f'--config.{key}=')
        source = flags.FLAGS['config'].config_filename
        changed = config_flags.get_override_values(flags.FLAGS['config'])
        return _CONFIG.value, dict(config=str(source), **dict.fromkeys(changed, 'command line'))
    saved = Path(_WORKDIR.value) / 'config.json'
    if _MODE.value == 'train' or not saved.exists():
        raise InputError('--config=configs/NAME.py is missing: it says what to train (try configs/quickstart.py)')
    record = json.loads(saved.read_text())
    origin = record.pop('origin')
    record.pop('environment')
    return ConfigDict(record, convert_dict=True).lock(), origin


def main(argv: list[str]) -> int:
    """Runs, and gives the exit status: 0 reached its end, 2 wrong config or input, 1 stopped, 143 preempted."""
    try:
        parse(argv)
        config, origin = load()
        hosts.start(config, _WORKDIR.value, _MODE.value, _JOIN_TIMEOUT.value)
        from mim_jax import train  # JAX is slow to import: a misspelt key fails before it

        return hosts.finish(train.run(config, _WORKDIR.value, _MODE.value, origin))
    except (InputError, RunError) as error:
        return failed(error, 2 if isinstance(error, InputError) else 1)
    except OSError as error:  # a full disk, a directory without permission, wherever it shows
        return failed(error, 1)
    except (Exception, KeyboardInterrupt) as error:
        if not hosts.several():
            raise
        return failed(error, 1, traced=True)


def failed(error: BaseException, status: int, traced: bool = False) -> int:
    """Says why in one sentence, and gives the exit status; of several hosts, the others hear it and end too."""
    hosts.wait_for_the_lost(error)
    if traced or flags.FLAGS.is_parsed() and _TRACEBACK.value:
        traceback.print_exception(error)
    text = f'{error.filename or ""}: {error.strerror}'.removeprefix(': ') if getattr(error, 'strerror', None) else error
    text = f'{type(error).__name__}: {text}'.removesuffix(': ') if traced else text
    hosts.leave(str(text), status)
    print(f'mim_jax: {text}', file=sys.stderr)
    return status


def let_threads_be_silent() -> None:
    """A save that fails makes the threads of TensorStore print a traceback for every array; `failed` says it once."""

    def hook(unraisable):
        if threading.current_thread() is threading.main_thread():
            sys.__unraisablehook__(unraisable)

    sys.unraisablehook = hook
    logging.getLogger('asyncio').setLevel(logging.CRITICAL)


if __name__ == '__main__':
    large_pages.ensure()
    let_threads_be_silent()
    sys.exit(main(sys.argv))
