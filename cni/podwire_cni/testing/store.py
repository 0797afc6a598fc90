"""A Store without a disk, for tests of this and other packages. DirStore passes the same table of test cases."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from ..ipam.allocator import Lease
from ..types import IPAddress


class FakeStore:
    """Leases in a dict. `writes` counts the disk writes that a DirStore would do. To simulate a restart, pass the dict
    to a new FakeStore.
    """

    def __init__(
        self,
        held: dict[IPAddress, Lease] | None = None,
        rested: dict[IPAddress, float] | None = None,
        now: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.held = {} if held is None else held
        self.rested = {} if rested is None else rested
        self.now = now
        self.writes = 0
        self.broken: set[IPAddress] = set()

    def leases(self) -> Iterable[Lease]:
        return list(self.held.values())

    def reserve(self, lease: Lease) -> bool:
        if lease.address in self.held or lease.address in self.broken:
            return False
        self.writes += 1
        self.held[lease.address] = lease
        return True

    def wired(self, lease: Lease) -> None:
        self.writes += 1
        self.held[lease.address] = replace(lease, wired=True)

    def damaged(self) -> frozenset[IPAddress]:
        return frozenset(self.broken)

    def mend(self, lease: Lease) -> None:
        self.writes += 1
        self.broken.discard(lease.address)
        self.held[lease.address] = lease

    def release(self, address: IPAddress, *, rest: bool = False) -> None:
        self.broken.discard(address)
        if self.held.pop(address, None) is not None:
            self.writes += 1
            if rest:
                self.rested[address] = self.now()

    def resting(self) -> Mapping[IPAddress, float]:
        return dict(sorted(self.rested.items(), key=lambda item: (item[1], str(item[0]))))

    def forget(self, address: IPAddress) -> None:
        self.rested.pop(address, None)
