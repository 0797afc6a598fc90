"""Bounds connections that wait for their peer (a TLS handshake, the head of a request). Pure.

A peer that opens connections and sends nothing loses its own oldest ones, so the connections of other peers stay. An
honest connection waits for a moment only, so it is rarely the oldest.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class Waiting(Generic[T]):
    """The connections that wait, by peer. per_peer, most: the greatest numbers for one peer and for all peers."""

    def __init__(self, per_peer: int, most: int) -> None:
        self.per_peer, self.most = per_peer, most
        self._peers: dict[str, OrderedDict[T, None]] = {}
        self._of: dict[T, str] = {}

    def __len__(self) -> int:
        return len(self._of)

    def __contains__(self, one: T) -> bool:
        return one in self._of

    def of(self, peer: str) -> int:
        return len(self._peers.get(peer, ()))

    def add(self, peer: str, one: T) -> T | None:
        """Add a connection. Returns the connection to be closed in its place, which no longer waits; None if there is
        room: the oldest of this peer, or if all peers together have too many, the oldest of the peer with the most.
        """
        self._peers.setdefault(peer, OrderedDict())[one] = None
        self._of[one] = peer
        if self.of(peer) > self.per_peer:
            return self._oldest(peer)
        if len(self._of) > self.most:
            return self._oldest(max(self._peers, key=self.of))
        return None

    def _oldest(self, peer: str) -> T:
        one = next(iter(self._peers[peer]))
        self.remove(one)
        return one

    def remove(self, one: T) -> bool:
        """Remove a connection that no longer waits. Returns whether it still waited."""
        peer = self._of.pop(one, None)
        if peer is None:
            return False
        del self._peers[peer][one]
        if not self._peers[peer]:
            del self._peers[peer]
        return True

    def all(self) -> list[T]:
        return list(self._of)
