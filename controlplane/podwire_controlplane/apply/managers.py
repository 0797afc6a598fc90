"""Who manages which fields of an object: metadata.managedFields as data, and what a write changes in it.

An entry belongs to a manager's name, its operation (Apply or Update), its subresource and, for an Update, its version.
`update` follows a create, an update or a patch, which takes what it changes. `apply` follows a server-side apply, which
owns exactly the fields of its body, and is refused for fields that others own with another value. Sources: KEP-555, and
kube-apiserver's documentation of server-side apply. Pure: the time is an argument.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

from podwire_base.kube.meta import Object
from podwire_base.kube.schema import Node

from . import fieldsets, typed
from .fieldsets import Fields, Path, difference, intersection, named, union
from .resets import NOTHING, Reset

MAX_UPDATERS = 10
ANCIENT, BEFORE = "ancient-changes", "before-first-apply"
APPLY, UPDATE = "Apply", "Update"
_METADATA = ("name", "namespace", "creationTimestamp", "selfLink", "uid", "clusterName", "generation", "managedFields")
# nobody owns what the server decides
_STRIPPED: Fields = {
    "f:apiVersion": {},
    "f:kind": {},
    "f:metadata": {".": {}, "f:resourceVersion": {}, **{f"f:{name}": {} for name in _METADATA}},
}


class Manager(NamedTuple):
    """What tells entries apart. version: "" for an Apply, so that a manager has one entry whichever version it uses."""

    name: str
    operation: str
    version: str
    sub: str


class _Workflow(NamedTuple):
    """In the place of a manager: the write that goes on."""

    now: bool = True


_NOW = _Workflow()
Key = Manager | _Workflow


@dataclass(frozen=True, slots=True)
class Entry:
    """fields: in the schema of `version` (an apiVersion). time: RFC 3339, "" if unknown. applied: by an Apply."""

    fields: Fields
    version: str
    time: str = ""
    applied: bool = False


Managed = dict[Key, Entry]


class Versions(Protocol):
    """The versions of a kind. A manager's fields are in the schema of the version that it wrote with."""

    def node(self, version: str) -> Node | None:
        """Return the type of the kind in a version. Raises KeyError for one that is not served."""

    def convert(self, obj: Object, version: str) -> Object:
        """Return an object as another version has it."""


@dataclass(frozen=True, slots=True)
class OneVersion:
    """A kind with one version, or with several that differ in nothing but their name."""

    type: Node | None
    names: tuple[str, ...]

    def node(self, version: str) -> Node | None:
        if version not in self.names:
            raise KeyError(version)
        return self.type

    def convert(self, obj: Object, version: str) -> Object:
        return obj


@dataclass(frozen=True, slots=True)
class Conflict:
    manager: Manager
    path: Path

    @property
    def who(self) -> str:
        made = f'"{self.manager.name}"'
        if self.manager.sub:
            made += f' with subresource "{self.manager.sub}"'
        return made + (f" using {self.manager.version}" if self.manager.operation == UPDATE else "")

    @property
    def field(self) -> str:
        return fieldsets.text(self.path)


class Conflicted(Exception):
    """Other managers own fields that an apply would change."""

    def __init__(self, conflicts: list[Conflict]) -> None:
        self.conflicts = conflicts
        super().__init__(self._text())

    def _text(self) -> str:
        found = self.conflicts
        if len(found) == 1:
            return f"Apply failed with 1 conflict: conflict with {found[0].who}: {found[0].field}"
        lines = []
        for who in dict.fromkeys(c.who for c in found):
            lines += [f"conflicts with {who}:", *(f"- {c.field}" for c in found if c.who == who)]
        return f"Apply failed with {len(found)} conflicts: " + "\n".join(lines)


class BadEntry(ValueError):
    """An entry of managedFields that a client sent is none."""


# ---- the form in objects


def decode(entries: Any, known: bool = False) -> Managed:
    """Return managedFields as data. known: they are of the store, so they are not checked. Raises BadEntry."""
    made: Managed = {}
    for entry in entries or ():
        applied = entry.get("operation") == APPLY
        if not known:
            _check(entry)
        version = entry["apiVersion"]
        manager = Manager(
            entry.get("manager", ""),
            entry["operation"],
            "" if applied else version,
            entry.get("subresource", ""),
        )
        fields = entry.get("fieldsV1") or {}
        try:
            fields = fields if known else fieldsets.parse(fields)
        except (fieldsets.BadFields, RecursionError) as err:
            raise BadEntry(str(err)) from None
        made[manager] = Entry(fields, version, entry.get("time") or "", applied)
    return made


def _check(entry: Any) -> None:
    if entry.get("operation") not in (APPLY, UPDATE):
        raise BadEntry("operation must be `Apply` or `Update`")
    if not entry.get("apiVersion"):
        raise BadEntry("apiVersion must not be empty")
    if entry.get("fieldsType") != "FieldsV1":
        raise BadEntry("fieldsType must be `FieldsV1`")


def encode(managed: Mapping[Key, Entry]) -> list[Object]:
    """Return managedFields in upstream's order: Apply first, then by time, name, version and subresource."""
    rows = [(key, entry) for key, entry in managed.items() if isinstance(key, Manager)]
    rows.sort(key=lambda row: (row[0].operation, row[1].time, row[0].name, row[1].version, row[0].sub))
    return [_encode(manager, entry) for manager, entry in rows]


def _encode(manager: Manager, entry: Entry) -> Object:
    made: Object = {
        "manager": manager.name,
        "operation": manager.operation,
        "apiVersion": entry.version,
        "time": entry.time,
        "fieldsType": "FieldsV1",
        "fieldsV1": entry.fields,
        "subresource": manager.sub,
    }
    return {name: value for name, value in made.items() if value or name == "fieldsV1"}


def equal(old: Any, new: Any) -> bool:
    """Return whether two lists of managedFields say the same, whenever it was written. In any order: a time moves an
    entry.
    """
    old, new = old or [], new or []
    return len(old) == len(new) and _timeless(old) == _timeless(new)


def _timeless(entries: Any) -> list[Object]:
    made = [{k: v for k, v in entry.items() if k != "time"} for entry in entries]
    return sorted(made, key=lambda e: [e.get(k, "") for k in ("operation", "manager", "apiVersion", "subresource")])


# ---- what a write changes


@dataclass(frozen=True, slots=True)
class FieldManager:
    """The rules for one kind in one version and one subresource. reset: the fields that count for nobody."""

    versions: Versions
    version: str
    sub: str = ""
    reset: Reset = NOTHING

    @property
    def node(self) -> Node | None:
        return self.versions.node(self.version)

    def update(self, live: Object, new: Object, managed: Managed, name: str, now: str) -> Managed:
        """Return who manages what after a write that replaced `live` by `new`. Both are without managedFields."""
        after, changed = self._changed(live, new, managed, _NOW, force=True)
        _, modified, added = changed
        own = _strip(union(union({}, modified), added))
        if own:
            manager = Manager(name or "unknown", UPDATE, self.version, self.sub)
            previous = after.get(manager)
            fields = union(own, previous.fields) if previous else own
            after[manager] = Entry(fields, self.version, now)
        return _cap(after)

    def apply(
        self, live: Object, applied: Object, managed: Managed, name: str, now: str, force: bool = False
    ) -> tuple[Object | None, Managed]:
        """Return (the new object, None if it is the live one; who manages what). The applied object has passed
        `typed.check`. Raises Conflicted.
        """
        manager = Manager(name, APPLY, "", self.sub)
        new = typed.merge(self.node, live, applied)
        last = managed.get(manager)
        own = self.reset(typed.field_set(self.node, applied))
        claimed = {**managed, manager: Entry(own, self.version, now, applied=True)}
        new = self._prune(new, claimed, manager, last)
        after, _ = self._changed(live, new, claimed, manager, force)
        own = _strip(own)
        if own:
            changed = last is None or new != live or not last.time or own != last.fields
            after[manager] = Entry(own, self.version, now if changed or last is None else last.time, applied=True)
        else:
            after.pop(manager, None)
        return (None if typed.same(new, live) else new), after

    def _changed(
        self, live: Object, new: Object, managed: Managed, workflow: Key, force: bool
    ) -> tuple[Managed, tuple[Fields, Fields, Fields]]:
        """Take from all managers but `workflow` what the write changed or removed. Raises Conflicted unless force."""
        found = {self.version: self._compare(live, new, self.version)}
        after, conflicts = dict[Key, Entry](), list[Conflict]()
        for key, entry in managed.items():
            if key == workflow:
                after[key] = entry
                continue
            if entry.version not in found:
                try:
                    found[entry.version] = self._compare(live, new, entry.version)
                except KeyError:
                    continue  # the version is gone, and so is what its managers own
            removed, modified, added = found[entry.version]
            lost = intersection(entry.fields, union(modified, added)) if modified or added else {}
            if lost and not force and isinstance(key, Manager):
                conflicts += [Conflict(key, path) for path in fieldsets.paths(lost)]
            left = difference(difference(entry.fields, lost), removed)
            if left:
                after[key] = entry if left is entry.fields else replace(entry, fields=left)
        if conflicts:
            raise Conflicted(sorted(conflicts, key=lambda c: _identifier(c.manager)))
        return after, found[self.version]

    def _compare(self, live: Object, new: Object, version: str) -> tuple[Fields, Fields, Fields]:
        node = self.versions.node(version)
        if version != self.version:
            live, new = (self.versions.convert(obj, version) for obj in (live, new))
        removed, modified, added = typed.compare(node, live, new)
        return self.reset(removed), self.reset(modified), self.reset(added)

    # ---- what an apply no longer has

    def _prune(self, merged: Object, managed: Managed, manager: Manager, last: Entry | None) -> Object:
        """Remove what the manager applied last time, does not apply now, and nobody else owns."""
        if last is None or not difference(last.fields, managed[manager].fields):
            return merged
        try:
            node = self.versions.node(last.version)
        except KeyError:
            return merged
        convert = self.versions.convert
        old = convert(merged, last.version) if last.version != self.version else merged
        whole = named(last.fields, node)
        pruned = typed.remove(node, old, whole)
        pruned = self._add_back(old, pruned, last.version, managed)
        gone = difference(self._named(old, node), self._named(pruned, node))
        made: Object = typed.remove(node, old, intersection(gone, whole))
        return convert(made, self.version) if last.version != self.version else made

    def _named(self, obj: Object, node: Node | None) -> Fields:
        return named(typed.field_set(node, obj), node)

    def _add_back(self, merged: Object, pruned: Object, version: str, managed: Managed) -> Object:
        """Give back what other managers own, or the manager itself in what it applies now."""
        owned: dict[str, Fields] = {version: {}}
        for entry in managed.values():
            owned[entry.version] = union(owned.get(entry.version, {}), entry.fields)
        at = version
        for other, fields in owned.items():
            try:
                node = self.versions.node(other)
            except KeyError:
                continue
            if other != at:
                merged, pruned = (self.versions.convert(obj, other) for obj in (merged, pruned))
                at = other
            kept = union(self._named(pruned, node), named(fields, node))
            pruned = typed.remove(node, merged, difference(self._named(merged, node), kept))
        return self.versions.convert(pruned, version) if at != version else pruned


def _strip(fields: Fields) -> Fields:
    return difference(fields, _STRIPPED)


def _identifier(manager: Manager) -> str:
    """Return what upstream tells entries apart by; conflicts are sorted by it."""
    rows = {
        "manager": manager.name,
        "operation": manager.operation,
        "apiVersion": manager.version,
        "subresource": manager.sub,
    }
    return json.dumps({k: v for k, v in rows.items() if v}, separators=(",", ":"))


def _cap(managed: Managed) -> Managed:
    """Merge the oldest Updates into one entry for each version, so that there are no more than MAX_UPDATERS."""
    updaters = [key for key, entry in managed.items() if isinstance(key, Manager) and not entry.applied]
    many = len(updaters)
    if many <= MAX_UPDATERS:
        return managed
    updaters.sort(key=lambda key: (managed[key].time, _identifier(key)))
    made, first = dict(managed), dict[str, Manager]()
    for key in updaters:
        if many <= MAX_UPDATERS:
            break
        entry = managed[key]
        bucket = Manager(ANCIENT, UPDATE, entry.version, "")
        if entry.version not in first:
            first[entry.version] = key
            continue
        if bucket not in made:
            made[bucket] = made.pop(first[entry.version])
        if key != bucket:
            made[bucket] = Entry(union(entry.fields, made[bucket].fields), entry.version, entry.time)
            del made[key]
            many -= 1
    return made
