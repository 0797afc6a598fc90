"""How long tests wait for what must happen. `PODWIRE_PATIENCE=10` makes each of these times ten times as long: for machines on
which a second does not get much done (an emulated CPU, a busy host)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
FACTOR = float(os.environ.get("PODWIRE_PATIENCE") or 1)


def patient(seconds: float) -> float:
    """These seconds on a machine of usual speed."""
    return seconds * FACTOR


def wait_until(condition: Callable[[], T], what: str, seconds: float = 20, pause: float = 0.02) -> T:
    """The condition's first true value; AssertionError where it does not come. How fast it came is nobody's business."""
    deadline = time.monotonic() + patient(seconds)
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {patient(seconds):g} s: {what}")
        time.sleep(pause * FACTOR)
    return value
