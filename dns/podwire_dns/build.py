"""The cluster's objects in, deltas of rendered answers out; each change costs in proportion to the Service it touches.

Changes are noted as they come (`service`, `slice`, `namespace`) and worked off together by `flush`, so that a burst of
changes to one Service renders it once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from podwire_controlplane.api import meta

from . import names, render, schema
from .feed import Delta
from .zone import Zone

Object = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Problem:
    """An object, or a part of it, that could not become records. kind: Service, EndpointSlice or Namespace."""

    kind: str
    key: str
    error: str


@dataclass(slots=True)
class Builder:
    """`problems` grows until the caller empties it; a problem that stays the same is told once."""

    config: schema.Schema
    zone: Zone = field(init=False)
    answers: dict[bytes, bytes] = field(default_factory=dict)
    names: set[bytes] = field(default_factory=set)
    problems: list[Problem] = field(default_factory=list)
    services: dict[str, Object] = field(default_factory=dict)
    _slices: dict[str, dict[str, schema.Slice]] = field(default_factory=dict)
    _slice_owner: dict[str, str] = field(default_factory=dict)
    _dirty: set[str] = field(default_factory=set)
    _told: dict[tuple[str, str], str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.zone = Zone(self.config.origins)
        self.zone.replace("schema", *schema.schema_rrsets(self.config))

    def slices_of(self, key: str) -> list[schema.Slice]:
        """The EndpointSlices of the Service "namespace/name"."""
        return list(self._slices.get(key, {}).values())

    def told(self, kind: str, key: str) -> str:
        """What is wrong with an object now, "" where nothing is."""
        return self._told.get((kind, key), "")

    def service(self, obj: Object, *, deleted: bool = False) -> None:
        key = meta.key(obj)
        if deleted:
            self.services.pop(key, None)
        else:
            self.services[key] = obj
        self._dirty.add(key)

    def slice(self, obj: Object, *, deleted: bool = False) -> None:
        key, owner = meta.key(obj), "" if deleted else schema.service_of_slice(obj)
        before = self._slice_owner.pop(key, "")
        if before:
            pieces = self._slices[before]
            pieces.pop(key, None)
            if not pieces:
                del self._slices[before]
            self._dirty.add(before)
        if owner:
            piece, errors = schema.parse_slice(obj)
            self._tell("EndpointSlice", key, "; ".join(errors))
            self._slices.setdefault(owner, {})[key] = piece
            self._slice_owner[key] = owner
            self._dirty.add(owner)
        else:
            self._tell("EndpointSlice", key, "")

    def namespace(self, obj: Object, *, deleted: bool = False) -> None:
        key = meta.name(obj)
        try:
            self.zone.replace(f"Namespace {key}", (), () if deleted else schema.namespace_names(self.config, key))
            self._tell("Namespace", key, "")
        except names.BadName as err:
            self._tell("Namespace", key, str(err))

    def _tell(self, kind: str, key: str, error: str) -> None:
        if not error:
            self._told.pop((kind, key), None)
        elif self._told.get((kind, key)) != error:
            self._told[kind, key] = error
            self.problems.append(Problem(kind, key, error))

    def _records(self, key: str) -> list[Any]:
        service = self.services.get(key)
        if service is None:
            self._tell("Service", key, "")
            return []
        try:
            found = schema.service_rrsets(self.config, service, self._slices.get(key, {}).values())
            self._tell("Service", key, "")
            return found
        except (ValueError, TypeError, AttributeError) as err:
            self._tell("Service", key, str(err))
            return []

    def flush(self, serial: int) -> Delta:
        """Work off all noted changes; what the servers must know. Empty where no answer changed."""
        dirty, self._dirty = self._dirty, set()
        for key in dirty:
            self.zone.replace(f"Service {key}", self._records(key))
        keys, touched = self.zone.settle()
        answers, gone = {}, []
        for name, rtype in keys:
            question, value = render.question_key(name, rtype), render.render_key(self.zone, name, rtype)
            if value == self.answers.get(question):
                continue
            if value is None:
                del self.answers[question]
                gone.append(question)
            else:
                self.answers[question] = answers[question] = value
        fresh, lost = [], []
        for name in touched:
            wire, exists = names.to_wire(name), self.zone.exists(name)
            if exists and wire not in self.names:
                self.names.add(wire)
                fresh.append(wire)
            elif not exists and wire in self.names:
                self.names.discard(wire)
                lost.append(wire)
        return Delta(serial, answers, tuple(gone), tuple(fresh), tuple(lost))
