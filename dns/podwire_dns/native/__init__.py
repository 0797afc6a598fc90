"""Loads the compiled part of the DNS server.

The compiled part receives and sends many packets with one system call. It also stores the zone, which threads can then
read without the interpreter.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from podwire_base import native

# the same as in units.py
SOURCES = ("table.h", "batch.h", "exchange.h", "clock.h", "random.h", "table.c", "batch.c", "exchange.c")


@functools.cache
def library() -> native.Library:
    """Returns the cffi module, or the reason for its absence."""
    return native.load(__name__, Path(__file__).parent, "_packets", SOURCES)


def load() -> Any | None:
    """Returns the cffi module (`.ffi`, `.lib`); None if it is missing: Python then handles one packet at a time."""
    return library().module
