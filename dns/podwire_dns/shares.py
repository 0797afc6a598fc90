"""Divides what clients use among their source addresses: one client cannot take the DNS from the others. Pure.

`Turns` holds the queries that wait for upstreams: each source has a share of the places, and the sources are served in
turn. `Quotas` says which answer of the cache to evict: the oldest of the group that has more than its share.

A source is a packed address (4 or 16 bytes). The addresses of the node itself have a larger share, because all programs
and all hostNetwork pods of the node use them.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict, deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)
SHARE, OWN_SHARE = 4, 2  # a source has a quarter of the places, an address of the node half
FLOOR = 16  # places that each source has, even if others hold all places


def packed(address: object) -> bytes:
    """Returns the source for the text of a socket's address, also with a scope; b"" if the text is no address."""
    try:
        return ipaddress.ip_address(str(address).partition("%")[0]).packed
    except ValueError:
        return b""


@dataclass(slots=True)
class Turns(Generic[T]):
    """Queries that wait, by source. `most` places are for all; beyond them only the first FLOOR of each source enter,
    and never more than twice `most`. own: the sources with the larger share.

    `add` takes a place, `take` returns the next query to start, `done` gives the place back.
    """

    most: int
    own: frozenset[bytes] = frozenset()
    total: int = 0
    refused: int = 0
    _held: dict[bytes, int] = field(default_factory=dict)
    _queues: dict[bytes, deque[T]] = field(default_factory=dict)  # the first key has the next turn

    def add(self, source: bytes, item: T) -> bool:
        """Whether the query got a place. Without a place the caller must refuse it."""
        held = self._held.get(source, 0)
        if held >= FLOOR and (
            self.total >= self.most or held >= self.most // (OWN_SHARE if source in self.own else SHARE)
        ):
            self.refused += 1
            return False
        if self.total >= 2 * self.most:
            self.refused += 1
            return False
        self.total += 1
        self._held[source] = held + 1
        queue = self._queues.get(source)
        if queue is None:
            self._queues[source] = deque((item,))
        else:
            queue.append(item)
        return True

    def take(self) -> tuple[bytes, T] | None:
        """Returns a query of the source whose turn it is; None if no query waits for its start."""
        for source, queue in self._queues.items():
            item = queue.popleft()
            del self._queues[source]
            if queue:
                self._queues[source] = queue
            return source, item
        return None

    def done(self, source: bytes) -> None:
        """Gives back the place of a query that `take` returned."""
        self.total -= 1
        held = self._held[source] - 1
        if held:
            self._held[source] = held
        else:
            del self._held[source]


@dataclass(slots=True)
class Quotas(Generic[K]):
    """The keys of a cache by group, oldest first. A key may be in several groups."""

    # An OrderedDict finds its oldest key at once. A dict walks over the places of all keys that left before it.
    _keys: dict[bytes, OrderedDict[K, None]] = field(default_factory=dict)

    def add(self, key: K, groups: tuple[bytes, ...]) -> None:
        for group in groups:
            keys = self._keys.get(group)
            if keys is None:
                keys = self._keys[group] = OrderedDict()
            keys[key] = None

    def forget(self, key: K, groups: tuple[bytes, ...]) -> None:
        for group in groups:
            keys = self._keys.get(group)
            if keys is not None:
                keys.pop(key, None)
                if not keys:
                    del self._keys[group]

    def oldest_above(self, group: bytes, most: int) -> K | None:
        """Returns the oldest key of a group that has `most` keys or more; else None."""
        keys = self._keys.get(group)
        return next(iter(keys)) if keys is not None and len(keys) >= max(1, most) else None

    def clear(self) -> None:
        self._keys.clear()
