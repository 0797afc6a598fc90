"""Traces a packet through a table `podwire-policy` in memory, as the kernel would judge it. Pure."""

from __future__ import annotations

from podwire_base.kernel.ip import packed
from podwire_base.kernel.nft import eval as nft_eval
from podwire_base.kernel.nft.codec import TableDump

from ..model import Packet


def allowed(dump: TableDump, packet: Packet) -> bool:
    """Whether the first packet of a flow is forwarded. dump: with the expressions of the rules."""
    first = nft_eval.headers(packed(packet.src), packed(packet.dst), packet.protocol, packet.port, "eth0")
    (result,) = nft_eval.Evaluator([dump], lambda _of, _address: 1).hook("forward", nft_eval.State(first, first))
    return result.verdict == "accept"
