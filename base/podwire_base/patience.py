"""How long commands, demo and tests wait for what must happen. `PODWIRE_PATIENCE=10` makes each of these times ten
times as long: for machines on which a second does not get much done (an emulated CPU, a busy host). A cluster does
nothing otherwise."""

from __future__ import annotations

import os

FACTOR = float(os.environ.get("PODWIRE_PATIENCE") or 1)


def patient(seconds: float) -> float:
    """These seconds on a machine of usual speed."""
    return seconds * FACTOR
