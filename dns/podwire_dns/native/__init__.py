"""The DNS server's compiled part: it receives and sends many packets with one system call, and keeps the zone where
threads read it without the interpreter.
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
    """The cffi module, or the reason why it is missing."""
    return native.load(__name__, Path(__file__).parent, "_packets", SOURCES)


def load() -> Any | None:
    """The cffi module (`.ffi`, `.lib`); None: Python handles one packet at a time."""
    return library().module
