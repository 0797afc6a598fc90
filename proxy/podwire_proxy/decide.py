"""The oracle: computes the verdict on the first packet of a flow from the Dataplane alone.

Tests compare every backend with the oracle.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from .dataplane import Balance, Dataplane, Frontend, Key, Sticky, Treatment
from .model import Destination, NodeInfo, Protocol, covers
from .verdict import MARTIAN, NOT_IN_RANGE, PASS, UNALLOCATED, WRONG_PORT, Verdict, forward


@dataclass(frozen=True, slots=True)
class Packet:
    """The first packet of a flow as it enters the node's stack. node: the node sent the packet (output hook).

    bound: the destination is an address of this machine (beyond NodeInfo.addresses), such as the cluster DNS address on
    lo. interface: the name of the incoming interface.
    """

    src: str
    dst: str
    protocol: Protocol | Literal["ICMP"]
    port: int = 0
    node: bool = False
    bound: bool = False
    interface: str = ""


LOOPBACK = ("127.0.0.0/8",)
Memory = Mapping[
    tuple[Key, bool, str], Destination
]  # (Sticky.port, Sticky.local, client address) -> the client's previous endpoint


def source(packet: Packet, node: NodeInfo) -> Literal["pod", "node", "outside"]:
    """Returns the kind of the packet's source. The address or the interface identifies a pod.

    A node that sends from an address of the pod range (the address of a bridge) counts as a pod.
    """
    if covers(node.pod_cidrs, packet.src) or _through(packet.interface, node.pod_interface):
        return "pod"
    return "node" if packet.node else "outside"


def _through(interface: str, wanted: str) -> bool:
    if wanted.endswith("*"):
        return interface.startswith(wanted[:-1])
    return bool(wanted) and interface == wanted


def decide(dataplane: Dataplane, packet: Packet, memory: Memory | None = None) -> Verdict:
    """Returns the verdict on a packet by the policy of dataplane.py.

    The verdict for an unallocated address of a Service range is DROP, unless the machine has the address.
    """
    node = dataplane.node
    if node.localhost and not packet.node and covers(LOOPBACK, packet.dst):
        return MARTIAN
    frontend = None
    if packet.protocol != "ICMP":
        frontend = dataplane.frontends.get(Key(packet.dst, packet.protocol, packet.port))
    if frontend is None:
        if packet.dst in dataplane.cluster_ips:
            return WRONG_PORT
        if covers(node.service_cidrs, packet.dst) and not packet.bound:
            return UNALLOCATED
        return PASS
    if frontend.sources and not covers(frontend.sources, packet.src):
        return NOT_IN_RANGE
    treatment = chosen(frontend, packet, node)
    if not isinstance(treatment, Balance):
        return treatment
    always = _masquerades(frontend, source(packet, node), node)
    destinations = treatment.destinations
    known = (memory or {}).get(remembered(treatment.sticky, packet)) if treatment.sticky else None
    if known in destinations:
        destinations = (known,)
    return forward((b, always or b.ip == packet.src) for b in destinations)


def remembered(sticky: Sticky, packet: Packet) -> tuple[Key, bool, str]:
    """Returns the key of the packet's client in Memory."""
    return sticky.port, sticky.local, packet.src


def chosen(frontend: Frontend, packet: Packet, node: NodeInfo) -> Treatment:
    """Returns the frontend's action for this packet's source."""
    if frontend.external is not None and source(packet, node) == "outside":
        return frontend.external
    return frontend.internal


def _masquerades(frontend: Frontend, origin: str, node: NodeInfo) -> bool:
    if frontend.kind == "ClusterIP":
        return node.masquerade_all or (bool(node.pod_cidrs or node.pod_interface) and origin != "pod")
    return frontend.masquerade == "always" or origin == "node"
