"""Sets the arguments and the 15-byte name of a process, which `ps` and `top` show.

The new arguments overwrite the original arguments in the same memory. Text that does not fit is cut. The environment
behind the arguments stays unchanged, because `podwire down` finds a cluster's processes by their environment.
(setproctitle, the usual library, writes into the environment by default.)
"""

from __future__ import annotations

import contextlib
import ctypes
from pathlib import Path

PR_SET_NAME = 15
ARG_START, ARG_END = 47, 48  # fields of /proc/PID/stat, counted from 0 (proc_pid_stat(5) counts from 1)


def set_title(program: str, role: str, *more: str) -> None:
    """Set the arguments of this process to `program role more...` and its name to `program-role`. Text that does not
    fit is cut. If the kernel does not report the address of the arguments, only the name is set.
    """
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_NAME, f"{program}-{role}".encode()[:15])
    with contextlib.suppress(OSError, ValueError, IndexError):  # there is no /proc
        fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
        start, end = (int(fields[number - 2]) for number in (ARG_START, ARG_END))
        if 0 < start < end:
            ctypes.memmove(start, area("\0".join((program, role, *more)), end - start), end - start)


def area(title: str, size: int) -> bytes:
    """Returns `title` in `size` bytes (at least one). The last byte is zero; otherwise the kernel would continue to
    read into the environment.
    """
    return title.encode(errors="replace")[: size - 1].ljust(size, b"\0")
