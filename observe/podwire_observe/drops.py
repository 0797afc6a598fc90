"""Packets that rules refused or dropped, as connections that failed. Pure."""

from __future__ import annotations

from podwire_base.kernel.nflog import Logged
from podwire_base.kernel.reasons import Reason

from .names import Names
from .record import DROPPED, PROTOCOLS, REFUSED, Flow

REJECTED = frozenset((Reason.NO_ENDPOINTS, Reason.WRONG_PORT))  # their rules answer; the others drop


def flow_of(names: Names, logged: Logged, now: float) -> Flow | None:
    """Returns the connection that a packet began; None if another node tells of it. now: seconds since 1970."""
    packet, ip = logged.packet, logged.packet.dst
    ends = names.named(packet.src, ip, packet.dport, packet.protocol, ip, now)
    if ends is None:
        return None
    return Flow(
        0, names.node, now, now, PROTOCOLS.get(packet.protocol, str(packet.protocol)),
        packet.src, packet.sport, ip, packet.dport, ip, packet.dport, ends,
        REFUSED if logged.reason in REJECTED else DROPPED, logged.reason.value, 1, rule=logged.words,
    )  # fmt: skip
