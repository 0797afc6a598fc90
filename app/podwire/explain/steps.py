"""What a walk through one node finds, as plain data that goes over a socket as JSON. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple


class fault(StrEnum):
    """The codes of causes beside those of kernel/reasons.py, which rules carry."""

    FOREIGN_RULE = "foreign-rule"  # a rule of another program
    NO_ROUTE = "no-route"
    NO_FORWARDING = "no-forwarding"  # the node does not forward at all
    LINK_DOWN = "link-down"
    NO_INTERFACE = "no-interface"  # a pod without its interface or address
    NOTHING_LISTENS = "nothing-listens"
    CONNTRACK_FULL = "conntrack-full"
    MTU = "mtu"  # packets that a link on the way cannot carry vanish
    NO_REPLY = "reply-path"  # the answer does not come back
    PROXY_BEHIND = "proxy-behind"  # the rules are not those of the API's objects
    NO_RULES = "no-rules"  # no proxy has written rules
    NO_NAMED_PORT = "no-named-port"  # targetPort is a name that no pod has
    NOT_READY = "not-ready"  # pods are there, and their readiness probes fail
    NO_PODS = "no-pods"  # the selector fits no pod
    HOSTPORT_SHADOWED = "hostport-shadowed"  # a Service has the pod's hostPort
    NO_ANNOUNCER = "not-announced"  # no node answers for the address of a load balancer
    DNS_ADDRESS = "dns-address"  # the cluster DNS does not answer on the node
    NO_NODE = "node-unknown"  # the way goes on where nobody can look
    NOT_DELIVERED = "not-delivered"


class Unreachable(Exception):
    """A node cannot be asked. The message says why, and what to do."""


class Step(NamedTuple):
    """One line of the walk. stage: "rules", "chains", "NAT", "route" ... verdict: "accept", "drop", "reject",
    "unknown" or "".
    """

    stage: str
    text: str
    verdict: str = ""


@dataclass(slots=True)
class Way:
    """One possible way of a packet through a node, and its end there. ip, port: the destination behind every
    translation. src: the source behind every translation. verdict "": it goes on over `dev`; "deliver": an endpoint has
    it here. reason: a code. cause: one sentence. mtu: the greatest packet of the way so far. pod: who is at the end.
    """

    ip: str
    port: int
    src: str
    masquerade: bool = False
    translated: bool = False
    verdict: str = ""
    reason: str = ""
    cause: str = ""
    route: str = ""
    dev: str = ""
    via: str = ""
    mtu: int = 0
    origin: str = ""
    pod: str = ""
    end: str = ""
    notes: list[str] = field(default_factory=list)
    gaps: list[str] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)


@dataclass(slots=True)
class Walk:
    """The walk through one node.

    asked: the packet in words. src: its source. steps: those that all ways share. entry: the link by which the packet
    came, and its MTU. gaps: places where great packets vanish, see arrive.gaps.
    """

    node: str
    asked: str
    src: str
    steps: list[Step] = field(default_factory=list)
    ways: list[Way] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    gaps: list[str] = field(default_factory=list)
    entry: tuple[str, int] = ("", 0)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def from_json(data: Mapping[str, Any]) -> Walk:
    """Reads `to_json`. Raises KeyError, TypeError for another text: the node has another version."""
    ways = [Way(**{**one, "steps": [Step(*step) for step in one["steps"]]}) for one in data["ways"]]
    steps = [Step(*step) for step in data["steps"]]
    entry, gaps = data["entry"], list(data["gaps"])
    return Walk(data["node"], data["asked"], data["src"], steps, ways, list(data["doubts"]), gaps, (entry[0], entry[1]))
