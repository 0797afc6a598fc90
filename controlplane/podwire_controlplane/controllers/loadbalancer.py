"""Addresses for Services of type LoadBalancer, from the pools of podwire_base/kube/loadbalancer.py.

A Service's address is recorded only in the Service's status. So a restart of the controller loses no address. The
controller never assigns an address that is in the status of another Service, or that a Node, a pod, a gateway or the
API server has, whenever they join. If two Services nevertheless have the same address, the older Service keeps it.

A Service that got an address here has the finalizer of load balancers and an annotation that says so; both go when the
Service is deleted or is no longer podwire's. They are written through services/status, as cloud controllers do it, so
the controller needs no right to change Services.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterable
from functools import lru_cache, partial

from podwire_base.kube import loadbalancer as lb
from podwire_base.kube.events import event, reference
from podwire_base.kube.meta import Object, annotations_of, deleting, key, name, namespace, seniority, uid
from podwire_base.kube.occupied import Occupied, kept_of_pod, occupied, of_node, of_pod, of_slice

from .base import Controller, Keys, Snapshot, Write

API_SLICE = "default/kubernetes"
CONFIG_KEY = f"{lb.CONFIG_NAMESPACE}/{lb.CONFIG_NAME}"
_WITHIN = {"ConfigMap": (lb.CONFIG_NAMESPACE, lb.CONFIG_NAME), "EndpointSlice": ("default", "kubernetes")}
_KEEP = {"Pod": kept_of_pod}
_OWNERS = ("Node", "Pod", "EndpointSlice")  # the kinds of objects that have addresses


def _version(ip: str) -> int:
    return 6 if ":" in ip else 4


def _pools(snapshot: Snapshot) -> tuple[lb.Pools, list[str]]:
    """Return the pools, and a text for each invalid entry. Each event of a Node or a Pod asks for them."""
    data = (snapshot.get("ConfigMap", CONFIG_KEY) or {}).get("data") or {}
    pools, problems = _parsed(tuple(sorted((str(name), str(text)) for name, text in data.items())))
    return pools, list(problems)


@lru_cache(maxsize=2)
def _parsed(data: tuple[tuple[str, str], ...]) -> tuple[lb.Pools, tuple[str, ...]]:
    pools, problems = lb.parse({"data": dict(data)})
    return pools, tuple(problems)


def _ips(service: Object) -> list[str]:
    """Return the addresses in the Service's status. A malformed status counts as empty, so that it does not block the
    other Services.
    """
    return [str(item["ip"]) for item in lb.readable(service) if item.get("ip")]


def _held(snapshot: Snapshot, without: str) -> dict[str, Object]:
    """Return address -> the oldest Service with this address in its status. `without` is the key of a Service to
    ignore.
    """
    held: dict[str, Object] = {}
    for other in snapshot.list("Service"):
        for ip in _ips(other) if key(other) != without else ():
            if ip not in held or seniority(other) < seniority(held[ip]):
                held[ip] = other
    return held


def _event(about: Object, kind: str, reason: str, message: str, now: float) -> Write:
    """Return the creation of a Warning Event about `about`. The Event's name is a hash of its content, so a repeated
    message creates one Event.
    """
    digest = hashlib.sha256(f"{uid(about)} {reason} {message}".encode()).hexdigest()[:12]
    told = event(reference(kind, about), reason, message, now, suffix=digest)
    return Write("create", "Event", namespace(about), "", told, message)


def _families(service: Object) -> list[int]:
    spec = service["spec"]
    named = [6 if family == "IPv6" else 4 for family in spec.get("ipFamilies") or []]
    return named or [_version(ip) for ip in spec.get("clusterIPs") or [spec.get("clusterIP") or "0.0.0.0"]]


def _occupied(snapshot: Snapshot, others: Iterable[str]) -> Occupied:
    """others: the gateways, and the API server's addresses that the controller uses itself."""
    api = snapshot.get("EndpointSlice", API_SLICE)
    nodes = {name(node): of_node(node) for node in snapshot.list("Node")}
    return occupied(nodes, snapshot.list("Pod"), of_slice(api) if api else (), others)


def choose(
    service: Object, pools: lb.Pools, held: dict[str, Object], taken: Occupied
) -> tuple[list[str], list[tuple[str, str]]]:
    """Return (addresses of the Service, (reason, message) for each address that the Service cannot have). The Service
    keeps each present address that is still permitted.
    """
    problems = [
        ("InvalidPool", f"{ip} is taken back: it is the address of {owner}")
        for ip in _ips(service)
        if ip in pools and (owner := taken.owner(ip))
    ]
    mine = [
        ip
        for ip in _ips(service)
        if ip in pools and not taken.owner(ip) and not (ip in held and seniority(held[ip]) < seniority(service))
    ]
    asked: dict[int, str] = {}
    for ip in lb.wanted(service):
        try:
            asked[ipaddress.ip_address(ip).version] = str(ipaddress.ip_address(ip))
        except ValueError:
            problems.append(("InvalidAddress", f"{ip!r} is not an IP address: write it as 192.0.2.10"))
    found: list[str] = []
    optional = service["spec"].get("ipFamilyPolicy") == "PreferDualStack"
    for version in _families(service):
        want = asked.get(version, "")
        if want and want not in pools:
            there = pools.names(version) or f"it has no IPv{version} addresses"
            problems.append(("AddressNotInPool", f"{want} is in no pool of ConfigMap {CONFIG_KEY} ({there})"))
        elif want and (owner := taken.owner(want)):
            problems.append(("InvalidPool", f"{want} is never given: it is the address of {owner}"))
        elif want and want not in mine and want in held:
            problems.append(("AddressInUse", f"{want} belongs to Service {key(held[want])}"))
        elif want:
            found.append(want)
        elif kept := next((ip for ip in mine if _version(ip) == version), ""):
            found.append(kept)
        elif fresh := pools.free(version, {*held, *found, *taken.addresses}, (one for one, _ in taken.ranges)):
            found.append(fresh)
        elif pools.names(version):
            problems.append(("PoolExhausted", f"no free address in {pools.names(version)} of ConfigMap {CONFIG_KEY}"))
        elif not optional:
            problems.append(("NoPool", f"ConfigMap {CONFIG_KEY} has no IPv{version} addresses"))
    return found, problems


def reconcile(wanted: str, snapshot: Snapshot, now: float, others: tuple[str, ...] = ()) -> list[Write]:
    service = snapshot.get("Service", wanted)
    if service is None:
        return []
    pools, _ = _pools(snapshot)
    have = lb.readable(service)
    target: list[Object]
    problems: list[tuple[str, str]] = []
    if lb.marked(service) and (deleting(service) or not lb.ours(service, pools)):
        return [_left(service)]
    if deleting(service):
        return []  # no address for a Service that ends
    if service["spec"].get("type") != "LoadBalancer":
        target = []
    elif not pools or not lb.ours(service, pools):
        return []  # another load balancer owns this Service's status, or none does yet
    else:
        found, problems = choose(service, pools, _held(snapshot, wanted), _occupied(snapshot, others))
        target = [{"ip": ip, "ipMode": "VIP"} for ip in found]
    changes = [_event(service, "Service", reason, message, now) for reason, message in problems]
    if [(i.get("ip"), i.get("ipMode")) for i in have] != [(i["ip"], i["ipMode"]) for i in target]:
        body: Object = {"status": {"loadBalancer": {"ingress": target or None}}}
        if metadata := lb.mark(service, [i["ip"] for i in target]) if target else lb.unmark(service):
            body["metadata"] = metadata
        changes.insert(
            0,
            Write(
                "status",
                "Service",
                namespace(service),
                name(service),
                body,
                ", ".join(i["ip"] for i in target) or "given back",
            ),
        )
    return changes


def _left(service: Object) -> Write:
    """Return the end of podwire's part in a Service: without finalizer and annotation, and without the addresses unless
    another controller has written its own since.
    """
    body: Object = {"metadata": lb.unmark(service)}
    if set(_ips(service)) <= set(annotations_of(service)[lb.GIVEN].split(",")):
        body["status"] = {"loadBalancer": {"ingress": None}}
    return Write("status", "Service", namespace(service), name(service), body, "given back, finalizer taken off")


def _touched(obj: Object, snapshot: Snapshot) -> Keys:
    """Yield the key of the Service. If the Service has an address, which it may have released, also yield the keys of
    the Services that wait for an address.
    """
    yield key(obj)
    if _ips(obj):
        pools, _ = _pools(snapshot)
        for other in snapshot.list("Service") if pools else ():
            if lb.ours(other, pools) and len(_ips(other)) < len(_families(other)):
                yield key(other)


def _every(snapshot: Snapshot) -> Keys:
    return [key(s) for s in snapshot.list("Service") if s["spec"].get("type") == "LoadBalancer"]


def _all(obj: Object, snapshot: Snapshot) -> Keys:
    return _every(snapshot) if lb.is_config(obj) else ()


def _meets(obj: Object, snapshot: Snapshot) -> bool:
    """Whether a Node, a Pod or the API server's EndpointSlice has addresses in a pool. Most events end here."""
    pools, _ = _pools(snapshot)
    if not pools:
        return False
    if "endpoints" in obj:
        return key(obj) == API_SLICE and any(ip in pools for ip in of_slice(obj))
    addresses, ranges = of_node(obj)
    return any(ip in pools for ip in (*addresses, *of_pod(obj))) or any(map(pools.meets, ranges))


def _meeting(obj: Object, snapshot: Snapshot) -> Keys:
    return _every(snapshot) if _meets(obj, snapshot) else ()


def _default_pools(addresses: tuple[str, ...], others: tuple[str, ...]) -> Controller:
    """Return the controller that creates the pools' ConfigMap if `addresses` are configured and the ConfigMap is
    missing. It also reports the invalid entries of an existing ConfigMap, and addresses that somebody has.
    """

    def reconcile(_wanted: str, snapshot: Snapshot, now: float) -> list[Write]:
        config = snapshot.get("ConfigMap", CONFIG_KEY)
        if config is not None:
            pools, problems = _pools(snapshot)
            if overlaps := _occupied(snapshot, others).overlaps(pools):
                problems = [*problems, f"data.addresses: never given, for somebody has it: {', '.join(overlaps)}"]
            return [_event(config, "ConfigMap", "InvalidPool", problem, now) for problem in problems]
        if not addresses or snapshot.get("Namespace", lb.CONFIG_NAMESPACE) is None:
            return []
        return [
            Write(
                "create",
                "ConfigMap",
                lb.CONFIG_NAMESPACE,
                lb.CONFIG_NAME,
                {
                    "apiVersion": "v1",
                    "kind": "ConfigMap",
                    "data": {"addresses": ", ".join(addresses)},
                    "metadata": {"name": lb.CONFIG_NAME, "namespace": lb.CONFIG_NAMESPACE},
                },
                "load balancer addresses",
            )
        ]

    def mine(obj: Object, snapshot: Snapshot) -> Keys:
        return (CONFIG_KEY,) if lb.is_config(obj) or name(obj) == lb.CONFIG_NAMESPACE else ()

    def owner(obj: Object, snapshot: Snapshot) -> Keys:
        return (CONFIG_KEY,) if _meets(obj, snapshot) else ()

    watches = {"ConfigMap": mine, **dict.fromkeys(_OWNERS, owner), **({"Namespace": mine} if addresses else {})}
    return Controller("loadbalancerpools", watches, reconcile, within=_WITHIN, keep=_KEEP)


def controllers(addresses: tuple[str, ...], others: tuple[str, ...] = ()) -> tuple[Controller, ...]:
    """addresses: the addresses of the pool that the controller creates if there is none. others: addresses of gateways
    and of the API server, which no object of the API names.
    """
    watches = {"Service": _touched, "ConfigMap": _all, **dict.fromkeys(_OWNERS, _meeting)}
    return (
        Controller("loadbalancer", watches, partial(reconcile, others=others), within=_WITHIN, keep=_KEEP),
        _default_pools(addresses, others),
    )
