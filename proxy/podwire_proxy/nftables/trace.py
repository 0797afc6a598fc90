"""Evaluates the table for a packet in memory (kernel/nft/eval.py).

Tests compare the result with the oracle; `explain` shows the result.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from podwire_base.kernel.ip import packed, unpacked
from podwire_base.kernel.nft import eval as nft_eval
from podwire_base.kernel.nft.codec import TableDump
from podwire_base.kernel.nft.expr import RTN_LOCAL
from podwire_base.kernel.nft.objects import Rule
from podwire_base.kernel.reasons import reason_of, without_reason

from ..backend import Trace
from ..decide import Packet
from ..model import PROTOCOLS, Destination, NodeInfo
from ..verdict import PASS, Kind, Verdict, forward

RTN_UNICAST = 1


class Tracer:
    """Traces packets through a table. dump: with the rules' expressions. node: determines the local addresses."""

    def __init__(self, dump: TableDump, node: NodeInfo) -> None:
        self.dump, self.node = dump, node

    def traces(self, packet: Packet) -> Iterator[Trace]:
        """Yields every possible path of the packet, with the rules that decided the path."""
        local = {packed(ip) for ip in self.node.addresses} | ({packed(packet.dst)} if packet.bound else set())

        def fib(of: str, address: bytes) -> int:
            here = packet.node if of == "saddr" else address in local
            return RTN_LOCAL if here else RTN_UNICAST

        protocol = PROTOCOLS.get(packet.protocol, 1)
        interface = None if packet.node else packet.interface
        first = nft_eval.headers(packed(packet.src), packed(packet.dst), protocol, packet.port, interface)
        tables = nft_eval.Evaluator([self.dump], fib)
        hooks = ("output", "postrouting") if packet.node else ("prerouting", "forward", "postrouting")
        for result in _through(tables, hooks, nft_eval.State(first, first)):
            yield _trace(result)


def _through(tables: nft_eval.Evaluator, hooks: Sequence[str], state: nft_eval.State) -> Iterator[nft_eval.Result]:
    for result in tables.hook(hooks[0], state):
        if result.verdict == "accept" and len(hooks) > 1:
            yield from _through(tables, hooks[1:], result.state)
        else:
            yield result


def _trace(result: nft_eval.Result) -> Trace:
    state = result.state
    verdict = PASS
    if result.verdict != "accept":
        verdict = Verdict(Kind(result.verdict), reason_of(result.rule.comment) if result.rule else None)
    elif state.translated:
        to = Destination(unpacked(state.packet.daddr), state.packet.dport)
        verdict = forward([(to, state.masqueraded)])
    return Trace(verdict, tuple(map(_words, state.steps)), frozenset((n.set, n.key, n.data) for n in state.noted))


def _words(step: nft_eval.Step) -> str:
    if not isinstance(step, Rule):
        return str(step)
    words = step.comment.rpartition(" #")[0] or step.comment
    return f'rule {step.chain.name}: "{without_reason(words)}"'
