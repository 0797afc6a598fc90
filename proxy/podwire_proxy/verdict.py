"""What becomes of a packet, and why: the one kind of answer that the oracle, the traces of the rules and explanations
give. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from podwire_base.kernel.reasons import Reason

from .model import Destination


class Kind(StrEnum):
    PASS = "pass"  # none of the proxy's business
    REJECT = "reject"  # TCP reset; ICMP port unreachable for other protocols
    DROP = "drop"
    FORWARD = "forward"


@dataclass(frozen=True, slots=True)
class Verdict:
    """to: the possible deliveries of FORWARD, each with whether its source is masqueraded; else empty. reason: of DROP
    and REJECT; None where a rule gave none (somebody else's)."""

    kind: Kind
    reason: Reason | None = None
    to: frozenset[tuple[Destination, bool]] = frozenset()

    @property
    def observable(self) -> Verdict:
        """As far as the packet's sender can tell: without the reason."""
        return replace(self, reason=None)


PASS = Verdict(Kind.PASS)
NO_ENDPOINTS = Verdict(Kind.REJECT, Reason.NO_ENDPOINTS)
NO_LOCAL_ENDPOINTS = Verdict(Kind.DROP, Reason.NO_LOCAL_ENDPOINTS)
NOT_IN_RANGE = Verdict(Kind.DROP, Reason.SOURCE_RANGE)
UNALLOCATED = Verdict(Kind.DROP, Reason.UNALLOCATED_ADDRESS)
WRONG_PORT = Verdict(Kind.REJECT, Reason.WRONG_PORT)
MARTIAN = Verdict(Kind.DROP, Reason.LOOPBACK_MARTIAN)


def forward(to: Iterable[tuple[Destination, bool]]) -> Verdict:
    return Verdict(Kind.FORWARD, None, frozenset(to))


class DecidedByChance(AssertionError):
    """The same packet is served on one way and refused on another, by a random draw."""


def combined(ways: Iterable[Verdict]) -> Verdict:
    """Of all ways that a packet can take. Raises DecidedByChance: where packets go may be drawn, their fate may not."""
    found = set(ways)
    refused = {way for way in found if way.kind in (Kind.DROP, Kind.REJECT)}
    if refused and len(found) > 1:
        raise DecidedByChance(found)
    if refused:
        return refused.pop()
    to = frozenset(delivery for way in found for delivery in way.to)
    return forward(to) if to else PASS
