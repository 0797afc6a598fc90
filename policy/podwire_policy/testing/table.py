"""The scenario table: policies, and who reaches whom with them. Pure.

All rows play in one cluster: Namespaces x, y, z (label ns), each with pods a, b, c (label pod) that listen on 80 and 81
with TCP, UDP and SCTP; their ports have the names serve-PORT-PROTOCOL. The oracle, decide() and traces of plans judge
the rows. A row of upstream's says the facts that a test of kubernetes/kubernetes (test/e2e/network/netpol) asserts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from .oracle import Object, World
from .worlds import namespace, pod, policy

SPACES, NAMES, PORTS, PROTOCOLS = "xyz", "abc", (80, 81), ("TCP", "UDP", "SCTP")
PODS = tuple(f"{space}/{name}" for space in SPACES for name in NAMES)
OUTSIDE = ("203.0.113.9", "2001:db8:113::9")  # no pod's; on the way to everybody


class Probe(NamedTuple):
    src: str  # key of a pod, or "world"
    dst: str
    protocol: str
    port: int


Change = Callable[[World], None]


@dataclass(frozen=True, slots=True)
class Row:
    """policies: NetworkPolicies and ClusterNetworkPolicies. expect: lines "deny SRC DST [PROTOCOL[/PORT]]" or "allow
    ..."; * is everything, x/* the pods of a Namespace. The last line that fits counts; without one the packet is
    allowed, and a pod always reaches itself. then: changes, one after another, each with what is expected after it.
    """

    name: str
    policies: tuple[Object, ...]
    expect: tuple[str, ...]
    then: tuple[tuple[Change, tuple[str, ...]], ...] = ()

    def __str__(self) -> str:
        return self.name


def address(key: str, family: str) -> str:
    """Returns the address of a pod, or of "world"."""
    if key == "world":
        return OUTSIDE[family == "ip6"]
    number = PODS.index(key)
    return f"fd00:244:{number % 2 + 1}::{16 + number:x}" if family == "ip6" else f"10.244.{number % 2}.{16 + number}"


def node(key: str) -> str:
    return ("n1", "n2")[PODS.index(key) % 2]


def world() -> World:
    """Returns the cluster of all rows, without policies."""
    made = World({name: namespace(name, ns=name) for name in SPACES})
    for key in PODS:
        ports = [
            {"name": f"serve-{port}-{protocol.lower()}", "protocol": protocol, "containerPort": port}
            for port in PORTS
            for protocol in PROTOCOLS
        ]
        ips = (address(key, "ip"), address(key, "ip6"))
        made.pods[key] = pod(key, {"pod": key[-1]}, ips, node(key), containers=[{"name": "c", "ports": ports}])
    return made


def stages(row: Row) -> Iterator[tuple[World, tuple[str, ...], Change | None]]:
    """Yields the world of the row before and after each change, with what is expected. The world is one object."""
    made = world()
    put(*row.policies)(made)
    yield made, row.expect, None
    for change, expect in row.then:
        change(made)
        yield made, expect, change


def probes() -> Iterator[Probe]:
    """Yields everybody to everybody, on every port with every protocol."""
    for src in (*PODS, "world"):
        for dst in (*PODS, "world"):
            if src != "world" or dst != "world":
                yield from (Probe(src, dst, protocol, port) for protocol in PROTOCOLS for port in PORTS)


def expected(lines: tuple[str, ...], probe: Probe) -> bool:
    if probe.src == probe.dst:  # only a ClusterNetworkPolicy keeps a pod from itself, and no row says so
        return True
    verdict = "allow"
    for line in lines:
        word, src, dst, *rest = line.split()
        protocol, _, port = (rest[0] if rest else "*").partition("/")
        fits = _fits(src, probe.src) and _fits(dst, probe.dst)
        if fits and protocol in ("*", probe.protocol) and port in ("", "*", str(probe.port)):
            verdict = word
    return verdict == "allow"


def _fits(pattern: str, key: str) -> bool:
    if pattern == "*":
        return True
    space, _, name = pattern.partition("/")
    own, _, pod_name = key.partition("/")
    return pattern == key or (bool(pod_name) and space in ("*", own) and name in ("*", pod_name))


# Words for the rows


def has(**labels: str) -> Object:
    return {"matchLabels": labels}


def one_of(key: str, *values: str) -> Object:
    return {"matchExpressions": [{"key": key, "operator": "In", "values": list(values)}]}


def none_of(key: str, *values: str) -> Object:
    return {"matchExpressions": [{"key": key, "operator": "NotIn", "values": list(values)}]}


def pods(selector: Object) -> Object:
    return {"podSelector": selector}


def spaces(selector: Object, selected: Object | None = None) -> Object:
    return {"namespaceSelector": selector, **({} if selected is None else {"podSelector": selected})}


def block(cidr: str, *holes: str) -> Object:
    return {"ipBlock": {"cidr": cidr, **({"except": list(holes)} if holes else {})}}


def port(number: int | str | None = None, protocol: str | None = None, end: int | None = None) -> Object:
    fields = {"port": number, "protocol": protocol, "endPort": end}
    return {name: value for name, value in fields.items() if value is not None}


def frm(*peers: Object, ports: list[Object] | None = None) -> Object:
    return {**({"from": list(peers)} if peers else {}), **({"ports": ports} if ports else {})}


def to(*peers: Object, ports: list[Object] | None = None) -> Object:
    return {**({"to": list(peers)} if peers else {}), **({"ports": ports} if ports else {})}


def on(subject: Object, key: str = "x/p", **spec: object) -> Object:
    return policy(key, podSelector=subject, **spec)


def put(*policies: Object) -> Change:
    def change(made: World) -> None:
        for one in policies:
            own = one["metadata"]
            if "namespace" in own:
                made.policies[f"{own['namespace']}/{own['name']}"] = one
            else:
                made.clusters[own["name"]] = one

    return change


def remove(*keys: str) -> Change:
    def change(made: World) -> None:
        for key in keys:
            del (made.policies if "/" in key else made.clusters)[key]

    return change


def label_pod(key: str, **labels: str) -> Change:
    def change(made: World) -> None:
        old = made.pods[key]
        made.pods[key] = {**old, "metadata": {**old["metadata"], "labels": labels}}

    return change


def label_namespace(name: str, **labels: str) -> Change:
    return lambda made: made.namespaces.update({name: namespace(name, **labels)})
