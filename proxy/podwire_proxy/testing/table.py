"""The world of the conformance table and the vocabulary of its rows.

The addresses are those of one small world: node `n1` with two pods, a pod on another node, and a host outside the
cluster. Rows hold for IPv4; `Scenario.v6()` is the same row in IPv6.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from podwire_base.kube import meta

from ..changes import Tracker
from ..decide import Packet
from ..model import LOCALHOST, Destination, NodeInfo
from ..verdict import Verdict, forward
from .builders import endpoint, endpoint_slice, port, service

NODE, NODE_IP, POD_A, POD_B, POD_C = "n1", "172.30.0.11", "10.244.1.2", "10.244.1.3", "10.244.2.2"
NODE2_IP = "172.30.0.12"
OUTSIDE = "172.30.0.1"  # the client outside the cluster
HOST = "192.0.2.42"  # a server outside the cluster
GATEWAY = "10.244.1.1"  # the node's address towards its pods
VIP, VIP2, UNUSED = "10.96.0.20", "10.96.0.21", "10.96.0.99"
EXTERNAL, BALANCER, BALANCER2 = "198.51.100.7", "198.51.100.8", "198.51.100.9"
PORT, NODE_PORT, TARGET = 80, 30080, 9376
B, C, H = Destination(POD_B, TARGET), Destination(POD_C, TARGET), Destination(HOST, TARGET)
# the interface on which packets enter the node
INTERFACES = {POD_A: "veth0", POD_B: "veth1", POD_C: "veth2", NODE_IP: ""}
INFO = NodeInfo(NODE, (NODE_IP,), "zone-a", ("10.244.0.0/16",), ("10.96.0.0/16",))
_V6 = (
    (NODE_IP, "fd00:30::11"),
    (NODE2_IP, "fd00:30::12"),
    (GATEWAY, "fd00:244:1::1"),
    (POD_A, "fd00:244:1::2"),
    (POD_B, "fd00:244:1::3"),
    (POD_C, "fd00:244:2::2"),
    (OUTSIDE, "fd00:30::1"),
    (HOST, "2001:db8:2::42"),
    ("10.96.0.", "fd00:96::"),
    (EXTERNAL, "2001:db8:51::7"),
    (BALANCER, "2001:db8:51::8"),
    (BALANCER2, "2001:db8:51::9"),
    (f"{NODE_IP}/32", "fd00:30::11/128"),
    (f"{OUTSIDE}/32", "fd00:30::1/128"),
    ("10.244.0.0/16", "fd00:244::/32"),
    ("10.96.0.0/16", "fd00:96::/112"),
)


@dataclass(frozen=True)
class Scenario:
    """Objects, and the verdict on the first packet of a flow. `node`: the NodeInfo of the proxy. mixed: the row has
    addresses of both IP families.
    """

    name: str
    objects: tuple[meta.Object, ...]
    expect: Mapping[Packet, Verdict]
    node: NodeInfo = field(default=INFO)
    mixed: bool = False

    def tracker(self) -> Tracker:
        """Returns a Tracker with the recorded objects. The caller must flush the Tracker."""
        made = Tracker(self.node)
        for obj in self.objects:
            (made.service if obj["kind"] == "Service" else made.slice)(meta.key(obj), obj)
        return made

    def v6(self) -> Scenario:
        """Returns the same row with IPv6 addresses, without 127.0.0.1, which has no counterpart in IPv6.

        A mixed row has its families exchanged.
        """
        changed = _exchanged if self.mixed else _v6
        objects = tuple(json.loads(changed(json.dumps(obj))) for obj in self.objects)
        expect = {
            replace(p, src=changed(p.src), dst=changed(p.dst)): replace(
                o, to=frozenset((Destination(changed(b.ip), b.port), m) for b, m in o.to)
            )
            for p, o in self.expect.items()
            if p.dst != LOCALHOST
        }
        node = replace(
            self.node,
            addresses=tuple(map(changed, self.node.addresses)),
            pod_cidrs=tuple(map(changed, self.node.pod_cidrs)),
            service_cidrs=tuple(map(changed, self.node.service_cidrs)),
            reserved=tuple(map(changed, self.node.reserved)),
            claimable=replace(self.node.claimable, nodes=frozenset(map(changed, self.node.claimable.nodes))),
            node_ports=None if self.node.node_ports is None else tuple(map(changed, self.node.node_ports)),
        )
        return Scenario(f"{self.name} (IPv6)", objects, expect, node, self.mixed)


def _v6(text: str) -> str:
    for old, new in sorted(_V6, key=lambda pair: -len(pair[0])):
        text = text.replace(old, new)
    return text.replace('"IPv4"', '"IPv6"')


def _exchanged(text: str) -> str:
    """Returns the text with the addresses of the two IP families exchanged."""
    pairs = [*_V6, ('"IPv4"', '"IPv6"')]
    places = [(found, f"\0{n}{side}\0") for n, pair in enumerate(pairs) for side, found in enumerate(pair)]
    for old, mark in sorted(places, key=lambda place: -len(place[0])):
        text = text.replace(old, mark)
    for n, pair in enumerate(pairs):
        text = text.replace(f"\0{n}0\0", pair[1]).replace(f"\0{n}1\0", pair[0])
    return text


def to(backends: Iterable[Destination], masquerade: bool) -> Verdict:
    return forward((b, masquerade) for b in backends)


def packet(src: str, dst: str, number: int = PORT, protocol: str = "TCP", *, bound: bool = False) -> Packet:
    # table shorthand
    return Packet(src, dst, protocol, number, src == NODE_IP, bound, INTERFACES.get(src, "eth0"))  # type: ignore[arg-type]


def everything(*, name: str = "my-service", protocol: str = "TCP", **spec: Any) -> meta.Object:
    return service(
        name,
        VIP,
        [port(PORT, protocol, node_port=NODE_PORT)],
        type="LoadBalancer",
        externalIPs=[EXTERNAL],
        ingress=[{"ip": BALANCER}],
        **spec,
    )


def some_slice(*endpoints: Mapping[str, Any], protocol: str = "TCP", target: int = TARGET) -> meta.Object:
    return endpoint_slice("my-service", endpoints, [("", protocol, target)])


BOTH = (endpoint(POD_B, NODE), endpoint(POD_C, "n2"))
FRONTENDS = ((EXTERNAL, PORT), (BALANCER, PORT), (NODE_IP, NODE_PORT))
POD, SELF, OUT = POD_A, NODE_IP, OUTSIDE


def rows(source: str, external: Verdict, cluster: Verdict, protocol: str = "TCP") -> dict[Packet, Verdict]:
    out = {packet(source, ip, number, protocol): external for ip, number in FRONTENDS}
    out[packet(source, VIP, PORT, protocol)] = cluster
    return out


ALL, ALL_M, HERE, HERE_M = to([B, C], False), to([B, C], True), to([B], False), to([B], True)
