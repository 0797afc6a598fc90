"""Defines the static rules and the rules of one frontend as data. README.md beside this file gives the reasons.

A rule is the text that iptables-save prints after "-A CHAIN ", so that the planner can compare the rules read back with
the wanted rules.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, NamedTuple

from podwire_base.kernel.ip import Family, packed
from podwire_base.kernel.reasons import Reason, carrying

from ..dataplane import Balance, Frontend, Key, Sticky, Treatment
from ..model import LOCALHOST, Destination, NodeInfo, is_v6
from ..verdict import Verdict

LAYOUT = 1  # of the chains and sets: raised by a change that an older proxy would misread
PREFIX = "PODWIRE-"  # of all chains and sets of the proxy
MARK = (
    # the bit of the connection mark that means "masquerade", from prerouting to postrouting of a flow's first packet
    0x4000
)
BIT = f"{MARK:#x}/{MARK:#x}"
SERVICES, FILTER, NODE = "PODWIRE-SERVICES", "PODWIRE-FILTER", "PODWIRE-NODE"
# reason -> the chain that ends a refused packet
ENDS = {
    Reason.NO_ENDPOINTS: "PODWIRE-REJECT",
    Reason.NO_LOCAL_ENDPOINTS: "PODWIRE-NO-LOCAL",
    Reason.SOURCE_RANGE: "PODWIRE-NO-SOURCE",
    Reason.WRONG_PORT: "PODWIRE-NO-PORT",
    Reason.ENDPOINT_GONE: "PODWIRE-GONE",
}
PORTS = 64  # NodePorts in one chain
PROBABILITY = 1 << 31  # xt_statistic keeps probabilities as multiples of its inverse
_PLAIN = re.compile(r"[A-Za-z0-9_-]+")  # text that iptables-save prints without quotes
_STRANGE = re.compile(r"[^A-Za-z0-9 ,:/._-]")
NOT_SYN = "! --tcp-flags SYN SYN"  # a TCP segment that belongs to no flow and starts no flow: its flow was reset
TableName = Literal["nat", "filter", "raw"]
Rules = tuple[str, ...]


class Chain(NamedTuple):
    table: TableName
    name: str


Chains = Mapping[Chain, Rules]


@dataclass(frozen=True, slots=True)
class Step:
    """One level of the dispatch to a frontend: packets that match `matches` continue in `chain`."""

    chain: str
    matches: Rules


@dataclass(frozen=True, slots=True)
class Built:
    """The rules of one frontend. nat, filter: the rules in the chain that the steps lead to. sets: the sets of
    session affinity.
    """

    nat: Rules = ()
    filter: Rules = ()
    chains: Mapping[Chain, Rules] = field(default_factory=dict)
    sets: Rules = ()

    def rules(self, table: TableName) -> Rules:
        return self.nat if table == "nat" else self.filter if table == "filter" else ()


def digest(*parts: object) -> str:
    """Returns 16 characters for a chain name. A chain name has at most 28 characters: a prefix of 12 and these 16."""
    return base64.b32encode(hashlib.sha256(" ".join(map(str, parts)).encode()).digest())[:16].decode()


def is_ours(name: str) -> bool:
    return name.startswith(PREFIX)


def layout_of(name: str) -> int:
    """Returns the layout that the name of a chain tells; 0 for any other chain."""
    found = re.fullmatch(rf"{PREFIX}LAYOUT-(\d{{1,9}})", name)
    return int(found[1]) if found else 0


def cluster_ips(family: Family) -> str:
    """Returns the name of the set of all ClusterIPs. The sets of both families share one name space."""
    return f"PODWIRE-CLUSTER-IPS-{4 if family == 'ip' else 6}"


def affinity_set(sticky: Sticky, destination: Destination) -> str:
    """Returns the name of the set of clients that a Service port remembers for one endpoint, over all frontends."""
    return f"PODWIRE-A{6 if is_v6(destination.ip) else 4}-{digest(*sticky.port, sticky.local, *destination)}"


def cidr(text: str) -> str:
    """Returns a CIDR as iptables prints it. A single address also has a prefix length."""
    return str(ipaddress.ip_network(text, strict=False))


def quoted(words: str, reason: Reason | None = None) -> str:
    """Returns a comment, with the code of the reason if `reason` is not None.

    The function keeps only harmless characters: an invalid object name must not end the comment or look like a code.
    """
    text = _STRANGE.sub("?", words)[:200]
    if reason is not None:
        text = carrying(text, reason)
    return f"-m comment --comment {text}" if _PLAIN.fullmatch(text) else f'-m comment --comment "{text}"'


def ours(family: Family, ip: str) -> bool:
    return is_v6(ip) == (family == "ip6")


# The dispatch to a frontend


@lru_cache(maxsize=1 << 12)
def _low_bits(v6: bool, value: int, mask: int) -> str:
    if v6:
        return f"-d {ipaddress.IPv6Address(value)}/{ipaddress.IPv6Address(mask)}"
    return f"-d {ipaddress.IPv4Address(value)}/{ipaddress.IPv4Address(mask)}"


def way(key: Key, node: NodeInfo) -> tuple[Step, Step]:
    """Returns the two steps to a frontend, by the low bits of the address; for NodePorts, by the port.

    Allocated addresses are evenly distributed over their low bits.
    """
    if key.ip == LOCALHOST or key.ip in node.node_port_ips:
        first = key.port & -PORTS
        protocol = key.protocol.lower()
        leaf = Step(
            f"PODWIRE-N-{protocol}-{first}", (f"-p {protocol} -m {protocol} --dport {first}:{first + PORTS - 1}",)
        )
        places = (*node.node_port_ips, *([LOCALHOST] if node.localhost else []))
        return Step(NODE, tuple(f"-d {cidr(ip)}" for ip in places if is_v6(ip) == is_v6(key.ip))), leaf
    low = int.from_bytes(packed(key.ip)[-2:], "big")
    v6, one, two = is_v6(key.ip), low & 0x1F, low & 0x3E0
    return (
        Step(f"PODWIRE-A-{one}", (_low_bits(v6, one, 0x1F),)),
        Step(f"PODWIRE-A-{one}-{two >> 5}", (_low_bits(v6, two, 0x3E0),)),
    )


# The rules of a frontend


@lru_cache(maxsize=1 << 10)
def _by_chance(left: int) -> str:
    """Returns a match with probability 1/`left`, in the eleven digits that iptables prints."""
    return f"-m statistic --mode random --probability {(2 * PROBABILITY + left) // (2 * left) / PROBABILITY:.11f} "


def _dnat(destination: Destination) -> str:
    ip = f"[{destination.ip}]" if is_v6(destination.ip) else destination.ip
    return f"-j DNAT --to-destination {ip}:{destination.port}"


def dialled(key: Key) -> str:
    protocol = key.protocol.lower()
    return f"-d {key.ip}/{128 if is_v6(key.ip) else 32} -p {protocol} -m {protocol} --dport {key.port}"


class _Builder:
    """Builds the chains of one frontend. The key of the frontend determines their names."""

    def __init__(self, frontend: Frontend, node: NodeInfo) -> None:
        self.frontend, self.node, self.key = frontend, node, frontend.key
        self.protocol = frontend.key.protocol.lower()
        self.name = digest(*frontend.key)
        self.chains: dict[Chain, Rules] = {}
        self.sets: list[str] = []

    def build(self) -> Built:
        treatments = (self.frontend.internal, self.frontend.external)
        nat: Rules = ()
        if any(isinstance(treatment, Balance) for treatment in treatments):
            entry = self._chain("nat", "PODWIRE-SVC-", self._service())
            if self.frontend.sources:
                entry = self._chain(
                    "nat", "PODWIRE-FW-", (f"-s {cidr(c)} -j {entry}" for c in sorted(self.frontend.sources))
                )
            nat = (f"{dialled(self.key)} {self._comment()} -j {entry}",)
        refusal = next((treatment for treatment in reversed(treatments) if isinstance(treatment, Verdict)), None)
        refusals = self._refusals(refusal)
        if refusals and self.frontend.kind != "ClusterIP":
            # `filter` refuses what `nat` left alone. A hostPort of the same number, whose chain of `nat` comes later,
            # must not take such a packet: a translation to the very same place ends the chains of `nat`.
            nat = (*nat, f"{dialled(self.key)} {self._comment()} {_dnat(Destination(self.key.ip, self.key.port))}")
        return Built(nat, refusals, self.chains, tuple(self.sets))

    def _comment(self) -> str:
        return quoted(self.frontend.service)

    def _chain(self, table: TableName, prefix: str, rules: Iterable[str], name: str = "") -> str:
        chain = Chain(table, prefix + (name or self.name))
        self.chains[chain] = tuple(rules)
        return chain.name

    def _service(self) -> Iterator[str]:
        frontend = self.frontend
        if frontend.alive is not None:
            yield f"-p tcp -m tcp {NOT_SYN} -j RETURN"
        if frontend.kind == "ClusterIP":
            yield "-j PODWIRE-OFF-CLUSTER"
        elif frontend.masquerade == "always":
            yield "-j PODWIRE-MARK"
        if frontend.external is None:
            yield from self._balance(frontend.internal, "inside")
            return
        if isinstance(frontend.internal, Balance):
            internal = f"-j {self._chain('nat', 'PODWIRE-ALL-', self._balance(frontend.internal, 'internal'))}"
        else:
            internal = "-j RETURN"
        yield from (f"{match} {internal}" for match in pods(frontend.key.ip, self.node))
        yield "-m addrtype --src-type LOCAL -j PODWIRE-MARK"
        yield f"-m addrtype --src-type LOCAL {internal}"
        yield from self._balance(frontend.external, "outside")

    def _balance(self, treatment: Treatment, side: str) -> Iterator[str]:
        if not isinstance(treatment, Balance):
            return
        targets = [_dnat(destination) for destination in treatment.destinations]
        if treatment.sticky:
            targets = []
            for destination in treatment.destinations:
                clients = affinity_set(treatment.sticky, destination)
                self.sets.append(clients)
                target = self._chain(
                    "nat",
                    "PODWIRE-SEP-",
                    (
                        f"-j SET --add-set {clients} src --exist --timeout {treatment.sticky.seconds}",
                        f"-p {self.protocol} {_dnat(destination)}",
                    ),
                    digest(*self.key, side, *destination),
                )
                targets.append(f"-j {target}")
                yield f"-m set --match-set {clients} src -j {target}"
        for index, target in enumerate(targets):
            left = len(targets) - index
            yield f"-p {self.protocol} {_by_chance(left) if left > 1 else ''}{target}"

    def _refusals(self, refusal: Verdict | None) -> Rules:
        """Returns the rules that refuse the packets that no rule of `nat` matched.

        If a frontend has two refusals, both have the same verdict.
        """
        ends = [("", ENDS[refusal.reason])] if refusal is not None and refusal.reason is not None else []
        if self.frontend.alive is not None:
            ends.insert(0, (NOT_SYN, ENDS[Reason.ENDPOINT_GONE]))
        if self.frontend.sources:
            target = ENDS[Reason.SOURCE_RANGE]
            if ends:
                target = self._chain(
                    "filter",
                    "PODWIRE-FW-",
                    (
                        *(
                            f"-s {cidr(c)}{f' -p tcp -m tcp {match}' if match else ''} -j {end}"
                            for match, end in ends
                            for c in sorted(self.frontend.sources)
                        ),
                        f"-j {target}",
                    ),
                )
            ends = [("", target)]
        return tuple(
            f"{dialled(self.key)} {f'{match} ' if match else ''}{self._comment()} -j {end}" for match, end in ends
        )


def build(frontend: Frontend, node: NodeInfo) -> Built:
    return _Builder(frontend, node).build()


def pods(ip: str, node: NodeInfo) -> Rules:
    """Returns the matches for packets of pods, in the family of `ip`."""
    interface = (f"-i {node.pod_interface.replace('*', '+')}",) if node.pod_interface else ()
    return (*(f"-s {cidr(c)}" for c in node.pod_cidrs if is_v6(c) == is_v6(ip)), *interface)


# The static rules

# A translated packet is on its way to an endpoint, also if the endpoint has the address of another frontend.
_NEW = f"-m conntrack --ctstate NEW -m conntrack ! --ctstate DNAT {quoted('podwire: refused Services')} -j {FILTER}"
_HOOKS: dict[Chain, str] = {
    Chain("filter", "INPUT"): _NEW,
    Chain("filter", "OUTPUT"): _NEW,
    Chain(
        "filter", "FORWARD"
    ): f"-m conntrack --ctstate INVALID,NEW {quoted('podwire: refused Services')} -j PODWIRE-FORWARD",
    Chain("nat", "PREROUTING"): f"{quoted('podwire: Services')} -j {SERVICES}",
    Chain("nat", "OUTPUT"): f"{quoted('podwire: Services')} -j {SERVICES}",
    Chain("nat", "POSTROUTING"): f"-m conntrack --ctstate DNAT {quoted('podwire: masquerade')} -j PODWIRE-POSTROUTING",
    Chain("nat", "INPUT"): f"-m conntrack --ctstate DNAT {quoted('podwire: delivered here')} -j PODWIRE-UNMARK",
}


def hooks(family: Family, node: NodeInfo) -> dict[Chain, Rules]:
    """Returns the rules in built-in chains that jump to the proxy's chains."""
    found: dict[Chain, Rules] = {chain: (rule,) for chain, rule in _HOOKS.items()}
    if family == "ip" and node.localhost:
        found[Chain("raw", "PREROUTING")] = (f"! -i lo {quoted('podwire: loopback addresses')} -j PODWIRE-LOOPBACK",)
    return found


def same_address(family: Family) -> str:
    """Returns classic BPF, relative to the network header, that tests whether source and destination are equal.

    One rule with this match handles every hairpin.
    """
    source, words = (12, 1) if family == "ip" else (8, 4)
    program = []
    for word in range(words):
        offset = source + 4 * word
        to_the_end = 4 * (words - word - 1) + 1
        program += [f"32 0 0 {offset}", "7 0 0 0", f"32 0 0 {offset + 4 * words}", f"29 0 {to_the_end} 0"]
    program += ["6 0 0 65535", "6 0 0 0"]
    return f'-m bpf --bytecode "{len(program)},{",".join(program)}"'
