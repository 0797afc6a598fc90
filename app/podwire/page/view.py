"""What the page shows of a moment, as one JSON object: a snapshot. Pure: moments are arguments.

    {"at": 1790000000.0, "nodes": [...], "spaces": [...], "callers": [...], "pairs": [...], "notes": [...]}

A caller is a workload, a node, or the outside. A row of the table is a Service, or what is dialled without one. A pair
is a caller, a row with its port, a verdict and a reason. Rates are of the last 10 to 20 seconds, counts of the last
minute. Callers and rows without a Service stay for as long as the nodes remember (15 minutes), so that nothing moves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from podwire_base.kube.meta import Object, labels, name, namespace
from podwire_observe.record import FAILED
from podwire_observe.sums import SLOT_SECONDS, SLOTS

from ..flows.choosing import workload_of

MINUTE = 60.0
KEPT = float(SLOT_SECONDS * SLOTS)
MOST_PAIRS = 2000  # of a snapshot; failing ones first
OUTSIDE, NODES, UNKNOWN = "outside the cluster", "nodes", "not known"
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Told:
    """A sum that a node told. slot: seconds since 1970 // SLOT_SECONDS. row: as in query.py."""

    node: str
    slot: int
    row: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Heard:
    """What a node says of itself. silent: why it does not answer, "" if it does. head: as in query.py."""

    node: str
    silent: str = ""
    head: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Objects:
    """The API's objects, by "namespace/name". missing: why some could not be read."""

    services: Mapping[str, Object] = field(default_factory=dict)
    slices: Mapping[str, Object] = field(default_factory=dict)
    pods: Mapping[str, Object] = field(default_factory=dict)
    nodes: Mapping[str, Object] = field(default_factory=dict)
    missing: str = ""


@dataclass(frozen=True, slots=True)
class Sample:
    """One connection's ends of a pair, for `podwire explain`. caller: as the page names it."""

    node: str
    caller: str
    source: Mapping[str, str]
    target: Mapping[str, str]
    service: Mapping[str, str] | None
    protocol: str
    verdict: str
    reason: str


@dataclass(slots=True)
class _Pair:
    caller: str
    row: str
    port: str
    protocol: str
    verdict: str
    reason: str
    sample: Sample
    recent: int = 0
    recent_failed: int = 0
    opened: int = 0
    failed: int = 0
    bytes: int = 0
    back: int = 0
    targets: int = 0
    bars: list[int] = field(default_factory=lambda: [0] * 6)

    def key(self) -> str:
        text = "\0".join((self.caller, self.row, self.port, self.protocol, self.verdict, self.reason))
        return hashlib.sha256(text.encode()).hexdigest()[:12]


class View:
    """Makes snapshots, and remembers what was shown."""

    def __init__(self) -> None:
        self.callers: dict[str, float] = {}
        self.rows: dict[str, float] = {}  # those that are no Services
        self.samples: dict[str, tuple[float, Sample]] = {}

    def remember(self, told: Iterable[Told], objects: Objects) -> None:
        """Takes what was there before the first snapshot."""
        for one in told:
            if not one.row["probe"]:
                when = float(one.slot * SLOT_SECONDS)
                self._note(_caller(one.row["source"], objects), _row(one.row, objects), when)

    def _note(self, caller: str, row: str, when: float) -> None:
        self.callers[caller] = max(when, self.callers.get(caller, 0.0))
        if not row.startswith("service "):
            self.rows[row] = max(when, self.rows.get(row, 0.0))

    def snapshot(self, told: Iterable[Told], heard: Sequence[Heard], objects: Objects, until: float) -> Json:
        """Returns the minute before `until`."""
        pairs, by_node = self._pairs(told, objects, until)
        for group in (self.callers, self.rows):
            for key in [key for key, when in group.items() if when < until - KEPT]:
                del group[key]
        nodes = sorted({name(one) for one in objects.nodes.values()} | {one.node for one in heard})
        span = _span(until)
        shown = sorted(pairs.values(), key=lambda one: (not one.failed, one.caller, one.row, one.port, one.reason))
        return {
            "at": until,
            "nodes": [_node(one, heard, objects, by_node.get(one, 0) / span) for one in nodes],
            "spaces": self._spaces(objects, nodes),
            "callers": sorted(self.callers, key=_order),
            "pairs": [_pair(one, span) for one in shown[:MOST_PAIRS]],
            "notes": _notes(heard, objects, len(shown)),
        }

    def _pairs(self, told: Iterable[Told], objects: Objects, until: float) -> tuple[dict[str, _Pair], dict[str, int]]:
        last, found, by_node = int(until // SLOT_SECONDS), dict[str, _Pair](), dict[str, int]()
        for one in told:
            age = last - one.slot
            if one.row["probe"] or not 0 <= age < 6:
                continue
            pair = self._place(found, one, objects)
            failed = one.row["ended"] if one.row["verdict"] in FAILED else 0
            pair.opened += one.row["opened"]
            pair.failed += failed
            pair.bars[5 - age] += one.row["opened"]
            pair.bytes += one.row["bytes"]
            pair.back += one.row["back_bytes"]
            pair.targets = max(pair.targets, one.row.get("targets", 0))
            if age < 2:
                pair.recent += one.row["opened"]
                pair.recent_failed += failed
                by_node[one.node] = by_node.get(one.node, 0) + one.row["opened"]
        kept = {}
        for key, pair in found.items():
            if pair.opened or pair.failed or pair.bytes or pair.back:
                kept[key] = pair
                self._note(pair.caller, pair.row, until)
                self.samples[key] = until, pair.sample
        for key in [key for key, (when, _) in self.samples.items() if when < until - KEPT]:
            del self.samples[key]
        return kept, by_node

    def _place(self, found: dict[str, _Pair], one: Told, objects: Objects) -> _Pair:
        row = one.row
        verdict = row["verdict"] if row["verdict"] in FAILED else ""
        caller = _caller(row["source"], objects)
        sample = Sample(
            one.node, caller, row["source"], row["target"], row["service"], row["protocol"], verdict, row["reason"]
        )
        port = row["service"]["port"] if row["service"] else ""
        reason = row["reason"] if verdict else ""
        made = _Pair(caller, _row(row, objects), port, row["protocol"], verdict, reason, sample)
        return found.setdefault(made.key(), made)

    def _spaces(self, objects: Objects, nodes: Sequence[str]) -> list[Json]:
        places = {one: number for number, one in enumerate(nodes)}
        ends = _endpoints(objects, places)
        spaces: dict[str, list[Json]] = {}
        for key, service in objects.services.items():
            space = namespace(service)
            none = [[0, 0] for _ in nodes]
            spaces.setdefault(space, []).append(
                {"id": f"service {key}", "name": name(service), "pods": ends.get(key, none)}
            )
        for row in self.rows:
            space, own = _words_of_row(row)
            if row.startswith("service "):
                continue
            spaces.setdefault(space, []).append({"id": row, "name": own, "pods": None})
        last = {OUTSIDE: 1, NODES: 2, UNKNOWN: 3}
        return [
            {"name": space, "rows": sorted(rows, key=lambda row: (row["pods"] is None, row["name"]))}
            for space, rows in sorted(spaces.items(), key=lambda one: (last.get(one[0], 0), one[0]))
        ]


def _span(until: float) -> float:
    """Returns the seconds over which rates are taken: the slot that runs, and the one before."""
    return SLOT_SECONDS + until % SLOT_SECONDS


def _workload(end: Mapping[str, str], objects: Objects) -> str:
    pod = objects.pods.get(f"{end['namespace']}/{end['name']}")
    return f"{end['namespace']}/{workload_of(pod)[1] if pod is not None else end['name']}"


def _caller(end: Mapping[str, str], objects: Objects) -> str:
    if end["kind"] == "pod":
        return _workload(end, objects)
    if end["kind"] == "node":
        return f"node {end['name']}"
    return {"outside": "outside", "other": "others"}.get(end["kind"], UNKNOWN)


def _row(row: Mapping[str, Any], objects: Objects) -> str:
    """Returns the id of the row that a sum belongs to."""
    service, target = row["service"], row["target"]
    if service and f"{service['namespace']}/{service['name']}" in objects.services:
        return f"service {service['namespace']}/{service['name']}"
    if service:  # of a Service that is gone
        return f"gone {service['namespace']}/{service['name']}"
    if target["kind"] == "pod":
        return f"pod {_workload(target, objects)}"
    if target["kind"] == "node":
        return f"node {target['name']}"
    return target["kind"] if target["kind"] == "outside" else "unknown"


def _words_of_row(row: str) -> tuple[str, str]:
    """Returns (namespace or group, name) of a row that is no Service."""
    kind, _, rest = row.partition(" ")
    space, _, own = rest.partition("/")
    if kind == "pod":
        return space, f"{own}, no Service"
    if kind == "gone":
        return space, f"{own}, deleted"
    return {"node": (NODES, rest), "outside": (OUTSIDE, "outside")}.get(kind, (UNKNOWN, "other pods"))


def _order(caller: str) -> tuple[int, str]:
    """Callers from outside first, then pods by name, then nodes."""
    return (0 if caller == "outside" else 1 if "/" in caller else 2), caller


def _endpoints(objects: Objects, places: Mapping[str, int]) -> dict[str, list[list[int]]]:
    """Service -> for each node [ready endpoints, endpoints]."""
    found: dict[str, list[list[int]]] = {}
    seen = set()
    for one in objects.slices.values():
        key = f"{namespace(one)}/{labels(one).get('kubernetes.io/service-name', '')}"
        cells = found.setdefault(key, [[0, 0] for _ in places])
        for end in one.get("endpoints") or []:
            ref = end.get("targetRef") or {}
            who = (key, ref.get("name") or tuple(end.get("addresses") or ()))  # a pod of two families counts once
            place = places.get(end.get("nodeName") or "")
            if place is None or who in seen:
                continue
            seen.add(who)
            cells[place][1] += 1
            cells[place][0] += (end.get("conditions") or {}).get("ready") is not False
    return found


def _node(own: str, heard: Sequence[Heard], objects: Objects, rate: float) -> Json:
    found = next((one for one in heard if one.node == own), None)
    bad = ""
    node = objects.nodes.get(own)
    if node is not None and any(
        row.get("type") == "Ready" and row.get("status") != "True"
        for row in (node.get("status") or {}).get("conditions") or []
    ):
        bad = "NotReady"
    if found is None or found.silent:
        bad = f"{bad}, silent: {found.silent}" if found and bad else f"silent: {found.silent}" if found else bad
        bad = bad or "not asked"
        return {"name": own, "rate": None, "bad": bad, "lost": 0, "unshown": 0}
    lost, unshown = found.head.get("lost", 0), found.head.get("unshown", 0)
    return {"name": own, "rate": round(rate, 2), "bad": bad, "lost": lost, "unshown": unshown}


def _pair(one: _Pair, span: float) -> Json:
    return {
        "id": one.key(),
        "from": one.caller,
        "to": one.row,
        "port": one.port,
        "protocol": one.protocol,
        "verdict": one.verdict,
        "reason": one.reason,
        "rate": round(one.recent / span, 2),
        "failing": round(one.recent_failed / span, 2),
        "opened": one.opened,
        "failed": one.failed,
        "out": round(one.bytes / MINUTE),
        "back": round(one.back / MINUTE),
        "targets": one.targets,
        "bars": one.bars,
    }


def _notes(heard: Sequence[Heard], objects: Objects, pairs: int) -> list[str]:
    """Returns what a reader must know of the picture as a whole."""
    found = [f"The API server does not answer: {objects.missing}"] if objects.missing else []
    if pairs > MOST_PAIRS:
        found.append(f"{pairs - MOST_PAIRS} pairs more are not shown")
    asked = [one.node for one in heard if one.head.get("mode") == "on-demand"]
    if asked:
        found.append(f"Connections are followed only while somebody looks: {', '.join(asked)}")
    return found
