"""Receiving and sending many packets with one system call; where it could not be compiled, `load` gives None."""

from __future__ import annotations

from typing import Any


def load() -> Any | None:
    """The cffi module of batch.c (`.ffi`, `.lib`), or None: then one packet at a time, by Python."""
    try:
        from .bin import _batch
    except ImportError:
        return None
    return _batch
