"""The hook of the write path: keeps metadata.managedFields of an object right through every write.

`track` follows a create, an update or a patch; `applied` is a server-side apply. Both know the kind by its row in the
registry, and its types by Kubernetes' schema or, for a custom kind, by the schema of its definition.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from podwire_base.kube import codec, errors
from podwire_base.kube import patch as patches
from podwire_base.kube.errors import Cause, StatusError
from podwire_base.kube.meta import Object
from podwire_base.kube.registry import Registry, Resource
from podwire_base.kube.schema import Node, builtin

from .. import convert, gotypes
from . import lastapplied, scale, typed
from .managers import BEFORE, BadEntry, Conflicted, FieldManager, Managed, decode, encode
from .resets import reset_of


class Owners:
    """The field managers of all kinds that a registry has."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self._known: dict[tuple[str, str, str], tuple[Resource, FieldManager, Object]] = {}

    def of(self, resource: Resource, sub: str) -> tuple[FieldManager, Object]:
        """Return (the field manager of a kind and subresource, an object of the kind that has nothing)."""
        key = (resource.api_version, resource.kind, sub)
        known = self._known.get(key)
        if known is None or known[0] is not resource:  # a changed CustomResourceDefinition has a new row
            known = self._known[key] = (resource, manager_of(resource, sub, self.registry), empty(resource))
        return known[1], known[2]


@dataclass(frozen=True, slots=True)
class KindVersions:
    """The versions of a kind, as the registry has them now."""

    resource: Resource
    registry: Registry

    def row(self, version: str) -> Resource:
        return self.registry.by_kind[version, self.resource.kind]

    def node(self, version: str) -> Node | None:
        row = self.row(version)
        return type_of(row)

    def convert(self, obj: Object, version: str) -> Object:
        row = self.row(version)
        if row.custom is None:
            return convert.served(row, convert.stored(self.row(obj["apiVersion"]), obj))
        return {**obj, "apiVersion": version}


def type_of(resource: Resource) -> Node | None:
    """Return the type of a kind; None if it has none, and types are deduced."""
    if resource.custom is None:
        return builtin().kind(resource.api_version, resource.kind)
    return resource.custom.schema


@lru_cache(maxsize=512)
def _empty(api_version: str, kind: str) -> Object:
    made, _ = gotypes.decode(api_version, kind, {})
    return made


def empty(resource: Resource) -> Object:
    """Return an object of the kind that has nothing yet. Do not change it."""
    if resource.custom is None:
        return _empty(resource.api_version, resource.kind)
    return {"apiVersion": resource.api_version, "kind": resource.kind}


def manager_of(resource: Resource, sub: str, registry: Registry) -> FieldManager:
    reset = reset_of(resource.group, resource.kind, sub, resource.has_status, resource.custom is not None)
    return FieldManager(KindVersions(resource, registry), resource.api_version, sub, reset)


def bare(obj: Object) -> Object:
    """Return the object without managedFields. It shares everything else."""
    return {**obj, "metadata": {k: v for k, v in obj["metadata"].items() if k != "managedFields"}}


def _entries(obj: Object) -> Any:
    return obj["metadata"].get("managedFields")


def managed_of(live: Object | None, new: Object, sub: str) -> Managed:
    """Return who manages what before an update. A client may write managedFields, but not through a subresource; one
    empty entry forgets them all. What cannot be read does not count.
    """
    before = decode(_entries(live), known=True) if live else {}
    written = _entries(new)
    if sub or not written:
        return before
    if written == [{}]:
        return {}
    if live and written == _entries(live):
        return before
    try:
        return decode(written) or before
    except BadEntry:
        return before


def track(manager: FieldManager, none: Object, live: Object | None, new: Object, name: str, now: str) -> None:
    """Set the managedFields of an object that is about to replace `live`, or to be created. none: `empty` of the kind.
    name: the manager's. now: a metav1.Time.
    """
    managed = managed_of(live, new, manager.sub)
    fresh = bare(new)
    if managed or live is None:
        managed = manager.update(bare(live) if live else none, fresh, managed, name, now)
    put(new, managed)


def _copy(obj: Object) -> Object:
    made: Object = codec.decode(codec.dumps(obj))
    return made


def put(obj: Object, managed: Managed) -> None:
    obj["metadata"].pop("managedFields", None)
    if managed:
        obj["metadata"]["managedFields"] = encode(managed)


def applied(
    manager: FieldManager,
    none: Object,
    live: Object | None,
    body: Any,
    name: str,
    now: str,
    force: bool,
) -> Object:
    """Return the object after a server-side apply, with its managedFields. live: None if there is no such object.
    Raises StatusError: 409 with the conflicts, 400 and 500 as kube-apiserver.
    """
    config = check_body(manager, none, body)
    before = bare(live) if live else none
    managed = decode(_entries(live), known=True) if live else {}
    if not managed:
        managed = manager.update(none, before, {}, BEFORE, now)
    try:
        try:
            made, managed = manager.apply(before, config, managed, name, now, force)
        except Conflicted as err:
            if not lastapplied.excuses(manager.node, before, err, name):
                raise
            made, managed = manager.apply(before, config, managed, name, now, force=True)
    except Conflicted as err:
        causes = [Cause(c.field, f"conflict with {c.who}", "FieldManagerConflict") for c in err.conflicts]
        raise StatusError(409, "Conflict", str(err), causes=causes) from None
    after = _copy(before if made is None else made)
    put(after, managed)
    lastapplied.renew(after, config, name)
    return after


def check_body(manager: FieldManager, none: Object, body: Any) -> Object:
    """Return the body of an apply. Raises StatusError."""
    if not isinstance(body, dict):
        raise errors.bad_request("error decoding YAML: expected an object")
    if not body.get("apiVersion") or not body.get("kind"):
        raise errors.bad_request("the body of an apply needs apiVersion and kind")
    if body["apiVersion"] != manager.version:
        raise errors.bad_request(
            "Incorrect version specified in apply patch. "
            f"Specified patch version: {body['apiVersion']}, expected: {manager.version}"
        )
    if body["kind"] != none["kind"]:
        raise errors.bad_request(f"invalid object type: {body['kind']}, expected: {none['kind']}")
    metadata = body.get("metadata")
    if isinstance(metadata, dict) and metadata.get("managedFields") is not None:
        raise errors.bad_request("metadata.managedFields must be nil")
    wrong = list(typed.check(manager.node, body))
    if wrong:
        what = f"{none['apiVersion']}, Kind={none['kind']}"
        lines = wrong[0] if len(wrong) == 1 else "errors:\n" + "\n".join(f"  {line}" for line in wrong)
        raise StatusError(500, "", f"failed to create typed patch object ({what}): {lines}")  # as upstream
    return {**body, "metadata": metadata or {}}


def scaled(live: Object, kind: str, body: Any, name: str, now: str, force: bool) -> Object:
    """Return a Scale after a write, with its managedFields. kind: a type of patch, "" for a PUT. Raises StatusError."""
    manager, none = scale.manager(), _empty(scale.SCALE.api_version, scale.SCALE.kind)
    if kind == patches.APPLY_PATCH:
        return as_scale(applied(manager, none, live, body, name, now, force))
    new = as_scale(patches.apply(kind, _copy(live), body, manager.node) if kind else body)
    track(manager, none, live, new, name, now)
    return new


def as_scale(obj: Any) -> Object:
    """Return a Scale that a client sent. Raises StatusError."""
    if not isinstance(obj, dict) or obj.get("kind", "Scale") != "Scale":
        raise errors.bad_request("expected an autoscaling/v1 Scale")
    try:
        made, _ = gotypes.decode(scale.SCALE.api_version, scale.SCALE.kind, obj)
    except gotypes.BadType as err:
        raise errors.bad_request(str(err)) from None
    return made
