"""The table of kinds that the API serves. A new kind needs one row here, and a row in table.py if it has columns of its
own.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote


@dataclass(frozen=True, slots=True)
class Resource:
    """One kind. `subresources`: "status" and "scale" if the kind has them. `graceful`: deletion waits for the node."""

    group: str
    version: str
    kind: str
    plural: str
    namespaced: bool = True
    short: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    subresources: tuple[str, ...] = ()
    graceful: bool = False

    @property
    def singular(self) -> str:
        return self.kind.lower()

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
        """Returns the prefix of the store keys of the kind, or of the kind in one namespace."""
        head = f"/{self.group or 'core'}/{self.plural}/"
        return f"{head}{namespace}/" if namespace else head

    def key(self, namespace: str, name: str) -> str:
        return self.prefix(namespace if self.namespaced else "") + name


def _segment(text: str) -> str:
    """Quote a path segment for a URL. "." and ".." are also quoted, because clients and servers would resolve them."""
    return quote(text, safe="{}") if text.strip(".") else text.replace(".", "%2E")


_ALL = ("all",)
RESOURCES: tuple[Resource, ...] = (
    Resource("", "v1", "Namespace", "namespaces", namespaced=False, short=("ns",), subresources=("status",)),
    Resource("", "v1", "Node", "nodes", namespaced=False, short=("no",), subresources=("status",)),
    Resource("", "v1", "Pod", "pods", short=("po",), categories=_ALL, subresources=("status",), graceful=True),
    Resource("", "v1", "Service", "services", short=("svc",), categories=_ALL, subresources=("status",)),
    Resource("", "v1", "Endpoints", "endpoints", short=("ep",)),
    Resource("", "v1", "ConfigMap", "configmaps", short=("cm",)),
    Resource("", "v1", "Secret", "secrets"),
    Resource("", "v1", "ServiceAccount", "serviceaccounts", short=("sa",)),
    Resource("", "v1", "Event", "events", short=("ev",)),
    Resource("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices"),
    Resource(
        "apps", "v1", "Deployment", "deployments", short=("deploy",), categories=_ALL, subresources=("status", "scale")
    ),
    Resource(
        "apps", "v1", "ReplicaSet", "replicasets", short=("rs",), categories=_ALL, subresources=("status", "scale")
    ),
    Resource("coordination.k8s.io", "v1", "Lease", "leases"),
)

BY_PATH: dict[tuple[str, str, str], Resource] = {(r.group, r.version, r.plural): r for r in RESOURCES}
BY_KIND: dict[tuple[str, str], Resource] = {(r.api_version, r.kind): r for r in RESOURCES}
GROUPS: tuple[tuple[str, str], ...] = tuple(dict.fromkeys((r.group, r.version) for r in RESOURCES))


def by_name(word: str) -> Resource | None:
    """Returns the resource for a name such as "svc", "service", "services" or "deployments.apps"; None if there is
    none.
    """
    word = word.lower()
    for resource in RESOURCES:
        if word in (resource.plural, resource.singular, resource.qualified, *resource.short):
            return resource
    return None


def of(kind: str) -> Resource:
    """Returns the resource of a kind that podwire itself uses. Raises KeyError."""
    return next(r for r in RESOURCES if r.kind == kind)
