"""Computes what the rules of a hook do with a packet: it evaluates expressions in memory and follows every random
choice. Pure.

It reads TableDumps with the expressions of the rules (from a FakeConnection, or a dump with `exprs=True`). The base
chains of a hook run in the order of their priority. "drop" and "reject" end the packet's path. "accept" continues in
the next base chain. After a NAT chain has translated the packet, the hook's other NAT chains are skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from . import expr as e
from .codec import TableDump
from .objects import INTERVAL_END, Chain, Rule, Set, Value, host32, show

CT_NEW = 8  # conntrack state: the first packet of a flow
IPS_DST_NAT = 1 << 5  # conntrack status: this flow's destination was translated
SYN = 2
_PORTS_AND_FLAGS = 14  # the number of bytes of a transport header that rules may read
_ADDRESSES = {
    "ip": (12, 16, 4, 20),
    "ip6": (8, 24, 16, 40),
}  # offsets of source and destination, their size, the header

Fib = Callable[[Literal["saddr", "daddr"], bytes], int]  # an address of the packet -> its type (RTN_*)


@dataclass(frozen=True, slots=True)
class Headers:
    """The headers of a packet as expressions read them. protocol: the transport protocol. iifname None: the machine
    itself sends the packet. oifname None: the packet has not been routed, or nobody knows where.
    """

    network: bytes
    transport: bytes
    protocol: int
    iifname: str | None = None
    oifname: str | None = None

    @property
    def daddr(self) -> bytes:
        _, at, size, _ = _ADDRESSES["ip" if len(self.network) == 20 else "ip6"]
        return self.network[at : at + size]

    @property
    def dport(self) -> int:
        return int.from_bytes(self.transport[2:4], "big")

    def to(self, address: bytes, port: int) -> Headers:
        """Returns the same packet with another destination."""
        _, at, size, _ = _ADDRESSES["ip" if len(self.network) == 20 else "ip6"]
        network = self.network[:at] + address + self.network[at + size :]
        return replace(
            self, network=network, transport=self.transport[:2] + port.to_bytes(2, "big") + self.transport[4:]
        )


def headers(src: bytes, dst: bytes, protocol: int, port: int, iifname: str | None, flags: int = SYN) -> Headers:
    """Returns the headers of the first packet of a flow. src, dst: packed addresses. port: the destination port. flags:
    the TCP flags.
    """
    source, destination, size, length = _ADDRESSES["ip" if len(src) == 4 else "ip6"]
    network = bytearray(length)
    network[source : source + size], network[destination : destination + size] = src, dst
    transport = bytes(2) + port.to_bytes(2, "big") + bytes(_PORTS_AND_FLAGS - 5) + bytes((flags,))
    return Headers(bytes(network), transport, protocol, iifname)


class Element(NamedTuple):
    """An element of a map that a lookup found."""

    set: Set
    key: bytes
    value: Value

    def __str__(self) -> str:
        return f"map {self.set.name}: {show(self.set, self.key, self.value)}"


class Draw(NamedTuple):
    """One outcome of a random choice."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"slot {self.number} of {self.of}, by chance"


Step = Rule | Element | Draw


class Noted(NamedTuple):
    """An element that a rule added to a dynamic set or map."""

    set: str
    key: bytes
    data: bytes


@dataclass(frozen=True, slots=True)
class State:
    """A packet on its path. original: the headers of the flow's first packet. steps: the rules and elements that made a
    decision.
    """

    packet: Headers
    original: Headers
    translated: bool = False
    masqueraded: bool = False
    registers: bytes = bytes(64)
    steps: tuple[Step, ...] = ()
    noted: frozenset[Noted] = frozenset()

    def load(self, dreg: int, value: bytes) -> State:
        at = (dreg - e.R0) * 4
        value += b"\0" * (-len(value) % 4)
        registers = self.registers[:at] + value + self.registers[at + len(value) :]
        return State(self.packet, self.original, self.translated, self.masqueraded, registers, self.steps, self.noted)

    def read(self, sreg: int, length: int) -> bytes:
        at = (sreg - e.R0) * 4
        return self.registers[at : at + length]

    def then(self, step: Step) -> State:
        return replace(self, steps=(*self.steps, step))

    def clean(self) -> State:
        return replace(self, registers=bytes(64))


class Result(NamedTuple):
    """The end of one path. verdict: "accept", "drop" or "reject"; inside a chain also "continue" and "return". rule:
    the rule with the verdict.
    """

    verdict: str
    state: State
    rule: Rule | None = None


_Ended = tuple[str | e.Verdict, State]


class Evaluator:
    """Evaluates the tables of one namespace. Its methods raise NotImplementedError for an unknown expression."""

    def __init__(self, dumps: Iterable[TableDump], fib: Fib) -> None:
        self._dumps, self._fib = tuple(dumps), fib

    def hook(self, name: str, state: State) -> Iterator[Result]:
        """Yields the result of every path that the packet can take through a hook."""
        bases = [(chain, dump) for dump in self._dumps for chain in dump.chains.values() if chain.hook == name]
        yield from self._bases(sorted(bases, key=lambda base: base[0].priority), state)

    def _bases(self, bases: Sequence[tuple[Chain, TableDump]], state: State) -> Iterator[Result]:
        if not bases:
            yield Result("accept", state)
            return
        (chain, dump), rest = bases[0], bases[1:]
        for result in self._rules(dump, chain.name, 0, state.clean()):
            verdict = chain.policy if result.verdict in ("continue", "return") else result.verdict
            if verdict != "accept":
                yield Result(verdict, result.state, result.rule)
                continue
            before, after = state, result.state
            done = (before.translated, before.masqueraded) != (after.translated, after.masqueraded)
            yield from self._bases([base for base in rest if not done or base[0].type != "nat"], after)

    def _rules(self, dump: TableDump, chain: str, index: int, state: State) -> Iterator[Result]:
        rules = dump.rules[chain]
        if index == len(rules):
            yield Result("continue", state)
            return
        rule = rules[index]
        for verdict, after in self._exprs(dump, rule.exprs, state.clean()):
            if isinstance(verdict, str) and verdict == "next":
                yield from self._rules(dump, chain, index + 1, after)
            elif isinstance(verdict, e.Verdict) and verdict.code in (e.JUMP, e.GOTO):
                yield from self._jump(dump, chain, index, verdict, after)
            else:
                yield Result(_word(verdict), after.then(rule), rule)

    def _jump(self, dump: TableDump, chain: str, index: int, verdict: e.Verdict, state: State) -> Iterator[Result]:
        for result in self._rules(dump, verdict.chain, 0, state):
            if result.verdict not in ("continue", "return"):
                yield result
            elif verdict.code == e.JUMP:
                yield from self._rules(dump, chain, index + 1, result.state)
            else:
                yield Result("return", result.state)

    def _exprs(self, dump: TableDump, exprs: tuple[e.Expr, ...], state: State) -> Iterator[_Ended]:
        """Run one rule. The verdict is "next" if the rule does not match or ends without a verdict."""
        for index, expr in enumerate(exprs):
            if isinstance(expr, e.Numgen):
                for number in range(expr.modulus):
                    drawn = state.then(Draw(number, expr.modulus)).load(expr.dreg, host32(expr.offset + number))
                    yield from self._exprs(dump, exprs[index + 1 :], drawn)
                return
            result = self._one(dump, expr, state)
            if isinstance(result, State):
                state = result
                continue
            yield result if result is not None else ("next", state)
            return
        yield "next", state

    def _one(self, dump: TableDump, expr: e.Expr, state: State) -> State | _Ended | None:
        """Evaluate one expression. Returns the next state, a verdict, or None if the rule does not match."""
        match expr:
            case e.Cmp(data, op, sreg):
                return state if _compares(state.read(sreg, len(data)), op, data) else None
            case e.Counter() | e.Limit() | e.Log():
                return state
            case e.Lookup():
                return _lookup(dump, expr, state)
            case e.Immediate(e.Verdict() as verdict):
                return verdict, state
            case e.Immediate(bytes() as value, dreg):
                return state.load(dreg, value)
            case e.Update():
                set_ = dump.sets[expr.set]
                key, data = state.read(expr.sreg, set_.key_len), state.read(expr.data or e.R0, set_.data_len)
                return replace(state, noted=state.noted | {Noted(expr.set, key, data)})
            case e.Meta("iifname", dreg):
                name = state.packet.iifname
                return None if name is None else state.load(dreg, name.encode().ljust(16, b"\0"))
            case e.Meta("oifname", dreg):
                name = state.packet.oifname
                return None if name is None else state.load(dreg, name.encode().ljust(16, b"\0"))
            case e.Dnat(_, addr, port):
                address = state.read(addr, len(state.packet.daddr))
                number = state.packet.dport if port is None else int.from_bytes(state.read(port, 2), "big")
                return "accept", replace(state, packet=state.packet.to(address, number), translated=True)
            case e.Masquerade():
                return "accept", replace(state, masqueraded=True)
            case e.Reject():
                return "reject", state
        return self._load(expr, state)

    def _load(self, expr: e.Expr, state: State) -> State:
        """Evaluate an expression that loads a register."""
        packet = state.packet
        match expr:
            case e.Payload("network" | "transport" as base, offset, length, dreg):
                header = packet.network if base == "network" else packet.transport
                return state.load(dreg, header[offset : offset + length].ljust(length, b"\0"))
            case e.Meta("l4proto", dreg):
                return state.load(dreg, bytes((packet.protocol,)))
            case e.Ct("state", dreg):
                return state.load(dreg, host32(CT_NEW))
            case e.Ct("status", dreg):
                return state.load(dreg, host32(IPS_DST_NAT if state.translated else 0))
            case e.Ct("proto-dst", dreg):
                return state.load(dreg, state.original.transport[2:4])
            case e.Ct("ip daddr" | "ip6 daddr", dreg):
                return state.load(dreg, state.original.daddr)
            case e.FibType(of, dreg):
                source, destination, size, _ = _ADDRESSES["ip" if len(packet.network) == 20 else "ip6"]
                at = source if of == "saddr" else destination
                return state.load(dreg, host32(self._fib(of, packet.network[at : at + size])))
            case e.Bitwise(mask, xor, sreg, dreg):
                value = state.read(sreg, len(mask))
                return state.load(dreg, bytes(v & m ^ x for v, m, x in zip(value, mask, xor, strict=True)))
        raise NotImplementedError(expr)


def _word(verdict: str | e.Verdict) -> str:
    return verdict if isinstance(verdict, str) else str(verdict)


def _compares(value: bytes, op: str, data: bytes) -> bool:
    """Compare as the kernel does: byte by byte, with the first byte as the most significant."""
    return {
        "==": value == data,
        "!=": value != data,
        "<": value < data,
        "<=": value <= data,
        ">": value > data,
        ">=": value >= data,
    }[op]


def _lookup(dump: TableDump, expr: e.Lookup, state: State) -> State | _Ended | None:
    set_, held = dump.sets[expr.set], dump.elements[expr.set]
    key = state.read(expr.sreg, set_.key_len)
    if set_.interval:
        starts = [start for start in held if start <= key]
        found = bool(starts) and held[max(starts)] != INTERVAL_END
    else:
        found = key in held
    if expr.dreg is None:
        return state if found != expr.invert else None
    if not found:
        return None
    value = held[key]
    state = state.then(Element(set_, key, value))
    if isinstance(value, e.Verdict):
        return value, state
    assert isinstance(value, bytes)
    return state.load(expr.dreg, value)
