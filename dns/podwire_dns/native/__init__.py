"""The DNS server's compiled half: many packets with one system call, and the zone where no interpreter is needed."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from podwire_base import native

SOURCES = ("table.h", "batch.h", "exchange.h", "clock.h", "random.h", "table.c", "batch.c", "exchange.c")  # as units.py


@functools.cache
def library() -> native.Library:
    """The cffi module, or why there is none."""
    return native.load(__name__, Path(__file__).parent, "_packets", SOURCES)


def load() -> Any | None:
    """The cffi module (`.ffi`, `.lib`), or None: then one packet at a time, by Python."""
    return library().module
