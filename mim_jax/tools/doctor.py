"""What is wrong with this machine, before a run finds out: versions, devices, hosts, disks, and the likely cause of each trouble.

    python -m mim_jax.tools.doctor [--config=configs/NAME.py[:variant]] [--workdir=DIR] [--data=PATH] [--hosts=N] [--timeout=120]

Run it as the run would be: with the same environment and, where there are several hosts, on all of them at once. Everything that could
hang is done by a second process, which has --timeout seconds for each look. Exit status 0 = no FAIL, 1 = some, 2 = a wrong option.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from importlib import metadata
from queue import Empty, Queue

from absl import flags

from mim_jax.errors import InputError
from mim_jax.main import failed, read
from mim_jax.tools.doctor_looks import Line

GRACE = 15.0  # seconds beyond the timeout that the second process has to say itself that something took too long
LATE = {  # look -> why it hangs, where it does
    'start': 'Python or JAX does not start',
    'hosts': 'the network between the hosts lets some through and some not, or one of them stopped after it had come',
    'devices': 'another process holds the devices, or the hosts of a slice wait for one of them: look for older runs on all hosts',
    'all-reduce': 'the hosts reach the first but not each other: a firewall between them, or the wrong network interface (NCCL_SOCKET_IFNAME)',
    'workdir': 'a network file system that does not answer',
    'data': 'a network file system that does not answer',
    'compile cache': 'a network file system that does not answer',
    'loader': 'decoding does not end; look at the data with python -m mim_jax.tools.check',
}


def main(argv: list[str]) -> int:
    """Prints the table, and gives the exit status."""
    try:
        read(argv)
        lines = []
        for line in checks(argv[1:], flags.FLAGS.timeout):
            print(text(line), flush=True)
            lines.append(line)
    except InputError as error:
        return failed(error, 2)
    worst = [line.check for line in lines if line.state == 'FAIL']
    print(f'\n{len(worst)} of {len(lines)} checks failed: {", ".join(worst)}' if worst else f'\nall of {len(lines)} checks passed')  # fmt: skip
    return 1 if worst else 0


def checks(argv: list[str], timeout: float) -> Iterator[Line]:
    """All of them, one after the other."""
    yield from versions()
    for look in ('files', 'devices'):
        yield from ask([*argv, f'--look={look}'], timeout)


def text(line: Line) -> str:
    """How it is printed."""
    return f'{line.state:4}  {line.check:13}  {line.seen}' + (f'\n{"":21}-> {line.advice}' if line.advice else '')


def versions() -> Iterator[Line]:
    """Python, the packages this one asks for, and those that JAX asks for where they are there."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    about = metadata.metadata('mim_jax')
    ours = SpecifierSet(about['Requires-Python'])
    fits = platform.python_version() in ours
    yield Line('python', 'ok' if fits else 'FAIL', platform.python_version(), '' if fits else f'mim_jax needs {ours}')
    wanted = [Requirement(line) for line in about.get_all('Requires-Dist')]
    wrong = [unmet(each, 'mim_jax') for each in wanted if not each.marker or each.marker.evaluate({'extra': ''})]
    wrong += [unmet(each, 'jax') for each in map(Requirement, metadata.requires('jax') or []) if beside_jax(each)]
    wrong = [each for each in wrong if each]
    seen = ', '.join(f'{name} {version(name)}' for name in ('mim_jax', 'jax', 'jaxlib', 'libtpu') if version(name))
    yield Line('packages', 'FAIL' if wrong else 'ok', '; '.join(wrong) or seen,
               "install them anew in one go: pip install -U -e '.[tpu]' (or '.[cuda]', or .)" if wrong else '')  # fmt: skip


def beside_jax(requirement) -> bool:
    """Whether it is a part of JAX for the devices of this machine, or one that is installed for others."""
    extras = str(requirement.marker or '')
    return version(requirement.name) != '' and 'minimum-jaxlib' not in extras and '"ci"' not in extras


def unmet(requirement, of: str) -> str:
    """What is wrong with a package, or ''."""
    found = version(requirement.name)
    if not found:
        return f'{requirement.name} is missing'
    if requirement.specifier.contains(found, prereleases=True):
        return ''
    return f'{requirement.name} {found} is there, {of} {version(of)} wants {requirement.specifier}'


def version(package: str) -> str:
    """Installed version, or ''."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ''


def ask(argv: list[str], timeout: float) -> Iterator[Line]:
    """The lines of a second process. It says in advance what it is going to look at, so that a hanging look is known by name."""
    command = [sys.executable, '-m', 'mim_jax.tools.doctor_looks', *argv]
    with tempfile.TemporaryFile('w+') as errors:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        said: Queue = Queue()
        threading.Thread(target=pass_on, args=(child, said.put), daemon=True).start()
        at = 'start'
        try:
            while (line := said.get(timeout=timeout + GRACE)) is not None:
                if 'at' in line:
                    at = line['at']
                else:
                    yield Line(**line)
            if child.wait():
                yield Line(at, 'FAIL', f'ended with status {child.returncode}', last_words(errors))
        except Empty:
            yield Line(at, 'FAIL', f'no answer within {timeout:.0f} s', LATE.get(at, ''))
        finally:
            child.kill()


def pass_on(child: subprocess.Popen, put: Callable) -> None:
    """Reads what the process says, line by line; None at its end."""
    for line in child.stdout:
        if line.startswith('{'):
            put(json.loads(line))
    put(None)


def last_words(errors) -> str:
    """The sentence a process ended with, or else the last line it wrote."""
    errors.seek(0, os.SEEK_SET)
    lines = [line.strip() for line in errors.read().splitlines() if line.strip()]
    ours = [line.removeprefix('mim_jax: ') for line in lines if line.startswith('mim_jax: ')]
    return (ours or lines or ['it said nothing'])[-1]


if __name__ == '__main__':
    sys.exit(main(sys.argv))
