"""Makes the default roles and bindings at the start of the server, and adds to them what a new version needs."""

from __future__ import annotations

import asyncio
import uuid

from podwire_base.kube import codec
from podwire_base.kube.meta import Object, name, namespace
from podwire_base.kube.registry import of
from podwire_base.kube.times import timestamp
from podwire_base.role import logs

from ..rbac import defaults
from ..rbac.index import KINDS
from ..store.base import Conflict, Item, Store

log = logs.get("apiserver")


async def keep(store: Store, now: float) -> int:
    """Write the default objects that are missing, and those that lack something. Returns how many were written.

    They are written at once, so that they share a commit, and without the write path: they are no client's input.
    """
    found = {item.key: item for kind in KINDS for item in await store.scan(of(kind).prefix())}
    writes = []
    for wanted in defaults.objects():
        key = of(wanted["kind"]).key(namespace(wanted), name(wanted))
        if obj := _wanted(wanted, found.get(key), now):
            writes.append(_put(store, key, obj, found[key].revision if key in found else 0))
    await asyncio.gather(*writes)
    return len(writes)


def _wanted(wanted: Object, found: Item | None, now: float) -> Object | None:
    """Return the object to store, None if the stored one has everything."""
    if found is not None:
        return defaults.reconciled(wanted, codec.decode(found.value))
    stamp = {"uid": str(uuid.uuid4()), "creationTimestamp": timestamp(now)}
    return {**wanted, "metadata": {**wanted["metadata"], **stamp}}


async def _put(store: Store, key: str, obj: Object, expect: int) -> None:
    try:
        await store.put(key, codec.encode(obj), expect)
    except Conflict:
        log.debug("another server wrote a default role", key=key)
