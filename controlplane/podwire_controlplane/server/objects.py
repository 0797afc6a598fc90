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
from podwire_base.kube.registry import BUILTIN, Registry, of
from podwire_base.kube.schema import builtin
from podwire_base.kube.times import timestamp

from .. import admission, convert
from ..allocators import ServiceAllocator
from ..apply import ownership
from ..rules.fields import invalid
from ..store.base import Conflict, Item, Store, StoredChange
from ..strategies.table import strategy_of, unconditional
from . import preparing
from .auth import User
from .claims import Care, Claims, ServiceClaims, holding, leaving
from .definitions import Definitions
from .judging import Judges
from .podcidrs import PodCidrClaims
from .serviceranges import ServiceRanges
from .writes import Scope, WriteOptions, Written, check_name, finished, guard, load, propagate, same, told, wire

if TYPE_CHECKING:
    from .gate import Gate

_NAMESPACES = of("Namespace")
_NOTHING = contextlib.nullcontext()
_LETTERS = "bcdfghjklmnpqrstvwxz2456789"  # no vowels, no 0, 1 or 3, so that generated names contain no words
_RETRIES = 8


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
        self.service_ranges = ServiceRanges(store, allocator)
        self.gate: Gate | None = None  # checks the writes of users; the application sets it
        self.owners = ownership.Owners(self.registry)

    async def start(self) -> None:
        await self.service_ranges.start()
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

    async def _check_namespace(self, scope: Scope) -> None:
        found = await self.store.get(_NAMESPACES.key("", scope.namespace))
        if found is None:
            raise errors.not_found(_NAMESPACES, scope.namespace)
        if b'"deletionTimestamp"' in found.value and deleting(load(found)):
            raise StatusError(
                403,
                "Forbidden",
                f'namespace "{scope.namespace}" is being deleted; use another one',
                resource=scope.resource,
                name=scope.name,
            )

    async def create(self, scope: Scope, obj: Object, options: WriteOptions) -> Written:
        obj, warnings = preparing.shape(scope.resource, obj, options)
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
        """Create an object that `preparing.shape` returned. tracked: the managedFields are up to date already."""
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
        warnings += preparing.check(scope, obj, None, self._claims(scope))
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
                obj = preparing.reshape(resource, obj)
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
        obj, warnings = preparing.shape(scope.resource, obj, options)
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
            return await self.modify(scope, change, options, warnings)

    async def patch(self, scope: Scope, kind: str, body: Any, options: WriteOptions) -> Written:
        warnings: tuple[str, ...] = ()
        node = builtin().kind(scope.resource.api_version, scope.resource.kind)

        def change(before: Object) -> Object:
            nonlocal warnings
            after: Object = patches.apply(kind, before, body, node)
            try:
                after, warnings = preparing.shape(scope.resource, codec.decode(codec.dumps(after)), options)
            except StatusError as err:
                raise errors.invalid_patch(err.message) from err
            guard(scope, before, after, uids=False)
            return after

        with told(lambda: warnings):
            written = await self.modify(scope, change, options, ())
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
                after, warnings = preparing.shape(scope.resource, after, options)
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
                    written = await self.modify(scope, merged, options, (), tracked=True)
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

    async def modify(
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
            preparing.carry_over(scope, before, after, self.clock())
            if self.gate:
                self.gate.written(options.user, resource, scope.sub, after, before)
            for plugin in () if scope.sub else admission.UPDATING.get((resource.group, resource.kind), ()):
                plugin.change(after, {})
            checked = preparing.check(scope, after, before, self._claims(scope))
            heard = (*warnings, *checked, *await self.judges.judge(scope, after, before))
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
        after = preparing.reshape(resource, after)
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
            marked = preparing.mark_deleted(strategy, obj, options.get("gracePeriodSeconds"), self.clock())
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
