"""What a write is about, its answer, and the checks that it must pass before the store is asked. Pure."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from podwire_base.kube import codec, errors
from podwire_base.kube.errors import StatusError
from podwire_base.kube.meta import Object, deleting, name, resource_version, uid
from podwire_base.kube.registry import Resource

from .. import convert
from ..apply import managers
from ..store.base import Item
from ..strategies.base import Strategy
from .auth import User

PROPAGATION = {"Background": "", "Orphan": "orphan", "Foreground": "foregroundDeletion"}


@dataclass(frozen=True, slots=True)
class WriteOptions:
    """dry_run: check the request and answer, but store nothing. field_validation: Strict, Warn or Ignore (KEP-2885).
    repeated: a text for each key that the body has twice. user: who writes; None for the server itself. manager: who
    owns the fields that are written. force: an apply takes fields that others own.
    """

    dry_run: bool = False
    field_validation: str = "Warn"
    repeated: tuple[str, ...] = ()
    user: User | None = None
    manager: str = "podwire"
    force: bool = False


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


@contextlib.contextmanager
def told(warnings: Callable[[], tuple[str, ...]]) -> Iterator[None]:
    """Give a refusal the warnings that the client would get with an acceptance."""
    try:
        yield
    except StatusError as err:
        err.warnings = (*warnings(), *err.warnings)
        raise


def wire(item: Item, resource: Resource | None = None) -> bytes:
    """Return the wire form of a stored object, as the version of `resource` shows it."""
    raw = codec.with_revision(item.value, item.revision)
    return raw if resource is None else convert.served_bytes(resource, raw)


def load(item: Item) -> Object:
    """Return a new mutable copy of a stored object, with its resourceVersion."""
    obj: Object = codec.decode(wire(item))
    return obj


def propagate(obj: Object, options: Object) -> None:
    """Add the finalizer for propagationPolicy Orphan or Foreground. The garbage collector removes the finalizer after
    it has processed the dependents.
    """
    policy = options.get("propagationPolicy") or ("Orphan" if options.get("orphanDependents") else "Background")
    if policy not in PROPAGATION:
        raise errors.bad_request(f"propagationPolicy: {policy!r} is not supported; one of {', '.join(PROPAGATION)}")
    held = obj["metadata"].get("finalizers") or []
    if PROPAGATION[policy] and PROPAGATION[policy] not in held:
        obj["metadata"]["finalizers"] = [*held, PROPAGATION[policy]]


def guard(scope: Scope, before: Object, after: Object, uids: bool = True) -> None:
    """Raise a conflict if the client's resourceVersion or uid differs from that of the stored object (optimistic
    locking). Fields that the client leaves out are not compared. uids: whether the uid is compared: that of a patch is
    validated as any other field.
    """
    space = after["metadata"].get("namespace")
    if space and space != before["metadata"].get("namespace"):
        raise errors.bad_request(
            "the namespace of the provided object does not match the namespace sent on the request"
        )
    wanted = resource_version(after)
    if wanted and not (wanted.isascii() and wanted.isdecimal()):
        raise StatusError(500, "", f"metadata.resourceVersion: {wanted[:80]!r} is not a number")  # as upstream
    if wanted not in ("", "0", resource_version(before)):
        raise errors.conflict(scope.resource, scope.name)
    if uids and uid(after) not in ("", uid(before)):
        raise errors.conflict(scope.resource, scope.name, f"uid {uid(after)} is of an earlier object of this name")


def check_name(scope: Scope, obj: Object) -> None:
    """Refuse an applied object that has another name or namespace than the URL, or none."""
    if name(obj) != scope.name:
        raise errors.bad_request(
            f"the name of the object ({name(obj)}) does not match the name on the URL ({scope.name})"
            if name(obj)
            else f"the name of the object ({scope.name} based on URL) was undeterminable: name must be provided"
        )
    space = obj["metadata"].get("namespace")
    if space and scope.namespace and space != scope.namespace:
        raise errors.bad_request(
            f"the namespace of the object ({space}) does not match the namespace on the request ({scope.namespace})"
        )


def same(old: Object, new: Object) -> bool:
    """Whether nothing changed but the times in managedFields. Both objects are the caller's own."""
    before, after = (obj["metadata"].pop("managedFields", None) for obj in (old, new))
    return old == new and managers.equal(before, after)


def finished(strategy: Strategy, obj: Object) -> bool:
    """Whether the object can be removed from the store: it has a deletionTimestamp, no finalizer and no grace
    period.
    """
    if not deleting(obj) or obj["metadata"].get("finalizers") or obj["metadata"].get("deletionGracePeriodSeconds"):
        return False
    return not strategy.held(obj)
