"""Waiting in tests. The variable `PODWIRE_PATIENCE` scales the time limits (podwire_base/patience.py)."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from podwire_base.patience import FACTOR, patient

__all__ = ["FACTOR", "patient", "wait_until"]
T = TypeVar("T")


def wait_until(condition: Callable[[], T], what: str, seconds: float = 20, pause: float = 0.02) -> T:
    """Call `condition` until its value is true and return this value. Raises AssertionError after `seconds`."""
    deadline = time.monotonic() + patient(seconds)
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {patient(seconds):g} s: {what}")
        time.sleep(pause * FACTOR)
    return value
