"""What a conntrack entry says of a connection. Pure.

Source: linux/net/netfilter/nf_conntrack_proto_tcp.c. A segment with RST in answer to the first SYN ends the entry at
once, in state CLOSE with one packet each way. Entries of closed connections stay in TIME_WAIT until they expire.
"""

from __future__ import annotations

from podwire_base.kernel.conntrack.codec import CLOSE, SYN_SENT, TCP, TIME_WAIT
from podwire_base.kernel.conntrack.counted import UNKNOWN, Counted

from .record import CLOSED_PORT, FORWARDED, OPEN, REFUSED, RESET, UNANSWERED

SYN_RECV, LAST_ACK = 2, 6
WAITS = 3.0  # seconds without any answer after which a connection counts as unanswered, until an answer comes


def of_end(seen: Counted) -> tuple[str, str]:
    """Returns (verdict, reason) of an entry that is gone."""
    if not seen.replied and seen.back_packets in (0, UNKNOWN) and not (seen.protocol == TCP and seen.state == CLOSE):
        return UNANSWERED, ""
    if seen.protocol == TCP and seen.state == CLOSE:
        if seen.back_packets == 0:
            return UNANSWERED, ""
        if seen.back_packets == UNKNOWN:
            return (RESET, "") if seen.replied else (REFUSED, CLOSED_PORT)
        # One answer to the first segment (and perhaps to its repetitions): nothing was ever established.
        return (REFUSED, CLOSED_PORT) if _never_established(seen) else (RESET, "")
    if seen.protocol == TCP and seen.state == SYN_SENT and not seen.replied:
        return UNANSWERED, ""
    return FORWARDED, ""


def _never_established(seen: Counted) -> bool:
    return seen.back_packets == 1 and seen.packets >= 1 and not seen.status & 4  # IPS_ASSURED


def of_entry(seen: Counted, age: float) -> tuple[str, str]:
    """Returns (verdict, reason) of an entry that a poll found, `age` seconds after its start."""
    if seen.protocol == TCP:
        if seen.state == CLOSE:
            return of_end(seen)
        if seen.state in (TIME_WAIT, LAST_ACK):
            return FORWARDED, ""
        if seen.state == SYN_SENT and not seen.replied and age >= WAITS:
            return UNANSWERED, ""
        return (FORWARDED, "") if seen.status & 4 else (OPEN, "")
    if not seen.replied:
        return (UNANSWERED, "") if age >= WAITS else (OPEN, "")
    return FORWARDED, ""


# TCP_CONNTRACK_* -> the sysctl net.netfilter.nf_conntrack_tcp_timeout_* that says how long its entry stays
TIMEOUTS = {1: "syn_sent", 2: "syn_recv", 3: "established", 4: "fin_wait", 5: "close_wait", 6: "last_ack",
            7: "time_wait", 8: "close"}  # fmt: skip
ESTABLISHED = 3


def duration(seen: Counted, verdict: str, timeouts: dict[int, float]) -> float | None:
    """Returns the seconds from the first packet to the last one of an entry that is gone, None if the kernel does not
    tell. Its stop is the moment when it expired, a timeout after its last packet. timeouts: seconds by state; 0 for
    protocols other than TCP.
    """
    if not seen.start or not seen.stop:
        return None
    whole = (seen.stop - seen.start) / 1e9
    if verdict == REFUSED:
        return max(0.0, whole)  # it ended at once
    if seen.protocol == TCP and seen.state == ESTABLISHED:
        return max(0.0, whole)  # deleted while it was open
    waited = timeouts.get(seen.state if seen.protocol == TCP else 0)
    return None if waited is None or whole < waited else whole - waited
