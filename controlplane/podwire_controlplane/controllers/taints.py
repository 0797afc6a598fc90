"""Taints and tolerations (core/v1 Taint, Toleration): which taints a pod does not tolerate, and for how long it
tolerates others. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from podwire_base.kube.meta import Object

HARD = ("NoSchedule", "NoExecute")


def tolerates(toleration: Object, taint: Object) -> bool:
    if toleration.get("effect") not in (None, "", taint.get("effect")):
        return False
    if toleration.get("operator") == "Exists":
        return toleration.get("key") in (None, "", taint.get("key"))
    return toleration.get("key") == taint.get("key") and (toleration.get("value") or "") == (taint.get("value") or "")


def untolerated(taints: Iterable[Object], tolerations: Iterable[Object], effects: tuple[str, ...] = HARD) -> Object:
    """Return the first taint of one of these effects that no toleration covers, {} if there is none."""
    rows = list(tolerations)
    for taint in taints:
        if taint.get("effect") in effects and not any(tolerates(row, taint) for row in rows):
            return taint
    return {}


def tolerated(taints: Iterable[Object], tolerations: Iterable[Object]) -> bool:
    """Whether every NoSchedule or NoExecute taint has a toleration."""
    return not untolerated(taints, tolerations)


def seconds(taint: Object, tolerations: Iterable[Object]) -> float | None:
    """Return for how long a running pod stays on a node with a NoExecute taint: the least tolerationSeconds of the
    tolerations that cover it, None: forever, 0.0: no toleration covers it.
    """
    mine = [row for row in tolerations if tolerates(row, taint)]
    if not mine:
        return 0.0
    limits: list[Any] = [row["tolerationSeconds"] for row in mine if row.get("tolerationSeconds") is not None]
    return max(0.0, float(min(limits))) if limits else None
