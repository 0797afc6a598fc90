"""The content of `podwire status`: what the API and the nodes said, as one record, and that record as text. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from podwire_base.kube import nodeconditions, statuslease
from podwire_base.kube.conditions import condition, is_true
from podwire_base.kube.meta import Object, key, labels, name
from podwire_base.kube.registry import of
from podwire_base.kube.table import columns
from podwire_base.role.standing import Standing, overtaken
from podwire_proxy.backend import OFF

from .grid import WIDTH, clean, table

AHEAD = 10.0  # seconds by which the clocks of two machines may differ
# role -> the kinds of objects that it follows whole; a filter leaves out those that it does not
FOLLOWS = {
    "wiring": ("nodes",),
    "proxy": ("services", "slices"),
    "dns-feeder": ("services", "slices"),
    "lb": ("nodes", "services"),
}
# reasons of the Events with which the controller of load balancer addresses refuses one
NO_ADDRESS = ("PoolExhausted", "NoPool", "InvalidPool", "InvalidAddress", "AddressNotInPool", "AddressInUse")
_NEVER = datetime.min.replace(tzinfo=UTC)  # no column of the page has an age
_UNWATCHED = ("service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless")


@dataclass(frozen=True, slots=True)
class Report:
    """What is known of the roles of one node. source: who says so. age: seconds; 0: read just now. holder: the pod that
    signed the report, as the report says.
    """

    roles: Mapping[str, Standing]
    source: str
    age: float = 0.0
    doubts: tuple[str, ...] = ()
    holder: str = ""


@dataclass(frozen=True, slots=True)
class Seen:
    """Everything that one look found. Lists that the caller may not read are None. events: those about Services that
    wait for an address. processes: rows of the supervisors of this cluster on this machine. now: seconds of the epoch.
    """

    nodes: Sequence[Object] | None = None
    pods: Sequence[Object] | None = None
    services: Sequence[Object] | None = None
    slices: Sequence[Object] | None = None
    reports: Mapping[str, Report] = field(default_factory=dict)
    processes: Sequence[Mapping[str, object]] = ()
    unreadable: Mapping[str, str] = field(default_factory=dict)
    events: Sequence[Object] = ()
    now: float = 0.0


def from_conditions(node: Object, now: float = 0.0) -> Report | None:
    """Return what the conditions of a Node say of its roles; None if it has no such condition. now: 0 where the age of
    the conditions does not matter.
    """
    rows = {role: row for role, kind in nodeconditions.ROLES.items() if (row := condition(node, kind))}
    found = {
        role: Standing(row.get("status") == "True", row.get("reason", ""), row.get("message", ""))
        for role, row in rows.items()
    }
    age = nodeconditions.age(rows.values(), now) if now else 0.0
    old = age > nodeconditions.LATE
    doubts = (f"the last report of its agent in the Node's conditions is {age:.0f} s old",) if old else ()
    return Report(found, "the Node's conditions", age if old else 0.0, doubts) if found else None


def from_leases(leases: Iterable[Object], now: float) -> dict[str, Report]:
    """Return node -> what the Lease of its agent says. A Lease is a claim: every agent could have written it."""
    found = {}
    for lease in leases:
        claim = statuslease.read(lease, now)
        if claim is None:
            continue
        doubts = [f"Lease {statuslease.name_of(claim.node)} is not used: {claim.problem}"] if claim.problem else []
        if claim.age > statuslease.LATE:
            doubts.append(f"its agent's last report is {claim.age:.0f} s old (by {claim.holder})")
        if claim.age < -AHEAD:
            doubts.append(f"its report is dated {-claim.age:.0f} s ahead of this machine's clock (by {claim.holder})")
        source = f"Lease {statuslease.name_of(claim.node)}, signed by {claim.holder}"
        found[claim.node] = Report(claim.roles, source, max(claim.age, 0.001), tuple(doubts), claim.holder)
    return found


def newest(seen: Seen, role: str) -> int:
    """Return the newest resourceVersion of the objects that a role follows; 0 if it cannot be known."""
    best = 0
    for kind in FOLLOWS.get(role, ()):
        for obj in getattr(seen, kind) or ():
            version = str(obj["metadata"].get("resourceVersion") or "")
            if role == "proxy" and any(label in labels(obj) for label in _UNWATCHED):
                continue
            best = max(best, int(version) if version.isdecimal() else 0)
    return best


def late(seen: Seen) -> dict[tuple[str, str], int]:
    """Return (node, role) -> the newest revision that the role has not seen, for roles whose beat is read directly."""
    found = {}
    for node, report in seen.reports.items():
        for role, stands in report.roles.items():
            if report.age == 0 and stands.seen.isdecimal() and 0 < int(stands.seen) < (most := newest(seen, role)):
                found[node, role] = most
    return found


def with_lag(seen: Seen, behind: Mapping[tuple[str, str], int], seconds: float) -> dict[str, Report]:
    """Return the reports of a later look, with the roles marked that still have not seen what `late` found before."""
    return {
        node: Report(
            {
                role: overtaken(stands, behind[node, role], seconds) if (node, role) in behind else stands
                for role, stands in report.roles.items()
            },
            report.source,
            report.age,
            report.doubts,
            report.holder,
        )
        for node, report in seen.reports.items()
    }


def waits(service: Object) -> bool:
    """Whether a Service waits for a load balancer's address."""
    balanced = ((service.get("status") or {}).get("loadBalancer") or {}).get("ingress")
    return (service.get("spec") or {}).get("type") == "LoadBalancer" and not balanced


def without_address(services: Iterable[Object], events: Iterable[Object]) -> list[str]:
    """Return a line for each Service that gets no load balancer address, with podwire's reason. Where podwire did not
    refuse, another controller's address may be on its way.
    """
    told = {}
    for event in events:
        about = event.get("involvedObject") or {}
        if event.get("reason") in NO_ADDRESS and about.get("kind") == "Service":
            told[f"{about.get('namespace')}/{about.get('name')}", about.get("uid", "")] = str(event.get("message"))
    return [
        f"Service {key(one)} has no load balancer address: {why}"
        for one in services
        if waits(one) and (why := told.get((key(one), one["metadata"].get("uid", ""))))
    ]


def _cells(kind: str, obj: Object, *titles: str) -> list[str]:
    cells = {column.title: column for column in columns(of(kind))}
    return [str(cells[title].value(obj, _NEVER)) for title in titles]


def _endpoints(slices: Iterable[Object]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for one in slices:
        owner = f"{one['metadata']['namespace']}/{labels(one).get('kubernetes.io/service-name')}"
        counts = found.setdefault(owner, [0, 0])
        for endpoint in one.get("endpoints") or []:
            counts[0] += bool((endpoint.get("conditions") or {}).get("ready", True))
            counts[1] += 1
    return found


def _node(node: Object, report: Report | None, pods: Sequence[Object] | None) -> Object:
    return {
        "name": name(node),
        "status": _cells("Node", node, "Status")[0],
        "address": _cells("Node", node, "Internal-IP")[0],
        "podCIDR": (node.get("spec") or {}).get("podCIDR", ""),
        "pods": None if pods is None else sum(p["spec"].get("nodeName") == name(node) for p in pods),
        "source": report.source if report else "",
        "reportAge": report.age if report else None,
        "doubts": [*report.doubts, *_stranger(node, report, pods or ())] if report else [],
        "roles": {role: stands.as_json() for role, stands in report.roles.items()} if report else {},
    }


def _stranger(node: Object, report: Report, pods: Sequence[Object]) -> list[str]:
    """Return a doubt if the pod that signed the report runs on another node: its agent wrote over the Lease."""
    places = {p["spec"].get("nodeName", "") for p in pods if report.holder and name(p) == report.holder} - {""}
    if not places or name(node) in places:
        return []
    return [
        f"its report is signed by {report.holder}, a pod of {', '.join(sorted(places))}: another node's agent wrote it"
    ]


def record(seen: Seen) -> Object:
    """Return the command's whole output as data (`-o json`). ok: all is well; problems: why not, a line each."""
    reports = {n["metadata"]["name"]: from_conditions(n, seen.now) for n in seen.nodes or ()} | dict(seen.reports)
    nodes = [_node(n, reports.get(name(n)), seen.pods) for n in seen.nodes or ()]
    known = {row["name"] for row in nodes}
    for stranger in sorted(reports.keys() - known) if seen.nodes is None else ():
        bare: Object = {"metadata": {"name": stranger}, "spec": {}, "status": {}}
        nodes.append(_node(bare, reports[stranger], seen.pods))
    endpoints = _endpoints(seen.slices or ())
    body: Object = {
        "nodes": nodes,
        "pods": _rows(
            seen.pods,
            ("pod", "ready", "status", "restarts", "ip", "node"),
            lambda p: [key(p), *_cells("Pod", p, "Ready", "Status", "Restarts", "IP", "Node")],
        ),
        "services": _rows(
            seen.services,
            ("service", "type", "clusterIP", "endpoints", "ports"),
            lambda s: [
                key(s),
                *_cells("Service", s, "Type", "Cluster-IP"),
                "{}/{}".format(*endpoints.get(key(s), (0, 0))),
                *_cells("Service", s, "Port(s)"),
            ],
        ),
        "processes": [dict(row) for row in seen.processes],
        "unreadable": dict(seen.unreadable),
        "reportedBy": sorted({f"{row['source']}, {_age(row['reportAge'])}" for row in nodes if row["reportAge"]}),
    }
    found = [*problems(body, seen.nodes), *without_address(seen.services or (), seen.events)]
    return {"ok": not found, "problems": found, **body}


def _rows(objects: Sequence[Object] | None, names: Sequence[str], cells: object) -> list[Object] | None:
    make = cells if callable(cells) else list
    return None if objects is None else [dict(zip(names, make(obj), strict=True)) for obj in objects]


def problems(body: Object, nodes: Sequence[Object] | None) -> list[str]:
    """Return a line for everything that is not well, the widest first: processes, nodes, roles."""
    found = [f"{what} may not be read: {why}" for what, why in body["unreadable"].items() if what == "nodes"]
    below = {(row["name"], role) for row in body["nodes"] for role in row["roles"]}  # with more words
    found += [
        f"{row['process']} on {row['where']}: {row['problem']}"
        for row in body["processes"]
        if row.get("problem") and (row["where"], row["process"]) not in below
    ]
    if nodes is not None and not nodes:
        found.append("the cluster has no nodes")
    objects = {name(n): n for n in nodes or ()}
    for row in body["nodes"]:
        node = objects.get(row["name"])
        if node is not None and not is_true(node, "Ready"):
            why = condition(node, "Ready")
            told = ": ".join(text for text in (why.get("reason"), why.get("message")) if text)
            found.append(f"{row['name']} is {row['status']}" + (f": {told}" if told else ""))
        found += [f"{row['name']}: {doubt}" for doubt in row["doubts"]]
        if not row["roles"]:
            if (
                not row["doubts"]
                and (node or {}).get("status", {}).get("nodeInfo", {}).get("operatingSystem") != "windows"
            ):
                lease = f"{statuslease.NAMESPACE}/{statuslease.name_of(row['name'])}"
                found.append(f"{row['name']}: no agent of podwire has reported: no Lease {lease}")
            continue
        found += [
            f"{role} on {row['name']}: {stands['reason']}: {stands['message']}"
            for role, stands in row["roles"].items()
            if not stands["ready"]
        ]
        found += [  # ready, since nftables serves; but it is not what was asked for
            f"{role} on {row['name']}: {part}"
            for role, stands in row["roles"].items()
            for part in str(stands["message"]).split("; ")
            if stands["ready"] and part.startswith(OFF)
        ]
    return found


# ---- text


def text(body: Object, *, wide: bool = False) -> list[str]:
    """Return the lines of the page: the reasons first, then a section for nodes, roles, pods and Services."""
    width = 0 if wide else WIDTH
    lines = [line for problem in body["problems"] for line in _wrapped("! ", clean(problem), width)]
    if not body["nodes"]:
        return lines
    lines += [*([""] if lines else []), *_node_lines(body, width), "", *_role_lines(body, width)]
    for kind, titles in (
        ("pods", ("POD", "READY", "STATUS", "RESTARTS", "IP", "NODE")),
        ("services", ("SERVICE", "TYPE", "CLUSTER-IP", "ENDPOINTS", "PORT(S)")),
    ):
        if body[kind] is not None:
            lines += ["", *table(list(titles), [_line(row) for row in body[kind]], width)]
        elif kind in body["unreadable"]:
            lines += ["", f"{kind}: not shown, {clean(body['unreadable'][kind])}"]
    if body["reportedBy"]:
        lines += ["", "Reported by (each agent may write all of these):"]
        lines += [line for told in body["reportedBy"] for line in _wrapped("  ", clean(told), width)]
    if restarted := [row for row in body["processes"] if row.get("restarts")]:
        lines += ["", *(f"{r['process']} on {r['where']}: restarted {r['restarts']} times" for r in restarted)]
    return lines


def _node_lines(body: Object, width: int) -> list[str]:
    """width 0: also who reported what is known of the node."""
    rows = []
    for row in body["nodes"]:
        well = sum(bool(r["ready"]) for r in row["roles"].values())
        pods = "?" if row["pods"] is None else str(row["pods"])
        rows.append([row["name"], row["status"], row["address"], row["podCIDR"], pods, f"{well}/{len(row['roles'])}"])
        if not width:
            rows[-1].append(f"{row['source'] or 'nobody'}{', ' if row['reportAge'] else ''}{_age(row['reportAge'])}")
    titles = ["NODE", "STATUS", "ADDRESS", "POD CIDR", "PODS", "ROLES READY", *([] if width else ["REPORTED BY"])]
    return table(titles, rows, width)


def _role_lines(body: Object, width: int) -> list[str]:
    """width 0: also the beats."""
    rows = []
    for row in body["nodes"]:
        for role, stands in row["roles"].items():
            state = "ready" if stands["ready"] else stands["reason"] or "unknown"
            more = [_seconds(stands["age"]), _seconds(stands["behind"]), stands["seen"]]
            more += [str(stands["pid"]), str(stands["restarts"])]
            rows.append([role, row["name"], state, *([] if width else more), stands["message"]])
    titles = [] if width else ["BEAT", "BEHIND", "REVISION", "PID", "RESTARTS"]
    return table(["ROLE", "NODE", "STATE", *titles, "MESSAGE"], rows, width)


def _age(seconds: float | None) -> str:
    return f"{seconds:.0f} s ago" if seconds else ""


def _line(row: Object) -> list[str]:
    *cells, last = map(str, row.values())
    return [*cells, last.replace(",", ", ")]  # so that a list of ports can continue on the next line


def _seconds(value: float | None) -> str:
    return "?" if value is None else f"{value:.1f}s"


def _wrapped(head: str, told: str, width: int) -> list[str]:
    if not width or len(head) + len(told) <= width:
        return [head + told]
    return textwrap.wrap(head + told, width, subsequent_indent=" " * len(head), break_on_hyphens=False)
