"""The further ranges of Service addresses: those of the ServiceCIDR objects that are Ready (KEP-1880). Each API server
follows them in the store.
"""

from __future__ import annotations

import ipaddress
from contextlib import suppress

from podwire_base.kube import codec
from podwire_base.kube.conditions import is_true
from podwire_base.kube.meta import Object, deleting
from podwire_base.kube.registry import of

from ..allocators import Network, ServiceAllocator
from ..store.base import Store, StoredChange

_CIDRS = of("ServiceCIDR")


def ready_ranges(obj: Object) -> list[Network]:
    """Return the ranges from which new Services get addresses: none of an object that is not Ready, or that goes."""
    if deleting(obj) or not is_true(obj, "Ready"):
        return []
    found = list[Network]()
    for text in (obj.get("spec") or {}).get("cidrs") or []:
        with suppress(ValueError):
            found.append(ipaddress.ip_network(text))
    return found


class ServiceRanges:
    """Keeps `allocator.more` as the store says."""

    def __init__(self, store: Store, allocator: ServiceAllocator) -> None:
        self._store, self._allocator = store, allocator
        self._found: dict[str, list[Network]] = {}

    async def start(self) -> None:
        self._store.subscribe(self._heard)
        for item in await self._store.scan(_CIDRS.prefix()):
            self._found.setdefault(item.key, ready_ranges(codec.decode(item.value)))
        self._settle()

    def _heard(self, change: StoredChange) -> None:
        if change.key.startswith(_CIDRS.prefix()):
            self._found[change.key] = ready_ranges(codec.decode(change.item.value)) if change.item else []
            self._settle()

    def _settle(self) -> None:
        ranges = {network for found in self._found.values() for network in found} - set(self._allocator.ranges)
        self._allocator.more[:] = sorted(ranges, key=lambda one: (one.version, one))
