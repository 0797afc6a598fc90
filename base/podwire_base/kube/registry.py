"""The kinds that an API serves. A kind is a row, and a Registry is a set of rows.

The rows of Kubernetes' own kinds are in data/kinds.json. They say what kube-apiserver 1.36 says in its discovery.
Custom resources are a second source of rows for the registry of a server.
"""

from __future__ import annotations

import json
import pkgutil
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

if TYPE_CHECKING:
    from .cells import Column
    from .schema import Node

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


@dataclass(frozen=True, eq=False, slots=True)
class Custom:
    """What a CustomResourceDefinition says of one version of its kind.

    schema: the type of its objects, in the form of Kubernetes' own types (schema.py). columns: of its tables.
    definitions: name -> OpenAPI schema, of the kind and of its list. name: that of the kind's own. fields: what a
    fieldSelector may name. scale: the paths specReplicasPath, statusReplicasPath, labelSelectorPath. warning: sent
    with each answer of a deprecated version. strategy: what is particular to the kind in the server's write path.
    """

    schema: Node
    columns: tuple[Column, ...] = ()
    definitions: Mapping[str, Mapping[str, Any]] | None = None
    name: str = ""
    fields: tuple[str, ...] = ()
    scale: Mapping[str, str] | None = None
    warning: str = ""
    strategy: Any = None


@dataclass(frozen=True, slots=True)
class Resource:
    """One kind in one version. subs: its subresources. verbs: those that the collection and its objects know.

    stored: the group version in which Kubernetes keeps the objects ("autoscaling/v2"), where that differs from the
    row's own. Two rows with one group version share their objects (Event of core/v1 and of events.k8s.io/v1).
    custom: of a custom kind; None for Kubernetes' own.
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
    own_list: str = ""
    custom: Custom | None = None
    _head: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        group = self.stored.rpartition("/")[0] if self.stored else self.group
        object.__setattr__(self, "_head", f"/{group or 'core'}/{self.plural}/")

    @property
    def singular(self) -> str:
        return self.own_singular or self.kind.lower()

    @property
    def list_kind(self) -> str:
        return self.own_list or self.kind + "List"

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
        return f"{self._head}{namespace}/" if namespace else self._head

    def key(self, namespace: str, name: str) -> str:
        return self.prefix(namespace if self.namespaced else "") + name


def version_order(version: str) -> tuple[int, int, int, str]:
    """Returns the sort key of a version's name, the preferred one first: v2, v1, v1beta2, v1beta1, v1alpha1, others."""
    found = re.fullmatch(r"v([1-9][0-9]*)(?:(alpha|beta)([1-9][0-9]*))?", version)
    if found is None:
        return 3, 0, 0, version
    stage = {None: 0, "beta": 1, "alpha": 2}[found[2]]
    return stage, -int(found[1]), -int(found[3] or 0), ""


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
        own = self._sources[""]
        custom = [row for source, rows in self._sources.items() if source for row in rows]
        custom.sort(key=lambda row: (row.group, version_order(row.version), row.plural))
        self.resources = (*own, *custom)
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
