"""Frames that a pod sends itself, past its own kernel's IP layer, and what becomes of them."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from .capture import Capture
from .cnicluster import OUTSIDE, Cluster
from .cninode import wait_until
from .netns import NetNS

OUTSIDE6 = "fd0a::42"
PERMANENT, NOARP = 0x80, 0x40  # states of neighbour entries


@dataclass
class Pod:
    ns: NetNS
    ip: str
    ip6: str
    mac: str


def pod(cluster: Cluster, name: str) -> Pod:
    ns, ip = cluster.pod(cluster.nodes[0], name)
    addresses = ns.netlink(
        lambda ipr: [
            a.get("IFA_ADDRESS")
            for a in ipr.get_addr(family=socket.AF_INET6)
            if a.get("IFA_ADDRESS").startswith("fd00")
        ]
    )
    mac = ns.netlink(lambda ipr: ipr.get_links(ifname="eth0")[0].get("IFLA_ADDRESS"))
    return Pod(ns, ip, addresses[0], mac)


def gateway(cluster: Cluster) -> str:
    return str(cluster.nodes[0].ns.netlink(lambda ipr: ipr.get_links(ifname="podwire0")[0].get("IFLA_ADDRESS")))


def arrived(
    sender: Pod, receivers: list[tuple[NetNS, str]], frames: dict[str, Packet], wanted: Iterable[str]
) -> set[str]:
    """The frames, each with its name as payload, that arrive at any receiver once the wanted ones have arrived. The
    last wanted frames are valid ones, which show that all frames before them could have arrived. Each path is a
    sequence of its own, because a frame that waits for a neighbour's MAC is overtaken.
    """
    captures = [Capture(ns, interface) for ns, interface in receivers]
    raw = sender.ns.call(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
    with raw:
        raw.bind(("eth0", 0))
        for name, frame in frames.items():
            raw.send(bytes(frame / Raw(f"<{name}>".encode())))

    def seen() -> set[str]:
        data = b"".join(bytes(p) for capture in captures for p in capture.packets())
        return {name for name in frames if f"<{name}>".encode() in data}

    wait_until(lambda: set(wanted) <= seen(), f"{', '.join(wanted)}: all of them arrive")
    found = seen()
    for capture in captures:
        capture.sock.close()
    return found


def emit(a: Pod, *packets: Packet) -> None:
    """Send frames from the pod's interface, as a process with NET_RAW can."""
    with a.ns.call(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)) as raw:
        raw.bind(("eth0", 0))
        for packet in packets:
            raw.send(bytes(packet))


def truths(a: Pod, router: str) -> dict[str, Packet]:
    return {
        "own IPv6": Ether(src=a.mac, dst=router) / IPv6(src=a.ip6, dst=OUTSIDE6) / UDP(sport=5, dport=6),
        "own IPv4": Ether(src=a.mac, dst=router) / IP(src=a.ip, dst=OUTSIDE) / UDP(sport=5, dport=6),
    }


def entries(cluster: Cluster, mac: str) -> list[tuple[int, int]]:
    """(port, state) of a MAC's entries in the node's forwarding table."""
    return cluster.nodes[0].ns.netlink(
        lambda ipr: [
            (e["ifindex"], e["state"])
            for e in ipr.get_neighbours(family=socket.AF_BRIDGE)
            if e.get("NDA_LLADDR") == mac and e.get("NDA_MASTER")
        ]
    )


def neighbours(ns: NetNS) -> set[str]:
    """The entries of a node's tables of neighbours that are neither permanent nor of the uplink."""

    def work(ipr: object) -> set[str]:
        uplink = ipr.link_lookup(ifname="eth0")[0]  # type: ignore[attr-defined]  # pyroute2 ships no types
        return {
            f"{e.get('NDA_DST')} {e['state']:#x}"
            for family in (socket.AF_INET, socket.AF_INET6)
            for e in ipr.get_neighbours(family=family)  # type: ignore[attr-defined]  # as above
            if e["ifindex"] != uplink and not e["state"] & (PERMANENT | NOARP)
        }

    return ns.netlink(work)


def port(node: NetNS, a: Pod) -> Any:
    """The node's end of the pod's veth, as pyroute2 has it."""
    mac = a.mac.replace(":58:", ":59:", 1)
    return node.netlink(lambda ipr: next(link for link in ipr.get_links() if link.get("IFLA_ADDRESS") == mac))
