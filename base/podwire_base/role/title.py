"""Sets what `ps` and `top` show of a process: its arguments and its 15-byte name.

The arguments are written over those that the process was started with, inside the same memory. Text that does not fit
is left out, and the environment after it stays unchanged: `podwire down` finds a cluster's processes by it.
(setproctitle, the usual library, writes into the environment by default.)
"""

from __future__ import annotations

import contextlib
import ctypes
from pathlib import Path

PR_SET_NAME = 15
ARG_START, ARG_END = 47, 48  # fields of /proc/PID/stat, counted from 0 (proc_pid_stat(5) counts from 1)


def set_title(program: str, role: str, *more: str) -> None:
    """Show this process as `program role more...` and as `program-role`, each as far as there is room. If the kernel
    does not report the place of the arguments, only the short name is set.
    """
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_NAME, f"{program}-{role}".encode()[:15])
    with contextlib.suppress(OSError, ValueError, IndexError):  # no /proc here
        fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
        start, end = (int(fields[number - 2]) for number in (ARG_START, ARG_END))
        if 0 < start < end:
            ctypes.memmove(start, area("\0".join((program, role, *more)), end - start), end - start)


def area(title: str, size: int) -> bytes:
    """`title` in `size` bytes (at least one). The last byte is zero: otherwise the kernel would continue to read in the
    environment.
    """
    return title.encode(errors="replace")[: size - 1].ljust(size, b"\0")
