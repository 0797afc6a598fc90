"""The Lease `podwire-NODE` in kube-system by which an agent publishes where its roles stand. Pure.

Every agent may write every such Lease (a Role cannot bind a name to the node that writes), so what a Lease says is no
more than a claim: a reader shows who signed it and when, and prints the text with escapes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..role.standing import Standing
from .meta import Object, annotations_of
from .times import micro_timestamp, parse_time

NAMESPACE = "kube-system"
PATH = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases"
LABEL, VALUE = "app.kubernetes.io/name", "podwire"
PREFIX = "podwire-"
ANNOTATION = "podwire.io/status"
VERSION = 1
MOST = 4096  # bytes of the annotation, as Kubernetes counts them: key and value
EVERY = 10.0  # seconds between two writes of an agent that has no news
LATE = 30.0  # seconds after which a report is too old to be believed
_CUTS = (400, 200, 100, 50, 20, 0)  # characters of each message, until it fits


def name_of(node: str) -> str:
    return PREFIX + node


def _row(stands: Standing, longest: int, *, figures: bool) -> Object:
    row: Object = {"ready": stands.ready, "reason": stands.reason[:40], "message": stands.message[:longest]}
    for field in ("pid", "restarts", "seen", "written"):
        if getattr(stands, field):
            row[field] = getattr(stands, field)
    for field in ("age", "behind"):
        if getattr(stands, field) is not None:
            row[field] = round(getattr(stands, field), 1)
    return {**row, "figures": dict(stands.figures)} if figures and stands.figures else row


def text_of(roles: Mapping[str, Standing]) -> str:
    """Return the annotation, with as much of figures and messages as fits into MOST bytes."""
    for figures, longest in ((True, _CUTS[0]), *((False, cut) for cut in _CUTS)):
        rows = {role: _row(stands, longest, figures=figures) for role, stands in roles.items()}
        text = json.dumps({"version": VERSION, "roles": rows}, separators=(",", ":"))
        if len(text) + len(ANNOTATION) <= MOST:
            return text
    return json.dumps({"version": VERSION, "roles": {}})


def lease(node: str, holder: str, roles: Mapping[str, Standing], now: float, version: str = "") -> Object:
    """holder: the pod or process that publishes. version: the resourceVersion of the Lease that this one replaces."""
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {
            "name": name_of(node),
            "namespace": NAMESPACE,
            "labels": {LABEL: VALUE},
            "annotations": {ANNOTATION: text_of(roles)},
            **({"resourceVersion": version} if version else {}),
        },
        "spec": {
            "holderIdentity": holder[:128],
            "leaseDurationSeconds": int(LATE),
            "renewTime": micro_timestamp(now),
        },
    }


@dataclass(frozen=True, slots=True)
class Claim:
    """What a Lease says. problem: why it cannot be read, "" if it can. age: seconds since its date."""

    node: str
    holder: str
    age: float
    roles: Mapping[str, Standing]
    problem: str = ""


def read(found: Object, now: float) -> Claim | None:
    """Return the claim of a Lease; None if it is not one of an agent's. A misshapen one is a claim with a problem."""
    own = str((found.get("metadata") or {}).get("name") or "")
    text = annotations_of(found).get(ANNOTATION)
    if text is None or not own.startswith(PREFIX):
        return None
    node = own.removeprefix(PREFIX)
    spec = found.get("spec") if isinstance(found.get("spec"), dict) else {}
    holder = str((spec or {}).get("holderIdentity") or "nobody")
    try:
        age = now - parse_time(str((spec or {})["renewTime"])).timestamp()
        body = json.loads(str(text)[:MOST])
        if body["version"] != VERSION:
            return Claim(node, holder, age, {}, f"its version is {body['version']!r}, not {VERSION}")
        return Claim(node, holder, age, {str(role): _standing(row) for role, row in body["roles"].items()})
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        return Claim(node, holder, 0.0, {}, f"it cannot be read: {type(err).__name__}: {err}")


def _standing(row: Any) -> Standing:
    def number(field: str) -> float | None:
        return None if row.get(field) is None else float(row[field])

    return Standing(
        row["ready"] is True,
        str(row["reason"]),
        str(row["message"]),
        int(row.get("pid") or 0),
        int(row.get("restarts") or 0),
        number("age"),
        number("behind"),
        str(row.get("seen") or ""),
        str(row.get("written") or ""),
        dict(row.get("figures") or {}),
    )
