"""Chooses the address of a pod: the next free address after the last allocated address.

The order is round robin. A released address is quarantined ("rests") before another pod gets it, so that caches of
peers, conntrack entries and DNS answers can expire. If no other address is free, the address that has rested longest is
allocated early.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from podwire_base.role import hostports
from podwire_base.role.hostports import HostPort
from podwire_base.role.podspaces import PodSpace

from ..errors import CNIError, ErrorCode
from ..plan import mac_for
from ..types import Attachment, IPAddress, PortMapping, Range, RangeSet
from .ranges import capacity, walk

MOST_RESTING = 1000


@dataclass(frozen=True, slots=True)
class Lease:
    """The lease of one address for one attachment. `boot_id` is the kernel's boot id; a lease of an earlier boot is
    void.

    `wired`: whether the ADD is complete. After a crash, a lease without `wired` must be released.
    """

    address: IPAddress
    owner: Attachment
    pod: str = ""
    pod_uid: str = ""
    boot_id: str = ""
    mac: str = ""  # the pod's MAC
    wired: bool = False
    ports: tuple[PortMapping, ...] = ()  # the pod's hostPorts; each lease of the pod has all of them
    bridge: str = ""  # "": the node's own bridge
    aliases: tuple[str, ...] = ()  # other names of the container
    origin: str = ""  # "host-local": another plugin attached the pod, and podwire only reserves its address
    network: str = ""  # the name of the network configuration of the ADD
    netns: str = ""  # the pod's namespace, see netnsid.record
    mtu: int = 0  # the pod's MTU, if its configuration says nothing else that podwire would have to know; else 0

    def done(self) -> Lease:
        """Returns the lease with `wired` set. (dataclasses.replace would take as long as writing the mark to disk.)"""
        return Lease(
            self.address,
            self.owner,
            self.pod,
            self.pod_uid,
            self.boot_id,
            self.mac,
            True,
            self.ports,
            self.bridge,
            self.aliases,
            self.origin,
            self.network,
            self.netns,
            self.mtu,
        )

    def to_json(self) -> dict[str, Any]:
        ports = [
            {
                "hostPort": p.host_port,
                "containerPort": p.container_port,
                "protocol": p.protocol,
                "hostIP": "" if p.host_ip is None else str(p.host_ip),
            }
            for p in self.ports
        ]
        return {
            "address": str(self.address),
            "containerID": self.owner.container_id,
            "ifname": self.owner.ifname,
            "pod": self.pod,
            "podUID": self.pod_uid,
            "bootID": self.boot_id,
            "mac": self.mac,
            "ports": ports,
            **({"bridge": self.bridge} if self.bridge else {}),
            **({"aliases": list(self.aliases)} if self.aliases else {}),
            **({"origin": self.origin} if self.origin else {}),
            **({"network": self.network} if self.network else {}),
            **({"netns": self.netns} if self.netns else {}),
            **({"mtu": self.mtu} if self.mtu else {}),
        }


def host_ports(leases: Iterable[Lease]) -> frozenset[HostPort]:
    """Returns the hostPorts of all pods. Each lease of a pod has all of them."""
    return frozenset(
        HostPort(
            port.host_port,
            hostports.PROTOCOLS[port.protocol],
            "" if port.host_ip is None else str(port.host_ip),
            lease.pod,
            lease.pod_uid,
        )
        for lease in leases
        for port in lease.ports
    )


def pod_spaces(leases: Iterable[Lease]) -> frozenset[PodSpace]:
    """Returns the network namespaces of the pods whose only link is on the node's own bridge, with their addresses."""
    found: dict[str, list[Lease]] = {}
    for lease in leases:
        if lease.netns:
            found.setdefault(lease.netns, []).append(lease)
    made = set()
    for netns, held in found.items():
        if len({lease.owner for lease in held}) > 1 or any(x.bridge or x.origin or not x.wired for x in held):
            continue
        ident, _, path = netns.partition(" ")
        device, _, inode = ident.partition(":")
        ips = tuple(str(lease.address) for lease in held)
        made.add(PodSpace(int(device), int(inode), path, ips, held[0].pod))
    return frozenset(made)


class Store(Protocol):
    """Leases that survive a restart of the process. The caller ensures that only one thread writes at a time."""

    def leases(self) -> Iterable[Lease]:
        """Returns all leases, the newest last."""

    def reserve(self, lease: Lease) -> bool:
        """Write a lease. Returns False, and writes nothing, if the address already has a lease."""

    def wired(self, lease: Lease) -> None:
        """Mark the lease's ADD as complete."""

    def damaged(self) -> frozenset[IPAddress]:
        """Returns the addresses with unreadable leases. The allocator does not allocate them; `release` removes such a
        lease.
        """

    def mend(self, lease: Lease) -> None:
        """Replace the unreadable lease of this address with `lease`."""

    def release(self, address: IPAddress, *, rest: bool = False) -> None:
        """Remove the lease of this address. Does nothing if the address has no lease. rest: record the time of the
        release.
        """

    def resting(self) -> Mapping[IPAddress, float]:
        """Returns address -> time of its release (Unix time), the oldest first, for each resting address. A resting
        address was released and has not been allocated again or forgotten.
        """

    def forget(self, address: IPAddress) -> None:
        """Remove the record of a resting address."""


class PoolExhausted(CNIError):
    """No address of a range set is free. The code is 11 (try again later), because an address becomes free when a pod
    ends.
    """

    def __init__(self, ranges: RangeSet) -> None:
        names = ", ".join(str(r.subnet) for r in ranges)
        super().__init__(
            ErrorCode.TRY_AGAIN_LATER,
            f"no free address in {names}: all {capacity(ranges)} are in use",
            "delete pods on this node, or give its Node a larger podCIDR (--node-cidr-mask-size)",
        )


class Allocator:
    """Allocates addresses and stores their leases in a Store. It is not thread-safe: the caller holds a lock.

    quarantine: seconds before a released address is allocated again. now: returns the Unix time.
    """

    def __init__(self, store: Store, quarantine: float = 0, now: Callable[[], float] = lambda: 0.0) -> None:
        self.store, self.quarantine, self.now = store, quarantine, now
        self._by_address: dict[IPAddress, Lease] = {}
        self._by_owner: dict[Attachment, list[Lease]] = {}
        self._last: dict[RangeSet, IPAddress] = {}
        self.withheld: set[IPAddress] = set()  # addresses that may have an owner whom nobody knows yet
        for lease in store.leases():
            self._index(lease)
        self._resting = {address: at for address, at in store.resting().items() if address not in self._by_address}

    def _index(self, lease: Lease) -> None:
        self._by_address[lease.address] = lease
        self._by_owner.setdefault(lease.owner, []).append(lease)

    def leases(self) -> list[Lease]:
        return list(self._by_address.values())

    def owned_by(self, owner: Attachment) -> list[Lease]:
        return list(self._by_owner.get(owner, ()))

    def holder(self, ports: Sequence[PortMapping]) -> tuple[Lease, PortMapping] | None:
        """Returns a lease that already uses one of these hostPorts, and that port; None if all are free."""
        if not ports:
            return None
        return next(
            (
                (lease, theirs)
                for lease in self._by_address.values()
                for theirs in lease.ports
                if any(theirs.clashes(mine) for mine in ports)
            ),
            None,
        )

    def free(self, ranges: RangeSet) -> int:
        """Returns the number of addresses of the set that can still be allocated."""
        held = [*self._by_address, *self.store.damaged()]
        return capacity(ranges) - sum(any(a in r and a != r.gateway for r in ranges) for a in held)

    def allocate(
        self,
        sets: Sequence[RangeSet],
        owner: Attachment,
        *,
        wanted: Sequence[IPAddress] = (),
        pod: str = "",
        pod_uid: str = "",
        boot_id: str = "",
        mac: str = "",
        ports: tuple[PortMapping, ...] = (),
        aliases: tuple[str, ...] = (),
        bridge: str = "",
        network: str = "",
        netns: str = "",
        mtu: int = 0,
    ) -> list[tuple[Lease, Range]]:
        """Allocate one address from each set, or the `wanted` addresses. If one allocation fails, none is kept.

        Raises PoolExhausted. Raises CNIError with code 7 if a wanted address is outside every range, or with code 11 if
        it is in use.
        """
        taken: list[tuple[Lease, Range]] = []

        def lease(address: IPAddress) -> Lease:
            own = taken[0][0].mac if taken else mac or mac_for(address)
            early = (address, owner, pod, pod_uid, boot_id, own, False, ports, bridge, aliases)
            return Lease(*early, network=network, netns=netns, mtu=mtu)

        try:
            for ranges in sets:
                asked = [a for a in wanted if any(a in r for r in ranges)]
                taken.append(self._take(ranges, asked[0] if asked else None, lease))
            got = {lease.address for lease, _ in taken}
            for address in wanted:
                if address not in got:
                    raise CNIError(
                        ErrorCode.INVALID_CONFIG,
                        f"the requested address {address} is in no range of this network, "
                        "or is the second address of one range set",
                        "request an address of the node's podCIDR",
                    )
        except BaseException:
            self.release(owner, [lease for lease, _ in taken])
            raise
        return taken

    def _take(
        self, ranges: RangeSet, wanted: IPAddress | None, make: Callable[[IPAddress], Lease]
    ) -> tuple[Lease, Range]:
        last = self._last.get(ranges)
        if last is None:  # after a restart: continue after the newest lease, not at the beginning
            last = next((a for a in reversed(self._by_address) if any(a in r for r in ranges)), None)
        candidates = (
            self._candidates(ranges, last)
            if wanted is None
            else ((wanted, r) for r in ranges if wanted in r and wanted != r.gateway)
        )
        for address, home in candidates:
            if address in self._by_address or address in self.withheld:
                continue
            lease = make(address)
            if self.store.reserve(lease):
                self._index(lease)
                if self._resting.pop(address, None) is not None:
                    self.store.forget(address)
                if wanted is None:
                    self._last[ranges] = address
                return lease, home
        if wanted is not None:
            raise CNIError(
                ErrorCode.TRY_AGAIN_LATER,
                f"the requested address {wanted} is in use or is the gateway's",
                "request another address, or none",
            )
        raise PoolExhausted(ranges)

    def _candidates(self, ranges: RangeSet, last: IPAddress | None) -> Iterable[tuple[IPAddress, Range]]:
        """Yields every address that may be allocated, the best first."""
        since = self.now() - self.quarantine
        for address, home in walk(ranges, last):
            if self._resting.get(address, since) <= since:
                yield address, home
        for address in list(self._resting):
            yield from ((address, r) for r in ranges if address in r and address != r.gateway)

    def adopt(self, lease: Lease) -> bool:
        """Reserve an address for a pod that another plugin attached. Returns False if the address has a lease."""
        if lease.address in self._by_address or not self.store.reserve(lease):
            return False
        self.store.wired(lease)
        self._index(lease.done())
        return True

    def confirm(self, owner: Attachment) -> None:
        """Mark the owner's leases as complete (wired). From now on, they survive a restart."""
        held = self._by_owner.get(owner, [])
        for i, lease in enumerate(held):
            self.store.wired(lease)
            held[i] = self._by_address[lease.address] = lease.done()

    def mend(self, lease: Lease) -> None:
        """Replace the unreadable lease of this address with `lease`."""
        self.store.mend(lease)
        self._index(lease)

    def release(self, owner: Attachment, only: Sequence[Lease] | None = None) -> list[IPAddress]:
        """Release the owner's leases, or only those in `only`. An owner without leases is not an error. If the ADD was
        complete, the addresses rest from now on. Returns the released addresses.
        """
        gone = []
        for lease in self.owned_by(owner) if only is None else only:
            rest = lease.wired and self.quarantine > 0
            self.store.release(lease.address, rest=rest)
            if rest:
                self._resting.pop(lease.address, None)
                self._resting[lease.address] = self.now()
            del self._by_address[lease.address]
            others = [other for other in self._by_owner[owner] if other.address != lease.address]
            if others:
                self._by_owner[owner] = others
            else:
                del self._by_owner[owner]
            gone.append(lease.address)
        self._wake()
        return gone

    def _wake(self) -> None:
        """Remove up to four of the oldest resting addresses if their quarantine is over. If more than MOST_RESTING
        addresses rest, remove them early: the pool is then so large that the round robin itself takes long enough. Each
        release adds at most as many addresses as this method can remove.
        """
        since, many = self.now() - self.quarantine, len(self._resting) > MOST_RESTING
        for address in [a for a, at in itertools.islice(self._resting.items(), 4) if at <= since or many]:
            del self._resting[address]
            self.store.forget(address)
