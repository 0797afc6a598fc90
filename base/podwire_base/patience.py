"""The time for which commands, the demo and tests wait for an expected event.

`PODWIRE_PATIENCE=10` makes each such time ten times as long, for slow machines (an emulated CPU, a busy host). The
setting changes nothing else in a cluster.
"""

from __future__ import annotations

import os

FACTOR = float(os.environ.get("PODWIRE_PATIENCE") or 1)


def patient(seconds: float) -> float:
    """Returns the given seconds, multiplied by PODWIRE_PATIENCE."""
    return seconds * FACTOR
