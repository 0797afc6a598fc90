"""The facts that policies are about, as the compiler reads them. Pure.

An object of the API becomes one of these once, in convert.py. Everything is hashable, so content can be a key.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Literal, NamedTuple

PROTOCOLS = {"TCP": 6, "UDP": 17, "SCTP": 132}
NAMES = {number: name for name, number in PROTOCOLS.items()}
LAST_PORT = 65535
Direction = Literal["ingress", "egress"]
DIRECTIONS: tuple[Direction, ...] = ("ingress", "egress")
Action = Literal["allow", "deny", "pass", "log"]  # log: a policy that is not in force would deny it
Tier = Literal["admin", "namespaces", "baseline"]  # in the order in which they judge
TIERS: tuple[Tier, ...] = ("admin", "namespaces", "baseline")
Labels = tuple[tuple[str, str], ...]  # sorted by key


class Term(NamedTuple):
    """One requirement of a label selector. operator: In, NotIn, Exists or DoesNotExist. values: sorted."""

    key: str
    operator: str
    values: tuple[str, ...] = ()


Selector = tuple[Term, ...]  # all must match; () matches everything


def matches(selector: Selector, labels: Labels) -> bool:
    have = dict(labels)
    return all(_term(term, have) for term in selector)


def _term(term: Term, have: dict[str, str]) -> bool:
    match term.operator:
        case "In":
            return term.key in have and have[term.key] in term.values
        case "NotIn":
            return have.get(term.key) not in term.values
        case "Exists":
            return term.key in have
    return term.key not in have


class Named(NamedTuple):
    """A port by its name, which each pod resolves for itself."""

    protocol: int
    name: str


class Ports(NamedTuple):
    """The ports `first` to `last`, both included. The whole range of a protocol is 0 to 65535."""

    protocol: int
    first: int
    last: int


class Block(NamedTuple):
    """The addresses of `cidr` that lie in none of `excepts`."""

    cidr: str
    excepts: tuple[str, ...] = ()

    def has(self, address: str) -> bool:
        ip, net = ip_address(address), ip_network(self.cidr)
        return ip.version == net.version and ip in net and not any(ip in ip_network(one) for one in self.excepts)


EVERYWHERE = "*"  # a namespace: all of them, also those that are not known (yet)
NODES = "(nodes)"  # in place of a namespace: the Nodes of the cluster, which are peers by their labels


class Pods(NamedTuple):
    """Pods by labels. namespace: the only one, or EVERYWHERE, or None: those that `namespaces` selects. port: only pods
    whose port of this name has this number. block: only addresses in it.
    """

    namespace: str | None
    namespaces: Selector
    pods: Selector
    port: tuple[Named, int] | None = None
    block: Block | None = None


class Itself(NamedTuple):
    """The pod itself, which reaches itself by a Service. A NetworkPolicy cannot keep it from that."""


Peer = Pods | Block | Itself


class Rule(NamedTuple):
    """One rule of a policy. peers None: everybody. ports None: all traffic of all protocols."""

    peers: tuple[Peer, ...] | None
    ports: tuple[Named | Ports, ...] | None
    action: Action = "allow"


@dataclass(frozen=True, slots=True)
class Policy:
    """A NetworkPolicy, or a ClusterNetworkPolicy of one of the two other tiers. key: "namespace/name", or "name".
    ingress, egress: its rules; None: it does not speak of this direction. problems: what of it cannot be used, for
    people; an unusable peer or port matches nothing. priority: within the tier; the lowest comes first. staged: it is
    not in force; what it would deny is logged and counted.
    """

    key: str
    subject: Pods
    ingress: tuple[Rule, ...] | None
    egress: tuple[Rule, ...] | None
    problems: tuple[str, ...] = ()
    tier: Tier = "namespaces"
    priority: int = 0
    staged: bool = False

    def rules(self, direction: Direction) -> tuple[Rule, ...] | None:
        return self.ingress if direction == "ingress" else self.egress


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod with addresses of its own. ports: (name, protocol) -> number, as pairs. age: orders pods that claim one
    address; the greatest has it.
    """

    key: str
    namespace: str
    labels: Labels
    node: str
    ips: tuple[str, ...]
    ports: tuple[tuple[Named, int], ...] = ()
    age: tuple[bool, str, str] = (True, "", "")


class Packet(NamedTuple):
    """The first packet of a flow, behind the translation of its destination. port: 0 for protocols without ports."""

    src: str
    dst: str
    protocol: int
    port: int = 0
