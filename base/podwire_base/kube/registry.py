"""The kinds that an API serves. A kind is a row, and a Registry is a set of rows.

The rows of Kubernetes' own kinds are in data/kinds.json. They say what kube-apiserver 1.36 says in its discovery.
Custom resources are a second source of rows for the registry of a server.
"""

from __future__ import annotations

import json
import pkgutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import quote

VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")
_SUB_VERBS = ("get", "patch", "update")


@dataclass(frozen=True, slots=True)
class Subresource:
    """group, version, kind: what its requests and answers hold; group and version "" where they are the resource's."""

    name: str
    kind: str
    group: str = ""
    version: str = ""
    verbs: tuple[str, ...] = _SUB_VERBS


@dataclass(frozen=True, slots=True)
class Resource:
    """One kind in one version. subs: its subresources. verbs: those that the collection and its objects know.

    stored: the group version in which Kubernetes keeps the objects ("autoscaling/v2"), where that differs from the
    row's own. Two rows with one group version share their objects (Event of core/v1 and of events.k8s.io/v1).
    """

    group: str
    version: str
    kind: str
    plural: str
    namespaced: bool = True
    short: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    subs: tuple[Subresource, ...] = ()
    verbs: tuple[str, ...] = VERBS
    own_singular: str = ""
    stored: str = ""

    @property
    def singular(self) -> str:
        return self.own_singular or self.kind.lower()

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def qualified(self) -> str:
        """Returns the name for kubectl and error texts: "services", "deployments.apps"."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def base(self) -> str:
        """Returns the URL path of the group version: /api/v1 or /apis/GROUP/VERSION."""
        return f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"

    @property
    def storable(self) -> bool:
        """Whether objects of the kind are kept. A review or a Binding is only answered."""
        return "watch" in self.verbs

    def sub(self, name: str) -> Subresource | None:
        return next((s for s in self.subs if s.name == name), None)

    @property
    def subresources(self) -> tuple[str, ...]:
        return tuple(s.name for s in self.subs)

    @property
    def has_status(self) -> bool:
        return any(s.name == "status" for s in self.subs)

    def path(self, namespace: str = "", name: str = "", sub: str = "") -> str:
        """Returns the URL path of the collection, of one object, or of the object's subresource. A name is always one
        segment, with any characters.
        """
        parts = [self.base]
        if self.namespaced and namespace:
            parts += ["namespaces", _segment(namespace)]
        parts.append(self.plural)
        parts += [_segment(part) for part in (name, sub) if part]
        return "/".join(parts)

    def prefix(self, namespace: str = "") -> str:
        """Returns the prefix of the store keys of the kind, or of the kind in one namespace. The version is no part of
        it, and kinds that are stored together have one prefix.
        """
        group = self.stored.rpartition("/")[0] if self.stored else self.group
        head = f"/{group or 'core'}/{self.plural}/"
        return f"{head}{namespace}/" if namespace else head

    def key(self, namespace: str, name: str) -> str:
        return self.prefix(namespace if self.namespaced else "") + name


def _segment(text: str) -> str:
    """Quote a path segment for a URL. "." and ".." are also quoted, because clients and servers would resolve them."""
    return quote(text, safe="{}") if text.strip(".") else text.replace(".", "%2E")


class Registry:
    """The rows that one server serves, or one client knows. Rows come from named sources: the built-in ones, and one
    source for each CustomResourceDefinition. `put` replaces the rows of a source.
    """

    def __init__(self, rows: Iterable[Resource] = ()) -> None:
        self._sources: dict[str, tuple[Resource, ...]] = {"": tuple(rows)}
        self._index()

    def put(self, source: str, rows: Iterable[Resource]) -> None:
        """Set the rows of a source; no rows remove it."""
        self._sources[source] = tuple(rows)
        if source and not self._sources[source]:
            del self._sources[source]
        self._index()

    def _index(self) -> None:
        self.resources = tuple(row for rows in self._sources.values() for row in rows)
        self.by_path = {(r.group, r.version, r.plural): r for r in self.resources}
        self.by_kind = {(r.api_version, r.kind): r for r in self.resources}
        self.groups = tuple(dict.fromkeys((r.group, r.version) for r in self.resources))
        self.__dict__.pop("stored", None)

    @cached_property
    def stored(self) -> tuple[Resource, ...]:
        """The rows with objects in the store, each prefix of the store once."""
        first: dict[str, Resource] = {}
        for row in self.resources:
            if row.storable:
                first.setdefault(row.prefix(), row)
        return tuple(first.values())

    def by_name(self, word: str) -> Resource | None:
        """Returns the resource for a name such as "svc", "service", "services" or "deployments.apps"; None if there is
        none.
        """
        word = word.lower()
        for resource in self.resources:
            if word in (resource.plural, resource.singular, resource.qualified, *resource.short):
                return resource
        return None

    def of(self, kind: str) -> Resource:
        """Returns the first resource of a kind that podwire itself uses. Raises KeyError."""
        for resource in self.resources:
            if resource.kind == kind:
                return resource
        raise KeyError(kind)


def _subresource(row: Mapping[str, Any], kind: str) -> Subresource:
    return Subresource(
        row["name"],
        row.get("kind", kind),
        row.get("group", ""),
        row.get("version", ""),
        tuple(row.get("verbs", _SUB_VERBS)),
    )


def row(entry: Mapping[str, Any]) -> Resource:
    """Returns the Resource of one entry of data/kinds.json. Absent fields have the defaults of Resource."""
    return Resource(
        entry["group"],
        entry["version"],
        entry["kind"],
        entry["plural"],
        entry.get("namespaced", True),
        tuple(entry.get("short", ())),
        tuple(entry.get("categories", ())),
        tuple(_subresource(sub, entry["kind"]) for sub in entry.get("subresources", ())),
        tuple(entry.get("verbs", VERBS)),
        entry.get("singular", ""),
        entry.get("stored", ""),
    )


def builtin_rows() -> tuple[Resource, ...]:
    """Returns the rows of Kubernetes' own kinds, in the order of its discovery."""
    raw = pkgutil.get_data("podwire_base.kube", "data/kinds.json")
    assert raw is not None  # package data: part of the program
    return tuple(row(entry) for entry in json.loads(raw))


# Kubernetes' own kinds: what podwire's clients and controllers know. A server has a Registry of its own.
BUILTIN = Registry(builtin_rows())
RESOURCES, BY_PATH, BY_KIND, GROUPS = BUILTIN.resources, BUILTIN.by_path, BUILTIN.by_kind, BUILTIN.groups
by_name, of = BUILTIN.by_name, BUILTIN.of
