"""Rules -> the program of one pod in one direction. Pure.

A cell is a port, or a range of ports that no rule splits further. It has one list of steps: whose packets are allowed.
A cell needs only the rules that speak of its ports, so rules about other ports cost a packet nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Literal, NamedTuple

from .model import (
    EVERYWHERE,
    LAST_PORT,
    NAMES,
    TIERS,
    Action,
    Block,
    Direction,
    Itself,
    Named,
    Peer,
    Pods,
    Policy,
    Ports,
    Tier,
)

Resolve = Callable[[Named], tuple[int, ...]]
Numbers = Callable[[Pods, Named], tuple[int, ...]]


NO_RULE = -1


class Origin(NamedTuple):
    """The rule that a step is from. policy: "namespace/name". rule: its index in the policy's list; NO_RULE: the policy
    isolates, and none of its rules allows the packet.
    """

    policy: str
    rule: int


class Step(NamedTuple):
    """One question: is it a packet of `peer` (None: always)? If so, `action`. "pass" and "log" end the cell: what comes
    after it judges.
    """

    peer: Peer | None
    action: Action
    origins: tuple[Origin, ...]


class Cell(NamedTuple):
    """The steps of one tier in order, and what becomes of a packet that none of them takes, or that one passes on:
    `after` judges it, or else `otherwise` is the verdict. policies: those of the tier that select the pod, so they are
    the reason of a denial; () in a cell of policies that are not in force.
    """

    direction: Direction
    steps: tuple[Step, ...]
    otherwise: Literal["allow", "deny"]
    policies: tuple[str, ...]
    after: Cell | None = None

    def tiers(self) -> Iterator[Cell]:
        """Yields this cell and those that follow."""
        yield self
        if self.after is not None:
            yield from self.after.tiers()


class Group(NamedTuple):
    """The program of pods in one direction: all pods with an equal one share it. The cell of a packet is that of its
    port, else that of the range, else that of the protocol, else the last.
    """

    direction: Direction
    ports: tuple[tuple[int, int, Cell], ...]  # (protocol, port, cell)
    ranges: tuple[tuple[Ports, Cell], ...]  # do not overlap
    protocols: tuple[tuple[int, Cell], ...]
    otherwise: Cell

    def cells(self) -> Iterator[Cell]:
        """Yields every cell once."""
        all_ = (
            *(c for _, _, c in self.ports),
            *(c for _, c in self.ranges),
            *(c for _, c in self.protocols),
            self.otherwise,
        )
        yield from dict.fromkeys(one for cell in all_ for one in cell.tiers())

    @property
    def in_force(self) -> bool:
        """Whether one of its policies is in force."""
        return any(cell.policies for cell in self.cells())

    def cell(self, protocol: int, port: int) -> Cell:
        for number, one, cell in self.ports:
            if (number, one) == (protocol, port):
                return cell
        for ports, cell in self.ranges:
            if ports.protocol == protocol and ports.first <= port <= ports.last:
                return cell
        return dict(self.protocols).get(protocol, self.otherwise)


class _Entry(NamedTuple):
    """Peers (None: everybody) whose packets to some ports (None: all traffic) a rule speaks of."""

    ports: Ports | None
    peers: tuple[Peer, ...] | None
    origin: Origin
    tier: Tier
    action: Action
    staged: bool


def group(policies: Iterable[Policy], direction: Direction, own: Resolve, numbers: Numbers) -> Group | None:
    """Returns the program of a pod that these policies select; None if none of them isolates it. own: the numbers of
    the pod's own named ports. numbers: those of other pods'.
    """
    speaking = sorted(
        (p for p in policies if p.rules(direction) is not None), key=lambda p: (TIERS.index(p.tier), p.priority, p.key)
    )
    if not speaking:
        return None
    names = {tier: tuple(p.key for p in speaking if p.tier == tier and not p.staged) for tier in TIERS}
    staged = tuple(p for p in speaking if p.staged)
    entries = [entry for policy in speaking for entry in _entries(policy, direction, own, numbers)]

    def cell(found: Iterable[_Entry]) -> Cell:
        return _tiers(direction, names, staged, list(found))

    otherwise = cell(e for e in entries if e.ports is None)
    ports, ranges, protocols = [], [], []
    for protocol in NAMES:
        some = [e for e in entries if e.ports is None or e.ports.protocol == protocol]
        whole = Ports(protocol, 0, LAST_PORT)
        default = cell(e for e in some if e.ports in (None, whole))
        if default != otherwise:
            protocols.append((protocol, default))
        for first, last, made in _atoms(some, cell):
            if made == default:
                continue
            if first == last:
                ports.append((protocol, first, made))
            else:
                ranges.append((Ports(protocol, first, last), made))
    return Group(direction, tuple(ports), tuple(ranges), tuple(protocols), otherwise)


def _tiers(
    direction: Direction, names: Mapping[Tier, tuple[str, ...]], staged: tuple[Policy, ...], found: list[_Entry]
) -> Cell:
    """Returns the cell of these entries. Who is selected by a NetworkPolicy is not judged by the last tier. A policy
    that is not in force is looked at where it would judge; one of the tier admin, before all others.
    """
    strict = [e for e in found if not e.staged]
    ordered = {tier: _in_order(e for e in strict if e.tier == tier) for tier in ("admin", "baseline")}
    after: Cell | None = None
    if names["namespaces"]:
        steps = _steps(e for e in strict if e.tier == "namespaces")
        after = Cell(direction, steps, "deny", names["namespaces"])
    else:
        if ordered["baseline"]:
            after = Cell(direction, ordered["baseline"], "allow", names["baseline"])
        for steps in _previews([p for p in staged if p.tier != "admin"], found):
            after = Cell(direction, steps, "allow", (), after)
    if ordered["admin"] or after is None:
        after = Cell(direction, ordered["admin"], "allow", names["admin"] or names["baseline"], after)
    for steps in _previews([p for p in staged if p.tier == "admin"], found):
        after = Cell(direction, steps, "allow", (), after if after.steps else None)
    return after


def _previews(staged: list[Policy], found: list[_Entry]) -> Iterator[tuple[Step, ...]]:
    """Yields the steps that log what policies would deny that are not in force: of each of the administrator's, and of
    all NetworkPolicies, which add up.
    """
    for policy in staged:
        if policy.tier != "namespaces":
            own = _in_order(e for e in found if e.origin.policy == policy.key and e.tier == policy.tier)
            if any(step.action == "deny" for step in own):
                yield tuple(step._replace(action="log" if step.action == "deny" else "pass") for step in own)
    names = [policy.key for policy in staged if policy.tier == "namespaces"]
    allowed = _steps(e for e in found if e.staged and e.tier == "namespaces")
    if names and allowed[0].peer is not None:
        denied = Step(None, "log", tuple(Origin(name, NO_RULE) for name in names))
        yield (*(step._replace(action="pass") for step in allowed), denied)


def _in_order(entries: Iterable[_Entry]) -> tuple[Step, ...]:
    """Returns the steps of a tier in which the first rule that fits decides."""
    found: dict[Peer | None, Step] = {}
    for entry in entries:
        for peer in (None,) if entry.peers is None else entry.peers:
            found.setdefault(peer, Step(peer, entry.action, (entry.origin,)))
        if None in found:
            break
    return tuple(found.values())


def _atoms(entries: list[_Entry], cell: Callable[[Iterable[_Entry]], Cell]) -> Iterator[tuple[int, int, Cell]]:
    """Yields ports as ranges that no entry splits, with neighbours joined where their cells are equal."""
    bounds = sorted({b for e in entries if e.ports for b in (e.ports.first, e.ports.last + 1)} | {0, LAST_PORT + 1})
    joined: tuple[int, int, Cell] | None = None
    for first, end in pairwise(bounds):
        if first > LAST_PORT:
            break
        made = cell(e for e in entries if e.ports is None or e.ports.first <= first <= e.ports.last)
        if joined is not None and joined[2] == made:
            joined = (joined[0], end - 1, made)
            continue
        if joined is not None:
            yield joined
        joined = (first, end - 1, made)
    if joined is not None:
        yield joined


def _entries(policy: Policy, direction: Direction, own: Resolve, numbers: Numbers) -> Iterator[_Entry]:
    for index, rule in enumerate(policy.rules(direction) or ()):
        entry = _Entry(None, rule.peers, Origin(policy.key, index), policy.tier, rule.action, policy.staged)
        if rule.ports is None:
            yield entry
        for port in rule.ports or ():
            if isinstance(port, Ports):
                yield entry._replace(ports=port)
            elif direction == "ingress":
                yield from (entry._replace(ports=Ports(port.protocol, n, n)) for n in own(port))
            else:
                yield from _named(port, entry, numbers)


def _named(port: Named, entry: _Entry, numbers: Numbers) -> Iterator[_Entry]:
    """Yields what a named port of an egress rule means: the destination says which number it has. Only pods have named
    ports, so of an ipBlock it means the pods there.
    """
    for peer in named_peers(entry.peers):
        for number in numbers(peer, port):
            only = peer._replace(port=(port, number))
            yield entry._replace(ports=Ports(port.protocol, number, number), peers=(only,))


def named_peers(peers: tuple[Peer, ...] | None) -> Iterator[Pods]:
    """Yields the pods that the peers of a rule are, whatever ports they have."""
    every = Pods(EVERYWHERE, (), ())
    for peer in (every,) if peers is None else peers:
        if isinstance(peer, Pods):
            yield peer
        elif isinstance(peer, Block):
            yield every._replace(block=peer)


def _steps(entries: Iterable[_Entry]) -> tuple[Step, ...]:
    """Returns the steps of the tier in which every rule allows: their order means nothing, so it is canonical, and a
    step for everybody makes all others useless.
    """
    found: dict[Peer | None, set[Origin]] = {}
    for entry in entries:
        for peer in (None,) if entry.peers is None else entry.peers:
            found.setdefault(peer, set()).add(entry.origin)
    if None in found:
        return (Step(None, "allow", tuple(sorted(found[None]))),)
    steps = (Step(peer, "allow", tuple(sorted(found[peer]))) for peer in sorted(found, key=repr))
    return (*steps, Step(Itself(), "allow", ()))  # last, so that only what else is denied is compared
