"""Objects that several tests share, and the write path of the API over a store in memory."""

from __future__ import annotations

import copy
import ipaddress
from collections.abc import Mapping
from typing import Any

from podwire_base.kube import codec
from podwire_base.kube.meta import Object, name, namespace
from podwire_base.kube.registry import BUILTIN, of
from podwire_base.testing.builders import NOW
from podwire_controlplane.allocators import ServiceAllocator
from podwire_controlplane.controllers.base import Snapshot
from podwire_controlplane.server.claims import PORTS, claimant
from podwire_controlplane.server.objects import Objects
from podwire_controlplane.server.writes import Scope, WriteOptions, Written
from podwire_controlplane.store.base import Item, Store
from podwire_controlplane.store.memory import MemoryStore

CIDR = "10.96.0.0/24"


def snapshot(*objects: Object) -> Snapshot:
    """Return a snapshot with all kinds that contains only `objects`."""
    kinds: dict[str, dict[str, Object]] = {r.kind: {} for r in BUILTIN.stored}
    for obj in objects:
        kinds[obj["kind"]][f"{namespace(obj)}/{name(obj)}".lstrip("/")] = obj
    return Snapshot(kinds)


# ---- the write path


class World:
    """`Objects` over a store, with a clock that tests advance; methods take kinds and names instead of scopes."""

    def __init__(
        self,
        store: Store | None = None,
        cidr: str = CIDR,
        node_ports: range = range(30000, 30010),
        second: str = "",
    ) -> None:
        self.now = NOW
        self.store: Store = store or MemoryStore()
        self.allocator = ServiceAllocator(
            ipaddress.ip_network(cidr), node_ports, ipaddress.ip_network(second) if second else None
        )
        self.objects = Objects(self.store, self.allocator, lambda: self.now)

    async def start(self) -> World:
        await self.objects.start()
        for space in ("default", "kube-node-lease"):
            await self.objects.create(Scope(of("Namespace"), ""), {"metadata": {"name": space}}, WriteOptions())
        return self

    @staticmethod
    def scope(kind: str, own: str = "", sub: str = "", space: str = "default") -> Scope:
        resource = of(kind)
        return Scope(resource, space if resource.namespaced else "", own, sub)

    async def create(self, obj: Mapping[str, Any], **options: Any) -> Object:
        done = await self.objects.create(self.scope(obj["kind"]), copy.deepcopy(dict(obj)), WriteOptions(**options))
        return answer(done)

    async def get(self, kind: str, own: str) -> Object:
        return await self.objects.get(self.scope(kind, own))

    async def update(self, obj: Mapping[str, Any], sub: str = "", **options: Any) -> Object:
        scope = self.scope(obj["kind"], name(obj), sub)
        return answer(await self.objects.update(scope, copy.deepcopy(dict(obj)), WriteOptions(**options)))

    async def patch(
        self, kind: str, own: str, body: Any, sub: str = "", how: str = "application/merge-patch+json", **options: Any
    ) -> Object:
        return answer(await self.objects.patch(self.scope(kind, own, sub), how, body, WriteOptions(**options)))

    async def delete(self, kind: str, own: str, **options: Any) -> tuple[Object, bool]:
        """Return (object, whether the object is removed from the store)."""
        raw, gone = await self.objects.delete(self.scope(kind, own), options)
        return codec.decode(raw), gone

    async def claimed(self) -> tuple[dict[str, str], dict[int, str]]:
        """Return the claims in the store: address -> Service, node port -> Service."""
        found = [
            (item.key.rpartition("/")[2], claimant(item)[0]) for item in await self.store.scan("/") if _claim(item)
        ]
        ports = {int(own): holder for own, holder in found if own.isdecimal()}
        return {own: holder for own, holder in found if not own.isdecimal()}, ports

    async def state(self) -> tuple[int, dict[str, bytes]]:
        """Return the revision and the content of the whole store, so that a test can check that nothing changed."""
        return await self.store.revision(), {i.key: i.value for i in await self.store.scan("")}


def _claim(item: Item) -> bool:
    return item.key.startswith((PORTS, of("IPAddress").prefix()))


def answer(done: Written) -> Object:
    obj: Object = codec.decode(done.raw)
    return obj
