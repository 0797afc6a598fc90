"""The kinds that the API serves and for which nothing in the embedded cluster acts yet: what therefore does not happen.

An Event (reason NoController) on each object and `podwire status` say so. A part that begins to act for a kind takes
the kind's row away.
"""

from __future__ import annotations

from typing import Final

REASON: Final = "NoController"
MISSING: Final[dict[str, str]] = {
    "HorizontalPodAutoscaler": "nothing is scaled by it",
    "PersistentVolumeClaim": "no volume is bound to it",
    "Ingress": "no traffic is routed by it",
    "ResourceClaim": "no device is allocated for it",
}
