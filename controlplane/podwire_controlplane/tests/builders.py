"""Objects that the tests share, and the write path of the API over a store in memory."""

from __future__ import annotations

import asyncio
import copy
import ipaddress
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

from podwire_controlplane.allocators import ServiceAllocator
from podwire_controlplane.api import codec
from podwire_controlplane.api.meta import Object, name, namespace
from podwire_controlplane.api.registry import RESOURCES, Resource, of
from podwire_controlplane.controllers.base import Snapshot
from podwire_controlplane.server.objects import Objects, Scope, WriteOptions, Written
from podwire_controlplane.store.base import Store
from podwire_controlplane.store.memory import MemoryStore

T = TypeVar("T")
CIDR = "10.96.0.0/24"
NOW = 1_800_000_000.0  # 2027-01-15T08:00:00Z


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


# ---- manifests, as a person would write them


def meta(own: str, space: str = "default", **more: Any) -> Object:
    return {"name": own, **({"namespace": space} if space else {}), **more}


def service(own: str = "web", *, ports: list[Object] | None = None, labels: dict[str, str] | None = None,
            **spec: Any) -> Object:
    return {"apiVersion": "v1", "kind": "Service", "metadata": meta(own, labels=labels or {}),
            "spec": {"ports": [{"port": 80}] if ports is None else ports, **spec}}


def pod(own: str = "p1", *, labels: dict[str, str] | None = None, **spec: Any) -> Object:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta(own, labels=labels or {"app": "web"}),
            "spec": {"containers": [{"name": "c", "image": "podwire.io/echo"}], **spec}}


def deployment(own: str = "web", replicas: int = 3, **spec: Any) -> Object:
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta(own), "spec": {
        "replicas": replicas, "selector": {"matchLabels": {"app": own}},
        "template": {"metadata": {"labels": {"app": own}},
                     "spec": {"containers": [{"name": "c", "image": "podwire.io/echo"}]}}, **spec}}


def replica_set(own: str = "web", replicas: int = 3, **spec: Any) -> Object:
    made = deployment(own, replicas, **spec)
    return {**made, "kind": "ReplicaSet"}


def node(own: str, *, labels: dict[str, str] | None = None, ready: bool = True, **spec: Any) -> Object:
    return {"apiVersion": "v1", "kind": "Node", "metadata": meta(own, "", labels=labels or {}), "spec": spec,
            "status": {"conditions": [{"type": "Ready", "status": str(ready)}]}}


def minimal(resource: Resource, own: str = "x") -> Object:
    """The smallest object of each kind that the API accepts."""
    made: dict[str, Object] = {
        "Pod": pod(own), "Service": service(own), "Deployment": deployment(own), "ReplicaSet": replica_set(own),
        "EndpointSlice": {"addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"]}]},
        "Event": {"involvedObject": {"kind": "Pod", "name": "p"}},
    }
    head = {"apiVersion": resource.api_version, "kind": resource.kind}
    return {**made.get(resource.kind, {}), **head, "metadata": meta(own, "default" if resource.namespaced else "")}


# ---- objects as the API would have stored them, for controllers


def stored(obj: Object, *, uid: str = "", status: Object | None = None, **metadata: Any) -> Object:
    """A copy with uid and creationTimestamp, and with `status` and `metadata` merged in."""
    made = copy.deepcopy(obj)
    made["metadata"] = {"uid": uid or f"uid-{name(obj)}", "creationTimestamp": "2027-01-15T07:00:00Z", **made["metadata"],
                        **metadata}
    if status is not None:
        made["status"] = {**made.get("status", {}), **status}
    return made


def running(own: str, address: str, on: str = "n1", *, ready: bool = True, labels: dict[str, str] | None = None,
            deleted: bool = False, **spec: Any) -> Object:
    """A pod as the node agent reports it."""
    extra = {"deletionTimestamp": "2027-01-15T08:00:30Z"} if deleted else {}
    return stored(pod(own, labels=labels, nodeName=on, **spec), status={
        "phase": "Running", "podIP": address, "podIPs": [{"ip": address}],
        "conditions": [{"type": "Ready", "status": str(ready), "lastTransitionTime": "2027-01-15T07:30:00Z"}]}, **extra)


def snapshot(*objects: Object) -> Snapshot:
    """All kinds, empty but for `objects`."""
    kinds: dict[str, dict[str, Object]] = {r.kind: {} for r in RESOURCES}
    for obj in objects:
        kinds[obj["kind"]][f"{namespace(obj)}/{name(obj)}".lstrip("/")] = obj
    return Snapshot(kinds)


# ---- the write path


class World:
    """`Objects` over a store, with a clock that tests turn; methods take kinds and names instead of scopes."""

    def __init__(self, store: Store | None = None, cidr: str = CIDR, node_ports: range = range(30000, 30010)) -> None:
        self.now = NOW
        self.store: Store = store or MemoryStore()
        self.allocator = ServiceAllocator(ipaddress.ip_network(cidr), node_ports)
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

    async def patch(self, kind: str, own: str, body: Any, sub: str = "", how: str = "application/merge-patch+json",
                    **options: Any) -> Object:
        return answer(await self.objects.patch(self.scope(kind, own, sub), how, body, WriteOptions(**options)))

    async def delete(self, kind: str, own: str, **options: Any) -> tuple[Object, bool]:
        """(object, really gone?)"""
        raw, gone = await self.objects.delete(self.scope(kind, own), options)
        return codec.decode(raw), gone

    async def state(self) -> tuple[int, dict[str, bytes]]:
        """Revision and content of the whole store, to prove that nothing changed."""
        return await self.store.revision(), {i.key: i.value for i in await self.store.scan("")}


def answer(done: Written) -> Object:
    obj: Object = codec.decode(done.raw)
    return obj


def version(obj: Object) -> str:
    return str(obj["metadata"]["resourceVersion"])
