import os
import subprocess
import sys

import pytest

PROGRAM = """
import os, sys, threading
from mim_jax import large_pages
if 'another' in sys.argv:
    threading.Thread(target=threading.Event().wait, daemon=True).start()
large_pages.ensure()
print(os.environ.get('GLIBC_TUNABLES'), sys.argv[1:], sys.flags.optimize)
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='glibc is of Linux')
@pytest.mark.parametrize(
    'arguments, given, expected',
    [
        (['a b'], {}, 'glibc.malloc.hugetlb=1'),
        (['a b'], {'GLIBC_TUNABLES': 'glibc.malloc.arena_max=2'}, 'glibc.malloc.arena_max=2'),
        (['another'], {}, 'None'),
    ],
    ids=['nothing set', 'set by the user', 'a process with threads'],
)
def test_starts_again_once_with_the_same_command(tmp_path, arguments, given, expected):
    program = tmp_path / 'program.py'
    program.write_text(PROGRAM)
    environment = {k: v for k, v in os.environ.items() if k != 'GLIBC_TUNABLES'} | given
    command = [sys.executable, '-O', program, *arguments]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert (ran.stdout.strip(), ran.stderr) == (f'{expected} {arguments} 1', '')
