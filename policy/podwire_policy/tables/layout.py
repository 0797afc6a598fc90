"""The tables `podwire-policy` as data: sets, chains and rules, named by digests of their content. Pure.

    forward   established and related packets pass: a flow is judged once, and its answers are free
              saddr . daddr . proto . sport . dport @cut   of a flow that a change ended: TCP reset, else drop. The same
              in a nat chain before the translation of Services, which sees first packets alone: the client that dialled
              a Service gets the reset from the address that it dialled
              iifname podwire0 saddr @judged else drop, and so with daddr: pods that nobody has judged yet
              saddr vmap @pods-out     pods that a policy isolates in egress: jump to their group; a return allows
              daddr vmap @pods-in      the same in ingress: goto
    g-DIGEST  a group: the port chooses the cell
              proto . dport vmap @p-DIGEST; tcp dport 8000-8999 goto ...; tcp goto ...; goto ...
    c-DIGEST  a cell: one lookup for each selector of its ports, then the drop with its counter
              saddr @s-DIGEST accept; saddr @b-DIGEST accept; saddr . daddr @self accept (a pod to itself, by a
              Service); limit log; counter drop. The cell of a ClusterNetworkPolicy also drops, or passes on: goto the
              next tier's. The cell of a policy that is not in force logs and counts in place of a drop, and passes on

A name is a digest of what it names, so a change adds chains, turns the element of `pods-in` or `pods-out`, and deletes
what nobody uses, in one commit, and a role that starts recognises what is there.
"""

from __future__ import annotations

import functools
import hashlib
import ipaddress
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal, NamedTuple

from podwire_base.kernel import nflog
from podwire_base.kernel.ip import Family, packed
from podwire_base.kernel.nft import ruleset as nft
from podwire_base.kernel.nft.expr import R0, Expr
from podwire_base.kernel.nft.objects import INTERVAL_END
from podwire_base.kernel.reasons import Reason, carrying

from ..cells import NO_RULE, Cell, Group, Origin, Step
from ..compiled import Compiled
from ..model import PROTOCOLS, Block, Direction, Itself, Peer, Pods

TABLE_NAME = "podwire-policy"
TCP = PROTOCOLS["TCP"]
LAYOUT = 2  # of these tables: raised by a change that an older role would misread
PRIORITY = 10  # behind the chains of other roles: what they refuse is answered with their reason
BRIDGE = b"podwire0".ljust(16, b"\0")
CT_ESTABLISHED, CT_RELATED = 2, 4
BEFORE_SERVICES, RAW = -105, -300  # priorities: of the proxy's nat chain less five, and before conntrack
LOGGED = 100  # packets of one rule that are logged each second, and at once
CUT = "cut"
CUT_SECONDS = 120  # for which the packets of a flow that a change ended are refused, also if the server speaks next
BASE_CHAINS = ("forward", "before-services")  # whose rules count packets
ON_NODE = "input"  # the chain that judges what pods send to their own node, where that is asked for
FIXED_SETS = ("self", "judged", "pods-out", "pods-in")
_SADDR = {"ip": (12, 4), "ip6": (8, 16)}
_ROOM = 64  # bytes of a comment for the names of policies
_DADDR = {"ip": (16, 4), "ip6": (24, 16)}
_TYPE = {"ip": "ipv4_addr", "ip6": "ipv6_addr"}


class Fixed(NamedTuple):
    """What the rules depend on beside policies. logs: packets that are dropped are logged. own_node: what pods send to
    their own node is judged too. ranges: CIDRs in which an address that nobody has judged is dropped, on a node whose
    pods another program wires.
    """

    logs: bool = True
    own_node: bool = False
    ranges: tuple[str, ...] = ()


@functools.lru_cache(maxsize=1 << 16)
def digest(thing: object) -> str:
    """Returns 12 hexadecimal digits that name the content."""
    return hashlib.sha256(repr(thing).encode()).hexdigest()[:12]


def group_chain(group: Group) -> str:
    return f"g-{digest(group)}"


def cell_chain(cell: Cell) -> str:
    return f"c-{digest(cell)}"


def cell_chain_of(family: Family, cell: Cell) -> nft.Chain:
    return nft.Chain(table(family), cell_chain(cell))


def table(family: Family) -> nft.Table:
    return nft.Table(family, TABLE_NAME)


def peer_set(family: Family, peer: Pods | Block) -> nft.Set:
    if isinstance(peer, Pods):
        return nft.Set(table(family), f"s-{digest(peer)}", (_TYPE[family],))
    return nft.Set(table(family), f"b-{digest(peer)}", (_TYPE[family],), interval=True)


def port_map(family: Family, group: Group) -> nft.Set:
    return nft.Set(table(family), f"p-{digest(group)}", ("inet_proto", "inet_service"), ("verdict",))


def cut_set(family: Family) -> nft.Set:
    """Returns the set of the tuples of flows that a change ended."""
    kinds = (_TYPE[family], _TYPE[family], "inet_proto", "inet_service", "inet_service")
    return nft.Set(table(family), CUT, kinds, timeout=CUT_SECONDS)


def cut_key(source: str, destination: str, protocol: int, source_port: int, destination_port: int) -> bytes:
    ports = (port.to_bytes(2, "big") for port in (source_port, destination_port))
    return nft.key(packed(source), packed(destination), bytes((protocol,)), *ports)


def _is_cut(family: Family) -> tuple[Expr, ...]:
    words = _SADDR[family][1] // 4
    ports = (nft.Payload("transport", at, 2, dreg=R0 + 2 * words + n) for n, at in ((1, 0), (2, 2)))
    addresses = (_address(family, "ingress"), _address(family, "egress", R0 + words))
    return *addresses, nft.Meta("l4proto", R0 + 2 * words), *ports, nft.Lookup(CUT)


def _cuts(family: Family) -> list[tuple[str, tuple[Expr, ...]]]:
    told, found = carrying("of a flow that a change of policies ended", Reason.POLICY), _is_cut(family)
    tcp = (nft.Meta("l4proto"), nft.Cmp(bytes((TCP,))))
    return [
        (told, (*tcp, *found, nft.Counter(), nft.Reject(family, tcp_reset=True))),
        (told, (*found, nft.Counter(), nft.drop())),
    ]


def beside(family: Family, fixed: Fixed) -> list[tuple[nft.Chain, list[nft.Rule]]]:
    """Returns the chains beside `base`: those that end flows, and one for packets to the node itself if they are
    judged. The role itself sends segments to which both ends answer (cut.py); conntrack must not take them for a flow.
    """
    before = nft.Chain(table(family), "before-services", hook="prerouting", type="nat", priority=BEFORE_SERVICES)
    sent = nft.Chain(table(family), "provoking", hook="output", priority=RAW)
    provoked = "what the role sends to both ends of a flow that it ends"
    found = [
        (before, [nft.Rule(before, exprs, comment) for comment, exprs in _cuts(family)]),
        (sent, [nft.Rule(sent, (*_is_cut(family), nft.Notrack()), provoked)]),
    ]
    if fixed.own_node:
        into = nft.Chain(table(family), ON_NODE, hook="input", priority=PRIORITY)
        known, egress = _established(), (_address(family, "ingress"), nft.Lookup("pods-out", dreg=0))
        rules = [known, *_cuts(family), ("egress of a pod to its node", egress)]
        found.append((into, [nft.Rule(into, exprs, comment) for comment, exprs in rules]))
    return found


def _established() -> tuple[str, tuple[Expr, ...]]:
    zero = nft.host32(0)
    known = nft.Bitwise(nft.host32(CT_ESTABLISHED | CT_RELATED), zero), nft.Cmp(zero, "!=")
    return "a flow that was judged", (nft.Ct("state"), *known, nft.accept())


def fixed_set(family: Family, name: str) -> nft.Set:
    if name in ("self", "judged"):
        return nft.Set(table(family), name, (_TYPE[family],) * (2 if name == "self" else 1))
    return nft.Set(table(family), name, (_TYPE[family],), ("verdict",))


_SIDES: tuple[tuple[str, Literal["iifname", "oifname"], Direction], ...] = (
    ("from", "iifname", "ingress"),  # ingress: the source is the address
    ("to", "oifname", "egress"),
)


def logging(reason: Reason, words: str, logs: bool) -> list[tuple[Expr, ...]]:
    """Returns the end of the rule that logs a packet that the next rule drops, if `logs`. It is a rule of its own,
    because its limit would end the rule that drops.
    """
    return [(nft.Limit(LOGGED, LOGGED), nft.Log(nflog.GROUP, nflog.prefix(reason, words), nflog.LENGTH))] * logs


def base(family: Family, fixed: Fixed) -> tuple[nft.Chain, list[nft.Rule]]:
    """Returns the base chain with its rules."""
    chain = nft.Chain(table(family), "forward", hook="forward", priority=PRIORITY)
    rules: list[tuple[str, tuple[Expr, ...]]] = [
        _established(),
        *_cuts(family),
        *(rule for side in _SIDES for rule in _unjudged(family, *side, fixed)),
        ("egress of a pod", (_address(family, "ingress"), nft.Lookup("pods-out", dreg=0))),
        ("ingress of a pod", (_address(family, "egress"), nft.Lookup("pods-in", dreg=0))),
    ]
    return chain, [nft.Rule(chain, exprs, comment) for comment, exprs in rules]


def _unjudged(
    family: Family, side: str, device: Literal["iifname", "oifname"], direction: Direction, fixed: Fixed
) -> Iterator[tuple[str, tuple[Expr, ...]]]:
    here: list[tuple[str, tuple[Expr, ...]]] = [("", (nft.Meta(device), nft.Cmp(BRIDGE), _address(family, direction)))]
    for cidr in fixed.ranges:
        if of(family, cidr):
            net = ipaddress.ip_network(cidr)
            masked = nft.Bitwise(net.netmask.packed, bytes(len(net.netmask.packed)), dreg=R0 + 4)
            within = nft.Cmp(net.network_address.packed, sreg=R0 + 4)
            here.append((f" of {cidr}", (_address(family, direction), masked, within)))
    for where, match in here:
        words = f"{side} a pod{where} that nobody has judged yet"
        found = (*match, nft.Lookup("judged", invert=True))
        yield from ((f"logged: {words}", (*found, *end)) for end in logging(Reason.POLICY, words, fixed.logs))
        yield carrying(words, Reason.POLICY), (*found, nft.Counter(), nft.drop())


def _address(family: Family, direction: Direction, dreg: int = R0) -> nft.Payload:
    """Loads the address of the other end, as a pod's ingress (the source) or egress (the destination) sees it."""
    at, size = (_SADDR if direction == "ingress" else _DADDR)[family]
    return nft.Payload("network", at, size, dreg=dreg)


def mark(family: Family, fixed: Fixed) -> nft.Chain:
    """An empty chain whose name says the layout and a digest of the fixed rules."""
    rules = [rule for _, some in (base(family, fixed), *beside(family, fixed)) for rule in some]
    told = [(rule.comment, b"".join(e.encode() for e in rule.exprs)) for rule in rules]
    return nft.Chain(table(family), f"layout-{LAYOUT}-{digest(repr(told))}")


def layout_of(chain: nft.Chain) -> int:
    """Returns the layout that a chain of the table names; 0 for any other chain."""
    words = chain.name.split("-")
    ours = chain.table.name == TABLE_NAME and words[0] == "layout" and len(words) == 3 and words[1].isdigit()
    return int(words[1]) if ours else 0


def group_rules(family: Family, group: Group) -> tuple[nft.Chain, list[nft.Rule]]:
    """Returns the chain of a group, which chooses the cell."""
    chain = nft.Chain(table(family), group_chain(group))
    rules: list[tuple[Expr, ...]] = []
    protocol, port = nft.Meta("l4proto"), nft.Payload("transport", 2, 2, dreg=R0 + 1)
    if group.ports:
        rules.append((protocol, port, nft.Lookup(port_map(family, group).name, dreg=0)))
    for ports, cell in group.ranges:
        first, last = (nft.Cmp(n.to_bytes(2, "big"), sreg=R0 + 1) for n in (ports.first, ports.last))
        within = (replace(first, op=">="), replace(last, op="<="))
        rules.append((protocol, nft.Cmp(bytes((ports.protocol,))), port, *within, nft.goto(cell_chain(cell))))
    for number, cell in group.protocols:
        rules.append((protocol, nft.Cmp(bytes((number,))), nft.goto(cell_chain(cell))))
    rules.append((nft.goto(cell_chain(group.otherwise)),))
    return chain, [nft.Rule(chain, exprs, str(index)) for index, exprs in enumerate(rules)]


def port_elements(family: Family, group: Group) -> nft.Elements:
    return nft.Elements(
        port_map(family, group),
        {
            nft.key(bytes((protocol,)), port.to_bytes(2, "big")): nft.Verdict(_GOTO, cell_chain(cell))
            for protocol, port, cell in group.ports
        },
    )


_GOTO, _JUMP = nft.goto("x").value.code, nft.jump("x").value.code  # type: ignore[union-attr]  # always a Verdict


def cell_rules(family: Family, cell: Cell, logs: bool) -> tuple[nft.Chain, list[nft.Rule]]:
    """Returns the chain of a cell. In egress an allowed packet returns, because its ingress is still to be judged.
    logs: packets that are dropped, or would be, are logged.
    """
    chain = cell_chain_of(family, cell)
    allow = nft.accept() if cell.direction == "ingress" else nft.ret()
    onward = allow if cell.after is None else nft.goto(cell_chain(cell.after))
    rules: list[nft.Rule] = []
    for step in cell.steps:
        if isinstance(step.peer, Block) and family_of(step.peer) != family:
            continue
        verdict: tuple[Expr, ...] = (onward if step.action == "pass" else allow,)
        told, match = _told(cell, step), _is_peer(family, cell.direction, step.peer)
        if step.action in ("deny", "log"):
            reason, end = (Reason.POLICY, nft.drop()) if step.action == "deny" else (Reason.STAGED, onward)
            ends = logging(reason, told, logs)
            rules += [nft.Rule(chain, (*match, *logged), f"logged: {told}") for logged in ends]
            verdict, told = (nft.Counter(), end), carrying(told, reason)
        rules.append(nft.Rule(chain, (*match, *verdict), told))
        if step.peer is None:
            return chain, rules
    if cell.after is not None:
        return chain, [*rules, nft.Rule(chain, (onward,), "the next tier")]
    if cell.otherwise == "allow":
        return chain, [*rules, nft.Rule(chain, (allow,), "no rule denies it")]
    words = _allowed_by_none(cell.direction, cell.policies)
    rules += [nft.Rule(chain, end, f"logged: {words}") for end in logging(Reason.POLICY, words, logs)]
    return chain, [*rules, nft.Rule(chain, (nft.Counter(), nft.drop()), carrying(words, Reason.POLICY))]


def counted(cell: Cell) -> dict[str, tuple[Reason, tuple[Origin, ...]]]:
    """Returns comment -> reason and rules of the rules of a cell that count packets."""
    found = {
        carrying(_told(cell, step), reason): (reason, step.origins)
        for step in cell.steps
        if (reason := {"deny": Reason.POLICY, "log": Reason.STAGED}.get(step.action))
    }
    if cell.after is None and cell.otherwise == "deny":
        none = tuple(Origin(name, NO_RULE) for name in cell.policies)
        found[carrying(_allowed_by_none(cell.direction, cell.policies), Reason.POLICY)] = Reason.POLICY, none
    return found


def _allowed_by_none(direction: Direction, policies: tuple[str, ...]) -> str:
    return f"{direction}: no rule of {_named(policies)} allows it"


def _told(cell: Cell, step: Step) -> str:
    """Returns what the rule of a step says to people: the first of the rules that the step is from."""
    if not step.origins:
        return f"{cell.direction}: a pod to itself"
    first = step.origins[0]
    if first.rule == NO_RULE:
        return _allowed_by_none(cell.direction, tuple(one.policy for one in step.origins))
    does = {"allow": "allows", "deny": "denies", "pass": "passes on", "log": "denies"}[step.action]
    return f"{cell.direction}: rule {first.rule} of {_named((first.policy,))} {does} it"


def _is_peer(family: Family, direction: Direction, peer: Peer | None) -> tuple[Expr, ...]:
    if peer is None:
        return ()
    if isinstance(peer, Itself):
        words = _SADDR[family][1] // 4
        return _address(family, "ingress"), _address(family, "egress", R0 + words), nft.Lookup("self")
    return _address(family, direction), nft.Lookup(peer_set(family, peer).name)


def _named(policies: tuple[str, ...]) -> str:
    """Returns the names of policies, as many as a comment and the prefix of a log hold: 126 bytes, with the words round
    them. A name that has no room alone is cut.
    """
    told, room = list[str](), _ROOM
    for name in policies:
        room -= len(name) + 2
        if room < 0:
            break
        told.append(name)
    if policies and not told:
        told = [f"{policies[0][: _ROOM - 5]}..."]
    more = len(policies) - len(told)
    return ", ".join(told) + (f" and {more} more" if more else "")


def family_of(block: Block) -> Family:
    return "ip6" if ":" in block.cidr else "ip"


@functools.lru_cache(maxsize=1 << 12)
def block_elements(family: Family, block: Block) -> nft.Elements:
    """Returns the addresses of a block as the ends of its intervals."""
    net = ipaddress.ip_network(block.cidr)
    size, first, last = net.max_prefixlen // 8, int(net.network_address), int(net.broadcast_address)
    holes = sorted(
        (int(hole.network_address), int(hole.broadcast_address))
        for hole in map(ipaddress.ip_network, block.excepts)
        if hole.version == net.version
    )
    items: dict[bytes, nft.Value] = {}
    for low, high in [*holes, (last + 1, last + 1)]:
        if low > first:
            end = min(low, last + 1)
            items[first.to_bytes(size, "big")] = None
            if end < 1 << (size * 8):
                items[end.to_bytes(size, "big")] = INTERVAL_END
        first = max(first, high + 1)
        if first > last:
            break
    return nft.Elements(peer_set(family, block), items)


def members(family: Family, selector: Pods, addresses: Iterator[str] | set[str]) -> nft.Elements:
    return nft.Elements(peer_set(family, selector), {packed(ip): None for ip in addresses if of(family, ip)})


def of(family: Family, ip: str) -> bool:
    return (":" in ip) == (family == "ip6")


def dispatch(family: Family, compiled: Compiled, ip: str) -> dict[str, tuple[bytes, nft.Value]]:
    """Returns the element of each fixed set that judges this address; {} if nothing does."""
    judged = compiled.addresses.get(ip)
    if judged is None or not of(family, ip):
        return {}
    found: dict[str, tuple[bytes, nft.Value]] = {"judged": (packed(ip), None)}
    if judged.egress is not None or judged.ingress is not None:
        found["self"] = packed(ip) * 2, None
    if judged.egress is not None:
        found["pods-out"] = packed(ip), nft.Verdict(_JUMP, group_chain(judged.egress))
    if judged.ingress is not None:
        found["pods-in"] = packed(ip), nft.Verdict(_GOTO, group_chain(judged.ingress))
    return found
