"""The write path of the API: defaults, validation, allocation, optimistic locking, finalizers, graceful deletion.

This module knows no HTTP. Objects are dicts, stored bytes are `Item`s, and every refusal is a StatusError.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from podwire_base.kube import codec, errors, schema
from podwire_base.kube import patch as patches
from podwire_base.kube.errors import StatusError
from podwire_base.kube.meta import Object, deleting, name, resource_version, uid
from podwire_base.kube.registry import RESOURCES, Resource, of
from podwire_base.kube.times import timestamp

from .. import defaults, validation
from ..allocators import Exhausted, ServiceAllocator
from ..store.base import Conflict, Item, Store, StoredChange

IMMORTAL = ("default", "kube-system", "kube-public")
PROPAGATION = {"Background": "", "Orphan": "orphan", "Foreground": "foregroundDeletion"}
_NAMESPACES, _SERVICES = of("Namespace"), of("Service")
_LETTERS = "bcdfghjklmnpqrstvwxz2456789"  # no vowels, no 0, 1 or 3: generated names spell no words
_RETRIES = 8


@dataclass(frozen=True, slots=True)
class WriteOptions:
    """dry_run: check the request and answer, but store nothing. field_validation: Strict, Warn or Ignore (KEP-2885)."""

    dry_run: bool = False
    field_validation: str = "Warn"


@dataclass(frozen=True, slots=True)
class Written:
    """raw: the stored object in wire form. warnings: for the client. created: the status is 201 if true, else 200."""

    raw: bytes
    warnings: tuple[str, ...] = ()
    created: bool = False


@dataclass(frozen=True, slots=True)
class Scope:
    """The object or collection of a request. name: "" for a collection. sub: the subresource, "" for none."""

    resource: Resource
    namespace: str
    name: str = ""
    sub: str = ""

    @property
    def key(self) -> str:
        return self.resource.key(self.namespace, self.name)


def wire(item: Item) -> bytes:
    return codec.with_revision(item.value, item.revision)


def load(item: Item) -> Object:
    """Return a new mutable copy of a stored object, with its resourceVersion."""
    obj: Object = codec.decode(wire(item))
    return obj


class Objects:
    """Objects of all kinds in one Store. Call `start()` before any other method."""

    def __init__(self, store: Store, allocator: ServiceAllocator, clock: Callable[[], float] = time.time) -> None:
        self.store, self.allocator, self.clock = store, allocator, clock

    async def start(self) -> None:
        for item in await self.store.scan(_SERVICES.prefix()):
            self.allocator.observe(None, load(item))
        self.store.subscribe(self._observe)

    def _observe(self, change: StoredChange) -> None:
        if change.key.startswith(_SERVICES.prefix()):
            self.allocator.observe(*(load(item) if item else None for item in (change.before, change.item)))

    # ---- reading

    async def item(self, scope: Scope) -> Item:
        found = await self.store.get(scope.key)
        if found is None:
            raise errors.not_found(scope.resource, scope.name)
        return found

    async def get(self, scope: Scope) -> Object:
        return load(await self.item(scope))

    # ---- writing

    def _shape(self, resource: Resource, obj: Any, options: WriteOptions) -> tuple[str, ...]:
        """Check kind, apiVersion and the types of all fields. Return warnings about unknown fields, or refuse such
        fields if field_validation is Strict.
        """
        if not isinstance(obj, dict):
            raise errors.bad_request("the body is not an object")
        for field, want in (("kind", resource.kind), ("apiVersion", resource.api_version)):
            if obj.setdefault(field, want) != want:
                raise errors.bad_request(f"{field}: {obj[field]!r} does not match this URL; expected {want!r}")
        if not isinstance(obj.setdefault("metadata", {}), dict):
            raise errors.bad_request("metadata: expected an object")
        obj["metadata"].pop("managedFields", None)
        schema.drop_nulls(obj)
        unknown, causes = schema.check(resource, obj)
        if causes:
            raise errors.invalid(resource, str(obj["metadata"].get("name", "")), causes)
        warnings = tuple(f'unknown field "{path}"' for path in unknown)
        if warnings and options.field_validation == "Strict":
            raise errors.bad_request(
                f"{resource.kind} in version {resource.version!r} cannot be handled: strict decoding "
                f"error: {', '.join(warnings)}; correct the spelling or remove the field"
            )
        return warnings if options.field_validation != "Ignore" else ()

    def _check(self, resource: Resource, obj: Object, before: Object | None) -> None:
        """Set the defaults and validate the object. For a Service, check the requested addresses and ports, and
        allocate those that are missing.
        """
        defaults.fill(resource.kind, obj)
        causes = validation.check(resource, obj)
        if before is not None and not causes:
            causes += validation.check_update(resource, before, obj)
        if resource is _SERVICES and not causes:
            causes += self.allocator.check(obj)
        if causes:
            raise errors.invalid(resource, name(obj), causes)
        if resource is _SERVICES:
            try:
                self.allocator.fill(obj)
            except Exhausted as err:
                raise StatusError(500, "InternalError", str(err), resource=resource, name=name(obj)) from err

    async def _check_namespace(self, scope: Scope) -> None:
        found = await self.store.get(_NAMESPACES.key("", scope.namespace))
        if found is None:
            raise errors.not_found(_NAMESPACES, scope.namespace)
        if deleting(load(found)):
            raise StatusError(
                403,
                "Forbidden",
                f'namespace "{scope.namespace}" is being deleted; use another one',
                resource=scope.resource,
                name=scope.name,
            )

    async def create(self, scope: Scope, obj: Object, options: WriteOptions) -> Written:
        resource = scope.resource
        warnings = self._shape(resource, obj, options)
        metadata = obj["metadata"]
        if resource.namespaced:
            if metadata.setdefault("namespace", scope.namespace) != scope.namespace:
                raise errors.bad_request(
                    f"metadata.namespace: {metadata['namespace']!r} differs from the URL's {scope.namespace!r}"
                )
            await self._check_namespace(scope)
        else:
            metadata.pop("namespace", None)
        if not metadata.get("name") and metadata.get("generateName"):
            metadata["name"] = metadata["generateName"][:58] + "".join(random.choices(_LETTERS, k=5))
        metadata |= {"uid": str(uuid.uuid4()), "creationTimestamp": timestamp(self.clock()), "generation": 1}
        for field in ("resourceVersion", "deletionTimestamp", "deletionGracePeriodSeconds", "selfLink"):
            metadata.pop(field, None)
        if "status" in resource.subresources:
            obj.pop("status", None)
        self._check(resource, obj, None)
        scope = Scope(resource, scope.namespace, name(obj))
        if options.dry_run:
            if await self.store.get(scope.key):
                raise errors.exists(resource, scope.name)
            return Written(codec.with_revision(codec.encode(obj), 0), warnings, created=True)
        try:
            item = await self.store.put(scope.key, codec.encode(obj), expect=0)
        except Conflict:
            raise errors.exists(resource, scope.name) from None
        return Written(wire(item), warnings, created=True)

    async def update(self, scope: Scope, obj: Object, options: WriteOptions) -> Written:
        """Replace the object or its status (PUT). Without a resourceVersion, the update is unconditional."""
        warnings = self._shape(scope.resource, obj, options)
        if obj["metadata"].setdefault("name", scope.name) != scope.name:
            raise errors.bad_request(f"metadata.name: {name(obj)!r} differs from the URL's {scope.name!r}")

        def change(before: Object) -> Object:
            _guard(scope, before, obj)
            fresh: Object = codec.decode(codec.dumps(obj))
            return fresh

        return await self._modify(scope, change, options, warnings)

    async def patch(self, scope: Scope, kind: str, body: Any, options: WriteOptions) -> Written:
        warnings: tuple[str, ...] = ()

        def change(before: Object) -> Object:
            nonlocal warnings
            after: Object = patches.apply(kind, before, body)
            after = codec.decode(codec.dumps(after))
            warnings = self._shape(scope.resource, after, options)
            _guard(scope, before, after)
            return after

        written = await self._modify(scope, change, options, ())
        return Written(written.raw, warnings)

    async def _modify(
        self, scope: Scope, change: Callable[[Object], Object], options: WriteOptions, warnings: tuple[str, ...]
    ) -> Written:
        """Read the object, change it, check it, and write it by compare-and-swap. Repeat if another client wrote the
        object meanwhile and the change is unconditional.
        """
        for _ in range(_RETRIES):
            item = await self.item(scope)
            before = load(item)
            after = self._carry_over(scope, before, change(load(item)))
            self._check(scope.resource, after, before)
            after["metadata"]["generation"] = int(before["metadata"].get("generation", 1)) + _changed(before, after)
            value = codec.encode(after)
            if codec.decode(value) == codec.decode(item.value):
                return Written(wire(item), warnings)
            if options.dry_run:
                return Written(codec.with_revision(value, item.revision), warnings)
            try:
                if _finished(after):
                    gone = await self.store.delete(scope.key, item.revision)
                    return Written(codec.with_revision(value, gone.revision), warnings)
                return Written(wire(await self.store.put(scope.key, value, item.revision)), warnings)
            except Conflict:
                continue
        raise errors.conflict(scope.resource, scope.name, "too many writers at once; try again")

    def _carry_over(self, scope: Scope, before: Object, after: Object) -> Object:
        """Copy from `before` the fields that the client cannot change: identity, deletion state, and the part (spec or
        status) that this URL does not write.
        """
        resource, metadata, old = scope.resource, after["metadata"], before["metadata"]
        if scope.sub == "status":
            after = {**before, "metadata": {**old}, "status": after.get("status", {})}
            for field in ("labels", "annotations"):  # kubelet and controllers patch these together with status
                if metadata.get(field):
                    after["metadata"][field] = metadata[field]
            metadata = after["metadata"]
        elif "status" in resource.subresources:
            after.pop("status", None)
            if "status" in before:
                after["status"] = before["status"]
        for field in (
            "uid",
            "creationTimestamp",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "namespace",
            "name",
        ):
            metadata.pop(field, None)
            if field in old:
                metadata[field] = old[field]
        if resource is _SERVICES and scope.sub != "status":
            _keep_allocations(before, after)
        if resource is _NAMESPACES and scope.sub != "finalize":
            after["spec"] = before.get("spec") or {}  # a namespace's spec has only finalizers
        return after

    # ---- deleting

    async def delete(self, scope: Scope, options: Object, dry_run: bool = False) -> tuple[bytes, bool]:
        """Return (object in wire form, whether the store has removed it). options: a meta/v1 DeleteOptions."""
        for _ in range(_RETRIES):
            item = await self.item(scope)
            obj = load(item)
            wanted = options.get("preconditions") or {}
            if wanted.get("uid") not in (None, uid(obj)) or wanted.get("resourceVersion") not in (
                None,
                obj["metadata"]["resourceVersion"],
            ):
                raise errors.conflict(
                    scope.resource, scope.name, "the precondition (uid or resourceVersion) does not hold"
                )
            if scope.resource is _NAMESPACES and scope.name in IMMORTAL:
                raise StatusError(
                    403,
                    "Forbidden",
                    f'namespaces "{scope.name}" is forbidden: the cluster needs it, it cannot be deleted',
                    resource=scope.resource,
                    name=scope.name,
                )
            marked = self._mark(scope.resource, obj, options.get("gracePeriodSeconds"))
            _propagate(marked, options)
            if dry_run:
                return wire(item), False
            try:
                if _finished(marked):
                    change = await self.store.delete(scope.key, item.revision)
                    return codec.with_revision(item.value, change.revision), True
                value = codec.encode(marked)
                if value == item.value:
                    return wire(item), False
                return wire(await self.store.put(scope.key, value, item.revision)), False
            except Conflict:
                continue
        raise errors.conflict(scope.resource, scope.name, "too many writers at once; try again")

    def _mark(self, resource: Resource, obj: Object, grace: int | None) -> Object:
        """Set deletionTimestamp and the grace period. A pod on a node stays until its node confirms the deletion. A
        second deletion can only shorten the grace period.
        """
        metadata, now = obj["metadata"], self.clock()
        seconds = 0
        if (
            resource.graceful
            and obj["spec"].get("nodeName")
            and obj["status"].get("phase") not in ("Succeeded", "Failed")
        ):
            seconds = int(obj["spec"].get("terminationGracePeriodSeconds", 30) if grace is None else grace)
        if "deletionTimestamp" in metadata:
            seconds = min(seconds, int(metadata.get("deletionGracePeriodSeconds", 0)))
            if seconds == metadata.get("deletionGracePeriodSeconds"):
                return obj
        metadata["deletionTimestamp"] = timestamp(now + seconds)
        metadata["deletionGracePeriodSeconds"] = seconds
        if resource is _NAMESPACES:
            obj.setdefault("status", {})["phase"] = "Terminating"
        return obj

    async def finalize(self, namespace: str, obj: Any) -> Written:
        """Remove the finalizer of a namespace (the namespace controller's last step), so that it is deleted. Raises a
        conflict if the namespace still contains objects.
        """
        scope = Scope(_NAMESPACES, "", namespace, "finalize")
        self._shape(_NAMESPACES, obj, WriteOptions())
        if not (obj.get("spec") or {}).get("finalizers"):
            for resource in RESOURCES:
                if resource.namespaced and await self.store.scan(resource.prefix(namespace)):
                    raise errors.conflict(_NAMESPACES, namespace, f"there are still {resource.plural} in it")

        def change(before: Object) -> Object:
            left = (obj.get("spec") or {}).get("finalizers") or []
            return {**before, "spec": {**before.get("spec", {}), "finalizers": left}}

        return await self._modify(scope, change, WriteOptions(), ())


def _propagate(obj: Object, options: Object) -> None:
    """Add the finalizer for propagationPolicy Orphan or Foreground. The garbage collector removes the finalizer after
    it has processed the dependents.
    """
    policy = options.get("propagationPolicy") or ("Orphan" if options.get("orphanDependents") else "Background")
    if policy not in PROPAGATION:
        raise errors.bad_request(f"propagationPolicy: {policy!r} is not supported; one of {', '.join(PROPAGATION)}")
    held = obj["metadata"].get("finalizers") or []
    if PROPAGATION[policy] and PROPAGATION[policy] not in held:
        obj["metadata"]["finalizers"] = [*held, PROPAGATION[policy]]


def _guard(scope: Scope, before: Object, after: Object) -> None:
    """Raise a conflict if the client's resourceVersion or uid differs from that of the stored object (optimistic
    locking). Fields that the client leaves out are not compared.
    """
    if resource_version(after) not in ("", resource_version(before)):
        raise errors.conflict(scope.resource, scope.name)
    if uid(after) not in ("", uid(before)):
        raise errors.conflict(scope.resource, scope.name, f"uid {uid(after)} is of an earlier object of this name")


def _changed(before: Object, after: Object) -> bool:
    """Whether any field but metadata and status differs. Both objects have their defaults, so a client that leaves out
    a default value changes nothing.
    """
    return any(after.get(f) != before.get(f) for f in after.keys() | before.keys() if f not in ("metadata", "status"))


def _finished(obj: Object) -> bool:
    """Whether the object can be removed from the store: it has a deletionTimestamp, no finalizer and no grace
    period.
    """
    if not deleting(obj) or obj["metadata"].get("finalizers") or obj["metadata"].get("deletionGracePeriodSeconds"):
        return False
    return not (obj.get("kind") == "Namespace" and (obj.get("spec") or {}).get("finalizers"))


def _keep_allocations(before: Object, after: Object) -> None:
    """Copy clusterIP and nodePort from `before` if the client leaves them out (Service update semantics)."""
    old, new = before["spec"], after.get("spec") or {}
    if new.get("type") == "ExternalName":
        for field in ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"):
            new.pop(field, None)
    elif old.get("type") == "ExternalName":
        if new.get("externalName") == old.get("externalName"):
            new.pop("externalName", None)
    elif not new.get("clusterIP"):
        new |= {field: old[field] for field in ("clusterIP", "clusterIPs") if old.get(field)}
    elif new.get("clusterIPs") == old.get("clusterIPs") or not new.get("clusterIPs"):
        new["clusterIPs"] = [new["clusterIP"]]
    if new.get("type", "ClusterIP") not in ("NodePort", "LoadBalancer"):
        for field in ("externalTrafficPolicy", "allocateLoadBalancerNodePorts", "healthCheckNodePort"):
            new.pop(field, None)
        for port in new.get("ports") or []:
            port.pop("nodePort", None)
        return
    held = {(p.get("protocol", "TCP"), p["port"]): p["nodePort"] for p in old.get("ports") or [] if p.get("nodePort")}
    for port in new.get("ports") or []:
        kept = held.get((port.get("protocol", "TCP"), port.get("port")))
        if kept and not port.get("nodePort"):
            port["nodePort"] = kept
