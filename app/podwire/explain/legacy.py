"""What chains of iptables-legacy do with a packet, from the text of iptables-save. Pure.

The results are those of kernel/nft/judge.py: what cannot be evaluated may match or not.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from podwire_base.kernel.ip import unpacked
from podwire_base.kernel.nft.anytable import AnyRule
from podwire_base.kernel.nft.judge import CT_ESTABLISHED, CT_NEW, CT_RELATED, Possible, Seen
from podwire_proxy.iptables.text import Parsed, take_apart

PRIORITIES = {"raw": -300, "mangle": -150, "nat": -100, "filter": 0, "security": 50}
HOOKS = {
    "PREROUTING": "prerouting",
    "INPUT": "input",
    "FORWARD": "forward",
    "OUTPUT": "output",
    "POSTROUTING": "postrouting",
}
_TERMINAL = {
    "DROP": "drop", "REJECT": "reject", "ACCEPT": "accept", "MASQUERADE": "masquerade", "SNAT": "masquerade",
    "DNAT": "translate", "REDIRECT": "translate",
}  # fmt: skip
_PASSING = {"LOG", "NFLOG", "MARK", "CONNMARK", "CT", "TRACE", "CHECKSUM", "TCPMSS", "SET", "NOTRACK", "AUDIT"}
_TYPES = {"UNICAST": 1, "LOCAL": 2, "BROADCAST": 3}
_NUMBERS = {"tcp": 6, "udp": 17, "sctp": 132, "icmp": 1, "ipv6-icmp": 58, "icmpv6": 58, "all": 0}
_MOST = 16


@dataclass(frozen=True, slots=True)
class LegacyTable:
    """policies: built-in chain -> its policy in small letters. chains: name -> rules."""

    name: str
    policies: dict[str, str] = field(default_factory=dict)
    chains: dict[str, list[str]] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"iptables-legacy table {self.name}"


def parse(text: str) -> list[LegacyTable]:
    found: list[LegacyTable] = []
    for line in text.splitlines():
        if line.startswith("*"):
            found.append(LegacyTable(line[1:]))
        elif line.startswith(":") and found:
            name, policy = line[1:].split()[:2]
            found[-1].chains.setdefault(name, [])
            if policy != "-":
                found[-1].policies[name] = policy.lower()
        elif line.startswith("-A ") and found:
            _, name, rule = line.split(" ", 2)
            found[-1].chains.setdefault(name, []).append(rule)
    return found


def judge(table: LegacyTable, chain: str, seen: Seen, skip: Callable[[str], bool]) -> list[Possible]:
    """Returns the possible ends of the packet's way through a built-in chain."""
    ends = list(_chain(table, chain, seen, skip, 0))
    policy = table.policies.get(chain, "accept")
    return [
        Possible(policy, None, chain, None, e.seen, e.unknown) if e.verdict in ("next", "return") else e for e in ends
    ]


def _chain(table: LegacyTable, name: str, seen: Seen, skip: Callable[[str], bool], depth: int) -> Iterator[Possible]:
    doubt = ""
    for number, text in enumerate(table.chains.get(name, ()), 1):
        rule = take_apart(text)
        match, why = _matches(rule, seen)
        if match == "no":
            continue
        told = AnyRule(number, text, ())
        if match == "perhaps":
            doubt = doubt or why
        target = rule.target
        if target in _TERMINAL or target == "RETURN":
            yield Possible(_TERMINAL.get(target, "return"), told, name, None, seen, doubt)
        elif target in table.chains and not skip(target) and depth < _MOST:
            inner = list(_chain(table, target, seen, skip, depth + 1))
            yield from (replace_doubt(e, doubt) for e in inner if e.verdict not in ("next", "return"))
            if all(e.verdict not in ("next", "return") for e in inner) and match == "yes":
                return
            continue
        elif target and target not in _PASSING and target not in table.chains:
            yield Possible("unknown", told, name, None, seen, doubt or target)
        else:
            continue
        if match == "yes":
            return
    yield Possible("next", None, name, None, seen, doubt)


def replace_doubt(end: Possible, doubt: str) -> Possible:
    return end._replace(unknown=doubt or end.unknown)


def _matches(rule: Parsed, seen: Seen) -> tuple[str, str]:
    """Returns ("yes" | "no" | "perhaps", the option that cannot be evaluated)."""
    doubt = ""
    for name, arguments, negated in rule.options:
        test = _TESTS.get(name)
        hit = None if test is None else test(arguments, seen)
        if hit is None:
            doubt = doubt or name
        elif hit == negated:
            return "no", ""
    return ("perhaps", doubt) if doubt else ("yes", "")


def _within(cidr: str, seen: Seen, of: str) -> bool | None:
    size, source, destination = (4, 12, 16) if len(seen.network) == 20 else (16, 8, 24)
    at = source if of == "saddr" else destination
    raw = bytes(b or 0 for b in seen.network[at : at + size])
    address, _, mask = cidr.partition("/")
    if mask and not mask.isdecimal():
        bits = zip(raw, ipaddress.ip_address(address).packed, ipaddress.ip_address(mask).packed, strict=True)
        return all(a & m == b for a, b, m in bits)
    return ipaddress.ip_address(unpacked(raw)) in ipaddress.ip_network(cidr, strict=False)


def _link(wanted: str, found: str | None) -> bool | None:
    if found is None:
        return None
    return found.startswith(wanted[:-1]) if wanted.endswith("+") else found == wanted


def _ports(listed: str, seen: Seen) -> bool:
    port = (seen.transport[2] or 0) << 8 | (seen.transport[3] or 0)
    spans = (one.partition(":") for one in listed.split(","))
    return any(int(first) <= port <= int(last or first) for first, _, last in spans)


def _state(listed: str, seen: Seen) -> bool:
    states = {"NEW": CT_NEW, "ESTABLISHED": CT_ESTABLISHED, "RELATED": CT_RELATED}
    return any(states.get(word) == seen.state or (word == "DNAT" and seen.translated) for word in listed.split(","))


def _mark(wanted: str, seen: Seen) -> bool | None:
    value, _, mask = wanted.partition("/")
    return None if seen.mark is None else seen.mark & int(mask or "0xffffffff", 0) == int(value, 0)


def _kind(wanted: str, seen: Seen, of: str) -> bool | None:
    size, source, destination = (4, 12, 16) if len(seen.network) == 20 else (16, 8, 24)
    at = source if of == "saddr" else destination
    number = _TYPES.get(wanted)
    return None if number is None else seen.fib(of, bytes(b or 0 for b in seen.network[at : at + size])) == number


_TESTS: dict[str, Callable[[tuple[str, ...], Seen], bool | None]] = {
    "-s": lambda a, seen: _within(a[0], seen, "saddr"),
    "-d": lambda a, seen: _within(a[0], seen, "daddr"),
    "-i": lambda a, seen: _link(a[0], seen.iif),
    "-o": lambda a, seen: _link(a[0], seen.oif),
    "-p": lambda a, seen: _NUMBERS.get(a[0], -1) in (0, seen.protocol) or a[0] == str(seen.protocol),
    "--dport": lambda a, seen: _ports(a[0], seen),
    "--dports": lambda a, seen: _ports(a[0], seen),
    "--ctstate": lambda a, seen: _state(a[0], seen),
    "--state": lambda a, seen: _state(a[0], seen),
    "--mark": lambda a, seen: _mark(a[0], seen),
    "--src-type": lambda a, seen: _kind(a[0], seen, "saddr"),
    "--dst-type": lambda a, seen: _kind(a[0], seen, "daddr"),
    "--tcp-flags": lambda a, seen: a == ("FIN,SYN,RST,ACK", "SYN") if seen.state == CT_NEW else None,
    "--syn": lambda _, seen: seen.state == CT_NEW,
}
