"""How long commands, demo and tests wait for an event that must come.

`PODWIRE_PATIENCE=10` makes each wait ten times as long, for slow machines (an emulated CPU, a busy host). It changes
nothing else in a cluster.
"""

from __future__ import annotations

import os

FACTOR = float(os.environ.get("PODWIRE_PATIENCE") or 1)


def patient(seconds: float) -> float:
    """The given seconds, multiplied for a slow machine."""
    return seconds * FACTOR
