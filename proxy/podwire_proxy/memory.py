"""Keeps the memory of a process constant under continuous changes."""

from __future__ import annotations

import contextlib
import ctypes
import gc

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # malloc.h of glibc
BLOCK = 128 << 10  # bytes: glibc's initial value, which glibc otherwise raises up to 32 MiB


def frugal() -> None:
    """Sets the garbage collector and malloc for a process with a million long-lived objects and few changes.

    The first load creates these objects; repeated garbage collections would take half of the load's time. The tables of
    large dicts, and whole batches, are separate memory blocks that return to the system instead of holes in the heap;
    threads share one heap.
    """
    gc.set_threshold(200_000, 50, 1000)
    with contextlib.suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL(None)
        for parameter, value in ((M_MMAP_THRESHOLD, BLOCK), (M_TRIM_THRESHOLD, 8 * BLOCK), (M_ARENA_MAX, 1)):
            libc.mallopt(parameter, value)
