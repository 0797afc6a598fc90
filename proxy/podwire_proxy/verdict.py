"""The verdict on a packet and its reason: the common type of the oracle, the traces of the rules, and explanations.
Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from podwire_base.kernel.reasons import Reason

from .model import Destination


class Kind(StrEnum):
    PASS = "pass"  # not the proxy's concern
    REJECT = "reject"  # TCP reset; ICMP port unreachable for other protocols
    DROP = "drop"
    FORWARD = "forward"


@dataclass(frozen=True, slots=True)
class Verdict:
    """to: the possible deliveries of FORWARD, each with whether its source is masqueraded; otherwise empty. reason: of
    DROP and REJECT; None if the rule has none (a foreign rule).
    """

    kind: Kind
    reason: Reason | None = None
    to: frozenset[tuple[Destination, bool]] = frozenset()

    @property
    def observable(self) -> Verdict:
        """The part that the packet's sender can observe: without the reason."""
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
    """A random choice decides whether the same packet is served or refused."""


def combined(ways: Iterable[Verdict]) -> Verdict:
    """The verdict of all paths of a packet. Raises DecidedByChance: the delivery may be random, the verdict may not."""
    found = set(ways)
    refused = {way for way in found if way.kind in (Kind.DROP, Kind.REJECT)}
    if refused and len(found) > 1:
        raise DecidedByChance(found)
    if refused:
        return refused.pop()
    to = frozenset(delivery for way in found for delivery in way.to)
    return forward(to) if to else PASS
