"""Waits of tests, as long as `PODWIRE_PATIENCE` says (podwire_base/patience.py)."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from podwire_base.patience import FACTOR, patient

__all__ = ["FACTOR", "patient", "wait_until"]
T = TypeVar("T")


def wait_until(condition: Callable[[], T], what: str, seconds: float = 20, pause: float = 0.02) -> T:
    """The condition's first true value; AssertionError if it does not come in time."""
    deadline = time.monotonic() + patient(seconds)
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {patient(seconds):g} s: {what}")
        time.sleep(pause * FACTOR)
    return value
