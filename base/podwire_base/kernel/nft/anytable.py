"""Tables of any program as data: every expression, set and hook, also those that podwire never writes. Pure.

`codec.py` decodes what podwire itself writes, into types that it can write again. Here nothing is refused: what is not
known stays raw, and judge.py answers "cannot tell" where a verdict depends on it. Sources: linux/netfilter/nf_tables.h,
linux/netfilter/x_tables.h.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from ..netlink.codec import parse, to_int, to_signed, to_text, walk
from . import codec

NAMES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
_HOOKS = {0: "prerouting", 1: "input", 2: "forward", 3: "output", 4: "postrouting"}
_ARP_HOOKS = {0: "input", 1: "output", 2: "forward"}  # linux/netfilter_arp.h
_INGRESS = 5  # NF_INET_INGRESS
F_CONSTANT, F_INTERVAL, F_MAP = 2, 4, 8
ELEM_INTERVAL_END, ELEM_CATCHALL = 1, 2


class Raw(NamedTuple):
    """One expression: its kernel name and its attributes."""

    name: str
    attributes: Mapping[int, bytes]


@dataclass(frozen=True, slots=True)
class AnyRule:
    handle: int
    comment: str
    exprs: tuple[Raw, ...]


@dataclass(frozen=True, slots=True)
class AnyChain:
    """hook "": not a base chain. devices: those of an ingress hook. rules: in their order."""

    name: str
    hook: str = ""
    type: str = ""
    priority: int = 0
    policy: str = "accept"
    devices: tuple[str, ...] = ()
    rules: list[AnyRule] = field(default_factory=list)


class AnyElement(NamedTuple):
    """One element. last: the end of a range (inclusive) of a concatenation, None without one. ends: the key is the
    exclusive end of the range before it. value: bytes, or (verdict code, chain), or None.
    """

    key: bytes | None  # None: every other key (catchall)
    last: bytes | None = None
    ends: bool = False
    value: bytes | tuple[int, str] | None = None


@dataclass(frozen=True, slots=True)
class AnySet:
    """key_len: bytes. fields: the number of bytes of each field of a concatenated key, () if unknown."""

    name: str
    key_len: int
    interval: bool
    elements: list[AnyElement] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class AnyTable:
    """ours: whether the owner is this process's socket. family: "ip", "ip6", "inet", "bridge", "netdev", "arp"."""

    family: str
    name: str
    chains: dict[str, AnyChain] = field(default_factory=dict)
    sets: dict[str, AnySet] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"table {self.family} {self.name}"


def chain_of(family: str, body: bytes) -> tuple[str, AnyChain]:
    """Returns (table, chain) of a NFT_MSG_NEWCHAIN body."""
    got = parse(body)
    table, name = to_text(got.get(1)), to_text(got.get(3))
    if 4 not in got:
        return table, AnyChain(name)
    hook = parse(got[4])
    number = to_int(hook.get(1))
    devices = [to_text(hook[3])] if 3 in hook else [to_text(raw) for _, raw in walk(hook.get(4, b""))]
    ingress = number == _INGRESS or (family == "netdev" and number == 0)
    names = _ARP_HOOKS if family == "arp" else _HOOKS
    named = "ingress" if ingress else "egress" if family == "netdev" else names.get(number, str(number))
    policy = "accept" if to_int(got.get(5), 1) else "drop"
    return table, AnyChain(
        name, named, to_text(got.get(7)), to_signed(hook.get(2, b"\0\0\0\0")), policy, tuple(filter(None, devices))
    )


def rule_of(body: bytes) -> tuple[str, str, AnyRule]:
    """Returns (table, chain, rule) of a NFT_MSG_NEWRULE body."""
    table, chain, comment, handle, raw = codec.decode_rule(body)
    exprs = []
    for _, listed in walk(raw):
        got = parse(listed)
        exprs.append(Raw(to_text(got.get(1)), parse(got.get(2, b""))))
    return table, chain, AnyRule(handle, comment, tuple(exprs))


def set_of(body: bytes) -> tuple[str, AnySet]:
    """Returns (table, set) of a NFT_MSG_NEWSET body."""
    got = parse(body)
    return to_text(got.get(1)), AnySet(to_text(got.get(2)), to_int(got.get(5)), bool(to_int(got.get(3)) & F_INTERVAL))


def elements_of(body: bytes) -> list[AnyElement]:
    """Returns the elements of a NFT_MSG_NEWSETELEM body."""
    found = []
    for number, listed in walk(body):
        for _, raw in walk(listed) if number == 3 else ():
            got = parse(raw)
            flags = to_int(got.get(3))
            key = None if flags & ELEM_CATCHALL else parse(got.get(1, b"")).get(1)
            if key is None and not flags & ELEM_CATCHALL:
                continue
            last = parse(got[10]).get(1) if 10 in got else None
            found.append(AnyElement(key, last, bool(flags & ELEM_INTERVAL_END), _value(got.get(2))))
    return found


def _value(raw: bytes | None) -> bytes | tuple[int, str] | None:
    return None if raw is None else data_of(raw)


def data_of(raw: bytes) -> bytes | tuple[int, str]:
    """Returns NFTA_DATA_VALUE, or (code, chain) of NFTA_DATA_VERDICT."""
    data = parse(raw)
    if 1 in data:
        return data[1]
    verdict = parse(data.get(2, b""))
    return to_signed(verdict.get(1, b"\0\0\0\0")), to_text(verdict.get(2))
