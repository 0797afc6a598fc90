"""Takes podwire's finalizer off the Services of a cluster that podwire leaves. Else their deletion would never end."""

from __future__ import annotations

from podwire_base.kube import loadbalancer as lb
from podwire_base.kube.client.http import ApiClient
from podwire_base.kube.errors import Refused
from podwire_base.kube.meta import Object, key, name, namespace

TRIES = 5


async def release(api: ApiClient, *, dry_run: bool = False) -> list[str]:
    """Return a line for each Service. The addresses in their status stay until another controller writes its own.
    Raises ApiError.
    """
    found: list[Object] = (await api.get("/api/v1/services"))["items"]
    ours = [service for service in found if lb.marked(service)]
    for service in ours if not dry_run else ():
        await _one(api, service)
    verb = "would take" if dry_run else "took"
    return [f"{verb} the finalizer {lb.FINALIZER} off Service {key(service)}" for service in ours] or [
        "no Service has a finalizer of podwire"
    ]


async def _one(api: ApiClient, service: Object) -> None:
    path = f"/api/v1/namespaces/{namespace(service)}/services/{name(service)}/status"
    for turn in range(TRIES):
        try:
            await api.patch(path, {"metadata": lb.unmark(service)})
            return
        except Refused as err:
            if err.code == 404:
                return  # deleted meanwhile
            if err.code != 409 or turn == TRIES - 1:
                raise
        again = [
            other
            for other in (await api.get("/api/v1/services"))["items"]
            if key(other) == key(service) and lb.marked(other)
        ]
        if not again:
            return
        service = again[0]
