"""Makes the definition of ClusterNetworkPolicy at the start of the server, and renews it where nobody changed it."""

from __future__ import annotations

import uuid

from podwire_base.kube import codec
from podwire_base.kube.registry import of
from podwire_base.kube.times import timestamp
from podwire_base.role import logs

from ..custom import policykind
from ..store.base import Conflict, Store

log = logs.get("apiserver")
_CRDS = of("CustomResourceDefinition")


async def keep(store: Store, now: float) -> bool:
    """Writes the definition if it is missing, or older. Returns whether it did. It is no client's input, so it does not
    go through the write path.
    """
    key = _CRDS.key("", policykind.NAME)
    found = await store.get(key)
    obj = policykind.wanted(None if found is None else codec.decode(found.value))
    if obj is None:
        return False
    if found is None:
        obj["metadata"] |= {"uid": str(uuid.uuid4()), "creationTimestamp": timestamp(now)}
    try:
        await store.put(key, codec.encode(obj), found.revision if found else 0)
    except Conflict:
        log.debug("another server wrote a built-in definition", key=key)
    return True
