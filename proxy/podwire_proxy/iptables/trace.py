"""Evaluates the rules for a packet in memory and follows every random choice.

The input is a KernelState, planned or read back from a kernel, without foreign rules. Tests compare the result with the
oracle; `explain` shows the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from podwire_base.kernel.ip import packed
from podwire_base.kernel.reasons import Reason, reason_of

from ..backend import Trace
from ..decide import Packet
from ..model import PROTOCOLS, Destination, NodeInfo, covers
from ..verdict import PASS, Kind, Verdict, forward
from .layout import MARK, Chain, Rules, TableName
from .plan import KernelState
from .text import Parsed, take_apart

_NEXT, _RETURN = "next", "return"


@dataclass(frozen=True, slots=True)
class TracedPacket:
    """A packet on its way. marked: the connection mark's bit. noted: the (set, client) that rules recorded."""

    packet: Packet
    dst: str
    port: int
    translated: bool = False
    marked: bool = False
    noted: frozenset[tuple[str, str]] = frozenset()
    steps: tuple[str, ...] = ()
    reason: Reason | None = None  # the reason of the rule that ended the path

    def told(self, text: str) -> TracedPacket:
        return replace(self, steps=(*self.steps, text))


def run_bpf(program: str, ip_header: bytes) -> bool:
    """Runs classic BPF in the format of xt_bpf ("6,32 0 0 12,..."). Supports only the instructions in the rules."""
    code = [tuple(map(int, one.split())) for one in program.split(",")[1:]]
    accumulator = index = at = 0
    while True:
        op, if_true, if_false, value = code[at]
        at += 1
        if op == 0x20:  # ld [value]
            accumulator = int.from_bytes(ip_header[value : value + 4], "big")
        elif op == 0x07:  # tax
            index = accumulator
        elif op == 0x1D:  # jeq x
            at += if_true if accumulator == index else if_false
        elif op == 0x06:  # ret
            return bool(value)
        else:
            raise NotImplementedError(f"BPF instruction {op:#x}")


def _refused(verdict: str, hop: TracedPacket) -> Trace:
    return Trace(Verdict(Kind(verdict.lower()), hop.reason), hop.steps, hop.noted)


class Tracer:
    """Traces packets. node: determines the local addresses. Raises NotImplementedError for a foreign rule."""

    def __init__(self, state: KernelState, node: NodeInfo) -> None:
        self.state, self.node = state, node

    def traces(self, packet: Packet) -> Iterator[Trace]:
        """Yields every possible path of the packet, with the rules that decided the path."""
        start = TracedPacket(packet, packet.dst, packet.port)
        for verdict, hop in self._hook("raw", "OUTPUT" if packet.node else "PREROUTING", start):
            if verdict == "DROP":
                yield _refused(verdict, hop)
                return
        for _, hop in self._hook("nat", "OUTPUT" if packet.node else "PREROUTING", start):
            here = self._local(hop, hop.dst)
            for verdict, after in self._hook(
                "filter", "OUTPUT" if packet.node else "INPUT" if here else "FORWARD", hop
            ):
                if verdict in ("DROP", "REJECT"):
                    yield _refused(verdict, after)
                    continue
                for last, end in self._hook("nat", "POSTROUTING", after):
                    to = forward([(Destination(hop.dst, hop.port), last == "MASQUERADE")]) if hop.translated else PASS
                    yield Trace(to, end.steps, end.noted)

    def _hook(self, table: TableName, name: str, hop: TracedPacket) -> Iterator[tuple[str, TracedPacket]]:
        rules = self.state.chains.get(Chain(table, name), ())
        for verdict, after in self._rules(Chain(table, name), rules, 0, hop):
            yield ("ACCEPT" if verdict in (_NEXT, _RETURN) else verdict), after

    def _rules(self, chain: Chain, rules: Rules, start: int, hop: TracedPacket) -> Iterator[tuple[str, TracedPacket]]:
        for index in range(start, len(rules)):
            rule = take_apart(rules[index])
            chance = self._matches(rule, hop)
            if not chance:
                continue
            taken = hop
            if rule.comment or rule.target not in ("RETURN", "SET", "NFLOG"):
                taken = hop.told(f"{chain.table} {chain.name}: {rules[index]}")
            if chance == "perhaps":
                yield from self._target(chain, rules, index, rule, taken)
                continue  # also follow the paths of the alternatives that were not drawn
            yield from self._target(chain, rules, index, rule, taken)
            return
        yield _NEXT, hop

    def _target(
        self, chain: Chain, rules: Rules, index: int, rule: Parsed, hop: TracedPacket
    ) -> Iterator[tuple[str, TracedPacket]]:
        match rule.target:
            case "DNAT":
                ip, _, number = rule.arguments[0][1][0].rpartition(":")
                to = Destination(ip.strip("[]"), int(number))
                # for conntrack, a translation to the very same place is none
                yield "ACCEPT", replace(hop, dst=to.ip, port=to.port, translated=to != (hop.dst, hop.port))
            case "DROP" | "REJECT" | "ACCEPT" | "MASQUERADE":
                yield rule.target, replace(hop, reason=reason_of(rule.comment))
            case "RETURN":
                yield _RETURN, hop
            case "NFLOG":
                yield from self._rules(chain, rules, index + 1, hop)
            case "CONNMARK":
                value = int(rule.arguments[0][1][0].split("/")[0], 16)
                yield from self._rules(chain, rules, index + 1, replace(hop, marked=bool(value & MARK)))
            case "SET":
                noted = hop.noted | {(rule.arguments[0][1][0], hop.packet.src)}
                yield from self._rules(chain, rules, index + 1, replace(hop, noted=noted))
            case name if (inner := Chain(chain.table, name)) in self.state.chains:
                for verdict, after in self._rules(inner, self.state.chains[inner], 0, hop):
                    if verdict in (_NEXT, _RETURN):
                        yield from self._rules(chain, rules, index + 1, after)
                    else:
                        yield verdict, after
            case other:
                raise NotImplementedError(f"target {other} in chain {chain.name}")

    def _matches(self, rule: Parsed, hop: TracedPacket) -> str:
        """Returns "always" if the rule applies, "perhaps" for a random choice, else ""."""
        chance = "always"
        for name, arguments, negated in rule.options:
            if name == "--probability":
                chance = "perhaps"
            elif name not in _QUIET and self._match(name, arguments, hop) == negated:
                return ""
        return chance

    def _match(self, name: str, arguments: tuple[str, ...], hop: TracedPacket) -> bool:
        test = _TESTS.get(name)
        if test is None:
            raise NotImplementedError(f"match {name}")
        return test(self, arguments, hop)

    def _local(self, hop: TracedPacket, ip: str) -> bool:
        return ip in self.node.addresses or (hop.packet.bound and ip == hop.packet.dst)

    def _type(self, ip: str, wanted: str, hop: TracedPacket, source: bool) -> bool:
        assert wanted == "LOCAL"
        return hop.packet.node if source else self._local(hop, ip)

    def _in_set(self, arguments: tuple[str, ...], hop: TracedPacket) -> bool:
        name, side = arguments
        return (hop.dst if side == "dst" else hop.packet.src) in self.state.sets.get(name, ())

    def _same(self, program: str, hop: TracedPacket) -> bool:
        source, target = packed(hop.packet.src), packed(hop.dst)
        return run_bpf(program, bytes(12 if len(source) == 4 else 8) + source + target)

    def _state(self, wanted: str, hop: TracedPacket) -> bool:
        return hop.translated if wanted == "DNAT" else "NEW" in wanted.split(",")


def _interface(wanted: str, found: str) -> bool:
    return found.startswith(wanted[:-1]) if wanted.endswith("+") else bool(found) and found == wanted


def _inside(cidr: str, ip: str) -> bool:
    network, _, mask = cidr.partition("/")
    if mask.isdecimal():
        return covers((cidr,), ip)
    return all(a & m == b for a, m, b in zip(packed(ip), packed(mask), packed(network), strict=True))


def _port(wanted: str, port: int) -> bool:
    first, _, last = wanted.partition(":")
    return int(first) <= port <= int(last or first)


_QUIET = ("--mode", "--limit", "--limit-burst")  # the first two words of a random choice; of a rule that logs
_Test = Callable[[Tracer, tuple[str, ...], TracedPacket], bool]
_TESTS: dict[str, _Test] = {
    "-s": lambda _, a, hop: _inside(a[0], hop.packet.src),
    "-d": lambda _, a, hop: _inside(a[0], hop.dst),
    "-i": lambda _, a, hop: not hop.packet.node and _interface(a[0], hop.packet.interface),
    "-p": lambda _, a, hop: PROTOCOLS.get(a[0].upper()) == PROTOCOLS.get(hop.packet.protocol),
    "--tcp-flags": lambda _, a, hop: True,  # the first packet of a flow is a SYN
    "--dport": lambda _, a, hop: _port(a[0], hop.port),
    "--src-type": lambda tracer, a, hop: tracer._type(hop.packet.src, a[0], hop, True),
    "--dst-type": lambda tracer, a, hop: tracer._type(hop.dst, a[0], hop, False),
    "--match-set": lambda tracer, a, hop: tracer._in_set(a, hop),
    "--ctorigdst": lambda _, a, hop: a[0] == hop.packet.dst,
    "--ctstate": lambda tracer, a, hop: tracer._state(a[0], hop),
    "--mark": lambda _, a, hop: hop.marked,
    "--bytecode": lambda tracer, a, hop: tracer._same(a[0], hop),
}
