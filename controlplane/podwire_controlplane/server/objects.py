"""The write path of the API: defaults, validation, allocation, optimistic locking, finalizers, graceful deletion.

This module does not use HTTP. Objects are dicts. Stored objects are `Item`s. A refused request raises a StatusError.
"""

from __future__ import annotations

import contextlib
import random
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from podwire_base.kube import codec, errors
from podwire_base.kube import patch as patches
from podwire_base.kube.errors import StatusError
from podwire_base.kube.meta import Object, deleting, name, resource_version, uid
from podwire_base.kube.registry import BUILTIN, Registry, Resource, of
from podwire_base.kube.schema import builtin
from podwire_base.kube.times import timestamp

from .. import admission, convert, gotypes
from ..allocators import ServiceAllocator
from ..apply import managers, ownership, scale
from ..rules.fields import invalid, not_supported, required
from ..store.base import Conflict, Item, Store, StoredChange
from ..strategies.base import Strategy
from ..strategies.core import bound
from ..strategies.table import strategy_of, unconditional
from .auth import User
from .claims import Care, Claims, ServiceClaims, holding, leaving
from .definitions import Definitions
from .judging import Judges
from .podcidrs import PodCidrClaims
from .writes import Scope, WriteOptions, Written, check_name, finished, guard, load, propagate, same, told, wire

if TYPE_CHECKING:
    from .gate import Gate

_NAMESPACES = of("Namespace")
_NOTHING = contextlib.nullcontext()
_LETTERS = "bcdfghjklmnpqrstvwxz2456789"  # no vowels, no 0, 1 or 3, so that generated names contain no words
_RETRIES = 8
LAST_MOMENT = 253_402_300_799.0  # 9999-12-31T23:59:59Z: RFC 3339 cannot express later times
_SYSTEM_METADATA = ("creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation", "selfLink")
_IDENTITY = ("uid", "namespace", "name")  # many clients leave these out; the server refuses a different value


class Objects:
    """Objects of all kinds in one Store. Call `start()` before any other method.

    registry: the served kinds; default: the built-in kinds of Kubernetes. claims: (group, kind) -> the Claims that keep
    values unique: ClusterIPs and ports of Services, podCIDRs of Nodes. Claims check the values that an object requests.
    Those of Services also allocate missing values.
    """

    def __init__(
        self,
        store: Store,
        allocator: ServiceAllocator,
        clock: Callable[[], float] = time.time,
        registry: Registry | None = None,
    ) -> None:
        self.store, self.allocator, self.clock = store, allocator, clock
        self.registry = registry or Registry(BUILTIN.resources)
        self.claims: dict[tuple[str, str], Claims] = {
            ("", "Service"): ServiceClaims(store, allocator, clock),
            ("", "Node"): PodCidrClaims(store, clock),
        }
        self.definitions = Definitions(self)
        self.judges = Judges(store)
        self.care = Care(store, self.claims, clock)
        self.gate: Gate | None = None  # checks the writes of users; the application sets it
        self.owners = ownership.Owners(self.registry)

    async def start(self) -> None:
        await self.care.start()
        await self.definitions.start()

    # ---- reading

    async def item(self, scope: Scope) -> Item:
        found = await self.store.get(scope.key)
        if found is None:
            raise errors.not_found(scope.resource, scope.name)
        return found

    async def get(self, scope: Scope) -> Object:
        return convert.served(scope.resource, load(await self.item(scope)))

    # ---- writing

    def shape(self, resource: Resource, obj: Any, options: WriteOptions) -> tuple[Object, tuple[str, ...]]:
        """Decode the body of a request that stores nothing, such as a review. Return it and warnings. Raises
        StatusError.
        """
        return self._shape(resource, obj, options)

    def _shape(self, resource: Resource, obj: Any, options: WriteOptions) -> tuple[Object, tuple[str, ...]]:
        """Decode an object by the type of its kind. Return it with warnings about unknown and repeated fields, none
        with field_validation Ignore. Raises StatusError 400 for another kind or apiVersion and for a value of a wrong
        type, and with field_validation Strict for an unknown or repeated field.
        """
        obj = {} if obj is None else obj
        if not isinstance(obj, dict):
            raise errors.bad_request("the body is not an object")
        for field, want in (("kind", resource.kind), ("apiVersion", resource.api_version)):
            if (obj.get(field) or want) != want:
                raise errors.bad_request(
                    f"the {field} in the data ({obj[field]}) does not match the expected {field} ({want})"
                )
        cannot = f'{resource.kind} in version "{resource.version}" cannot be handled as a {resource.kind}'
        try:
            made, unknown = strategy_of(resource).decode(obj)
        except gotypes.BadType as err:
            raise errors.bad_request(f"{cannot}: {err}") from None
        if isinstance(given := obj.get("metadata"), dict) and given.get("managedFields") == []:
            made["metadata"]["managedFields"] = [{}]  # an empty list removes all managers; an absent field keeps them
        warnings = options.repeated + tuple(f'unknown field "{path}"' for path in unknown)
        if warnings and options.field_validation == "Strict":
            raise errors.bad_request(f"{cannot}: strict decoding error: {', '.join(warnings)}")
        return made, warnings if options.field_validation != "Ignore" else ()

    def _reshape(self, resource: Resource, obj: Object) -> Object:
        """Decode an object again after the server changed it. The method leaves managedFields as they are."""
        managed = obj["metadata"].pop("managedFields", None)
        made, _ = self._shape(resource, obj, WriteOptions())
        if managed:
            made["metadata"]["managedFields"] = managed
        return made

    def _claims(self, scope: Scope) -> Claims | None:
        return self.claims.get((scope.resource.group, scope.resource.kind)) if scope.sub != "status" else None

    def _held(
        self, scope: Scope, obj: Object, before: Object | None, dry_run: bool
    ) -> contextlib.AbstractAsyncContextManager[Any]:
        """Return a context that claims the values of `obj` while the server writes it. A dry run claims nothing, and
        does not check whether the requested values are free, as upstream.
        """
        claims = self._claims(scope)
        return _NOTHING if claims is None else holding(claims, obj, before, dry_run=dry_run)

    async def _remove(self, scope: Scope, obj: Object, revision: int) -> StoredChange:
        """Delete an object from the store and release its claims. Return the change. Raises Conflict."""
        claims = self.claims.get((scope.resource.group, scope.resource.kind))
        async with _NOTHING if claims is None else leaving(claims, obj), await self.judges.counting(scope, None, obj):
            return await self.store.delete(scope.key, revision)

    def _check(self, scope: Scope, obj: Object, before: Object | None) -> tuple[str, ...]:
        """Validate an object after its defaults and return warnings. Claims.prepare first sets its dependent fields.
        Raises StatusError 422.
        """
        strategy, resource = strategy_of(scope.resource), scope.resource
        claims = self._claims(scope)
        if claims and (wrong := claims.prepare(obj, before)):
            raise errors.invalid(resource, name(obj), wrong)
        if before is None:
            causes = list(strategy.validate(obj))
        elif scope.sub == "binding":
            causes = []
        elif scope.sub == "status":
            causes = list(strategy.validate_status(obj, before))
        elif scope.sub in strategy.parts:
            causes = list(strategy.validate_part(scope.sub, obj, before))
        else:
            causes = list(strategy.validate_update(obj, before))
        if causes:
            raise errors.invalid(resource, name(obj), causes)
        return tuple(strategy.warnings(obj, before)) if scope.sub != "status" else ()

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
        obj, warnings = self._shape(scope.resource, obj, options)
        with told(lambda: warnings):
            return await self._create(scope, obj, options, warnings)

    async def _admit(self, scope: Scope, obj: Object) -> None:
        """Run the mutating admission plugins of the kind on a new object. Raises StatusError 403."""
        for plugin in admission.MUTATING.get((scope.resource.group, scope.resource.kind), ()):
            found = {}
            for kind in plugin.reads:
                resource = of(kind)
                items = await self.store.scan(resource.prefix(scope.namespace if resource.namespaced else ""))
                found[kind] = [load(item) for item in items]
            plugin.change(obj, found)

    def _track(self, scope: Scope, before: Object | None, after: Object, options: WriteOptions) -> None:
        """Update the managedFields of an object after a create, an update or a patch changed it."""
        manager, none = self.owners.of(scope.resource, scope.sub)
        ownership.track(manager, none, before, after, options.manager, timestamp(self.clock()))

    async def _create(
        self, scope: Scope, obj: Object, options: WriteOptions, warnings: tuple[str, ...], tracked: bool = False
    ) -> Written:
        """Create an object that `_shape` returned. tracked: the managedFields are up to date already."""
        resource, strategy = scope.resource, strategy_of(scope.resource)
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
        for field in ("resourceVersion", "deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "generation"):
            metadata.pop(field, None)
        metadata |= {"uid": str(uuid.uuid4()), "creationTimestamp": timestamp(self.clock())}
        if strategy.generation:
            metadata["generation"] = 1
        strategy.defaults(obj)
        if not tracked:
            self._track(scope, None, obj, options)
        await self._admit(scope, obj)
        if self.gate:
            self.gate.written(options.user, resource, "", obj, None)
        strategy.prepare_create(obj)
        warnings += self._check(scope, obj, None)
        scope = Scope(resource, scope.namespace, name(obj))
        warnings += tuple(await self.judges.judge(scope, obj, None))
        claims = self._claims(scope)
        if claims is not None and not claims.asks(obj) and await self.store.get(scope.key):
            raise errors.exists(resource, scope.name)  # before the server claims values
        try:
            async with (
                self._held(scope, obj, None, options.dry_run),
                await self.judges.counting(scope, obj, None, dry_run=options.dry_run),
            ):
                obj = self._reshape(resource, obj)
                # again, as upstream decodes a written object: fields that admission and claims added get defaults
                strategy.defaults(obj)
                if options.dry_run:
                    if await self.store.get(scope.key):
                        raise errors.exists(resource, scope.name)
                    return Written(codec.dumps(obj), warnings, created=True)
                item = await self.store.put(scope.key, codec.encode(convert.stored(resource, obj)), 0)
        except Conflict:
            raise errors.exists(resource, scope.name) from None
        return Written(wire(item, resource), warnings, created=True)

    async def update(self, scope: Scope, obj: Object, options: WriteOptions) -> Written:
        """Replace the object or the part of a subresource (PUT). Without a resourceVersion, the update is
        unconditional, or refused if `unconditional` excludes the kind. A kind with create_on_update gets a new object
        if none exists.
        """
        given = obj
        obj, warnings = self._shape(scope.resource, obj, options)
        if name(obj) != scope.name:
            raise errors.bad_request(
                f"the name of the object ({name(obj)}) does not match the name on the URL ({scope.name})"
                if name(obj)
                else "name must be provided"
            )
        if not scope.sub and strategy_of(scope.resource).create_on_update and await self.store.get(scope.key) is None:
            if self.gate:
                self.gate.may_create(options.user, scope.resource, scope.namespace, scope.name)
            return await self.create(scope, given, options)

        def change(before: Object) -> Object:
            if resource_version(obj) in ("", "0") and not unconditional(scope.resource):
                why = invalid("metadata.resourceVersion", 0, "must be specified for an update")
                raise errors.invalid(scope.resource, scope.name, [why])
            guard(scope, before, obj)
            fresh: Object = codec.decode(codec.dumps(obj))
            return fresh

        with told(lambda: warnings):
            return await self._modify(scope, change, options, warnings)

    async def patch(self, scope: Scope, kind: str, body: Any, options: WriteOptions) -> Written:
        warnings: tuple[str, ...] = ()
        node = builtin().kind(scope.resource.api_version, scope.resource.kind)

        def change(before: Object) -> Object:
            nonlocal warnings
            after: Object = patches.apply(kind, before, body, node)
            try:
                after, warnings = self._shape(scope.resource, codec.decode(codec.dumps(after)), options)
            except StatusError as err:
                raise errors.invalid_patch(err.message) from err
            guard(scope, before, after, uids=False)
            return after

        with told(lambda: warnings):
            written = await self._modify(scope, change, options, ())
        return Written(written.raw, (*warnings, *written.warnings))

    async def apply(
        self, scope: Scope, body: Any, options: WriteOptions, prepare: Callable[[Object], None] = lambda obj: None
    ) -> Written:
        """Apply a configuration (server-side apply, KEP-555). Create the object if it is absent. prepare: changes a new
        object before its creation.
        """
        warnings: tuple[str, ...] = ()

        def merged(before: Object | None) -> Object:
            nonlocal warnings
            (manager, none), now = self.owners.of(scope.resource, scope.sub), timestamp(self.clock())
            after = ownership.applied(manager, none, before, body, options.manager, now, options.force)
            try:
                after, warnings = self._shape(scope.resource, after, options)
            except StatusError as err:
                if options.repeated and options.field_validation == "Strict":
                    raise
                raise StatusError(500, "", f"failed to convert the applied object: {err.message}") from None  # upstream
            check_name(scope, after)
            if before is not None:
                guard(scope, before, after, uids=False)
            return after

        for _ in range(_RETRIES):
            if scope.sub or await self.store.get(scope.key) is not None:
                with told(lambda: warnings):
                    written = await self._modify(scope, merged, options, (), tracked=True)
                return Written(written.raw, (*warnings, *written.warnings))
            if self.gate:
                self.gate.may_create(options.user, scope.resource, scope.namespace, scope.name)
            obj = merged(None)
            prepare(obj)
            if uid(obj):
                why = f"uid mismatch: the provided object specified uid {uid(obj)}, and no existing object was found"
                raise errors.conflict(scope.resource, scope.name, why)
            with told(lambda: warnings):
                try:
                    return await self._create(replace(scope, name=""), obj, options, warnings, tracked=True)
                except StatusError as err:
                    if err.reason != "AlreadyExists":
                        raise
        raise errors.conflict(scope.resource, scope.name, "other clients keep changing the object; try again")

    async def _modify(
        self,
        scope: Scope,
        change: Callable[[Object], Object],
        options: WriteOptions,
        warnings: tuple[str, ...],
        tracked: bool = False,
    ) -> Written:
        """Read the object, change it, check it, and write it by compare-and-swap. Repeat, at most _RETRIES times, if
        another client wrote the object meanwhile; `change` then raises if the client's resourceVersion is old. tracked:
        keep the managedFields that `change` returns.
        """
        resource, strategy = scope.resource, strategy_of(scope.resource)
        for _ in range(_RETRIES):
            item = await self.item(scope)
            before = convert.served(resource, load(item))
            after = change(convert.served(resource, load(item)))  # decoding is faster than a deep copy
            strategy.defaults(after)
            if not tracked:
                self._track(scope, before, after, options)
            self._carry_over(scope, before, after)
            if self.gate:
                self.gate.written(options.user, resource, scope.sub, after, before)
            for plugin in () if scope.sub else admission.UPDATING.get((resource.group, resource.kind), ()):
                plugin.change(after, {})
            heard = (*warnings, *self._check(scope, after, before), *await self.judges.judge(scope, after, before))
            try:
                async with (
                    self._held(scope, after, before, options.dry_run),
                    await self.judges.counting(scope, after, before, dry_run=options.dry_run),
                ):
                    return await self._replace(scope, item, before, after, heard, options)
            except Conflict:
                continue
        raise errors.conflict(scope.resource, scope.name, "other clients keep changing the object; try again")

    async def _replace(
        self, scope: Scope, item: Item, before: Object, after: Object, heard: tuple[str, ...], options: WriteOptions
    ) -> Written:
        """Store an updated object, or delete it if it is `finished`. Write nothing for a dry run or without a
        difference. Raises Conflict.
        """
        resource, strategy = scope.resource, strategy_of(scope.resource)
        after = self._reshape(resource, after)
        strategy.defaults(after)
        if strategy.generation:
            risen = scope.sub != "status" and strategy.changed(after, before)
            after["metadata"]["generation"] = int(before["metadata"].get("generation", 1)) + risen
        value = codec.encode(convert.stored(resource, after))
        if same(codec.decode(value), codec.decode(item.value)):
            return Written(wire(item, resource), heard)
        if options.dry_run:
            return Written(convert.served_bytes(resource, codec.with_revision(value, item.revision)), heard)
        if finished(strategy, after):
            gone = await self._remove(scope, after, item.revision)
            return Written(convert.served_bytes(resource, codec.with_revision(value, gone.revision)), heard)
        return Written(wire(await self.store.put(scope.key, value, item.revision), resource), heard)

    def _carry_over(self, scope: Scope, before: Object, after: Object) -> None:
        """Copy from `before` the server's metadata, the identity that the client left out, and the fields that this URL
        does not write. Set the times that the server decides.
        """
        strategy, metadata, old = strategy_of(scope.resource), after["metadata"], before["metadata"]
        for field in _SYSTEM_METADATA:
            metadata.pop(field, None)
            if field in old:
                metadata[field] = old[field]
        for field in _IDENTITY:
            if field in old and not metadata.get(field):
                metadata[field] = old[field]
        if scope.sub == "status":
            strategy.prepare_status(after, before)
        elif scope.sub in strategy.parts:
            strategy.parts[scope.sub].prepare(after, before)
        elif scope.sub not in ("finalize", "binding"):
            strategy.prepare_update(after, before)
        strategy.stamp(after, before, timestamp(self.clock()))

    async def change_scale(self, scope: Scope, kind: str, body: Any, options: WriteOptions) -> Written:
        """Write the subresource scale and return the Scale. kind: the media type of a patch, "" for a PUT."""
        resource, where = scope.resource, scale.fields_of(scope.resource)
        whole = Scope(resource, scope.namespace, scope.name)
        body = body if kind else ownership.as_scale(body)

        def change(before: Object) -> Object:
            old, now = scale.scale_of(resource, before, empty=True), timestamp(self.clock())
            managed = managers.decode(before["metadata"].get("managedFields"), known=True)
            ownership.put(old, scale.to_scale(managed, where))
            new = ownership.scaled(old, kind, body, options.manager, now, options.force)
            if causes := scale.wrong(new):
                raise errors.invalid(scale.SCALE, scope.name, causes)
            guard(whole, before, new)
            after = scale.with_replicas(resource, before, new)
            scaled = managers.decode(new["metadata"].get("managedFields"), known=True)
            ownership.put(after, scale.to_object(managed, scaled, where, resource.api_version))
            return after

        written = await self._modify(whole, change, options, (), tracked=True)
        return Written(codec.dumps(scale.scale_of(resource, codec.decode(written.raw))), written.warnings)

    async def bind(self, scope: Scope, binding: Any, options: WriteOptions) -> None:
        """Assign a pod to a node (the subresource pods/binding). scope: the pod. Raises a conflict if the pod already
        has a node or is being deleted.
        """
        made, _ = self._shape(of("Binding"), binding, options)
        target = made.get("target") or {}
        if target.get("kind") not in (None, "", "Node"):
            raise errors.invalid(of("Binding"), scope.name, [not_supported("target.kind", target["kind"], ("Node",))])
        if not target.get("name"):
            raise errors.invalid(of("Binding"), scope.name, [required("target.name")])
        whole = Scope(scope.resource, scope.namespace, scope.name, "binding")
        now = timestamp(self.clock())

        def change(before: Object) -> Object:
            if before["spec"].get("nodeName"):
                why = f"pod {scope.name} is already assigned to node {before['spec']['nodeName']!r}"
                raise errors.conflict(scope.resource, scope.name, why)
            if deleting(before):
                raise errors.conflict(
                    scope.resource, scope.name, f"pod {scope.name} is being deleted and cannot be assigned"
                )
            return bound(before, made, now)

        await self._modify(whole, change, options, (), tracked=True)

    # ---- deleting

    async def delete(
        self, scope: Scope, options: Object, dry_run: bool = False, user: User | None = None
    ) -> tuple[bytes, bool]:
        """Delete an object, or mark it for deletion. Return (object in wire form, whether it is removed). options: a
        meta/v1 DeleteOptions. dry_run: store nothing. user: the client's user; None for the server itself.
        """
        for _ in range(_RETRIES):
            item = await self.item(scope)
            obj = load(item)
            if self.gate:
                self.gate.deleted(user, scope.resource, obj)
            wanted = options.get("preconditions") or {}
            if wanted.get("uid") not in (None, uid(obj)) or wanted.get("resourceVersion") not in (
                None,
                obj["metadata"]["resourceVersion"],
            ):
                failed = errors.conflict(
                    scope.resource, scope.name, "the precondition (uid or resourceVersion) does not hold"
                )
                failed.about = (
                    scope.resource.group,
                    scope.resource.kind,
                )  # as upstream: the kind in place of the plural
                raise failed
            strategy = strategy_of(scope.resource)
            strategy.check_delete(scope.name)
            marked = self._mark(strategy, obj, options.get("gracePeriodSeconds"))
            propagate(marked, options)
            if dry_run:
                return codec.with_revision(codec.encode(marked), item.revision), finished(strategy, marked)
            try:
                if finished(strategy, marked):
                    change = await self._remove(scope, obj, item.revision)
                    last = codec.encode(marked) if scope.resource.qualified == "pods" else item.value
                    return codec.with_revision(last, change.revision), True
                value = codec.encode(marked)
                if value == item.value:
                    return wire(item), False
                return wire(await self.store.put(scope.key, value, item.revision)), False
            except Conflict:
                continue
        raise errors.conflict(scope.resource, scope.name, "other clients keep changing the object; try again")

    def _mark(self, strategy: Strategy, obj: Object, grace: int | None) -> Object:
        """Set deletionTimestamp and the grace period in `obj`. A second deletion can only shorten the grace period."""
        metadata, now = obj["metadata"], self.clock()
        # as upstream: a negative grace period counts as 1 s
        seconds = strategy.grace(obj, 1 if grace is not None and grace < 0 else grace)
        if "deletionTimestamp" in metadata:
            seconds = min(seconds, int(metadata.get("deletionGracePeriodSeconds", 0)))
            if seconds == metadata.get("deletionGracePeriodSeconds"):
                return obj
        elif metadata.get("generation"):
            metadata["generation"] += 1  # a deletion request changes the desired state
        metadata["deletionTimestamp"] = timestamp(min(now + seconds, LAST_MOMENT))
        metadata["deletionGracePeriodSeconds"] = seconds
        strategy.mark_deleted(obj)
        return obj

    async def finalize(self, namespace: str, obj: Any) -> Written:
        """Write spec.finalizers of a namespace (the subresource finalize, the namespace controller's last step).
        Without finalizers, a namespace with a deletionTimestamp is then deleted. Raises a conflict if the body has no
        finalizers and the namespace still contains objects.
        """
        scope = Scope(_NAMESPACES, "", namespace, "finalize")
        obj, _ = self._shape(_NAMESPACES, obj, WriteOptions())
        if not (obj.get("spec") or {}).get("finalizers"):
            for resource in self.registry.stored:
                if resource.namespaced and await self.store.scan(resource.prefix(namespace)):
                    raise errors.conflict(_NAMESPACES, namespace, f"the namespace still contains {resource.plural}")

        def change(before: Object) -> Object:
            left = (obj.get("spec") or {}).get("finalizers") or []
            return {**before, "spec": {**before.get("spec", {}), "finalizers": left}}

        return await self._modify(scope, change, WriteOptions(), ())
