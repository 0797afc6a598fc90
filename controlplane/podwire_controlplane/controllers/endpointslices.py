"""The controllers of EndpointSlices (KEP-752) and of the older Endpoints objects.

The slices of a Service with a selector list the selected pods. The slices of a Service without a selector mirror the
Endpoints object that a user writes by hand. A slice has at most 100 endpoints. An endpoint stays in its slice, so a
change of one pod rewrites one slice. The controllers write only the slices that differ.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterable
from typing import Any

from podwire_base.kube.conditions import condition, is_true
from podwire_base.kube.meta import Object, annotations_of, controller_of, deleting, key, labels, name, namespace, uid
from podwire_base.kube.selectors import equality

from .base import Controller, Keys, Snapshot, Write, itself, owner_reference, pod_ended

MAX_ENDPOINTS = 100
SERVICE_NAME = "kubernetes.io/service-name"
MANAGED_BY = "endpointslice.kubernetes.io/managed-by"
SKIP_MIRROR = "endpointslice.kubernetes.io/skip-mirror"
LEADER = "control-plane.alpha.kubernetes.io/leader"  # old leader election stored its lock in an Endpoints object
HEADLESS = "service.kubernetes.io/headless"
TRIGGER_TIME = "endpoints.kubernetes.io/last-change-trigger-time"
SELECTOR, MIRROR = "endpointslice-controller.k8s.io", "endpointslicemirroring-controller.k8s.io"
ZONE = "topology.kubernetes.io/zone"

RESERVED = (SERVICE_NAME, MANAGED_BY, HEADLESS)  # labels that a slice does not take over from its Service
_NOT_MIRRORED = (TRIGGER_TIME, "kubectl.kubernetes.io/last-applied-configuration")

Ports = tuple[tuple[str, str, int, str], ...]  # (name, protocol, number, appProtocol)
Group = dict[tuple[str, Ports], list[Object]]  # (address type, ports) -> endpoints


def services_of_pod(pod: Object, snapshot: Snapshot) -> Keys:
    """Yield the keys of the Services whose selector matches the pod, and of those whose slices still list the pod."""
    have = labels(pod)
    for service in snapshot.list("Service", namespace(pod)):
        selector = service["spec"].get("selector")
        if selector and equality(selector)(have):
            yield key(service)
    for found in snapshot.list("EndpointSlice", namespace(pod)):
        if any((e.get("targetRef") or {}).get("uid") == uid(pod) for e in found.get("endpoints") or []):
            yield from service_of_slice(found, snapshot)


def service_of_slice(found: Object, _snapshot: Snapshot) -> Keys:
    service = labels(found).get(SERVICE_NAME)
    return (f"{namespace(found)}/{service}",) if service else ()


def target_port(pod: Object, port: Object) -> int | None:
    """Return the pod's port number for a Service port (an entry of spec.ports). If targetPort is a name, return the
    container port with this name and protocol, or None if the pod has no such port. Sidecars have ports too.
    """
    target = port.get("targetPort") or port["port"]
    if isinstance(target, int) or str(target).isdecimal():
        return int(target)
    beside = [row for row in pod["spec"].get("initContainers") or [] if row.get("restartPolicy") == "Always"]
    for container in [*(pod["spec"].get("containers") or []), *beside]:
        for candidate in container.get("ports") or []:
            if candidate.get("name") == target and candidate.get("protocol", "TCP") == port.get("protocol", "TCP"):
                return int(candidate["containerPort"])
    return None


def pod_addresses(pod: Object) -> list[str]:
    found = [p["ip"] for p in pod["status"].get("podIPs") or [] if p.get("ip")]
    return found or ([pod["status"]["podIP"]] if pod["status"].get("podIP") else [])


def address_type(address: str) -> str:
    return f"IPv{ipaddress.ip_address(address).version}"


def pod_endpoint(service: Object, pod: Object, address: str, snapshot: Snapshot) -> Object:
    """Return the endpoint of one pod address, with its conditions (discovery/v1 EndpointConditions)."""
    serving, terminating = is_true(pod, "Ready"), deleting(pod)
    ready = bool(service["spec"].get("publishNotReadyAddresses")) or (serving and not terminating)
    endpoint: Object = {
        "addresses": [address],
        "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
        "nodeName": pod["spec"].get("nodeName", ""),
        "targetRef": {"kind": "Pod", "namespace": namespace(pod), "name": name(pod), "uid": uid(pod)},
    }
    if pod["spec"].get("hostname") and pod["spec"].get("subdomain") == name(service):
        endpoint["hostname"] = pod["spec"]["hostname"]
    node = snapshot.get("Node", endpoint["nodeName"])
    if node and labels(node).get(ZONE):
        endpoint["zone"] = labels(node)[ZONE]
    if ready and (hints := _hints(service["spec"].get("trafficDistribution"), endpoint)):
        endpoint["hints"] = hints
    return endpoint


def _hints(distribution: str | None, endpoint: Object) -> Object:
    """Return the hints of a ready endpoint (KEP-4444, KEP-3015): where clients prefer it."""
    found: Object = {}
    if distribution and endpoint.get("zone"):
        found["forZones"] = [{"name": endpoint["zone"]}]
    if distribution == "PreferSameNode" and endpoint["nodeName"]:
        found["forNodes"] = [{"name": endpoint["nodeName"]}]
    return found


def from_selector(service: Object, snapshot: Snapshot) -> Group:
    """Return the endpoints of the selected pods, grouped by address type and by the resolved target ports."""
    groups: Group = {}
    families = service["spec"].get("ipFamilies") or ["IPv4"]
    match = equality(service["spec"]["selector"])
    for pod in snapshot.list("Pod", namespace(service)):
        if not match(labels(pod)) or pod_ended(pod) or not pod["spec"].get("nodeName"):
            continue
        ports = tuple(
            (p.get("name", ""), p.get("protocol", "TCP"), number, p.get("appProtocol") or "")
            for p in service["spec"].get("ports") or []
            if (number := target_port(pod, p)) is not None
        )
        for address in pod_addresses(pod):
            if address_type(address) in families:
                groups.setdefault((address_type(address), ports), []).append(
                    pod_endpoint(service, pod, address, snapshot)
                )
    return groups


def from_endpoints(endpoints: Object) -> Group:
    """Return the addresses in the subsets of a hand-made Endpoints object as endpoints of EndpointSlices."""
    groups: Group = {}
    for subset in endpoints.get("subsets") or []:
        ports = tuple(
            (p.get("name", ""), p.get("protocol", "TCP"), int(p["port"]), p.get("appProtocol") or "")
            for p in subset.get("ports") or []
        )
        for field, ready in (("addresses", True), ("notReadyAddresses", False)):
            for entry in subset.get(field) or []:
                endpoint: Object = {"addresses": [entry["ip"]], "conditions": {"ready": ready}}
                for source in ("hostname", "nodeName", "targetRef"):
                    if entry.get(source):
                        endpoint[source] = entry[source]
                groups.setdefault((address_type(entry["ip"]), ports), []).append(endpoint)
    return groups


def _rank(endpoint: Object) -> tuple[bool, bool, bool]:
    conditions = endpoint["conditions"]
    return bool(conditions.get("ready")), not conditions.get("terminating"), bool(conditions.get("serving"))


_Identity = tuple[str, str, str]  # address, namespace and name of the target


def _identity(endpoint: Object) -> _Identity:
    """What tells endpoints apart, as upstream: two pods can have one address, for example where the object of a
    terminating pod still exists when a new pod gets the released address. The proxy chooses between them.
    """
    target = endpoint.get("targetRef") or {}
    return endpoint["addresses"][0], target.get("namespace", ""), target.get("name", "")


def _distinct(endpoints: list[Object]) -> dict[_Identity, Object]:
    """Return each endpoint once, the one with the best conditions."""
    best: dict[_Identity, Object] = {}
    for endpoint in endpoints:
        held = best.get(_identity(endpoint))
        if held is None or _rank(endpoint) > _rank(held):
            best[_identity(endpoint)] = endpoint
    return best


def _pack(endpoints: list[Object], existing: list[Object]) -> list[tuple[Object | None, list[Object]]]:
    """Assign the endpoints to slices and return (existing slice or None for a new slice, its endpoints) for each slice.

    An endpoint that is in a slice stays there. New ones fill the free places of existing slices. The remaining ones get
    new slices.
    """
    wanted = _distinct(endpoints)
    packed: list[tuple[Object | None, list[Object]]] = []
    for found in sorted(existing, key=name):
        kept = [wanted.pop(_identity(e)) for e in found.get("endpoints") or [] if _identity(e) in wanted]
        packed.append((found, kept[:MAX_ENDPOINTS]))
        wanted |= {_identity(e): e for e in kept[MAX_ENDPOINTS:]}
    rest = [wanted[own] for own in sorted(wanted, key=lambda own: (int(ipaddress.ip_address(own[0])), own))]
    for _found, kept in packed:
        room = MAX_ENDPOINTS - len(kept)
        kept.extend(rest[:room])
        rest = rest[room:]
    while rest:
        packed.append((None, rest[:MAX_ENDPOINTS]))
        rest = rest[MAX_ENDPOINTS:]
    return packed


def _ports(ports: Ports) -> list[Object]:
    return [
        {"name": n, "protocol": protocol, "port": number, **({"appProtocol": app} if app else {})}
        for n, protocol, number, app in ports
    ]


def plan_slices(
    owner: Object, groups: Group, existing: Iterable[Object], manager: str, extra: dict[str, str], trigger: str
) -> list[Write]:
    """Return the writes that make the existing slices of `owner` (a Service or an Endpoints object) equal to `groups`.

    manager: the value of the label managed-by. extra: further labels, beside those of the owner. trigger: the value of
    the annotation last-change-trigger-time, "" for none.
    """
    own = {field: text for field, text in labels(owner).items() if field not in (*RESERVED, SKIP_MIRROR)}
    notes = _mirrored(owner) if manager == MIRROR else {}
    service, space = name(owner), namespace(owner)
    left = {name(s): s for s in existing}
    taken = set(left)
    changes: list[Write] = []
    for (kind, ports), endpoints in sorted(groups.items()):
        fitting = [s for s in left.values() if s["addressType"] == kind and _same_ports(s, ports)]
        for found, content in _pack(endpoints, fitting):
            if found is not None:
                left.pop(name(found))
                if not content:
                    changes.append(Write("delete", "EndpointSlice", space, name(found), why="empty"))
                    continue
            target = name(found) if found else _new_name(service, uid(owner), kind, ports, taken)
            taken.add(target)
            wanted = {**own, SERVICE_NAME: service, MANAGED_BY: manager, **extra}
            same = found and (found.get("endpoints") or []) == content and labels(found) == wanted
            told = found and (manager != MIRROR or _mirrored(found) == notes)
            if found and same and told and _owned(found, owner):
                continue
            obj: Object = {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "addressType": kind,
                "metadata": {
                    "name": target,
                    "namespace": space,
                    "labels": wanted,
                    "ownerReferences": [owner_reference(owner)],
                },
                "endpoints": content,
                "ports": _ports(ports) or None,  # a slice without ports has null, as upstream
            }
            if notes or trigger:
                obj["metadata"]["annotations"] = {**notes, **({TRIGGER_TIME: trigger} if trigger else {})}
            changes.append(
                Write("update" if found else "create", "EndpointSlice", space, target, obj, f"{len(content)} endpoints")
            )
    changes += [Write("delete", "EndpointSlice", space, n, why="no such endpoints") for n in sorted(left)]
    return changes


def _mirrored(obj: Object) -> dict[str, str]:
    return {field: text for field, text in annotations_of(obj).items() if field not in _NOT_MIRRORED}


def _owned(found: Object, owner: Object) -> bool:
    """Whether `owner` is the slice's controller. A re-created owner has a new uid, and the garbage collector would
    delete slices that name the old uid.
    """
    return (controller_of(found) or {}).get("uid") == uid(owner)


def _same_ports(found: Object, ports: Ports) -> bool:
    return [
        (p.get("name", ""), p.get("protocol", "TCP"), p.get("port"), p.get("appProtocol") or "")
        for p in found.get("ports") or []
    ] == list(ports)


def _new_name(service: str, owner: str, kind: str, ports: Ports, taken: set[str]) -> str:
    """Return a deterministic name for a new slice. If the answer to a creation is lost, the repeated creation has the
    same name, so the API server refuses it instead of storing a second slice.
    """
    for n in range(10_000):
        digest = hashlib.sha256(f"{owner}/{kind}/{ports}/{n}".encode()).hexdigest()[:6]
        if (candidate := f"{service[:50]}-{digest}") not in taken:
            return candidate
    raise AssertionError("10,000 slices of one Service and port set")


def _trigger(service: Object, snapshot: Snapshot) -> str:
    """Return the time of the newest event that changes the endpoints: the creation of the Service or the last Ready
    transition of a selected pod. "" if no time is known.
    """
    match = equality(service["spec"]["selector"])
    times = [service["metadata"].get("creationTimestamp", "")]
    times += [
        condition(p, "Ready").get("lastTransitionTime", "")
        for p in snapshot.list("Pod", namespace(service))
        if match(labels(p))
    ]
    return max(t or "" for t in times)


def _existing(space: str, service: str, manager: str, snapshot: Snapshot) -> list[Object]:
    return [
        s
        for s in snapshot.list("EndpointSlice", space)
        if labels(s).get(SERVICE_NAME) == service and labels(s).get(MANAGED_BY) == manager
    ]


def reconcile_selector(wanted: str, snapshot: Snapshot, _now: float) -> list[Write]:
    service = snapshot.get("Service", wanted)
    space, _, own = wanted.partition("/")
    existing = _existing(space, own, SELECTOR, snapshot)
    gone = service is None or service["spec"].get("type") == "ExternalName"  # one that waits for a finalizer is served
    if gone or service is None or not service["spec"].get("selector"):
        return [Write("delete", "EndpointSlice", space, name(s), why="no Service with a selector") for s in existing]
    extra = {HEADLESS: ""} if service["spec"].get("clusterIP") == "None" else {}
    return plan_slices(
        service, from_selector(service, snapshot), existing, SELECTOR, extra, _trigger(service, snapshot)
    )


def reconcile_mirror(wanted: str, snapshot: Snapshot, _now: float) -> list[Write]:
    """Mirror the hand-made Endpoints of a Service without a selector to slices. The endpoints controller writes the
    Endpoints of a Service with a selector; these are not mirrored.
    """
    space, _, own = wanted.partition("/")
    existing = _existing(space, own, MIRROR, snapshot)
    endpoints, service = snapshot.get("Endpoints", wanted), snapshot.get("Service", wanted)
    if (
        endpoints is None
        or service is None
        or service["spec"].get("selector")
        or labels(endpoints).get(SKIP_MIRROR) == "true"
        or LEADER in annotations_of(endpoints)
    ):
        return [Write("delete", "EndpointSlice", space, name(s), why="no hand-made Endpoints") for s in existing]
    extra = {HEADLESS: ""} if service["spec"].get("clusterIP") == "None" else {}
    return plan_slices(endpoints, from_endpoints(endpoints), existing, MIRROR, extra, "")


def reconcile_endpoints(wanted: str, snapshot: Snapshot, _now: float) -> list[Write]:
    """Write the older Endpoints object of a Service with a selector, from the same pods as the slices. A subset has at
    most 1000 addresses.

    The deletion of a Service also deletes its Endpoints object, even a hand-made one. So a later Service of the same
    name starts without endpoints.
    """
    service = snapshot.get("Service", wanted)
    if service is None:
        left = snapshot.get("Endpoints", wanted)
        return (
            [
                Write(
                    "delete",
                    "Endpoints",
                    namespace(left),
                    name(left),
                    {"preconditions": {"uid": uid(left)}},
                    "its Service is gone",
                )
            ]
            if left
            else []
        )
    if not service["spec"].get("selector") or service["spec"].get("type") == "ExternalName":
        return []
    found = snapshot.get("Endpoints", wanted)
    subsets: list[Object] = []
    for (_kind, ports), endpoints in sorted(from_selector(service, snapshot).items()):
        rows: dict[bool, list[Object]] = {True: [], False: []}
        for endpoint in sorted(endpoints, key=lambda e: str(e["addresses"]))[:1000]:
            if endpoint["conditions"]["terminating"] and not endpoint["conditions"]["ready"]:
                continue
            entry = {
                "ip": endpoint["addresses"][0],
                "nodeName": endpoint["nodeName"],
                "targetRef": endpoint["targetRef"],
            }
            if "hostname" in endpoint:
                entry["hostname"] = endpoint["hostname"]
            rows[endpoint["conditions"]["ready"]].append(entry)
        subset: Object = {"ports": _ports(ports)} if ports else {}
        subset |= {"addresses": rows[True]} if rows[True] else {}
        subset |= {"notReadyAddresses": rows[False]} if rows[False] else {}
        if rows[True] or rows[False]:
            subsets.append(subset)
    if found is not None and (found.get("subsets") or []) == subsets:
        return []
    obj: Object = {
        "apiVersion": "v1",
        "kind": "Endpoints",
        "subsets": subsets,
        "metadata": {
            "name": name(service),
            "namespace": namespace(service),
            "ownerReferences": [owner_reference(service)],
            "labels": labels(service),
        },
    }
    return [Write("update" if found else "create", "Endpoints", namespace(service), name(service), obj)]


def _with_service(endpoints: Object, snapshot: Snapshot) -> Keys:
    """Return the key of the Endpoints object if its Service exists, else no key. A user may write the Endpoints object
    before its Service, and an event on it must not delete it: only the deletion of a Service does.
    """
    return (key(endpoints),) if snapshot.get("Service", key(endpoints)) else ()


_SELECTED: dict[str, Any] = {"Service": itself, "Pod": services_of_pod}
CONTROLLERS = (
    Controller("endpointslice", {**_SELECTED, "EndpointSlice": service_of_slice}, reconcile_selector),
    Controller("endpoints", {**_SELECTED, "Endpoints": _with_service}, reconcile_endpoints),
    Controller(
        "endpointslicemirroring",
        {"Endpoints": itself, "Service": itself, "EndpointSlice": service_of_slice},
        reconcile_mirror,
    ),
)
