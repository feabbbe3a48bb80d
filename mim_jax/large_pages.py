"""Large pages for the memory of the host. XLA takes the memory of a step on a CPU anew for every step, and page faults are a sixth of its time."""

import os
import sys
import threading


def ensure() -> None:
    """Starts this process again with malloc on large pages: glibc reads GLIBC_TUNABLES at the start alone.

    Nothing happens where the variable is set to something already, nor in a process with other threads (a notebook's kernel, a debugger).
    """
    if sys.platform == 'linux' and 'GLIBC_TUNABLES' not in os.environ and threading.active_count() == 1:
        os.environ['GLIBC_TUNABLES'] = 'glibc.malloc.hugetlb=1'
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
