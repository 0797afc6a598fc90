"""Which address a pod gets: the next free one behind the last that was given.

Round robin, so that an address rests as long as the pool allows before another pod has it: peers' caches, conntrack entries
and DNS answers of the pod that had it can run out meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from ..errors import CNIError, Code
from ..plan import mac_for
from ..types import Attachment, IPAddress, PortMapping, Range, RangeSet
from .ranges import capacity, walk


@dataclass(frozen=True, slots=True)
class Lease:
    """One address held by one attachment. `boot_id` is the kernel's; a lease of an earlier boot holds nothing.

    `wired` tells that the ADD it was taken for came to its end; until then a crash must give it back.
    """

    address: IPAddress
    owner: Attachment
    pod: str = ""
    pod_uid: str = ""
    boot_id: str = ""
    mac: str = ""  # the pod's
    wired: bool = False
    ports: tuple[PortMapping, ...] = ()  # the pod's; the same in each of its leases

    def to_json(self) -> dict[str, Any]:
        ports = [{"hostPort": p.host_port, "containerPort": p.container_port, "protocol": p.protocol,
                  "hostIP": "" if p.host_ip is None else str(p.host_ip)} for p in self.ports]
        return {"address": str(self.address), "containerID": self.owner.container_id, "ifname": self.owner.ifname,
                "pod": self.pod, "podUID": self.pod_uid, "bootID": self.boot_id, "mac": self.mac, "ports": ports}


class Store(Protocol):
    """Leases that survive the process. Writers are one at a time; that is the caller's to see to."""

    def leases(self) -> Iterable[Lease]:
        """All leases, the newest last."""

    def reserve(self, lease: Lease) -> bool:
        """Write a lease; False where its address is already held."""

    def wired(self, lease: Lease) -> None:
        """Note that the lease's ADD came to its end."""

    def damaged(self) -> frozenset[IPAddress]:
        """Addresses whose leases cannot be read. They are not given; `release` forgets them."""

    def release(self, address: IPAddress) -> None:
        """Forget the lease of this address; nothing happens where there is none."""


class PoolExhausted(CNIError):
    """No address is free. Code 11: one comes back when a pod goes."""

    def __init__(self, ranges: RangeSet) -> None:
        names = ", ".join(str(r.subnet) for r in ranges)
        super().__init__(Code.TRY_AGAIN_LATER, f"no free address in {names}: all {capacity(ranges)} are in use",
                         "delete pods on this node, or give its Node a larger podCIDR (--node-cidr-mask-size)")


class Allocator:
    """Addresses by owner over a Store. Not for several threads at once: the caller holds a lock."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._by_address: dict[IPAddress, Lease] = {}
        self._by_owner: dict[Attachment, list[Lease]] = {}
        self._last: dict[RangeSet, IPAddress] = {}
        for lease in store.leases():
            self._index(lease)

    def _index(self, lease: Lease) -> None:
        self._by_address[lease.address] = lease
        self._by_owner.setdefault(lease.owner, []).append(lease)

    def leases(self) -> list[Lease]:
        return list(self._by_address.values())

    def owned_by(self, owner: Attachment) -> list[Lease]:
        return list(self._by_owner.get(owner, ()))

    def holder(self, ports: Sequence[PortMapping]) -> tuple[Lease, PortMapping] | None:
        """Who has one of these ports of the node already."""
        if not ports:
            return None
        return next(((lease, theirs) for lease in self._by_address.values() for theirs in lease.ports
                     if any(theirs.clashes(mine) for mine in ports)), None)

    def free(self, ranges: RangeSet) -> int:
        """How many addresses of the set can still be given."""
        held = [*self._by_address, *self.store.damaged()]
        return capacity(ranges) - sum(any(a in r and a != r.gateway for r in ranges) for a in held)

    def allocate(self, sets: Sequence[RangeSet], owner: Attachment, *, wanted: Sequence[IPAddress] = (), pod: str = "",
                 pod_uid: str = "", boot_id: str = "", mac: str = "", ports: tuple[PortMapping, ...] = (),
                 ) -> list[tuple[Lease, Range]]:
        """One address of each set, or the `wanted` ones; all or none.

        Raises PoolExhausted, and CNIError 7 where a wanted address is outside every range, 11 where it is in use.
        """
        taken: list[tuple[Lease, Range]] = []
        try:
            for ranges in sets:
                asked = [a for a in wanted if any(a in r for r in ranges)]
                taken.append(self._take(ranges, asked[0] if asked else None, Lease(
                    ranges[0].start, owner, pod, pod_uid, boot_id, taken[0][0].mac if taken else mac, ports=ports)))
            got = {lease.address for lease, _ in taken}
            for address in wanted:
                if address not in got:
                    raise CNIError(Code.INVALID_CONFIG, f"the requested address {address} is in no range of this network, "
                                   "or a second one of the same range set", "ask for an address of the node's podCIDR")
        except BaseException:
            self.release(owner, [lease for lease, _ in taken])
            raise
        return taken

    def _take(self, ranges: RangeSet, wanted: IPAddress | None, form: Lease) -> tuple[Lease, Range]:
        if ranges not in self._last:  # after a restart: behind the newest lease, not from the start again
            self._last.update((ranges, a) for a in self._by_address if any(a in r for r in ranges))
        candidates = walk(ranges, self._last.get(ranges)) if wanted is None else (
            (wanted, r) for r in ranges if wanted in r and wanted != r.gateway)
        for address, home in candidates:
            if address in self._by_address:
                continue
            lease = replace(form, address=address, mac=form.mac or mac_for(address))
            if self.store.reserve(lease):
                self._index(lease)
                if wanted is None:
                    self._last[ranges] = address
                return lease, home
        if wanted is not None:
            raise CNIError(Code.TRY_AGAIN_LATER, f"the requested address {wanted} is in use or is the gateway's",
                           "ask for another address, or none")
        raise PoolExhausted(ranges)

    def confirm(self, owner: Attachment) -> None:
        """The owner's ADD came to its end: from now on its leases survive a restart."""
        held = self._by_owner.get(owner, [])
        for i, lease in enumerate(held):
            self.store.wired(lease)
            held[i] = self._by_address[lease.address] = replace(lease, wired=True)

    def release(self, owner: Attachment, only: Sequence[Lease] | None = None) -> list[IPAddress]:
        """Give back the owner's addresses (or just some of them); none is fine."""
        gone = []
        for lease in self.owned_by(owner) if only is None else only:
            self.store.release(lease.address)
            del self._by_address[lease.address]
            rest = [other for other in self._by_owner[owner] if other.address != lease.address]
            if rest:
                self._by_owner[owner] = rest
            else:
                del self._by_owner[owner]
            gone.append(lease.address)
        return gone
