"""Decodes the expressions of a netlink dump into the classes of expr.py. Pure. Sources: see codec.py.

An expression that the module cannot decode becomes Foreign: its name has no reader, or the reader does not know one
of its values, or an attribute is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ..netlink.codec import parse, to_int, to_signed, to_text, walk
from . import expr as e

Attributes = Mapping[int, bytes]


@dataclass(frozen=True, slots=True)
class Foreign(e.Expr):
    """An expression that this module cannot decode. kind: the kernel's name of the expression."""

    NAME: ClassVar[str] = ""
    kind: str


def _register(data: bytes | None) -> int:
    """Returns the number of a 32-bit register, 0 for the verdict register. The kernel dumps the registers 8, 12, 16 and
    20 as 1, 2, 3 and 4, the numbers of the 128-bit registers.
    """
    number = to_int(data)
    return e.R0 + (number - 1) * 4 if 1 <= number <= 4 else number


def _name(names: Mapping[str, int], number: int) -> Any:
    return next(name for name, value in names.items() if value == number)


def _data_or_verdict(raw: bytes) -> bytes | e.Verdict:
    got = parse(raw)
    if 1 in got:
        return got[1]
    verdict = parse(got[2])
    return e.Verdict(to_signed(verdict[1]), to_text(verdict.get(2)))


def _bytes(raw: bytes) -> bytes:
    return parse(raw)[1]


def _optional_register(got: Attributes, number: int) -> int | None:
    return _register(got[number]) if number in got else None


def _payload(got: Attributes) -> e.Expr:
    return e.Payload(_name(e.PAYLOAD_BASES, to_int(got[2])), to_int(got[3]), to_int(got[4]), _register(got[1]))


def _reject(got: Attributes) -> e.Expr:
    # code 3: port unreachable in ICMP, address unreachable in ICMPv6; both results encode to the same bytes
    code = to_int(got.get(2))
    return e.Reject("ip6" if code == 4 else "ip", tcp_reset=to_int(got[1]) == 1, host=code == 1)


_READERS: dict[str, Callable[[Attributes], e.Expr]] = {
    "payload": _payload,
    "meta": lambda g: e.Meta(_name(e.META_KEYS, to_int(g[2])), _register(g[1])),
    "cmp": lambda g: e.Cmp(_bytes(g[3]), _name(e.CMP_OPS, to_int(g[2])), _register(g[1])),
    "bitwise": lambda g: e.Bitwise(_bytes(g[4]), _bytes(g[5]), _register(g[1]), _register(g[2])),
    "lookup": lambda g: e.Lookup(to_text(g[1]), _register(g[2]), _optional_register(g, 3), bool(to_int(g.get(5)))),
    "immediate": lambda g: e.Immediate(_data_or_verdict(g[2]), _register(g[1])),
    "numgen": lambda g: e.Numgen(to_int(g[2]), to_int(g.get(4)), _register(g[1])),
    "dynset": lambda g: e.Update(to_text(g[1]), to_int(g.get(6)) // 1000, _register(g[4]), _optional_register(g, 5)),
    "ct": lambda g: e.Ct(_name(e.CT_KEYS, to_int(g[2])), _register(g[1]), 3 in g),
    "fib": lambda g: e.FibType("saddr" if to_int(g[3]) & 1 else "daddr", _register(g[1])),
    "nat": lambda g: e.Dnat("ip" if to_int(g[2]) == 2 else "ip6", _register(g[3]), _optional_register(g, 5)),
    "masq": lambda g: e.Masquerade(bool(to_int(g.get(1)))),
    "reject": _reject,
    "counter": lambda _: e.Counter(),
    "limit": lambda g: e.Limit(to_int(g[1]), to_int(g.get(3))),
    "log": lambda g: e.Log(to_int(g[1]), to_text(g.get(2)), to_int(g.get(3))),
    "notrack": lambda _: e.Notrack(),
}


def packets(raw: bytes) -> int:
    """Returns the packet count of the rule's first counter, 0 without one. raw: the value of NFTA_RULE_EXPRESSIONS."""
    for _, listed in walk(raw):
        got = parse(listed)
        if to_text(got.get(1)) == e.Counter.NAME:
            return to_int(parse(got.get(2, b"")).get(2))
    return 0


def decode_exprs(raw: bytes) -> tuple[e.Expr, ...]:
    """Decodes the content of NFTA_RULE_EXPRESSIONS."""
    out: list[e.Expr] = []
    for _, listed in walk(raw):
        got = parse(listed)
        name = to_text(got.get(1))
        try:
            out.append(_READERS[name](parse(got.get(2, b""))))
        except (KeyError, StopIteration):
            out.append(Foreign(name))
    return tuple(out)
