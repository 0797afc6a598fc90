"""The verdict on a packet and its reason. The oracle, the traces and the explanations share this type. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from podwire_base.kernel.reasons import Reason

from .model import Destination


class Kind(StrEnum):
    PASS = "pass"  # the proxy does not handle this packet
    REJECT = "reject"  # TCP reset; ICMP port unreachable for other protocols
    DROP = "drop"
    FORWARD = "forward"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict on a packet.

    to: (destination, whether the source is masqueraded) of each possible delivery of FORWARD; else empty. reason: the
    reason of DROP and REJECT; None for a foreign rule.
    """

    kind: Kind
    reason: Reason | None = None
    to: frozenset[tuple[Destination, bool]] = frozenset()

    @property
    def observable(self) -> Verdict:
        """Returns the verdict without its reason, as the sender of the packet observes it."""
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
    """Combines the verdicts of all paths of a packet. Raises DecidedByChance if the kind of verdict is random."""
    found = set(ways)
    refused = {way for way in found if way.kind in (Kind.DROP, Kind.REJECT)}
    if refused and len(found) > 1:
        raise DecidedByChance(found)
    if refused:
        return refused.pop()
    to = frozenset(delivery for way in found for delivery in way.to)
    return forward(to) if to else PASS
