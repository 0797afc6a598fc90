"""Keeps the process's memory constant over a day of changes."""

from __future__ import annotations

import contextlib
import ctypes
import gc

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # malloc.h of glibc
BLOCK = 128 << 10  # bytes: glibc's own first value, which it raises up to 32 MiB as blocks of that size come and go


def frugal() -> None:
    """For processes that hold a million long-lived objects and change few of them.

    The first load makes these objects, and repeated garbage collections would take half of its time. The tables of
    large dicts, and whole batches, are separate memory blocks that return to the system instead of holes in the heap;
    threads share one heap.
    """
    gc.set_threshold(200_000, 50, 1000)
    with contextlib.suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL(None)
        for parameter, value in ((M_MMAP_THRESHOLD, BLOCK), (M_TRIM_THRESHOLD, 8 * BLOCK), (M_ARENA_MAX, 1)):
            libc.mallopt(parameter, value)
