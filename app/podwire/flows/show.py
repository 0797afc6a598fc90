"""Connections and sums as text. Pure. Names come from the network: what cannot be printed is escaped."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from podwire_base.role.logtext import printable
from podwire_observe.record import FAILED, Flow

Row = Mapping[str, Any]
COUNTS = ("opened", "ended", "packets", "bytes", "back_packets", "back_bytes")
BY: dict[str, Callable[[Row], tuple[str, str]]] = {
    "pair": lambda row: (_end(row["source"]), _target(row)),
    "service": lambda row: ("", _service(row) or _end(row["target"])),
    "namespace": lambda row: (_space(row["source"]), _space(row["service"] or row["target"])),
    "node": lambda row: (
        row["source"]["node"] or row["source"]["kind"],
        row["target"]["node"] or row["target"]["kind"],
    ),
}


def _end(end: Mapping[str, str]) -> str:
    return f"{end['namespace']}/{end['name']}" if end["namespace"] else end["name"] or "unknown"


def _service(row: Row) -> str:
    one = row["service"]
    return f"{one['namespace']}/{one['name']}:{one['port']}" if one else ""


def _target(row: Row) -> str:
    service, target = _service(row), _end(row["target"])
    return f"{service} ({target})" if service and row["target"]["kind"] == "pod" else service or target


def _space(end: Mapping[str, str]) -> str:
    return end.get("namespace") or end.get("kind") or "unknown"


def size(number: int | None) -> str:
    """Returns a number of bytes for people, "-" if it is not known."""
    if number is None:
        return "-"
    value, units = float(number), iter(("B", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while value >= 1000 and unit != "TB":
        value, unit = value / 1000, next(units)
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"


def seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"


def clock(at: float, *, whole: bool = False) -> str:
    """Returns a moment: whole as RFC 3339, else the time of day where the reader is."""
    if whole:
        found = datetime.datetime.fromtimestamp(at, datetime.UTC)
        return found.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return f"{datetime.datetime.fromtimestamp(at):%H:%M:%S.%f}"[:12]


def _place(ip: str, port: int) -> str:
    return (f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}") if port else ip


def verdict(flow: Flow) -> str:
    why = f"{flow.reason}: {flow.rule}" if flow.rule else flow.reason
    return f"{flow.verdict} ({why})" if why else flow.verdict


def compact(flow: Flow) -> str:
    """One line. "at least": the connection is older than the node's role."""
    source, target, service, _ = flow.ends
    who = source.words or flow.source_ip
    whom = service.words or f"{target.words or flow.endpoint_ip}{f':{flow.port}' if flow.port else ''}"
    via = f" -> {target.words or flow.endpoint_ip}" if service.name and target.kind != "service" else ""
    figures = []
    if flow.bytes is not None:
        more = "at least " if flow.at_least else ""
        figures.append(f"{more}{size(flow.bytes)} out, {size(flow.back_bytes)} back")
    if flow.duration is not None:
        figures.append(seconds(flow.duration))
    tail = f"  {', '.join(figures)}" if figures else ""
    return printable(f"{clock(flow.started)} {who} -> {whom}{via} {flow.protocol} {verdict(flow)}{tail}")


WIDE = (
    "TIME",
    "NODE",
    "SOURCE",
    "FROM",
    "SERVICE",
    "DIALLED",
    "TARGET",
    "AT",
    "PROTO",
    "VERDICT",
    "OUT",
    "BACK",
    "TOOK",
)


def wide(flow: Flow) -> list[str]:
    source, target, service, _ = flow.ends
    return [
        printable(cell)
        for cell in (
            clock(flow.started),
            flow.node,
            source.words or "-",
            _place(flow.source_ip, flow.source_port),
            service.words or "-",
            _place(flow.ip, flow.port),
            target.words or "-",
            _place(flow.endpoint_ip, flow.endpoint_port),
            flow.protocol,
            verdict(flow),
            size(flow.bytes),
            size(flow.back_bytes),
            seconds(flow.duration),
        )
    ]


def as_json(flow: Flow) -> str:
    """One line. Times are RFC 3339."""
    found = flow.to_json()
    for name in ("started", "changed"):
        found[name] = clock(found[name], whole=True)
    return json.dumps(found)


def summed(rows: Iterable[Row], by: str) -> list[dict[str, Any]]:
    """Returns the sums by `by`, what failed most first. failed: verdict or reason -> connections."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        source, target = BY[by](row)
        one = found.setdefault(
            (source, target),
            {"source": source, "target": target, **dict.fromkeys(COUNTS, 0), "failed": {}, "targets": 0},
        )
        for name in COUNTS:
            one[name] += row[name]
        one["targets"] = max(one["targets"], row.get("targets", 0))
        if row["verdict"] in FAILED and row["ended"]:
            words = f"{row['verdict']} ({row['reason']})" if row["reason"] else row["verdict"]
            one["failed"][words] = one["failed"].get(words, 0) + row["ended"]
    kept = [one for one in found.values() if one["opened"] or one["ended"] or one["bytes"]]
    return sorted(kept, key=lambda one: (-sum(one["failed"].values()), -one["opened"], one["source"], one["target"]))


SUMMED = ("FROM", "TO", "OPENED", "FAILED", "OUT", "BACK", "WHY")


def sum_cells(one: Mapping[str, Any], by: str) -> list[str]:
    why = ", ".join(f"{count} {words}" for words, count in one["failed"].items())
    target = one["target"] + (f" ({one['targets']} targets)" if one["targets"] else "")
    return [
        printable(cell)
        for cell in (
            *((one["source"],) if by != "service" else ()),
            target,
            str(one["opened"]),
            str(sum(one["failed"].values())),
            size(one["bytes"]),
            size(one["back_bytes"]),
            why,
        )
    ]


def doubts(heads: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns what a reader must know of the answers: losses, what was not logged, and since when nodes listen."""
    found = []
    for head in heads:
        node = printable(str(head["node"]))
        if head["lost"]:
            found.append(f"{node}: {head['lost']} events lost; polls show what was open then")
        if head["unshown"]:
            found.append(f"{node}: {head['unshown']} refused or dropped packets more were counted, not logged")
        if head["mode"] == "on-demand":
            found.append(f"{node}: connections are followed since {clock(head['since'])}, while somebody asks")
    return found
