"""What a base chain of any program does with a packet: its possible verdicts, and the rule of each. Pure.

eval.py evaluates what podwire writes, and refuses the rest. Here every value has three states: a value, another value,
and unknown. A rule whose match is unknown may apply or not, so its verdict is possible and the chain goes on. One
possible verdict is certain; several with different effects are "cannot tell".

The packet is the first one of a flow (conntrack state new) or an answer (established).
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from ..ip import mac_bytes
from ..netlink.codec import to_int, to_text
from . import expr as e
from . import xtables
from .anytable import AnyChain, AnyElement, AnyRule, AnySet, AnyTable, Raw, data_of

CT_NEW, CT_ESTABLISHED, CT_RELATED = 8, 2, 4
DST_NAT = 1 << 5
OF_A_REPLY = 0b1_1000_1010  # IPS_SEEN_REPLY, IPS_CONFIRMED, IPS_SRC_NAT_DONE, IPS_DST_NAT_DONE
_HOST: Literal["little", "big"] = "little" if sys.byteorder == "little" else "big"
_META = {number: name for name, number in e.META_KEYS.items()}
_MAX_JUMPS = 16  # NFT_JUMP_STACK_SIZE
_MAX_PATHS = 256
_ADDRESS_TYPE = 3  # NFT_FIB_RESULT_ADDRTYPE
Bytes = tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Seen:
    """A packet as the rules of a hook see it. network, transport: headers, None for a byte that is not known.
    indices: name -> index of the links. iif, oif "": none at this hook; None: not known. fib: (saddr | daddr, address)
    -> RTN_*. mark None: not known. ether: (destination, source) MAC, "" if not known.
    """

    family: str
    network: Bytes
    transport: Bytes
    protocol: int
    iif: str | None = ""
    oif: str | None = ""
    state: int = CT_NEW
    translated: bool = False
    original: tuple[bytes, bytes, int] = (b"", b"", 0)  # source, destination, destination port of the first packet
    mark: int | None = 0
    ct_mark: int | None = 0
    ether: tuple[str, str] = ("", "")
    indices: Mapping[str, int] = field(default_factory=dict)
    groups: Mapping[str, int] = field(default_factory=dict)
    fib: Callable[[str, bytes], int] = lambda _of, _address: 1


class Possible(NamedTuple):
    """A possible end of the packet's way through one base chain.

    verdict: "accept", "drop", "reject", "translate", "masquerade" or "unknown" (queue, a target that is not known).
    rule None: the policy. to: (address, port) of a destination NAT, where they are known. seen: the packet afterwards.
    unknown: the first expression on the way that could not be evaluated.
    """

    verdict: str
    rule: AnyRule | None = None
    chain: str = ""
    to: tuple[bytes, int] | None = None
    seen: Seen | None = None
    unknown: str = ""


@dataclass(frozen=True, slots=True)
class _Registers:
    words: Mapping[int, tuple[int | None, ...]] = field(default_factory=dict)

    def put(self, register: int, value: Bytes) -> _Registers:
        padded = (*value, *(0,) * (-len(value) % 4))
        new = dict(self.words)
        for at in range(0, len(padded), 4):
            new[register + at // 4] = padded[at : at + 4]
        return _Registers(new)

    def get(self, register: int, size: int) -> Bytes:
        found: list[int | None] = []
        for at in range(0, size, 4):
            found += self.words.get(register + at // 4, (None,) * 4)
        return tuple(found[:size])


_UNKNOWN: Bytes = (None,) * 64
_Match = Literal["yes", "no", "perhaps"]


class _Rule(NamedTuple):
    """The result of one rule. verdict None: the chain goes on."""

    match: _Match
    verdict: str | tuple[int, str] | None
    seen: Seen
    to: tuple[bytes, int] | None = None
    unknown: str = ""


def judge(
    table: AnyTable, chain: AnyChain, seen: Seen, skip: Callable[[str], bool] = lambda _: False
) -> list[Possible]:
    """Returns the possible ends of the packet's way through a base chain. skip: chains that a jump leaves out."""
    ends, rest = _chain(table, chain, seen, skip, 0)
    ends += [Possible(chain.policy, None, chain.name, None, one.seen, one.unknown) for one in rest]
    return ends


def certain(ends: list[Possible]) -> str:
    """Returns the verdict of all ends, "unknown" if they differ in what becomes of the packet."""
    kinds = {end.verdict for end in ends}
    return kinds.pop() if len(kinds) == 1 else "unknown"


def _chain(
    table: AnyTable, chain: AnyChain, seen: Seen, skip: Callable[[str], bool], depth: int
) -> tuple[list[Possible], list[Possible]]:
    """Returns (ends, ways that go on behind the chain)."""
    ends: list[Possible] = []
    ways = [Possible("continue", None, chain.name, None, seen)]
    for rule in chain.rules:
        following: list[Possible] = []
        for way in ways:
            assert way.seen is not None
            result = _rule(table, rule, way.seen)
            unknown = way.unknown or (result.unknown if result.match == "perhaps" else "")
            if result.match != "yes":
                following.append(way._replace(unknown=unknown))
            if result.match == "no":
                continue
            on = Possible("continue", rule, chain.name, result.to, result.seen, unknown)
            if isinstance(result.verdict, tuple):
                more, after = _jump(table, result.verdict, on, skip, depth)
                ends += more
                following += after
            elif result.verdict is None:
                following.append(on)
            else:
                ends.append(on._replace(verdict=result.verdict))
        ways = _distinct(following)
        if not ways:
            break
    behind = [end for end in ends if end.verdict == "return"]
    return [end for end in ends if end.verdict != "return"], _distinct([*ways, *behind])


def _jump(
    table: AnyTable, verdict: tuple[int, str], on: Possible, skip: Callable[[str], bool], depth: int
) -> tuple[list[Possible], list[Possible]]:
    """Returns (ends, ways that go on behind the rule) of a jump, a goto or a return."""
    code, name = verdict
    inner = table.chains.get(name)
    if code == e.RETURN:
        return [on._replace(verdict="return")], []
    if inner is None or skip(name) or depth >= _MAX_JUMPS:
        return [], [on]
    assert on.seen is not None
    below, after = _chain(table, inner, on.seen, skip, depth + 1)
    below = [end._replace(unknown=on.unknown or end.unknown) for end in below]
    back = [one._replace(unknown=on.unknown or one.unknown) for one in after]
    return ([*below, *(one._replace(verdict="return") for one in back)], []) if code == e.GOTO else (below, back)


def _distinct(ways: list[Possible]) -> list[Possible]:
    """Merges ways on which the packet is the same."""
    found: dict[tuple[object, ...], Possible] = {}
    for way in ways:
        seen = way.seen
        assert seen is not None
        key = (seen.mark, seen.ct_mark, seen.translated, seen.network, seen.transport)
        if key not in found or (way.unknown and not found[key].unknown):
            found[key] = way
    return list(found.values())[:_MAX_PATHS]


def _rule(table: AnyTable, rule: AnyRule, seen: Seen) -> _Rule:
    registers, match, unknown = _Registers(), "yes", ""
    for raw in rule.exprs:
        result = _one(table, raw, seen, registers)
        if isinstance(result, _Registers):
            registers = result
        elif isinstance(result, Seen):
            seen = result
        elif result == "no":
            return _Rule("no", None, seen)
        elif result == "perhaps":
            match, unknown = "perhaps", unknown or raw.name
        elif isinstance(result, tuple):
            verdict, to = result
            if verdict == "translate" and to is not None:
                seen = replace(seen, translated=True)
            return _Rule(match, verdict, seen, to, unknown)  # type: ignore[arg-type]  # match is one of the literals
    return _Rule(match, None, seen, None, unknown)  # type: ignore[arg-type]  # as above


_Result = _Registers | Seen | str | tuple[str | tuple[int, str], tuple[bytes, int] | None]
_SIDE_EFFECTS = {"counter", "log", "notrack", "last", "dynset", "dup", "flow_offload", "objref"}


def _register(raw: bytes | None) -> int:
    number = to_int(raw)
    return e.R0 + (number - 1) * 4 if 1 <= number <= 4 else number


def _known(value: Bytes) -> bytes | None:
    return None if None in value else bytes(b for b in value if b is not None)


def _host32(value: int) -> Bytes:
    return tuple(value.to_bytes(4, _HOST))


def _one(table: AnyTable, raw: Raw, seen: Seen, registers: _Registers) -> _Result:
    """Evaluates one expression: new registers, a changed packet, "yes", "no", "perhaps", or a verdict."""
    got = raw.attributes
    if raw.name in ("payload", "meta", "ct", "fib"):
        return _load(raw.name, got, seen, registers)
    match raw.name:
        case "cmp":
            return _compare(registers, got)
        case "range":
            return _range(registers, got)
        case "bitwise":
            return _bitwise(registers, got)
        case "lookup":
            return _lookup(table, registers, got)
        case "immediate":
            value = data_of(got[2])
            if isinstance(value, bytes):
                return registers.put(_register(got[1]), tuple(value))
            return _verdict(value), None
        case "match":
            return xtables.matches(to_text(got.get(1)), to_int(got.get(2)), got.get(3, b""), seen)
        case "target":
            return xtables.target(to_text(got.get(1)), to_int(got.get(2)), got.get(3, b""), seen)
    return _act(raw, registers)


def _act(raw: Raw, registers: _Registers) -> _Result:
    """Evaluates an expression that reads no header."""
    match raw.name:
        case "reject":
            return "reject", None
        case "nat" | "redir" | "masq" | "tproxy":
            return _nat(raw, registers)
        case "queue" | "synproxy" | "fwd":
            return "unknown", None
    # An expression that only loads a register leaves it unknown; any other, as a limit, may match or not.
    return "yes" if raw.name in _SIDE_EFFECTS else "perhaps"


def _load(name: str, got: Mapping[int, bytes], seen: Seen, registers: _Registers) -> _Result:
    """Evaluates an expression that loads a register, or sets what such an expression reads."""
    if 1 not in got:
        if name == "meta" and to_int(got.get(2)) == e.META_KEYS["mark"]:
            value = _known(registers.get(_register(got.get(3)), 4))
            return replace(seen, mark=None if value is None else int.from_bytes(value, _HOST))
        return "yes"
    to = _register(got[1])
    if name == "payload":
        return registers.put(to, _payload(seen, to_int(got[2]), to_int(got[3]), to_int(got[4])))
    if name == "meta":
        return registers.put(to, _meta(seen, to_int(got[2])))
    if name == "ct":
        return registers.put(to, _ct(seen, to_int(got[2]), got.get(3)))
    of = "saddr" if to_int(got[3]) & 1 else "daddr"
    address = _known(_address(seen, of))
    if to_int(got.get(2)) != _ADDRESS_TYPE or address is None:
        return registers.put(to, _UNKNOWN[:16])
    return registers.put(to, _host32(seen.fib(of, address)))


def _verdict(value: tuple[int, str]) -> str | tuple[int, str]:
    code = value[0]
    if code in (e.JUMP, e.GOTO, e.RETURN):
        return value
    return "drop" if code == e.DROP else "accept" if code == e.ACCEPT else "unknown"


def _address(seen: Seen, of: str) -> Bytes:
    size, source, destination = (4, 12, 16) if len(seen.network) == 20 else (16, 8, 24)
    at = source if of == "saddr" else destination
    return seen.network[at : at + size]


def _payload(seen: Seen, base: int, offset: int, length: int) -> Bytes:
    header: Bytes
    if base == 0:
        macs = [mac_bytes(mac) if mac else None for mac in seen.ether]
        header = tuple(byte for mac in macs for byte in (mac if mac is not None else (None,) * 6))
        header += tuple(b"\x08\x00" if len(seen.network) == 20 else b"\x86\xdd")
    else:
        header = seen.network if base == 1 else seen.transport if base == 2 else ()
    part = header[offset : offset + length]
    return (*part, *(None,) * (length - len(part)))


def _name(link: str | None) -> Bytes:
    return _UNKNOWN[:16] if link is None else tuple(link.encode().ljust(16, b"\0"))


def _index(seen: Seen, link: str | None) -> Bytes:
    if link is None or (link and link not in seen.indices):
        return _UNKNOWN[:4]
    return _host32(seen.indices.get(link, 0))


def _meta(seen: Seen, key: int) -> Bytes:
    v4 = len(seen.network) == 20
    match _META.get(key):
        case "protocol":
            return tuple(b"\x08\x00" if v4 else b"\x86\xdd")
        case "mark":
            return _UNKNOWN[:4] if seen.mark is None else _host32(seen.mark)
        case "iif":
            return _index(seen, seen.iif)
        case "oif":
            return _index(seen, seen.oif)
        case "iifname":
            return _name(seen.iif)
        case "oifname":
            return _name(seen.oif)
        case "nfproto":
            return (2 if v4 else 10,)
        case "l4proto":
            return (seen.protocol,)
        case "iifgroup":
            return _UNKNOWN[:4] if seen.iif is None or seen.iif not in seen.groups else _host32(seen.groups[seen.iif])
    return _UNKNOWN


def _ct(seen: Seen, key: int, direction: bytes | None) -> Bytes:
    names = {number: name for name, number in e.CT_KEYS.items()}
    source, destination, port = seen.original
    first = direction is not None and to_int(direction) == 0
    match names.get(key):
        case "state":
            return _host32(seen.state)
        case "status":
            known = 0 if seen.state == CT_NEW else OF_A_REPLY
            return _host32(known | (DST_NAT if seen.translated else 0))
        case "mark":
            return _UNKNOWN[:4] if seen.ct_mark is None else _host32(seen.ct_mark)
        case "proto-dst" if first and destination:
            return tuple(port.to_bytes(2, "big"))
        case "ip daddr" | "ip6 daddr" if first and destination:
            return tuple(destination)
    if key == 1:  # NFT_CT_DIRECTION
        return (0 if seen.state == CT_NEW else 1,)
    if key in (19, 21) and first and source:  # NFT_CT_SRC_IP, NFT_CT_SRC_IP6
        return tuple(source)
    return _UNKNOWN


def _compare(registers: _Registers, got: Mapping[int, bytes]) -> str:
    data = data_of(got[3])
    assert isinstance(data, bytes)
    value = registers.get(_register(got[1]), len(data))
    op = to_int(got[2])
    known = _known(value)
    if known is None:
        # one byte that is known and differs decides about equality
        differs = any(v is not None and v != d for v, d in zip(value, data, strict=True))
        if op in (0, 1) and differs:
            return "yes" if op == 1 else "no"
        return "perhaps"
    results = (known == data, known != data, known < data, known <= data, known > data, known >= data)
    return "yes" if results[op] else "no"


def _range(registers: _Registers, got: Mapping[int, bytes]) -> str:
    first, last = data_of(got[3]), data_of(got[4])
    assert isinstance(first, bytes)
    assert isinstance(last, bytes)
    known = _known(registers.get(_register(got[1]), len(first)))
    if known is None:
        return "perhaps"
    return "yes" if (first <= known <= last) == (to_int(got[2]) == 0) else "no"


def _bitwise(registers: _Registers, got: Mapping[int, bytes]) -> _Registers:
    size = to_int(got[3])
    value = registers.get(_register(got[1]), size)
    if 4 not in got or 5 not in got or to_int(got.get(6)):  # a shift, or an operation with a second register
        return registers.put(_register(got[2]), _UNKNOWN[:size])
    mask, xor = data_of(got[4]), data_of(got[5])
    assert isinstance(mask, bytes)
    assert isinstance(xor, bytes)
    made = tuple((x if not m else None if v is None else v & m ^ x) for v, m, x in zip(value, mask, xor, strict=True))
    return registers.put(_register(got[2]), made)


def _lookup(table: AnyTable, registers: _Registers, got: Mapping[int, bytes]) -> _Result:
    found = table.sets.get(to_text(got[1]))
    if found is None:
        return "perhaps"
    value = registers.get(_register(got[2]), found.key_len)
    key = _known(value)
    if key is None:
        possible = [one for one in found.elements if _may_be(one, value)]
        sure_no = not found.interval and not possible
        if 3 not in got:
            hit = "no" if sure_no else "perhaps"
            return ("yes" if hit == "no" else hit) if to_int(got.get(5)) else hit
        return "no" if sure_no else "perhaps"
    element = find(found, key)
    if 3 not in got:
        return "yes" if (element is not None) != bool(to_int(got.get(5))) else "no"
    if element is None:
        return "no"
    if isinstance(element.value, tuple):
        return _verdict(element.value), None
    return registers.put(_register(got[3]), tuple(element.value or b""))


def _may_be(one: AnyElement, value: Bytes) -> bool:
    if one.key is None or one.last is not None:
        return True
    return all(v is None or v == k for v, k in zip(value, one.key, strict=False))


def find(found: AnySet, key: bytes) -> AnyElement | None:
    """Returns the element that the kernel would find."""
    every = next((one for one in found.elements if one.key is None), None)
    if not found.interval:
        return next((one for one in found.elements if one.key == key), every)
    ranged = [one for one in found.elements if one.last is not None]
    for one in ranged:
        assert one.key is not None
        assert one.last is not None
        # each field lies in a multiple of four bytes, so a range of the whole is a range of each word
        words = (
            [slice(at, at + 4) for at in range(0, len(key), 4)] if len(ranged) == len(found.elements) else [slice(None)]
        )
        if all(one.key[w] <= key[w] <= one.last[w] for w in words):
            return one
    starts = [one for one in found.elements if one.key is not None and one.last is None and one.key <= key]
    if not starts:
        return every
    # of an end and a start at the same key, the start counts
    nearest = max(starts, key=lambda one: (one.key or b"", not one.ends))
    return every if nearest.ends else nearest


def _nat(raw: Raw, registers: _Registers) -> tuple[str, tuple[bytes, int] | None]:
    got = raw.attributes
    if raw.name != "nat" or to_int(got.get(1)) == 0:  # masquerading and NFT_NAT_SNAT change the source only
        return ("masquerade" if raw.name in ("masq", "nat") else "translate"), None
    size = 4 if to_int(got.get(2)) == 2 else 16
    address = _known(registers.get(_register(got[3]), size)) if 3 in got else b""
    port = _known(registers.get(_register(got[5]), 2)) if 5 in got else b"\0\0"
    if address is None or port is None:
        return "translate", None
    return "translate", (address, struct.unpack(">H", port)[0])
