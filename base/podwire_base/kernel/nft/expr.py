"""nf_tables expressions as data, in the terms of the kernel's uapi (linux/netfilter/nf_tables.h).

Register numbers are those of the 32-bit registers: 8 (NFT_REG32_00) to 23. Register 0 is the verdict register. A key of
several fields is loaded into consecutive registers, with each field padded to four bytes: for example, an IPv4 address
into 8, a protocol into 9 and a port into 10. Values are the kernel's bytes. Addresses and ports are in network order.
Marks and the results of numgen and fib are in host order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from ..ip import Family
from ..netlink.codec import attr, nest, text, u8, u32, u64

VERDICT_REGISTER = 0
R0 = 8  # NFT_REG32_00, the first general register
DROP, ACCEPT, JUMP, GOTO, RETURN = 0, 1, -3, -4, -5
_VERDICT_NAMES = {DROP: "drop", ACCEPT: "accept", JUMP: "jump", GOTO: "goto", RETURN: "return"}


@dataclass(frozen=True, slots=True)
class Verdict:
    """A verdict. code: DROP, ACCEPT, JUMP, GOTO or RETURN. chain: the target of JUMP and GOTO."""

    code: int
    chain: str = ""

    def encode(self, kind: int) -> bytes:
        """Encode the verdict as NFTA_DATA_VERDICT nested in attribute `kind`."""
        inner = u32(1, self.code)
        return nest(kind, nest(2, inner, text(2, self.chain)) if self.chain else nest(2, inner))

    def __str__(self) -> str:
        return f"{_VERDICT_NAMES.get(self.code, self.code)} {self.chain}".strip()


def data_value(kind: int, value: bytes | Verdict) -> bytes:
    """Encode a value as NFTA_DATA_VALUE or NFTA_DATA_VERDICT nested in attribute `kind`."""
    return value.encode(kind) if isinstance(value, Verdict) else nest(kind, attr(1, value))


class Expr:
    """The base class of all expressions. `NAME` is the kernel's name of the expression. `body()` returns the content of
    NFTA_EXPR_DATA.
    """

    __slots__ = ()
    NAME: ClassVar[str]

    def body(self) -> bytes:
        raise NotImplementedError

    def encode(self) -> bytes:
        return nest(1, text(1, self.NAME), nest(2, self.body()))


PAYLOAD_BASES = {"link": 0, "network": 1, "transport": 2}


@dataclass(frozen=True, slots=True)
class Payload(Expr):
    """Load `length` bytes at `offset` of the link (Ethernet), network or transport header."""

    NAME: ClassVar[str] = "payload"
    base: Literal["link", "network", "transport"]
    offset: int
    length: int
    dreg: int = R0

    def body(self) -> bytes:
        return u32(1, self.dreg) + u32(2, PAYLOAD_BASES[self.base]) + u32(3, self.offset) + u32(4, self.length)


META_KEYS = {
    "protocol": 1,
    "mark": 3,
    "iif": 4,
    "oif": 5,
    "iifname": 6,
    "oifname": 7,
    "nfproto": 15,
    "l4proto": 16,
    "iifgroup": 21,
}


@dataclass(frozen=True, slots=True)
class Meta(Expr):
    NAME: ClassVar[str] = "meta"
    key: Literal["protocol", "mark", "iif", "oif", "iifname", "oifname", "nfproto", "l4proto", "iifgroup"]
    dreg: int = R0

    def body(self) -> bytes:
        return u32(1, self.dreg) + u32(2, META_KEYS[self.key])


@dataclass(frozen=True, slots=True)
class Traced(Expr):
    """Set `nftrace` from the first byte of register `sreg`: the kernel tells of each rule that the packet meets."""

    NAME: ClassVar[str] = "meta"
    sreg: int = R0

    def body(self) -> bytes:
        return u32(2, 12) + u32(3, self.sreg)  # NFT_META_NFTRACE


CMP_OPS = {"==": 0, "!=": 1, "<": 2, "<=": 3, ">": 4, ">=": 5}


@dataclass(frozen=True, slots=True)
class Cmp(Expr):
    """Continue only if comparing the register with `data` succeeds."""

    NAME: ClassVar[str] = "cmp"
    data: bytes
    op: Literal["==", "!=", "<", "<=", ">", ">="] = "=="
    sreg: int = R0

    def body(self) -> bytes:
        return u32(1, self.sreg) + u32(2, CMP_OPS[self.op]) + nest(3, attr(1, self.data))


@dataclass(frozen=True, slots=True)
class Bitwise(Expr):
    """dreg = (sreg & mask) ^ xor; mask and xor are as long as the value."""

    NAME: ClassVar[str] = "bitwise"
    mask: bytes
    xor: bytes
    sreg: int = R0
    dreg: int = R0

    def body(self) -> bytes:
        return (
            u32(1, self.sreg)
            + u32(2, self.dreg)
            + u32(3, len(self.mask))
            + nest(4, attr(1, self.mask))
            + nest(5, attr(1, self.xor))
        )


@dataclass(frozen=True, slots=True)
class Lookup(Expr):
    """Look up the key in register `sreg`. dreg None: continue if the set contains the key (invert: if it does not).
    dreg 0: the set is a verdict map. Other dreg: load the data of the map into this register.
    """

    NAME: ClassVar[str] = "lookup"
    set: str
    sreg: int = R0
    dreg: int | None = None
    invert: bool = False

    def body(self) -> bytes:
        out = text(1, self.set) + u32(2, self.sreg)
        if self.dreg is not None:
            out += u32(3, self.dreg)
        return out + (u32(5, 1) if self.invert else b"")


@dataclass(frozen=True, slots=True)
class Immediate(Expr):
    """Load a verdict (dreg 0), or bytes into a register."""

    NAME: ClassVar[str] = "immediate"
    value: bytes | Verdict
    dreg: int = VERDICT_REGISTER

    def body(self) -> bytes:
        return u32(1, self.dreg) + data_value(2, self.value)


@dataclass(frozen=True, slots=True)
class Numgen(Expr):
    """dreg = offset + random number below `modulus`, as a 32-bit number in host order."""

    NAME: ClassVar[str] = "numgen"
    modulus: int
    offset: int = 0
    dreg: int = R0

    def body(self) -> bytes:
        return u32(1, self.dreg) + u32(2, self.modulus) + u32(3, 1) + u32(4, self.offset)


@dataclass(frozen=True, slots=True)
class Update(Expr):
    """Add the key in register `sreg` to a dynamic set (in a map, with the data in register `data`). The element expires
    after `timeout` seconds. An existing element keeps its data, and its timeout starts again. If the set is full, the
    rule ends.
    """

    NAME: ClassVar[str] = "dynset"
    set: str
    timeout: int
    sreg: int = R0
    data: int | None = None

    def body(self) -> bytes:
        out = text(1, self.set) + u32(3, 1) + u32(4, self.sreg)
        return out + (u32(5, self.data) if self.data is not None else b"") + u64(6, self.timeout * 1000)


CT_KEYS = {"state": 0, "status": 2, "mark": 3, "proto-dst": 12, "ip daddr": 20, "ip6 daddr": 22}


@dataclass(frozen=True, slots=True)
class Ct(Expr):
    """Load a value from conntrack. original: read the tuple of the original direction (required for proto-dst and the
    addresses).
    """

    NAME: ClassVar[str] = "ct"
    key: Literal["state", "status", "mark", "proto-dst", "ip daddr", "ip6 daddr"]
    dreg: int = R0
    original: bool = False

    def body(self) -> bytes:
        return u32(1, self.dreg) + u32(2, CT_KEYS[self.key]) + (u8(3, 0) if self.original else b"")


RTN_LOCAL = 2


@dataclass(frozen=True, slots=True)
class FibType(Expr):
    """Load the address type (RTN_*, 32 bits, host order) of the packet's source or destination."""

    NAME: ClassVar[str] = "fib"
    of: Literal["saddr", "daddr"]
    dreg: int = R0

    def body(self) -> bytes:
        return u32(1, self.dreg) + u32(2, 3) + u32(3, 1 if self.of == "saddr" else 2)


@dataclass(frozen=True, slots=True)
class Dnat(Expr):
    """Destination NAT to the address in register `addr` and, unless `port` is None, the port in that register."""

    NAME: ClassVar[str] = "nat"
    family: Family
    addr: int
    port: int | None = None

    def body(self) -> bytes:
        out = u32(1, 1) + u32(2, 2 if self.family == "ip" else 10) + u32(3, self.addr) + u32(4, self.addr)
        if self.port is not None:
            # NF_NAT_RANGE_MAP_IPS | NF_NAT_RANGE_PROTO_SPECIFIED
            out += u32(5, self.port) + u32(6, self.port) + u32(7, 3)
        return out


@dataclass(frozen=True, slots=True)
class Masquerade(Expr):
    """Source NAT to the address of the outgoing interface; source ports are fully random by default."""

    NAME: ClassVar[str] = "masq"
    fully_random: bool = True

    def body(self) -> bytes:
        return u32(1, 16) if self.fully_random else b""


@dataclass(frozen=True, slots=True)
class Reject(Expr):
    """Answer with ICMP port unreachable, or with a TCP reset. For a TCP reset, the rule must match l4proto tcp first,
    and the family is not used. host: answer with ICMP host unreachable (ICMPv6: address unreachable) instead.
    """

    NAME: ClassVar[str] = "reject"
    family: Family
    tcp_reset: bool = False
    host: bool = False

    def body(self) -> bytes:
        if self.tcp_reset:
            return u32(1, 1)
        port, host = (3, 1) if self.family == "ip" else (4, 3)
        return u32(1, 0) + u8(2, host if self.host else port)


@dataclass(frozen=True, slots=True)
class Counter(Expr):
    NAME: ClassVar[str] = "counter"

    def body(self) -> bytes:
        return u64(1, 0) + u64(2, 0)


@dataclass(frozen=True, slots=True)
class Limit(Expr):
    """Continue only for so many packets each second, after `burst` at once."""

    NAME: ClassVar[str] = "limit"
    rate: int
    burst: int

    def body(self) -> bytes:
        return u64(1, self.rate) + u64(2, 1) + u32(3, self.burst) + u32(4, 0) + u32(5, 0)  # per second; packets


@dataclass(frozen=True, slots=True)
class Log(Expr):
    """Send `length` bytes of the packet, from its network header on, to the reader of a group of NFLOG."""

    NAME: ClassVar[str] = "log"
    group: int
    prefix: str
    length: int

    def body(self) -> bytes:
        return attr(1, self.group.to_bytes(2, "big")) + text(2, self.prefix) + u32(3, self.length)


@dataclass(frozen=True, slots=True)
class Notrack(Expr):
    """Exclude the packet from conntrack; only in chains of type filter at priority -300 (raw)."""

    NAME: ClassVar[str] = "notrack"

    def body(self) -> bytes:
        return b""


def accept() -> Immediate:
    return Immediate(Verdict(ACCEPT))


def drop() -> Immediate:
    return Immediate(Verdict(DROP))


def ret() -> Immediate:
    return Immediate(Verdict(RETURN))


def jump(chain: str) -> Immediate:
    return Immediate(Verdict(JUMP, chain))


def goto(chain: str) -> Immediate:
    return Immediate(Verdict(GOTO, chain))
