"""What the rules would do with a packet: the expressions run on paper, every random draw followed. The second judge.

Runs over a TableDump whose rules carry their expressions (FakeConnection's, not one that was read from a kernel).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass, replace

from podwire_base.kernel.ip import packed
from podwire_base.kernel.nft import ruleset as nft
from podwire_base.kernel.nft.codec import TableDump
from podwire_base.kernel.nft.expr import ACCEPT, GOTO, JUMP, R0, RETURN, RTN_LOCAL, Expr
from podwire_base.kernel.nft.expr import DROP as VERDICT_DROP
from podwire_base.kernel.nft.expr import Verdict as Code

from ..backend import Trace
from ..decide import DROP, PASS, REJECT, Outcome, Packet, Verdict
from ..model import PROTOCOLS, Destination, NodeInfo
from .layout import IPS_DST_NAT, LOOPBACK


@dataclass(frozen=True, slots=True)
class _State:
    """A packet on its way: current destination, what the client dialled, and the registers loaded in this rule."""

    packet: Packet
    dst: str
    port: int
    translated: bool
    registers: bytes = bytes(64)
    steps: tuple[str, ...] = ()  # rules and elements that decided something, where the tracer is to tell

    def load(self, dreg: int, value: bytes) -> _State:
        at = (dreg - R0) * 4
        value += b"\0" * (-len(value) % 4)
        return _State(
            self.packet,
            self.dst,
            self.port,
            self.translated,
            self.registers[:at] + value + self.registers[at + len(value) :],
            self.steps,
        )

    def told(self, text: str) -> _State:
        return replace(self, steps=(*self.steps, text))

    def read(self, sreg: int, length: int) -> bytes:
        at = (sreg - R0) * 4
        return self.registers[at : at + length]


@dataclass(frozen=True, slots=True)
class _Translated:
    """Destination NAT took place: it ends the walk through the hook."""

    state: _State


def _leads_on(verdict: str | Code) -> bool:
    return isinstance(verdict, Code) and verdict.code in (JUMP, GOTO)


class Tracer:
    """`node` tells which addresses are local."""

    def __init__(self, dump: TableDump, node: NodeInfo, *, tell: bool = False) -> None:
        self.dump, self.node, self.tell = dump, node, tell
        self.noted: set[tuple[str, bytes, bytes]] = set()  # what the last packet's rules wrote: (map, key, data)

    def outcome(self, packet: Packet) -> Outcome:
        self.noted = set()
        hook = "output" if packet.node else "prerouting"
        start = _State(packet, packet.dst, packet.port, False)
        if LOOPBACK in self.dump.rules and not packet.node and {v for v, _ in self._chain(LOOPBACK, start)} == {"drop"}:
            return DROP
        results = set(self._chain(hook, start))
        verdicts = {verdict for verdict, _ in results}
        if len(verdicts) > 1:
            raise AssertionError(f"{packet}: the rules decide by chance: {verdicts}")
        verdict = verdicts.pop()
        if verdict != "accept":
            return {"drop": DROP, "reject": REJECT}[verdict]
        to = set()
        for _, state in results:
            if state.translated:
                to.add((Destination(state.dst, state.port), self._masquerades(state)))
        return Outcome(Verdict.FORWARD, frozenset(to)) if to else PASS

    def traces(self, packet: Packet) -> Iterator[Trace]:
        """Every way that the packet can take, with what decided it."""
        start = _State(packet, packet.dst, packet.port, False)
        for verdict, state in self._chain(LOOPBACK, start) if LOOPBACK in self.dump.rules and not packet.node else ():
            if verdict == "drop":
                yield Trace("drop", None, False, state.steps)
                return
        for verdict, state in self._chain("output" if packet.node else "prerouting", start):
            to = Destination(state.dst, state.port) if state.translated else None
            steps, masquerade = state.steps, False
            if verdict == "accept":
                for after, end in self._chain("postrouting", replace(state, registers=bytes(64), steps=())):
                    masquerade = after == "masquerade"
                    steps = (*steps, *end.steps)
            yield Trace(verdict, to, masquerade, steps)

    def _masquerades(self, state: _State) -> bool:
        return any(verdict == "masquerade" for verdict, _ in self._chain("postrouting", state))

    def _chain(self, name: str, state: _State) -> Iterator[tuple[str, _State]]:
        for verdict, after in self._rules(name, 0, state):
            yield ("accept", after) if verdict in ("continue", "return") else (verdict, after)

    def _rules(self, chain: str, index: int, state: _State) -> Iterator[tuple[str, _State]]:
        rules = self.dump.rules[chain]
        if index == len(rules):
            yield "continue", state
            return
        clean = _State(state.packet, state.dst, state.port, state.translated, steps=state.steps)
        words = f'rule {chain}: "{rules[index].comment.rpartition(" #")[0] or rules[index].comment}"'
        for verdict, end in self._exprs(rules[index].exprs, clean):
            after = end.told(words) if self.tell and verdict != "next" and not _leads_on(verdict) else end
            if isinstance(verdict, str) and verdict == "next":
                yield from self._rules(chain, index + 1, after)
            elif isinstance(verdict, Code):
                yield from self._jump(chain, index, verdict, after)
            else:
                yield verdict, after

    def _jump(self, chain: str, index: int, verdict: Code, state: _State) -> Iterator[tuple[str, _State]]:
        if verdict.code == VERDICT_DROP:
            yield "drop", state
        elif verdict.code == ACCEPT:
            yield "accept", state
        elif verdict.code == RETURN:
            yield "return", state
        else:
            for result, after in self._rules(verdict.chain, 0, state):
                if result not in ("continue", "return"):
                    yield result, after
                elif verdict.code == JUMP:
                    yield from self._rules(chain, index + 1, after)
                else:
                    assert verdict.code == GOTO
                    yield "return", after

    def _exprs(self, exprs: tuple[Expr, ...], state: _State) -> Iterator[tuple[str | Code, _State]]:
        """Run one rule; "next" where it does not apply or ends without a verdict."""
        if not exprs:
            yield "next", state
            return
        expr, rest = exprs[0], exprs[1:]
        if isinstance(expr, nft.Numgen):
            for number in range(expr.modulus):
                drawn = state.told(f"slot {number} of {expr.modulus}, by chance") if self.tell else state
                yield from self._exprs(rest, drawn.load(expr.dreg, nft.host32(expr.offset + number)))
            return
        result = self._one(expr, state)
        if isinstance(result, _State):
            yield from self._exprs(rest, result)
        elif isinstance(result, _Translated):
            yield "accept", result.state
        elif isinstance(result, tuple):
            yield result
        elif result is None:
            yield "next", state
        else:
            yield result, state

    def _one(self, expr: Expr, state: _State) -> _State | _Translated | str | Code | tuple[Code, _State] | None:
        """The state to go on with, a verdict, or None where the rule does not apply."""
        match expr:
            case nft.Cmp(data, op, sreg):
                equal = state.read(sreg, len(data)) == data
                return state if equal == (op == "==") else None
            case nft.Counter():
                return state
            case nft.Lookup():
                return self._lookup(expr, state)
            case nft.Immediate(Code() as verdict):
                return verdict
            case nft.Immediate(bytes() as value, dreg):
                return state.load(dreg, value)
            case nft.Update():
                set_ = self.dump.sets[expr.set]
                self.noted.add(
                    (expr.set, state.read(expr.sreg, set_.key_len), state.read(expr.data or R0, set_.data_len))
                )
                return state
            case nft.Meta("iifname", dreg):
                return None if state.packet.node else state.load(dreg, state.packet.interface.encode().ljust(16, b"\0"))
            case nft.Dnat(_, addr, port):
                width = len(packed(state.dst))
                ip = str(ipaddress.ip_address(state.read(addr, width)))
                return _Translated(
                    _State(state.packet, ip, int.from_bytes(state.read(port or R0, 2), "big"), True, steps=state.steps)
                )
            case nft.Masquerade():
                return "masquerade"
            case nft.Reject():
                return "reject"
        return self._load(expr, state)

    def _load(self, expr: Expr, state: _State) -> _State:
        """The expressions that put something into a register."""
        packet = state.packet
        match expr:
            case nft.Payload(base, offset, _, dreg):
                return state.load(dreg, self._payload(state, base, offset))
            case nft.Meta("l4proto", dreg):
                return state.load(dreg, bytes((PROTOCOLS.get(packet.protocol, 1),)))
            case nft.Ct("status", dreg):
                return state.load(dreg, nft.host32(IPS_DST_NAT if state.translated else 0))
            case nft.Ct("proto-dst", dreg):
                return state.load(dreg, packet.port.to_bytes(2, "big"))
            case nft.Ct("ip daddr" | "ip6 daddr", dreg):
                return state.load(dreg, packed(packet.dst))
            case nft.FibType(of, dreg):
                return state.load(dreg, nft.host32(RTN_LOCAL if self._local(state, of) else 1))
            case nft.Bitwise(mask, xor, sreg, dreg):
                value = state.read(sreg, len(mask))
                return state.load(dreg, bytes(v & m ^ x for v, m, x in zip(value, mask, xor, strict=True)))
        raise NotImplementedError(expr)

    def _payload(self, state: _State, base: str, offset: int) -> bytes:
        if base == "transport" and offset == 13:
            return b"\2"  # TCP's flags: the first packet of a flow is a SYN
        if base == "transport":
            return state.port.to_bytes(2, "big")
        return packed(state.packet.src if offset in (12, 8) else state.dst)

    def _local(self, state: _State, of: str) -> bool:
        if of == "saddr":
            return state.packet.node
        return state.dst in self.node.addresses or (state.packet.bound and state.dst == state.packet.dst)

    def _lookup(self, expr: nft.Lookup, state: _State) -> _State | tuple[Code, _State] | None:
        set_, held = self.dump.sets[expr.set], self.dump.elements[expr.set]
        key = state.read(expr.sreg, set_.key_len)
        if set_.interval:
            starts = [start for start in held if start <= key]
            found = bool(starts) and held[max(starts)] != nft.INTERVAL_END
        else:
            found = key in held
        if expr.dreg is None:
            return state if found != expr.invert else None
        if not found:
            return None
        value = held[key]
        if self.tell:
            state = state.told(f"map {expr.set}: {nft.show(set_, key, value)}")
        if isinstance(value, Code):
            return value, state
        assert isinstance(value, bytes)
        return state.load(expr.dreg, value)
