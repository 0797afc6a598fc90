"""Reads the figures of this process that Prometheus' client libraries show as process_*. I/O."""

from __future__ import annotations

import contextlib
import os
import resource
import time
from pathlib import Path

from .metrics import ProcessFigures

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = resource.getpagesize()
_START = 19  # field of proc_pid_stat(5) behind the name in parentheses: the start in ticks after boot


def figures() -> ProcessFigures:
    """Returns the figures of the calling process. What /proc does not tell is 0."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    pages, descriptors, started = ["0", "0"], 0, 0.0
    with contextlib.suppress(OSError):
        pages = Path("/proc/self/statm").read_text().split()
    with contextlib.suppress(OSError):
        descriptors = len(list(Path("/proc/self/fd").iterdir())) - 1  # without the one that lists them
    with contextlib.suppress(OSError, ValueError, IndexError):
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[_START])
        started = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / _TICKS
    return ProcessFigures(
        usage.ru_utime + usage.ru_stime,
        descriptors,
        _limit(resource.RLIMIT_NOFILE),
        int(pages[0]) * _PAGE,
        _limit(resource.RLIMIT_AS),
        int(pages[1]) * _PAGE,
        started,
    )


def _limit(which: int) -> float:
    soft, _ = resource.getrlimit(which)
    return float(2**64 - 1) if soft == resource.RLIM_INFINITY else float(soft)
