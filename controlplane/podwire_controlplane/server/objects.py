"""The write path of the API: defaults, validation, allocation, optimistic locking, finalizers, graceful deletion.

This module knows no HTTP. Objects are dicts, stored bytes are `Item`s, and every refusal is a StatusError.
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
_LETTERS = "bcdfghjklmnpqrstvwxz2456789"  # no vowels, no 0, 1 or 3: generated names spell no words
_RETRIES = 8
LAST_MOMENT = 253_402_300_799.0  # 9999-12-31T23:59:59Z: later times have no form
_SYSTEM_METADATA = ("creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation", "selfLink")
_IDENTITY = ("uid", "namespace", "name")  # left out by many clients; another value is refused


class Objects:
    """Objects of all kinds in one Store. Call `start()` before any other method.

    registry: the kinds that are served; by default Kubernetes' own ones. claims: by (group, kind), what gives out
    values that no two objects may have. It checks those that an object asks for and fills in those that it lacks.
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
        self.gate: Gate | None = None  # judges what users write; set by the application
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
        """Return the body of a request that stores nothing, as its type holds it, and warnings."""
        return self._shape(resource, obj, options)

    def _shape(self, resource: Resource, obj: Any, options: WriteOptions) -> tuple[Object, tuple[str, ...]]:
        """Return the object as Kubernetes' types hold it, and warnings about unknown fields. Refuse another kind, a
        field of another type, and unknown fields if field_validation is Strict.
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
            made["metadata"]["managedFields"] = [{}]  # an empty list forgets all managers, none at all keeps them
        warnings = options.repeated + tuple(f'unknown field "{path}"' for path in unknown)
        if warnings and options.field_validation == "Strict":
            raise errors.bad_request(f"{cannot}: strict decoding error: {', '.join(warnings)}")
        return made, warnings if options.field_validation != "Ignore" else ()

    def _reshape(self, resource: Resource, obj: Object) -> Object:
        """Return an object as its type holds it, after changes of the server. managedFields need no second look."""
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
        """Hold the values that `obj` claims while it is written. A dry run claims nothing: it does not look whether the
        values that the client asks for are free, as upstream.
        """
        claims = self._claims(scope)
        return _NOTHING if claims is None else holding(claims, obj, before, dry_run=dry_run)

    async def _remove(self, scope: Scope, obj: Object, revision: int) -> StoredChange:
        """Delete an object from the store, and give back what it claimed. Raises Conflict."""
        claims = self.claims.get((scope.resource.group, scope.resource.kind))
        async with _NOTHING if claims is None else leaving(claims, obj), await self.judges.counting(scope, None, obj):
            return await self.store.delete(scope.key, revision)

    def _check(self, scope: Scope, obj: Object, before: Object | None) -> tuple[str, ...]:
        """Validate an object that has its defaults, and return warnings."""
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
        """Let the plugins of the kind change a new object. Raises StatusError 403."""
        for plugin in admission.MUTATING.get((scope.resource.group, scope.resource.kind), ()):
            found = {}
            for kind in plugin.reads:
                resource = of(kind)
                items = await self.store.scan(resource.prefix(scope.namespace if resource.namespaced else ""))
                found[kind] = [load(item) for item in items]
            plugin.change(obj, found)

    def _track(self, scope: Scope, before: Object | None, after: Object, options: WriteOptions) -> None:
        """Keep the managedFields of an object that a create, an update or a patch has changed."""
        manager, none = self.owners.of(scope.resource, scope.sub)
        ownership.track(manager, none, before, after, options.manager, timestamp(self.clock()))

    async def _create(
        self, scope: Scope, obj: Object, options: WriteOptions, warnings: tuple[str, ...], tracked: bool = False
    ) -> Written:
        """tracked: the managedFields are right already."""
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
            raise errors.exists(resource, scope.name)  # before it claims anything
        try:
            async with (
                self._held(scope, obj, None, options.dry_run),
                await self.judges.counting(scope, obj, None, dry_run=options.dry_run),
            ):
                obj = self._reshape(resource, obj)
                strategy.defaults(obj)  # again, as a store that decodes what it was given: what was decided has them
                if options.dry_run:
                    if await self.store.get(scope.key):
                        raise errors.exists(resource, scope.name)
                    return Written(codec.dumps(obj), warnings, created=True)
                item = await self.store.put(scope.key, codec.encode(convert.stored(resource, obj)), 0)
        except Conflict:
            raise errors.exists(resource, scope.name) from None
        return Written(wire(item, resource), warnings, created=True)

    async def update(self, scope: Scope, obj: Object, options: WriteOptions) -> Written:
        """Replace the object or its status (PUT). Without a resourceVersion, the update is unconditional."""
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
        """Apply a configuration (server-side apply, KEP-555). It creates an object that is absent. prepare: changes an
        object before it is created.
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
        raise errors.conflict(scope.resource, scope.name, "too many writers at once; try again")

    async def _modify(
        self,
        scope: Scope,
        change: Callable[[Object], Object],
        options: WriteOptions,
        warnings: tuple[str, ...],
        tracked: bool = False,
    ) -> Written:
        """Read the object, change it, check it, and write it by compare-and-swap. Repeat if another client wrote the
        object meanwhile and the change is unconditional. tracked: `change` keeps the managedFields itself.
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
        raise errors.conflict(scope.resource, scope.name, "too many writers at once; try again")

    async def _replace(
        self, scope: Scope, item: Item, before: Object, after: Object, heard: tuple[str, ...], options: WriteOptions
    ) -> Written:
        """Store what an update makes of an object, or remove it if nothing holds it any more. Raises Conflict."""
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
        """Copy from `before` what the client cannot change: identity, deletion state, and the part (spec or status)
        that this URL does not write.
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
        """Write the subresource scale of an object, and return its Scale. kind: a type of patch, "" for a PUT."""
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
        """Assign a pod to a node (the subresource pods/binding), once. scope: the pod."""
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
                    scope.resource, scope.name, f"pod {scope.name} is being deleted, cannot be assigned"
                )
            return bound(before, made, now)

        await self._modify(whole, change, options, (), tracked=True)

    # ---- deleting

    async def delete(
        self, scope: Scope, options: Object, dry_run: bool = False, user: User | None = None
    ) -> tuple[bytes, bool]:
        """Return (object in wire form, whether the store has removed it). options: a meta/v1 DeleteOptions. user: who
        deletes; None for the server itself.
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
                failed.about = (scope.resource.group, scope.resource.kind)  # as upstream: here the kind, not its plural
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
        raise errors.conflict(scope.resource, scope.name, "too many writers at once; try again")

    def _mark(self, strategy: Strategy, obj: Object, grace: int | None) -> Object:
        """Set deletionTimestamp and the grace period. A second deletion can only shorten the grace period."""
        metadata, now = obj["metadata"], self.clock()
        seconds = strategy.grace(obj, 1 if grace is not None and grace < 0 else grace)  # as upstream
        if "deletionTimestamp" in metadata:
            seconds = min(seconds, int(metadata.get("deletionGracePeriodSeconds", 0)))
            if seconds == metadata.get("deletionGracePeriodSeconds"):
                return obj
        elif metadata.get("generation"):
            metadata["generation"] += 1  # the wish to go is a change of the wanted state
        metadata["deletionTimestamp"] = timestamp(min(now + seconds, LAST_MOMENT))
        metadata["deletionGracePeriodSeconds"] = seconds
        strategy.mark_deleted(obj)
        return obj

    async def finalize(self, namespace: str, obj: Any) -> Written:
        """Remove the finalizer of a namespace (the namespace controller's last step), so that it is deleted. Raises a
        conflict if the namespace still contains objects.
        """
        scope = Scope(_NAMESPACES, "", namespace, "finalize")
        obj, _ = self._shape(_NAMESPACES, obj, WriteOptions())
        if not (obj.get("spec") or {}).get("finalizers"):
            for resource in self.registry.stored:
                if resource.namespaced and await self.store.scan(resource.prefix(namespace)):
                    raise errors.conflict(_NAMESPACES, namespace, f"there are still {resource.plural} in it")

        def change(before: Object) -> Object:
            left = (obj.get("spec") or {}).get("finalizers") or []
            return {**before, "spec": {**before.get("spec", {}), "finalizers": left}}

        return await self._modify(scope, change, WriteOptions(), ())
