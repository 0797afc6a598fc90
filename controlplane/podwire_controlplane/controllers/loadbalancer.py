"""Addresses for Services of type LoadBalancer, from the pools of podwire_base/kube/loadbalancer.py.

A Service's address is recorded only in the Service's status. So a restart of the controller loses no address. The
controller never assigns an address that is in the status of another Service. If two Services nevertheless have the same
address, the older Service keeps it.
"""

from __future__ import annotations

import hashlib
import ipaddress

from podwire_base.kube import loadbalancer as lb
from podwire_base.kube.events import event, reference
from podwire_base.kube.meta import Object, key, name, namespace, uid

from .base import Controller, Keys, Snapshot, Write

CONFIG_KEY = f"{lb.CONFIG_NAMESPACE}/{lb.CONFIG_NAME}"
_CONFIG = {"ConfigMap": (lb.CONFIG_NAMESPACE, lb.CONFIG_NAME)}


def _version(ip: str) -> int:
    return 6 if ":" in ip else 4


def _pools(snapshot: Snapshot) -> tuple[lb.Pools, list[str]]:
    return lb.parse(snapshot.get("ConfigMap", CONFIG_KEY))


def _ips(service: Object) -> list[str]:
    """Return the addresses in the Service's status. A malformed status counts as empty, so that it does not block the
    other Services.
    """
    return [str(item["ip"]) for item in lb.readable(service) if item.get("ip")]


def _age(service: Object) -> tuple[str, str]:
    return str(service["metadata"].get("creationTimestamp") or ""), key(service)


def _held(snapshot: Snapshot, without: str) -> dict[str, Object]:
    """Return address -> the oldest Service with this address in its status. `without` is the key of a Service to
    ignore.
    """
    held: dict[str, Object] = {}
    for other in snapshot.list("Service"):
        for ip in _ips(other) if key(other) != without else ():
            if ip not in held or _age(other) < _age(held[ip]):
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


def choose(service: Object, pools: lb.Pools, held: dict[str, Object]) -> tuple[list[str], list[tuple[str, str]]]:
    """Return (addresses of the Service, (reason, message) for each address that the Service cannot have). The Service
    keeps each present address that is still permitted.
    """
    problems: list[tuple[str, str]] = []
    mine = [ip for ip in _ips(service) if ip in pools and not (ip in held and _age(held[ip]) < _age(service))]
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
        elif want and want not in mine and want in held:
            problems.append(("AddressInUse", f"{want} belongs to Service {key(held[want])}"))
        elif want:
            found.append(want)
        elif kept := next((ip for ip in mine if _version(ip) == version), ""):
            found.append(kept)
        elif fresh := pools.free(version, held.keys() | set(found)):
            found.append(fresh)
        elif pools.names(version):
            problems.append(("PoolExhausted", f"no free address in {pools.names(version)} of ConfigMap {CONFIG_KEY}"))
        elif not optional:
            problems.append(("NoPool", f"ConfigMap {CONFIG_KEY} has no IPv{version} addresses"))
    return found, problems


def reconcile(wanted: str, snapshot: Snapshot, now: float) -> list[Write]:
    service = snapshot.get("Service", wanted)
    if service is None:
        return []
    pools, _ = _pools(snapshot)
    have = lb.readable(service)
    target: list[Object]
    problems: list[tuple[str, str]] = []
    if service["spec"].get("type") != "LoadBalancer":
        target = []
    elif not pools or not lb.ours(service, pools):
        return []  # another load balancer owns this Service's status, or none does yet
    else:
        found, problems = choose(service, pools, _held(snapshot, wanted))
        target = [{"ip": ip, "ipMode": "VIP"} for ip in found]
    changes = [_event(service, "Service", reason, message, now) for reason, message in problems]
    if [(i.get("ip"), i.get("ipMode")) for i in have] != [(i["ip"], i["ipMode"]) for i in target]:
        body = {"status": {"loadBalancer": {"ingress": target or None}}}
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


def _all(obj: Object, snapshot: Snapshot) -> Keys:
    return (
        [key(s) for s in snapshot.list("Service") if s["spec"].get("type") == "LoadBalancer"]
        if lb.is_config(obj)
        else ()
    )


def _default_pools(addresses: tuple[str, ...]) -> Controller:
    """Return the controller that creates the pools' ConfigMap if `addresses` are configured and the ConfigMap is
    missing. It also reports the invalid entries of an existing ConfigMap.
    """

    def reconcile(_wanted: str, snapshot: Snapshot, now: float) -> list[Write]:
        config = snapshot.get("ConfigMap", CONFIG_KEY)
        if config is not None:
            return [_event(config, "ConfigMap", "InvalidPool", problem, now) for problem in _pools(snapshot)[1]]
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

    watches = {"ConfigMap": mine, **({"Namespace": mine} if addresses else {})}
    return Controller("loadbalancerpools", watches, reconcile, within=_CONFIG)


def controllers(addresses: tuple[str, ...]) -> tuple[Controller, ...]:
    """addresses: the addresses of the pool that the controller creates if there is none."""
    return (
        Controller("loadbalancer", {"Service": _touched, "ConfigMap": _all}, reconcile, within=_CONFIG),
        _default_pools(addresses),
    )
