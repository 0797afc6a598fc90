"""What the policies of a whole cluster mean, for people: whom each selects, what is wrong with it, which rules a pod
has, and what becomes of a packet. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from podwire_base.kube import meta
from podwire_base.kube.meta import Object

from . import convert, convertcluster
from .cells import NO_RULE, named_peers
from .compiled import Compiled
from .compiler import Compiler
from .decide import Trail, decide
from .model import (
    DIRECTIONS,
    EVERYWHERE,
    LAST_PORT,
    NAMES,
    NODES,
    TIERS,
    Block,
    Direction,
    Itself,
    Named,
    Packet,
    Peer,
    Pod,
    Pods,
    Policy,
    Ports,
    Rule,
    Selector,
)

SHOWN = 5  # notes and policies that one line names


class Judgement(NamedTuple):
    """What becomes of one packet. trails: egress first, of the directions that somebody judges."""

    allowed: bool
    trails: tuple[Trail, ...]


@dataclass(slots=True)
class Overview:
    """Built from the lists of the API. problems: key of a policy -> what of it cannot be used. unreadable: (kind, key)
    of an object that does not count -> why.
    """

    problems: dict[str, tuple[str, ...]] = field(default_factory=dict)
    unreadable: dict[tuple[str, str], str] = field(default_factory=dict)
    _all: Compiler = field(default_factory=lambda: Compiler(""))  # of no node: it knows pods and selectors alone
    _nodes: dict[str, Compiler] = field(default_factory=dict)

    @property
    def policies(self) -> list[Policy]:
        """Returns the policies in the order in which they judge."""
        found = self._all.policies.values()
        return sorted(found, key=lambda p: (TIERS.index(p.tier), p.priority, p.key))

    @property
    def pods(self) -> dict[str, Pod]:
        """Returns the pods that policies can be about, by "namespace/name"."""
        return {key: pod for key, pod in self._all.members.pods.items() if pod.namespace != NODES}

    def take(self, kind: str, objects: Iterable[Object]) -> None:
        """Takes a list: "pods", "namespaces", "nodes", "policies" or "clusters"."""
        for obj in objects:
            try:
                self._take(kind, meta.key(obj), obj)
            except ValueError as err:
                self.unreadable[kind, meta.key(obj)] = str(err)

    def _take(self, kind: str, key: str, obj: Object) -> None:
        made = self._all
        if kind == "namespaces":
            made.namespace(key, convert.labels_of(meta.labels(obj)))
        elif kind == "pods":
            made.pod(key, convert.pod(obj))
        elif kind == "nodes":
            made.machine(key, convertcluster.node(obj))
        else:
            policy = convert.policy(obj) if kind == "policies" else convertcluster.policy(obj)
            self.problems[key] = policy.problems
            made.policy(key, policy)

    def selected(self, policy: Policy) -> list[Pod]:
        covers = self._all.members.covers
        return [pod for pod in self.pods.values() if covers(policy.subject, pod.namespace, pod.labels)]

    def selecting(self, pod: Pod) -> list[Policy]:
        covers = self._all.members.covers
        return [p for p in self.policies if covers(p.subject, pod.namespace, pod.labels)]

    def members(self, peer: Pods) -> set[str]:
        """Returns the addresses of a peer now."""
        members = self._all.members
        members.use(peer)
        found = set(members.selected[peer])
        members.drop(peer)
        return found

    def notes(self, policy: Policy) -> list[str]:
        """Returns what is probably not meant: a policy or a rule that selects nothing, a port that nobody has."""
        found, selected = list(policy.problems), self.selected(policy)
        if not selected:
            found.append("selects no pod")
        for direction in DIRECTIONS:
            for at, rule in enumerate(policy.rules(direction) or ()):
                where = f"{direction}[{at}]"
                found += (f"{where}: {one}" for one in self._unmet(rule, direction, selected))
        return found

    def _unmet(self, rule: Rule, direction: Direction, selected: list[Pod]) -> Iterator[str]:
        peers = rule.peers or ()
        some = [peer for peer in peers if isinstance(peer, Pods)]
        if some and len(some) == len(peers) and not any(map(self.members, some)):
            yield "its peers select nobody"
        for port in rule.ports or ():
            if not isinstance(port, Named):
                continue
            if direction == "ingress":
                there = any(name == port for pod in selected for name, _ in pod.ports)
            else:
                there = any(self._all.members.numbers(peer, port) for peer in named_peers(rule.peers))
            if not there and (selected or direction == "egress"):
                yield f"no pod that it is about has a port {ports_words(port)}"

    def judge(self, src: str, dst: str, protocol: int, port: int) -> Judgement:
        """Judges the first packet between two addresses, as the nodes of both ends do."""
        packet, trails = Packet(src, dst, protocol, port), list[Trail]()
        owners = self._all.members.owners
        ends = {"egress": src, "ingress": dst}
        for direction in reversed(DIRECTIONS):
            pod = self.pods.get(owners.get(ends[direction], ""))
            if pod is None:
                continue
            decision = decide(self._compiled(pod.node), packet)
            trails += (trail for trail in decision.trails if trail.direction == direction)
            if trails and trails[-1].verdict == "deny":
                return Judgement(False, tuple(trails))
        return Judgement(True, tuple(trails))

    def _compiled(self, node: str) -> Compiled:
        made = self._nodes.get(node)
        if made is None:
            members = self._all.members
            made = self._nodes[node] = Compiler(node)
            for name, labels in members.namespaces.items():
                made.namespace(name, labels)
            for key, pod in members.pods.items():
                made.pod(key, pod)
            for key, policy in self._all.policies.items():
                made.policy(key, policy)
            made.flush()
        return made.compiled


# Words


def selector_words(selector: Selector) -> str:
    """Returns a label selector as kubectl's -l takes it."""
    words = []
    for term in selector:
        listed = ",".join(term.values)
        if term.operator == "In":
            words.append(f"{term.key}={listed}" if len(term.values) == 1 else f"{term.key} in ({listed})")
        elif term.operator == "NotIn":
            words.append(f"{term.key}!={listed}" if len(term.values) == 1 else f"{term.key} notin ({listed})")
        else:
            words.append(term.key if term.operator == "Exists" else f"!{term.key}")
    return ",".join(words)


def peer_words(peer: Peer) -> str:
    if isinstance(peer, Itself):
        return "itself"
    if isinstance(peer, Block):
        return peer.cidr + (f" except {', '.join(peer.excepts)}" if peer.excepts else "")
    if peer.namespace == NODES:
        return f"nodes {selector_words(peer.pods)}" if peer.pods else "all nodes"
    pods = f"pods {selector_words(peer.pods)}" if peer.pods else "all pods"
    if peer.namespace == EVERYWHERE or (peer.namespace is None and not peer.namespaces):
        return f"{pods} of all namespaces"
    if peer.namespace is not None:
        return f"{pods} of namespace {peer.namespace}"
    return f"{pods} of namespaces {selector_words(peer.namespaces)}"


def ports_words(port: Named | Ports) -> str:
    protocol = NAMES[port.protocol]
    if isinstance(port, Named):
        return f"{port.name}/{protocol}"
    if (port.first, port.last) == (0, LAST_PORT):
        return f"all {protocol}"
    return f"{port.first}/{protocol}" if port.first == port.last else f"{port.first}-{port.last}/{protocol}"


def rule_words(rule: Rule) -> tuple[str, str]:
    """Returns (peers, ports) of a rule."""
    if rule.peers is None:
        peers = "everybody"
    else:
        peers = "; ".join(map(peer_words, rule.peers)) or "nobody (nothing of it is usable)"
    ports = "all ports" if rule.ports is None else ", ".join(map(ports_words, rule.ports)) or "no port"
    return peers, ports


def trail_words(trail: Trail) -> str:
    """Returns why a direction decided so."""
    rules = [f"rule {one.rule} of {one.policy}" for one in trail.by if one.rule != NO_RULE]
    isolated = _listed(trail.isolated)
    if trail.verdict == "deny":
        return f"{rules[0]} denies it" if rules else f"no rule of {isolated} allows it"
    if rules:
        words = f"{_listed(rules)} {'allow' if len(rules) > 1 else 'allows'} it"
    elif not trail.isolated:
        words = "nobody isolates it"
    elif any("/" in name for name in trail.isolated):  # NetworkPolicies, which allow nothing else without a rule
        words = "a pod to itself"
    else:
        words = f"no rule of {isolated} speaks of it"
    return words + (f" (staged: {_listed([one.policy for one in trail.staged])} would deny it)" if trail.staged else "")


def _listed(names: Iterable[str]) -> str:
    found = list(dict.fromkeys(names))
    return ", ".join(found[:SHOWN]) + (f" and {len(found) - SHOWN} more" if len(found) > SHOWN else "")
