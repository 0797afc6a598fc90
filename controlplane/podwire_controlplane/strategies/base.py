"""What is particular to a kind in the write path of the API.

The write path (server/objects.py) is the same for all kinds; it asks the kind's Strategy at fixed points, in the order
of kube-apiserver: prepare_create or prepare_update, defaults, validate, validate_update, warnings. All methods are
pure; they change only the object that they are given to change. A kind without a Strategy of its own has the class
below.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from podwire_base.kube.errors import Cause, StatusError
from podwire_base.kube.meta import Object
from podwire_base.kube.registry import Resource

from .. import gotypes
from ..defaults import table as defaults
from ..rules import meta
from ..rules import table as rules
from ..rules.podwarnings import warnings as pod_warnings

Causes = Iterator[Cause]


@dataclass(frozen=True, slots=True)
class Part:
    """A subresource that writes one part of the object. prepare: carries over everything else from the object before.
    check: yields what is wrong with the new part.
    """

    prepare: Callable[[Object, Object], None]
    check: Callable[[Object, Object], Causes]


class Strategy:
    """generation: the kind counts changes of its spec in metadata.generation. create_on_update: a PUT of an absent
    object creates it. status_labels: a write of /status may change labels. parts: subresource -> what it writes, beside
    status and scale.
    """

    parts: ClassVar[Mapping[str, Part]] = {}

    generation: ClassVar[bool] = False
    create_on_update: ClassVar[bool] = False
    status_labels: ClassVar[bool] = True

    def __init__(self, resource: Resource) -> None:
        self.resource = resource
        self.rules = rules.of(resource.group, resource.kind, resource.version)

    def decode(self, obj: Object) -> tuple[Object, list[str]]:
        """Return the object as the kind's types hold it, and the paths of its unknown fields. Raises BadType."""
        return gotypes.decode(self.resource.api_version, self.resource.kind, obj)

    # ---- what the server fills in

    def defaults(self, obj: Object) -> None:
        """Set the defaults of the kind, on every object that a client sends."""
        defaults.of(self.resource)(obj)

    def prepare_create(self, obj: Object) -> None:
        """Remove what a client may not set at creation, and set what the server decides."""
        if self.resource.has_status:
            obj.pop("status", None)

    def prepare_update(self, obj: Object, before: Object) -> None:
        """Carry over from `before` what this update may not change: here the status, which has a URL of its own."""
        if self.resource.has_status:
            obj.pop("status", None)
            if "status" in before:
                obj["status"] = before["status"]

    def prepare_status(self, obj: Object, before: Object) -> None:
        """Carry over everything that a write of /status may not change: all but status and metadata."""
        status = obj.get("status")
        for field in [f for f in obj if f != "metadata"]:
            del obj[field]
        obj |= {f: v for f, v in before.items() if f not in ("metadata", "status")}
        if status is not None:
            obj["status"] = status
        if not self.status_labels:
            obj["metadata"].pop("labels", None)
            if "labels" in before["metadata"]:
                obj["metadata"]["labels"] = before["metadata"]["labels"]

    def stamp(self, obj: Object, before: Object, now: str) -> None:
        """Set the times of an update that the server decides. now: a timestamp."""

    def changed(self, obj: Object, before: Object) -> bool:
        """Whether the generation rises: any field but metadata and status differs. Both objects have their defaults."""
        fields = obj.keys() | before.keys()
        return any(obj.get(f) != before.get(f) for f in fields if f not in ("metadata", "status"))

    # ---- what it refuses

    def validate(self, obj: Object) -> Causes:
        """Yield every wrong field of an object that is created."""
        yield from meta.check(self.resource, obj)
        yield from self.rules.create(obj)

    def validate_update(self, obj: Object, before: Object) -> Causes:
        """Yield every wrong field of an update. The rules for metadata apply twice, as upstream: once for every kind,
        and once by the kind's own validation.
        """
        yield from meta.check_update(obj, before)
        yield from meta.check_update(obj, before)
        yield from meta.qualified_finalizers(obj["metadata"])
        if self.rules.kept:
            yield from self.rules.create(obj)
            if self.rules.whole:
                yield from meta.check(self.resource, obj)
        yield from self.rules.update(obj, before)

    def validate_status(self, obj: Object, before: Object) -> Causes:
        """Yield every wrong field of a write of /status."""
        yield from meta.check_update(obj, before)
        yield from meta.check_update(obj, before)
        yield from self.rules.status(obj, before)

    def validate_part(self, sub: str, obj: Object, before: Object) -> Causes:
        """Yield every wrong field of a write of one of `parts`."""
        yield from meta.check_update(obj, before)
        yield from self.parts[sub].check(obj, before)

    def warnings(self, obj: Object, before: Object | None) -> list[str]:
        """Return what the client should know of an object that is accepted."""
        found = list(self.rules.warnings(obj)) if self.rules.warnings else []
        again = before is not None and (self.rules.pods == (("spec",),) or not self.changed(obj, before))
        for path in () if again else self.rules.pods:
            found += pod_warnings(".".join(path), dig(obj, *path) or {})
        return found

    # ---- deletion

    def check_delete(self, name: str) -> None:
        """Raise StatusError if the object may never be deleted."""

    def grace(self, obj: Object, wanted: int | None) -> int:
        """Return the seconds that the object stays after a deletion. wanted: gracePeriodSeconds of the request."""
        return 0

    def mark_deleted(self, obj: Object) -> None:
        """Change an object at the moment that its deletion begins."""

    def held(self, obj: Object) -> bool:
        """Whether something beside metadata.finalizers keeps a deleted object in the store."""
        return False


def forbidden(resource: Resource, name: str, why: str) -> StatusError:
    return StatusError(
        403, "Forbidden", f'{resource.qualified} "{name}" is forbidden: {why}', resource=resource, name=name
    )


def dig(obj: Any, *path: str) -> Any:
    """Return the value at a path of names; None if a part is absent or no object."""
    for part in path:
        obj = obj.get(part) if isinstance(obj, dict) else None
    return obj
