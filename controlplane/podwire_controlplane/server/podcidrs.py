"""The claims of podCIDRs: one key of the store has all of them, because ranges may overlap without being equal."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Awaitable, Callable

from podwire_base.kube import codec, errors
from podwire_base.kube.errors import Cause
from podwire_base.kube.meta import Object, name
from podwire_base.kube.registry import of

from ..allocators import pod_cidrs_of
from ..store.base import Conflict, Store
from .claims import GRACE, Taken

KEY = "/podwire.io/podcidrs"
_NODES = of("Node")
_SWAPS = 20  # how often the write is repeated that another write overtook
Book = dict[str, tuple[str, float]]  # podCIDR -> (node, time of the claim)


class PodCidrClaims:
    """See claims.Claims. A Node gets its podCIDRs from a controller; the claim refuses what overlaps another node's."""

    def __init__(self, store: Store, clock: Callable[[], float]) -> None:
        self.store, self.clock = store, clock

    def prepare(self, _obj: Object, _before: Object | None) -> list[Cause]:
        return []

    def asks(self, _obj: Object) -> bool:
        return False

    async def take(self, obj: Object, before: Object | None, *, dry_run: bool) -> Taken:
        old = pod_cidrs_of(before) if before is not None else []
        new = [cidr for cidr in pod_cidrs_of(obj) if cidr not in old]
        taken = _Taken(self, name(obj), new, [cidr for cidr in old if cidr not in pod_cidrs_of(obj)])
        if not new or dry_run:
            return taken

        async def claim(book: Book) -> list[Cause]:
            causes = [
                Cause("spec.podCIDRs", f"{cidr} overlaps {other} of node {holder}; choose another range")
                for cidr in new
                for other, (holder, since) in book.items()
                if _overlap(cidr, other) and holder != name(obj) and not await self._stale(other, holder, since)
            ]
            if not causes:
                book.update(dict.fromkeys(new, (name(obj), self.clock())))
            return causes

        if causes := await self.change(claim):
            raise errors.invalid(_NODES, name(obj), causes)
        return taken

    async def held(self, obj: Object) -> Taken:
        return _Taken(self, name(obj), [], pod_cidrs_of(obj))

    async def _stale(self, cidr: str, node: str, since: float) -> bool:
        found = await self.store.get(_NODES.key("", node))
        has = found is not None and cidr in pod_cidrs_of(codec.decode(found.value))
        return not has and self.clock() - since >= GRACE

    async def release(self, node: str, cidrs: list[str]) -> None:
        async def drop(book: Book) -> list[Cause]:
            for cidr in cidrs:
                if book.get(cidr, ("", 0))[0] == node:
                    del book[cidr]
            return []

        if cidrs:
            await self.change(drop)

    async def change(self, work: Callable[[Book], Awaitable[list[Cause]]]) -> list[Cause]:
        """Change the claims by compare-and-swap. work: changes the book that it is given, or returns errors."""
        for _ in range(_SWAPS):
            item = await self.store.get(KEY)
            book: Book = {c: (str(n), float(t)) for c, (n, t) in json.loads(item.value).items()} if item else {}
            before = dict(book)
            causes = await work(book)
            if causes or book == before:
                return causes
            try:
                await self.store.put(KEY, json.dumps(book).encode(), item.revision if item else 0)
            except Conflict:
                continue
            return []
        raise errors.conflict(_NODES, "", "the podCIDRs change all the time; try again")

    async def repair(self) -> list[str]:
        told = list[str]()
        nodes = [codec.decode(item.value) for item in await self.store.scan(_NODES.prefix())]
        rows = [(cidr, name(node)) for node in nodes for cidr in pod_cidrs_of(node)]

        async def mend(book: Book) -> list[Cause]:
            told.clear()
            for cidr, node in rows:
                holder = book.setdefault(cidr, (node, self.clock()))[0]
                if holder != node:
                    told.append(f"{cidr} belongs to nodes {holder} and {node}: delete one of them")
            for cidr, (node, since) in list(book.items()):
                if await self._stale(cidr, node, since):
                    del book[cidr]
                    told.append(f"{cidr} is free again: node {node} does not have it")
            return []

        await self.change(mend)
        return told


class _Taken:
    def __init__(self, claims: PodCidrClaims, node: str, new: list[str], gone: list[str]) -> None:
        self._claims, self._node, self._new, self._gone = claims, node, new, gone

    async def undo(self) -> None:
        await self._claims.release(self._node, self._new)

    async def settle(self) -> None:
        await self._claims.release(self._node, self._gone)


def _overlap(one: str, other: str) -> bool:
    try:
        ours, theirs = ipaddress.ip_network(one), ipaddress.ip_network(other)
    except ValueError:
        return one == other
    return ours.version == theirs.version and ours.overlaps(theirs)
