"""The oracle: the fate of the first packet of a flow, told from the Dataplane alone. Every backend is held against it."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Literal

from .dataplane import Action, Balance, Dataplane, Fate, Frontend, Key
from .model import Backend, NodeInfo, Protocol


@dataclass(frozen=True, slots=True)
class Packet:
    """The first packet of a flow as it enters the node's stack. node: sent by the node itself (output hook).

    bound: the destination is an address of this machine (beyond NodeInfo.addresses), as the cluster DNS address on lo.
    """

    src: str
    dst: str
    protocol: Protocol | Literal["ICMP"]
    port: int = 0
    node: bool = False
    bound: bool = False


class Verdict(Enum):
    PASS = "pass"  # none of the proxy's business
    REJECT = "reject"
    DROP = "drop"
    FORWARD = "forward"


@dataclass(frozen=True, slots=True)
class Outcome:
    """to: the possible deliveries of FORWARD, each with whether its source is masqueraded; empty otherwise."""

    verdict: Verdict
    to: frozenset[tuple[Backend, bool]] = frozenset()


PASS = Outcome(Verdict.PASS)
REJECT = Outcome(Verdict.REJECT)
DROP = Outcome(Verdict.DROP)


def inside_any(ip: str, cidrs: Iterable[str]) -> bool:
    address = ipaddress.ip_address(ip)
    return any(address in ipaddress.ip_network(cidr, strict=False) for cidr in cidrs)


def source(packet: Packet, node: NodeInfo) -> Literal["pod", "node", "outside"]:
    """A pod by its address; the node itself may use an address of the pod range (a bridge's), and then counts as a pod."""
    if inside_any(packet.src, node.pod_cidrs):
        return "pod"
    return "node" if packet.node else "outside"


def decide(dataplane: Dataplane, packet: Packet) -> Outcome:
    """See dataplane.py for the policy; addresses inside the Service range that nobody has are dropped unless bound here."""
    frontend = None
    if packet.protocol != "ICMP":
        frontend = dataplane.frontends.get(Key(packet.dst, packet.protocol, packet.port))
    if frontend is None:
        if packet.dst in dataplane.cluster_ips:
            return REJECT
        if inside_any(packet.dst, dataplane.node.service_cidrs) and not packet.bound:
            return DROP
        return PASS
    origin = source(packet, dataplane.node)
    action: Action = frontend.inside
    if frontend.outside is not None and origin == "outside":
        action = frontend.outside
    if not isinstance(action, Balance):
        return REJECT if action is Fate.REJECT else DROP
    always = _masquerades(frontend, origin, dataplane.node)
    return Outcome(Verdict.FORWARD, frozenset((b, always or b.ip == packet.src) for b in action.backends))


def _masquerades(frontend: Frontend, origin: str, node: NodeInfo) -> bool:
    if frontend.kind == "ClusterIP":
        return node.masquerade_all or (bool(node.pod_cidrs) and origin != "pod")
    return frontend.masquerade == "always" or origin == "node"
