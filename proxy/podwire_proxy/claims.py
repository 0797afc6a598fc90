"""Finds the claims on an address and port that lose, and says which claim has it. Pure.

On every node the same claim wins:

1. A Service wins over a hostPort. Its rules come first in the kernel (docs/hooks.md), also where they refuse.
2. Of two Services, the elder by creationTimestamp wins, then the one with the lower uid (Contribution.order).

Different ports of one address may belong to different Services, and so may different protocols of one port.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from podwire_base.role.hostports import HostPort

from .dataplane import Dataplane, Frontend, Key
from .model import LOCALHOST, is_v6
from .verdict import PASS


def place(key: Key) -> str:
    """Returns "198.51.100.7:80/TCP" or "[2001:db8::7]:80/TCP"."""
    return f"{f'[{key.ip}]' if is_v6(key.ip) else key.ip}:{key.port}/{key.protocol}"


def lost(plane: Dataplane) -> dict[str, list[str]]:
    """Returns Service -> a line for each of its claims that another Service has. The lines are equal on all nodes."""
    found: dict[str, dict[str, None]] = {}
    for key in sorted(plane.contested):
        winner, *losers = plane.contested[key]
        for loser in losers:
            kind = plane.claim(loser, key).kind
            # each node has its own addresses, but the NodePort is the same
            what = f"nodePort {key.port}/{key.protocol}" if kind == "NodePort" else f"{kind} {place(key)}"
            why = "of two Services the elder has it (creationTimestamp, then uid)"
            found.setdefault(loser, {})[f"{what} is not served: Service {winner} has it; {why}"] = None
    return {service: list(lines) for service, lines in found.items()}


def displaced(plane: Dataplane, hostports: Iterable[HostPort]) -> dict[HostPort, str]:
    """Returns hostPort -> a line that names the Services that have it, and where."""
    found: dict[HostPort, str] = {}
    for one in hostports:
        by_service: dict[str, list[str]] = {}
        for frontend in _at(plane, one):
            by_service.setdefault(f"{frontend.kind} of Service {frontend.service}", []).append(frontend.key.ip)
        if by_service:
            holders = "; ".join(f"the {who} has it at {', '.join(ips)}" for who, ips in by_service.items())
            found[one] = f"hostPort {one.port}/{one.protocol} does not lead to the pod: {holders}"
    return found


def _at(plane: Dataplane, one: HostPort) -> Iterator[Frontend]:
    """Yields the frontends at the addresses of this node that take packets from the hostPort."""
    node = plane.node
    for ip in dict.fromkeys((*node.addresses, *node.node_port_ips, LOCALHOST)):
        if one.covers(ip):
            frontend = plane.frontends.get(Key(ip, one.protocol, one.port))
            if frontend is not None and PASS not in (frontend.internal, frontend.external):
                yield frontend
