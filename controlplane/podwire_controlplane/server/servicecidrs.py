"""The ServiceCIDR `kubernetes`: the ranges that the API server was started with (KEP-1880)."""

from __future__ import annotations

from collections.abc import Sequence

from podwire_base.kube.errors import StatusError
from podwire_base.kube.meta import Object
from podwire_base.kube.registry import of
from podwire_base.kube.times import timestamp

from .objects import Objects
from .writes import Scope, WriteOptions

NAME = "kubernetes"


async def ensure(objects: Objects, cidrs: Sequence[str]) -> None:
    """Create the object and its condition Ready, or make it say `cidrs` again. Its spec is immutable, so an object of
    other ranges is deleted first.
    """
    scope = Scope(of("ServiceCIDR"), "", NAME)
    try:
        found: Object | None = await objects.get(scope)
    except StatusError as err:
        if err.code != 404:
            raise
        found = None
    if found is not None and found["spec"].get("cidrs") != list(cidrs):
        _, gone = await objects.delete(scope, {})
        if not gone:
            return  # a finalizer holds it; `bootstrap` comes again
        found = None
    if found is None:
        made = {"metadata": {"name": NAME}, "spec": {"cidrs": list(cidrs)}}
        await objects.create(Scope(scope.resource, ""), made, WriteOptions())
        found = await objects.get(scope)
    if any(c.get("type") == "Ready" for c in (found.get("status") or {}).get("conditions") or []):
        return
    ready = {
        "type": "Ready",
        "status": "True",
        "reason": "",
        "message": "Kubernetes default Service CIDR is ready",
        "lastTransitionTime": timestamp(objects.clock()),
    }
    await objects.update(
        Scope(scope.resource, "", NAME, "status"), {**found, "status": {"conditions": [ready]}}, WriteOptions()
    )
