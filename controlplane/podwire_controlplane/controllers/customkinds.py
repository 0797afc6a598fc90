"""Which custom kinds the controllers follow: one row for each definition whose names are accepted. Pure.

The caches know such a kind as "apiVersion:Kind", because its Kind alone may be that of a built-in one.
"""

from __future__ import annotations

from collections.abc import Iterator

from podwire_base.kube.meta import Object
from podwire_base.kube.registry import Resource

from .base import Snapshot

DEFINITIONS = "CustomResourceDefinition"


def row_of(definition: Object) -> Resource | None:
    """Return the row by which a definition's objects are read, in the version that is stored if that is served. None
    for a definition that is not served.
    """
    spec, status = definition["spec"], definition.get("status") or {}
    held = {c.get("type"): c.get("status") for c in status.get("conditions") or []}
    served = [v for v in spec.get("versions") or [] if v.get("served")]
    served.sort(key=lambda v: not v.get("storage"))
    if held.get("Established") != "True" or not served:
        return None
    names = {**spec["names"], **(status.get("acceptedNames") or {})}
    return Resource(spec["group"], served[0]["name"], names["kind"], names["plural"], spec.get("scope") == "Namespaced")


def kind_of(row: Resource) -> str:
    """Return the name of a custom kind in the caches."""
    return f"{row.api_version}:{row.kind}"


def followed(snapshot: Snapshot) -> Iterator[tuple[str, Resource]]:
    """Yield the custom kinds that the caches have, with their rows."""
    for definition in snapshot.list(DEFINITIONS) if DEFINITIONS in snapshot.kinds else ():
        row = row_of(definition)
        if row is not None and kind_of(row) in snapshot.kinds:
            yield kind_of(row), row


def name_of(obj: Object, snapshot: Snapshot) -> str:
    """Return the name of an object's kind, or of an owner reference's, in the caches."""
    custom = f"{obj.get('apiVersion')}:{obj.get('kind')}"
    return custom if custom in snapshot.kinds else str(obj.get("kind"))
