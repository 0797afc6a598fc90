"""Makes the table that `kubectl get` prints (meta/v1 Table). COLUMNS has one row for each kind with columns of its own.
For all other kinds, the table has the columns NAME and AGE.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from .meta import Object, deleting, name
from .registry import Resource
from .times import parse_time


@dataclass(frozen=True, slots=True)
class Column:
    """One column. wide: kubectl shows the column only with `-o wide`."""

    title: str
    cell: Callable[[Object], Any]
    wide: bool = False


def age(start: str, now: datetime) -> str:
    """Returns an age in kubectl's short form: 45s, 12m, 3h, 5d."""
    if not start:
        return "<unknown>"
    seconds = max(0, int((now - parse_time(start)).total_seconds()))
    for limit, size, unit in ((120, 1, "s"), (7200, 60, "m"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{seconds // size}{unit}"
    return f"{seconds // 86400}d"


def _spec(path: str, empty: str = "<none>") -> Callable[[Object], Any]:
    def cell(obj: Object) -> Any:
        value: Any = obj
        for part in path.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return empty if value in (None, "", [], {}) else ",".join(value) if isinstance(value, list) else value

    return cell


def _containers(obj: Object) -> list[Object]:
    return obj.get("status", {}).get("containerStatuses") or []


def _pod_status(obj: Object) -> str:
    if deleting(obj):
        return "Terminating"
    init = obj.get("status", {}).get("initContainerStatuses") or []
    for number, status in enumerate(init):
        waiting, ended = ((status.get("state") or {}).get(s) or {} for s in ("waiting", "terminated"))
        if ended.get("exitCode") == 0:
            continue
        reason = waiting.get("reason") if waiting.get("reason") != "PodInitializing" else ""
        return f"Init:{reason or ended.get('reason') or f'{number}/{len(init)}'}"
    for status in _containers(obj):
        for state in ("waiting", "terminated"):
            reason = (status.get("state", {}).get(state) or {}).get("reason")
            if reason:
                return str(reason)
    return str(obj.get("status", {}).get("reason") or obj.get("status", {}).get("phase") or "Unknown")


def _pod_ready(obj: Object) -> str:
    return f"{sum(bool(s.get('ready')) for s in _containers(obj))}/{len(obj['spec'].get('containers') or [])}"


def _restarts(obj: Object) -> int:
    return sum(int(s.get("restartCount", 0)) for s in _containers(obj))


def _condition(obj: Object, kind: str) -> Object:
    return next((c for c in obj.get("status", {}).get("conditions") or [] if c.get("type") == kind), {})


def _node_status(obj: Object) -> str:
    ready = {"True": "Ready", "False": "NotReady"}.get(_condition(obj, "Ready").get("status", ""), "Unknown")
    return ready + (",SchedulingDisabled" if obj.get("spec", {}).get("unschedulable") else "")


def _address(kind: str) -> Callable[[Object], str]:
    def cell(obj: Object) -> str:
        found = [a["address"] for a in obj.get("status", {}).get("addresses") or [] if a.get("type") == kind]
        return found[0] if found else "<none>"

    return cell


def _service_ports(obj: Object) -> str:
    rows = []
    for port in obj["spec"].get("ports") or []:
        node = f":{port['nodePort']}" if port.get("nodePort") else ""
        rows.append(f"{port['port']}{node}/{port.get('protocol', 'TCP')}")
    return ",".join(rows) or "<none>"


def _external(obj: Object) -> str:
    spec = obj["spec"]
    if spec.get("type") == "ExternalName":
        return str(spec.get("externalName", ""))
    found = [
        i.get("ip") or i.get("hostname") for i in obj.get("status", {}).get("loadBalancer", {}).get("ingress") or []
    ]
    found += spec.get("externalIPs") or []
    return ",".join(found) or ("<pending>" if spec.get("type") == "LoadBalancer" else "<none>")


def _pairs(selector: dict[str, str] | None) -> str:
    return ",".join(f"{k}={v}" for k, v in sorted((selector or {}).items())) or "<none>"


def _subsets(obj: Object) -> str:
    rows = [
        f"{a['ip']}:{p['port']}"
        for s in obj.get("subsets") or []
        for a in s.get("addresses") or []
        for p in s.get("ports") or []
    ]
    return ",".join(rows[:3]) + (f" + {len(rows) - 3} more..." if len(rows) > 3 else "") or "<none>"


def _slice_ports(obj: Object) -> str:
    return ",".join(str(p.get("port", "*")) for p in obj.get("ports") or []) or "<unset>"


def _slice_addresses(obj: Object) -> str:
    rows = [a for e in obj.get("endpoints") or [] for a in e.get("addresses") or []]
    return ",".join(rows[:3]) + (f" + {len(rows) - 3} more..." if len(rows) > 3 else "") or "<unset>"


def _count(field: str) -> Callable[[Object], int]:
    return lambda obj: int(obj.get("status", {}).get(field) or 0)


def _images(obj: Object) -> str:
    return ",".join(c.get("image", "") for c in obj["spec"]["template"]["spec"]["containers"])


COLUMNS: dict[str, tuple[Column, ...]] = {
    "Namespace": (Column("Status", _spec("status.phase")),),
    "Node": (
        Column("Status", _node_status),
        Column("Roles", lambda o: "<none>"),
        Column("Version", _spec("status.nodeInfo.kubeletVersion")),
        Column("Internal-IP", _address("InternalIP"), True),
        Column("Pod-CIDR", _spec("spec.podCIDR"), True),
        Column("Kernel-Version", _spec("status.nodeInfo.kernelVersion"), True),
        Column("Container-Runtime", _spec("status.nodeInfo.containerRuntimeVersion"), True),
    ),
    "Pod": (
        Column("Ready", _pod_ready),
        Column("Status", _pod_status),
        Column("Restarts", _restarts),
        Column("IP", _spec("status.podIP"), True),
        Column("Node", _spec("spec.nodeName"), True),
    ),
    "Service": (
        Column("Type", _spec("spec.type")),
        Column("Cluster-IP", _spec("spec.clusterIP")),
        Column("External-IP", _external),
        Column("Port(s)", _service_ports),
        Column("Selector", lambda o: _pairs(o["spec"].get("selector")), True),
    ),
    "Endpoints": (Column("Endpoints", _subsets),),
    "EndpointSlice": (
        Column("AddressType", _spec("addressType")),
        Column("Ports", _slice_ports),
        Column("Endpoints", _slice_addresses),
    ),
    "Deployment": (
        Column("Ready", lambda o: f"{_count('readyReplicas')(o)}/{o['spec'].get('replicas', 1)}"),
        Column("Up-to-date", _count("updatedReplicas")),
        Column("Available", _count("availableReplicas")),
        Column("Images", _images, True),
        Column("Selector", lambda o: _pairs(o["spec"]["selector"].get("matchLabels")), True),
    ),
    "ReplicaSet": (
        Column("Desired", _spec("spec.replicas", "0")),
        Column("Current", _count("replicas")),
        Column("Ready", _count("readyReplicas")),
        Column("Images", _images, True),
    ),
    "Lease": (Column("Holder", _spec("spec.holderIdentity")),),
    "ConfigMap": (Column("Data", lambda o: len(o.get("data") or {}) + len(o.get("binaryData") or {})),),
    "Secret": (Column("Type", _spec("type")), Column("Data", lambda o: len(o.get("data") or {}))),
    "Event": (
        Column("Last Seen", lambda o: o.get("lastTimestamp") or o["metadata"].get("creationTimestamp")),
        Column("Type", _spec("type")),
        Column("Reason", _spec("reason")),
        Column(
            "Object", lambda o: f"{o['involvedObject'].get('kind', '').lower()}/{o['involvedObject'].get('name', '')}"
        ),
        Column("Message", _spec("message")),
    ),
}


def _cell(column: Column, obj: Object) -> Any:
    try:
        return column.cell(obj)
    except (KeyError, TypeError, AttributeError):
        return "<invalid>"


def definitions(resource: Resource) -> list[Object]:
    """Returns the columnDefinitions of a kind: NAME first, AGE after the other normal columns, then the
    wide columns.
    """
    columns = COLUMNS.get(resource.kind, ())
    rows = [
        ("Name", False),
        *((c.title, False) for c in columns if not c.wide),
        ("Age", False),
        *((c.title, True) for c in columns if c.wide),
    ]
    return [
        {
            "name": title,
            "type": "string",
            "format": "name" if title == "Name" else "",
            "description": title,
            "priority": int(wide),
        }
        for title, wide in rows
    ]


def cells(resource: Resource, obj: Object, now: datetime) -> list[Any]:
    columns = COLUMNS.get(resource.kind, ())
    return [
        name(obj),
        *(_cell(c, obj) for c in columns if not c.wide),
        age(obj["metadata"].get("creationTimestamp", ""), now),
        *(_cell(c, obj) for c in columns if c.wide),
    ]


def table(
    resource: Resource,
    objects: Iterable[Object],
    now: datetime,
    *,
    revision: str = "",
    include: str = "Metadata",
    head: bool = True,
) -> Object:
    """Returns a meta/v1 Table. include: the request parameter `includeObject` (None, Metadata or Object)."""
    rows = []
    for obj in objects:
        row: Object = {"cells": cells(resource, obj, now)}
        if include == "Object":
            row["object"] = obj
        elif include != "None":
            row["object"] = {
                "kind": "PartialObjectMetadata",
                "apiVersion": "meta.k8s.io/v1",
                "metadata": obj["metadata"],
            }
        rows.append(row)
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": {"resourceVersion": revision} if revision else {},
        "columnDefinitions": definitions(resource) if head else None,
        "rows": rows,
    }
