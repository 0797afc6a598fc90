"""Tables, chains, rules and sets as data, and a Transaction over them. Pure: nothing here talks to the kernel."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from ..ip import Family
from .expr import Expr, Verdict

TableFamily = Family | Literal["inet", "bridge"]
Value = bytes | Verdict | None
Hook = Literal["prerouting", "input", "forward", "output", "postrouting"]
INTERVAL_END = b"\1interval-end"  # the value of the key that ends an interval (exclusive) in an interval set


@dataclass(frozen=True, slots=True)
class Table:
    """owned: only the socket that made the table may change it, and the kernel removes it with the socket (from Linux
    5.12 on).
    """

    family: TableFamily
    name: str
    owned: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class Chain:
    """A base chain if `hook` is set, else a regular chain. Standard priorities: dstnat -100, srcnat 100, raw -300."""

    table: Table
    name: str
    hook: Hook | None = None
    type: Literal["filter", "nat", "route"] = "filter"
    priority: int = 0
    policy: Literal["accept", "drop"] = "accept"


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. comment: `nft list ruleset` shows it; at most 127 bytes. handle: set in dumps; needed to delete a
    single rule.
    """

    chain: Chain
    exprs: tuple[Expr, ...]
    comment: str = ""
    handle: int = 0


# The numbers and lengths of nft's datatypes. `nft list` needs them to print an element.
TYPES = {
    "ipv4_addr": (7, 4),
    "ipv6_addr": (8, 16),
    "ether_addr": (9, 6),
    "inet_proto": (12, 1),
    "inet_service": (13, 2),
    "mark": (19, 4),
    "ifname": (41, 16),
}
VERDICT_TYPE = 0xFFFFFF00


@dataclass(frozen=True, slots=True)
class Set:
    """A set, or a map if `data` is given.

    key, data: datatype names, for example ("ipv4_addr", "inet_proto", "inet_service"); data may be ("verdict",).
    interval: the elements are ranges (see `intervals`); only for keys with one field. dynamic: the greatest number of
    elements if rules add elements (Update); 0 if only transactions add elements. timeout: seconds until an element that
    a transaction adds expires; 0: never.
    """

    table: Table
    name: str
    key: tuple[str, ...]
    data: tuple[str, ...] = ()
    interval: bool = False
    dynamic: int = 0
    timeout: int = 0

    @property
    def key_len(self) -> int:
        return _length(self.key)

    @property
    def data_len(self) -> int:
        return 0 if self.data == ("verdict",) else _length(self.data)


def _length(types: tuple[str, ...]) -> int:
    if len(types) == 1:
        return TYPES[types[0]][1]
    return sum((TYPES[name][1] + 3) & ~3 for name in types)


@dataclass(frozen=True, slots=True)
class Elements:
    """Elements of one set. items: key bytes -> None (set), bytes (map) or Verdict (verdict map)."""

    set: Set
    items: Mapping[bytes, Value]


Thing = Table | Chain | Rule | Set | Elements
Verb = Literal["add", "delete", "flush"]


@dataclass(frozen=True, slots=True)
class Op:
    """One operation of a transaction. A flush deletes all rules of a Chain or all elements of a Set."""

    verb: Verb
    thing: Thing

    def __str__(self) -> str:
        return f"{self.verb} {describe(self.thing)}"


@dataclass(slots=True)
class Transaction:
    """A list of operations. The kernel applies all of them in order, or none. `socket.apply` and
    `socket.Connection.commit` send a transaction to the kernel. `lines` prints it.
    """

    ops: list[Op] = field(default_factory=list)

    def add(self, *things: Thing) -> Transaction:
        """Add objects. Adding an existing table, chain, set or element is not an error. A rule is appended
        each time.
        """
        self.ops.extend(Op("add", thing) for thing in things if not isinstance(thing, Elements) or thing.items)
        return self

    def delete(self, *things: Thing) -> Transaction:
        """Delete objects. If an object is missing, the whole transaction fails with ENOENT."""
        self.ops.extend(Op("delete", thing) for thing in things if not isinstance(thing, Elements) or thing.items)
        return self

    def flush(self, *things: Chain | Set) -> Transaction:
        self.ops.extend(Op("flush", thing) for thing in things)
        return self

    def remake(self, table: Table) -> Transaction:
        """Delete the table if it exists, and create an empty table. So loading a complete table is idempotent."""
        return self.add(table).delete(table).add(table)

    def remove(self, table: Table) -> Transaction:
        """Delete the table. A missing table is not an error."""
        return self.add(table).delete(table)

    def __bool__(self) -> bool:
        return bool(self.ops)

    def __iter__(self) -> Iterator[Op]:
        return iter(self.ops)

    @property
    def operations(self) -> int:
        return len(self.ops)

    def lines(self) -> Iterator[str]:
        """Yields the transaction as readable lines."""
        return map(str, self.ops)

    @property
    def elements(self) -> int:
        """Returns the number of elements added and deleted, which is the measure of the cost of a change."""
        return sum(len(op.thing.items) for op in self.ops if isinstance(op.thing, Elements))

    @property
    def verdicts(self) -> int:
        """Returns the number of elements of verdict maps added and deleted. The kernel checks a complete verdict map at
        each commit that changes the map.
        """
        return sum(
            len(op.thing.items)
            for op in self.ops
            if isinstance(op.thing, Elements) and op.thing.set.data == ("verdict",)
        )


def describe(thing: Thing) -> str:
    if isinstance(thing, Table):
        return f"table {thing.family} {thing.name}"
    if isinstance(thing, Rule):
        return f"rule {thing.chain.table.family} {thing.chain.table.name} {thing.chain.name} {thing.comment!r}"
    if isinstance(thing, Elements):
        items = ", ".join(show(thing.set, key, value) for key, value in list(thing.items.items())[:20])
        more = f" and {len(thing.items) - 20} more" if len(thing.items) > 20 else ""
        return f"elements {thing.set.name} {{ {items}{more} }}"
    kind = "set" if isinstance(thing, Set) and not thing.data else "map" if isinstance(thing, Set) else "chain"
    return f"{kind} {thing.table.family} {thing.table.name} {thing.name}"


_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6", 132: "sctp"}


def _fields(types: tuple[str, ...], data: bytes) -> str:
    out, at = [], 0
    for name in types:
        size = TYPES[name][1]
        raw = data[at : at + size]
        at += (size + 3) & ~3
        if name == "ether_addr":
            out.append(raw.hex(":"))
        elif name.endswith("_addr"):
            out.append(str(ipaddress.ip_address(raw)))
        elif name == "inet_proto":
            out.append(_PROTOCOLS.get(raw[0], str(raw[0])))
        elif name == "mark":
            out.append(str(int.from_bytes(raw, _HOST)))
        elif name == "ifname":
            out.append(raw.rstrip(b"\0").decode(errors="replace"))
        else:
            out.append(str(int.from_bytes(raw, "big")))
    return " . ".join(out)


def show(set: Set, key: bytes, value: Value) -> str:
    """Returns one element in readable form, for example "10.96.0.1 . tcp . 443 : goto lb3"."""
    text = _fields(set.key, key)
    if value is None:
        return text
    if value == INTERVAL_END:
        return f"(end) {text}"
    return f"{text} : {value if isinstance(value, Verdict) else _fields(set.data, value)}"


_HOST: Literal["little", "big"] = "little" if memoryview(b"\1\0").cast("H")[0] == 1 else "big"


def host32(value: int) -> bytes:
    """Returns a 32-bit number in host order, for marks, numgen results, fib types and conntrack status."""
    return value.to_bytes(4, _HOST)


def key(*fields: bytes) -> bytes:
    """Join the fields of a concatenated key, each padded to four bytes."""
    return b"".join(part + b"\0" * (-len(part) % 4) for part in fields)


def intervals(cidrs: Iterable[str]) -> dict[bytes, Value]:
    """Returns the elements of an interval set for CIDRs of one IP family ("10.0.0.0/8"). Overlapping and adjacent CIDRs
    are merged. Host bits may be set. Raises ValueError for text that is not a CIDR.
    """
    networks = [ipaddress.ip_network(cidr, strict=False) for cidr in cidrs]
    size = 4 if networks and networks[0].version == 4 else 16
    out: dict[bytes, Value] = {}
    for first, last in _ranges(networks):
        out[first.to_bytes(size, "big")] = None
        if last + 1 < 1 << (size * 8):
            out[(last + 1).to_bytes(size, "big")] = INTERVAL_END
    return out


def _ranges(networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for first, last in sorted((int(n.network_address), int(n.broadcast_address)) for n in networks):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return merged
