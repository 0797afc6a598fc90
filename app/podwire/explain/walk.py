"""Walks a packet through one node: every base chain in its way, the Service decision, the route, and the endpoint if it
is here. Pure: the kernel's facts come from observe.py.

The order is that of docs/hooks.md. The rules of the Service proxy are evaluated as a whole where they translate, by
their backend; every other chain by judge.py. A step that is no base chain, as a program of eBPF, joins LEAVING or
ENTERING.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from podwire_base.kernel.ip import unpacked
from podwire_base.kernel.nft.anytable import AnyChain, AnyTable
from podwire_base.kernel.nft.judge import Possible, Seen, certain, judge
from podwire_base.kernel.reasons import reason_of, without_reason
from podwire_proxy import explain as services
from podwire_proxy.decide import Packet, source
from podwire_proxy.hostfacts import owner_of
from podwire_proxy.model import PROTOCOLS

from . import arrive, devices, legacy
from .facts import Facts, Route
from .packets import Asked, destination, first_seen, redirected
from .steps import Step, Walk, Way, fault

_DSTNAT, _SRCNAT = -100, 100
_OURS = ("podwire-cni", "podwire-leases", "podwire-tunnel", "podwire-dns", "podwire-policy", "podwire-trace")
_FULL = 0.999


# A further step gets the packet as it is there, and returns the end of its way, or None if the packet passes.
Stage = Callable[[Facts, Asked, Seen], Way | None]
LEAVING: list[Stage] = []  # a packet enters the node's stack, before the Service decision
ENTERING: list[Stage] = []  # behind the route and all chains, before its receiver gets it


@dataclass(frozen=True, slots=True)
class _Base:
    """A base chain in the packet's way. run: the possible ends for a packet."""

    place: str
    owner: str
    priority: int
    nat: bool
    run: Callable[[Seen], list[Possible]]
    quiet: bool  # no rule, policy accept


def _is_proxys(chain: str) -> bool:
    return chain.startswith("PODWIRE-")


def bases(facts: Facts, family: str, hook: str) -> list[_Base]:
    """Returns the base chains of a hook in their order, without those of the Service proxy."""
    found = []
    families = (family,) if family == "bridge" else (family, "inet")
    for table in facts.tables:
        for chain in table.chains.values() if table.family in families and table.name != "podwire" else ():
            if chain.hook == hook:
                found.append(_base(table, chain))
    for one in legacy.parse(facts.legacy.get(family, "")):
        for name in one.policies:
            if legacy.HOOKS.get(name) == hook:
                found.append(_legacy_base(one, name, hook))
    # all nat chains run where the kernel translates, in the order of their priorities
    at = _DSTNAT if hook in ("prerouting", "output") else _SRCNAT
    return sorted(found, key=lambda base: (at if base.nat else base.priority, base.priority))


def _base(table: AnyTable, chain: AnyChain) -> _Base:
    return _Base(
        f"{table.family} {table.name} {chain.name}",
        "podwire" if table.name in _OURS else "",
        chain.priority,
        chain.type == "nat",
        lambda seen: judge(table, chain, replace(seen, family=table.family), _is_proxys),
        not chain.rules and chain.policy == "accept",
    )


def _legacy_base(table: legacy.LegacyTable, name: str, hook: str) -> _Base:
    priority = legacy.PRIORITIES.get(table.name, 0)
    if table.name == "nat" and hook in ("input", "postrouting"):
        priority = _SRCNAT
    return _Base(
        f"iptables-legacy {table.name} {name}",
        "",
        priority,
        table.name == "nat",
        lambda seen: legacy.judge(table, name, seen, _is_proxys),
        not table.chains[name] and table.policies[name] == "accept",
    )


@dataclass(slots=True)
class _Course:
    """A packet on its way through the node, with what was found so far."""

    facts: Facts
    asked: Asked
    seen: Seen
    steps: list[Step] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)

    def through(self, hook: str, chains: list[_Base]) -> Way | None:
        """Passes the chains. Returns the end of the way, or None if the packet passes."""
        passed: list[str] = []
        for base in chains:
            if base.nat and (self.asked.reply or self.seen.translated):  # only first packets are translated
                continue
            ends = base.run(self.seen)
            verdict = certain(ends)
            if verdict in ("drop", "reject"):
                self._passed(hook, passed)
                return self._ended(base, hook, ends[0], verdict)
            end = ends[0]
            if verdict == "translate":
                self._translate(base, end)
            elif verdict == "unknown":
                self._passed(hook, passed)
                self._doubt(base, hook, ends)
                passed = []
            elif not base.owner:
                passed.append(base.place)
            if verdict in ("accept", "translate") and end.seen is not None:
                self.seen = replace(self.seen, mark=end.seen.mark, ct_mark=end.seen.ct_mark)
        self._passed(hook, passed)
        return None

    def _passed(self, hook: str, places: list[str]) -> None:
        if places:
            self.steps.append(Step("chains", f"{hook}: {', '.join(places)}: accept", "accept"))

    def _doubt(self, base: _Base, hook: str, ends: list[Possible]) -> None:
        bad = next((end for end in ends if end.verdict in ("drop", "reject", "unknown")), None)
        if bad is None:  # the ends differ only in the translation
            return
        what = bad.unknown or "its rules"
        text = f"{hook}: {base.place}: cannot tell: {_rule_words(base, bad)} may {bad.verdict} it, by {what!r}"
        if bad.verdict == "unknown":
            text = f"{hook}: {base.place}: cannot tell: {_rule_words(base, bad)} hands it to another program ({what})"
        self.steps.append(Step("chains", text, "unknown"))
        self.doubts.append(text)

    def _ended(self, base: _Base, hook: str, end: Possible, verdict: str) -> Way:
        comment = end.rule.comment if end.rule else ""
        code = reason_of(comment) if base.owner else None
        where = _rule_words(base, end)
        words = f"{hook}: {base.place}: {where}: {verdict}"
        self.steps.append(Step("chains", words, verdict))
        if code is not None:
            cause = f"{without_reason(comment)} ({where} of chain {base.place})"
        else:
            does = "drops" if verdict == "drop" else "rejects"
            cause = f"{where} of chain {base.place} ({hook}) {does} the packet"
        reason = str(code) if code is not None else fault.FOREIGN_RULE
        return Way(self.asked.dst, self.asked.port, self.asked.src, verdict=verdict, reason=reason, cause=cause)

    def _translate(self, base: _Base, end: Possible) -> None:
        if end.to is None:
            text = f"{base.place}: {_rule_words(base, end)} translates the destination, and the new one is not known"
            self.steps.append(Step("NAT", text, "unknown"))
            self.doubts.append(text)
            return
        address, port = end.to
        dst = unpacked(address) if address else unpacked(destination(self.seen))
        self.steps.append(Step("NAT", f"{base.place}, {_rule_words(base, end)}: to {dst}:{port or self.asked.port}"))
        self.seen = redirected(self.seen, dst, port or self.asked.port)


def _rule_words(base: _Base, end: Possible) -> str:
    """The rule that ended the way, with the program whose chain it is in where the name tells it."""
    program = "" if base.owner else owner_of(base.place.split()[1], end.chain)
    chain = f"{program}'s chain {end.chain}" if program else end.chain
    if end.rule is None:
        return f"the policy of {chain}" if program else "the chain's policy"
    if base.place.startswith("iptables-legacy"):
        return f"rule {end.rule.handle} of {chain} ({end.rule.comment})"
    where = "" if base.place.endswith(f" {end.chain}") and not program else f" of {chain}"
    words = f' "{without_reason(end.rule.comment)}"' if end.rule.comment else ""
    return f"the rule with handle {end.rule.handle}{where}{words}"


def walk(facts: Facts, asked: Asked) -> Walk:
    """Returns what becomes of a packet on this node."""
    if not asked.src:
        asked = replace(asked, src=facts.route(asked.dst, "", "").source or _any_address(facts, asked.dst))
    if asked.origin == "auto":
        asked = replace(asked, origin="node" if asked.src in facts.addresses else "link")
    iif = asked.interface
    if asked.origin == "link" and not iif:
        iif = facts.route(asked.src, "", "").dev
    course = _Course(facts, asked, first_seen(facts.addresses, facts.links, asked, iif))
    made = Walk(facts.name, str(asked), asked.src, course.steps)
    count, most = facts.conntrack
    if most and count >= _FULL * most and not asked.reply:
        cause = f"conntrack is full on {facts.name or 'this node'}: {count} of {most} flows, so a new one is dropped"
        made.ways = [Way(asked.dst, asked.port, asked.src, verdict="drop", reason=fault.CONNTRACK_FULL, cause=cause)]
        return made
    if asked.origin == "link":
        made.entry = iif, facts.links[iif].mtu if iif in facts.links else 0
        sender = facts.inside(asked.src)
        if sender is not None and sender.route(asked.dst, "", "").kind == "local":
            made.ways = [arrive.at_home(asked, sender)]
            return made
        reason, cause, made.gaps = arrive.leaving(facts, sender, asked.dst, iif) if sender else ("", "", [])
        if reason:
            verdict = "reject" if reason == fault.NO_ROUTE else "drop"
            made.ways = [Way(asked.dst, asked.port, asked.src, verdict=verdict, reason=reason, cause=cause)]
            return made
    made.ways = list(_ways(course, iif))
    made.doubts = list(dict.fromkeys(course.doubts))
    return made


def _any_address(facts: Facts, dst: str) -> str:
    """Returns an address of the node, for a destination without a route."""
    usable = [ip for ip in facts.addresses if (":" in ip) == (":" in dst) and not ip.startswith(("127.", "fe80:"))]
    return next((ip for ip in usable if ip != "::1"), "127.0.0.1" if "." in dst else "::1")


def _ways(course: _Course, iif: str) -> Iterator[Way]:
    """Everything before the route, then each way behind it."""
    asked, facts = course.asked, course.facts
    if asked.origin == "link" and (ended := _on_the_bridge(course, iif) or _on_device(course, "ingress", iif)):
        yield ended
        return
    hook = "output" if asked.origin == "node" else "prerouting"
    chains = bases(facts, asked.family, hook)
    early = [base for base in chains if not base.nat and base.priority < _DSTNAT]
    translating = [base for base in chains if base.nat]
    late = [base for base in chains if not base.nat and base.priority >= _DSTNAT]
    first = [base for base in translating if base.priority < _DSTNAT]
    if ended := course.through(hook, [*early, *first]) or _further(course, LEAVING):
        yield ended
        return
    if asked.reply or course.seen.translated:
        ways = [Way(unpacked(destination(course.seen)), _port(course.seen, asked), asked.src)]
    else:
        ways = list(_services(course))
    before = course.seen
    for index, way in enumerate(ways):
        if way.verdict:
            yield way
            continue
        # the steps of one way stand for those of all: they are told once
        one = _Course(facts, asked, before, course.steps if not index else [], course.doubts)
        if (way.ip, way.port) != (asked.dst, asked.port):
            one.seen = redirected(before, way.ip, way.port)
        if ended := one.through(hook, [*[b for b in translating if b not in first], *late]):
            yield ended
            continue
        if one.seen.translated and not asked.reply:
            way.ip, way.port = unpacked(destination(one.seen)), _port(one.seen, asked)
        yield _behind(one, way, iif)


def _port(seen: Seen, asked: Asked) -> int:
    if asked.protocol not in PROTOCOLS or asked.reply:
        return asked.port
    return (seen.transport[2] or 0) << 8 | (seen.transport[3] or 0)


def _on_the_bridge(course: _Course, iif: str) -> Way | None:
    """The chains that see a pod's frame before it is a packet of the node."""
    facts, asked = course.facts, course.asked
    sender = facts.inside(asked.src)
    if sender is None or not sender.port or facts.links.get(sender.port) is None:
        return None
    if facts.links[sender.port].master != iif:
        return None
    mac = next((link.mac for link in sender.links.values() if link.kind == "veth"), "")
    bridge = facts.links[iif].mac if iif in facts.links else ""
    if ended := _on_device(course, "ingress", sender.port):
        return ended
    seen = course.seen
    course.seen = replace(seen, iif=sender.port, ether=(bridge, mac), family="bridge")
    ended = course.through("bridge", bases(facts, "bridge", "prerouting")) or course.through(
        "bridge", bases(facts, "bridge", "input")
    )
    course.seen = seen
    return ended


def _on_device(course: _Course, hook: str, device: str) -> Way | None:
    """The chains of one device, before or behind all others."""
    chains = [_base(table, chain) for table, chain in devices.at(course.facts, hook, device)]
    return course.through(f"{hook} of {device}", sorted(chains, key=lambda base: base.priority)) if chains else None


def _to_device(course: _Course, way: Way, route: Route) -> Way | None:
    """What a packet passes behind postrouting: its device, and on the way to a pod the bridge and the pod's port."""
    facts = course.facts
    course.doubts += devices.neighbour_doubts(facts, route.dev, route.via)
    if ended := _on_device(course, "egress", route.dev):
        return ended
    receiver = facts.inside(way.ip)
    if receiver is None or not receiver.port or receiver.port not in facts.links:
        return None
    if facts.links[receiver.port].master != route.dev:
        return None
    seen = course.seen
    course.seen = replace(seen, family="bridge", iif="", oif=receiver.port)
    try:
        for hook in devices.BRIDGE_OUT:
            if ended := course.through(f"bridge {hook}", bases(facts, "bridge", hook)):
                return ended
        return _on_device(course, "egress", receiver.port)
    finally:
        course.seen = seen


def _services(course: _Course) -> Iterator[Way]:
    """The decision of the Service proxy's rules: one way for each endpoint."""
    facts, asked = course.facts, course.asked
    packet = Packet(
        asked.src,
        asked.dst,
        asked.protocol,  # type: ignore[arg-type]  # names.PROTOCOLS are the literals
        asked.port,
        node=asked.origin == "node",
        interface=course.seen.iif or "",
    )
    claims = {(asked.dst, asked.protocol, asked.port): asked.claim} if asked.claim else {}
    found = services.explain(facts.live, facts.info, packet, claims, facts.places)
    origin = source(packet, facts.info)
    course.steps += [step for line in found.lines if (step := _step(line)) is not None]
    if found.verdict is None:
        course.doubts.append(found.lines[-1].partition(" ")[2].strip())
        yield Way(asked.dst, asked.port, asked.src, origin=origin)
    elif found.verdict.kind in ("reject", "drop"):
        cause = found.lines[-1].partition(": ")[2]
        yield Way(
            asked.dst, asked.port, asked.src, verdict=str(found.verdict.kind),
            reason=str(found.verdict.reason or fault.FOREIGN_RULE), cause=cause, origin=origin,
        )  # fmt: skip
    elif found.to:
        for to, masquerade in found.to:
            yield Way(to.ip, to.port, asked.src, masquerade=masquerade, translated=True, origin=origin)
    else:
        yield Way(asked.dst, asked.port, asked.src, origin=origin)


def _step(line: str) -> Step | None:
    """A line of the proxy's explanation as a step; the verdict and the Service are told elsewhere."""
    stage, text = line[:12].strip(), line[13:]
    return None if stage in ("verdict", "NAT", "Service", "source") else Step(stage or "rules", text)


def _behind(course: _Course, way: Way, iif: str) -> Way:
    """The route of one way, the hooks behind it, and what is at its end on this node."""
    facts, asked = course.facts, course.asked
    own = asked.origin == "node"
    foreign = own and asked.src not in facts.addresses  # a refusal comes from the address that was dialled
    route = facts.route(way.ip, "" if foreign else asked.src, "" if own else iif)
    way.route, way.dev, way.via, way.mtu = str(route), route.dev, route.via, _mtu(facts, route, iif)
    hook = "" if own and route.kind != "local" else "input" if route.kind == "local" else "forward"
    if not route.good:
        return _no_route(course, way, route)
    told: list[Step] = []
    course.steps = told
    link = facts.links.get(route.dev)
    course.seen = replace(course.seen, oif="" if route.kind == "local" else route.dev)
    ended = None
    if hook == "forward" or (own and route.kind != "local"):
        if link is not None and route.kind == "unicast" and not (link.up and link.carrier):
            state = "down" if not link.up else "without carrier: its other end is down"
            ended = _cut(way, "drop", fault.LINK_DOWN, f"link {route.dev} of node {facts.name or 'here'} is {state}")
        ended = ended or (course.through("forward", bases(facts, asked.family, "forward")) if hook else None)
        ended = ended or _leaving(course, way, route) or _to_device(course, way, route)
    elif hook == "input":
        ended = _over_loopback(course, way, route) if own else None
        ended = ended or course.through("input", bases(facts, asked.family, "input"))
    way.steps = [*told]
    ended = ended or _further(course, ENTERING)
    if ended is not None:
        way.verdict, way.reason, way.cause = ended.verdict, ended.reason, ended.cause
        return way
    return arrive.arrive(facts, way, asked.protocol, route, reply=asked.reply)


def _over_loopback(course: _Course, way: Way, route: Route) -> Way | None:
    """A packet from the node to itself leaves by lo and comes in again. Its flow is known, so no nat chain sees it."""
    course.seen = replace(course.seen, oif="lo")
    if ended := _leaving(course, way, route):
        return ended
    course.seen = replace(course.seen, iif="lo", oif="")
    chains = bases(course.facts, course.asked.family, "prerouting")
    return course.through("prerouting", [base for base in chains if not base.nat])


def _further(course: _Course, stages: list[Stage]) -> Way | None:
    ends = (stage(course.facts, course.asked, course.seen) for stage in stages)
    return next((end for end in ends if end is not None), None)


def _cut(way: Way, verdict: str, reason: str, cause: str) -> Way:
    return replace(way, verdict=verdict, reason=reason, cause=cause)


def _no_route(course: _Course, way: Way, route: Route) -> Way:
    facts = course.facts
    if course.asked.origin == "link" and not facts.forwarding.get(course.asked.family, True):
        key = "net.ipv4.ip_forward" if course.asked.family == "ip" else "net.ipv6.conf.all.forwarding"
        cause = f"node {facts.name or 'here'} does not forward packets: {key} is 0"
        return _cut(way, "drop", fault.NO_FORWARDING, cause)
    where = f"node {facts.name}" if facts.name else "this node"
    # a route that cannot be used is answered with ICMP; a blackhole and a martian source are silent
    verdict = "drop" if route.kind in ("blackhole", "martian") else "reject"
    cause = f"{where} has no way to {way.ip}: {route.error or route.kind}"
    # the kernel removes the routes of a link that is set down
    down = [link.name for link in facts.links.values() if not link.up and not link.master and link.name != "lo"]
    cause += f"; its link {', '.join(down)} is down" if route.kind == "none" and down else ""
    return _cut(way, verdict, fault.NO_ROUTE, cause)


def _leaving(course: _Course, way: Way, route: Route) -> Way | None:
    """postrouting: further chains may drop the packet or give it another source."""
    facts, asked = course.facts, course.asked
    chains = bases(facts, asked.family, "postrouting")
    ended = course.through("postrouting", [base for base in chains if not base.nat])
    if ended is not None:
        return ended
    for base in chains if not asked.reply and not way.masquerade else ():
        if base.nat and certain(base.run(course.seen)) == "masquerade":
            way.masquerade = True
            break
    if way.masquerade:
        way.src = facts.route(way.ip, "", "").source or way.src
    return None


def _mtu(facts: Facts, route: Route, iif: str) -> int:
    link = facts.links.get(route.dev)
    sizes = [size for size in (route.mtu, link.mtu if link else 0) if size]
    return min(sizes, default=0)
