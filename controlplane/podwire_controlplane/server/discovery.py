"""Discovery documents: the groups, versions and kinds that the API serves. kubectl reads them first. Pure.

There are two forms. The older one has a list for each group version. The aggregated one (apidiscovery.k8s.io/v2,
KEP-3352) has everything in two documents, for /api and /apis.
"""

from __future__ import annotations

import base64
import hashlib
import platform

from podwire_base.kube.meta import Object
from podwire_base.kube.registry import Registry, Resource, Subresource
from podwire_base.kube.release import KUBERNETES, git_version


def version_document() -> Object:
    """Return /version (k8s.io/apimachinery, pkg/version.Info)."""
    major, minor, _ = KUBERNETES.removeprefix("v").split(".")
    return {
        "major": major,
        "minor": minor,
        "emulationMajor": major,
        "emulationMinor": minor,
        "minCompatibilityMajor": major,
        "minCompatibilityMinor": str(int(minor) - 1),
        "gitVersion": git_version(),
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": f"python{platform.python_version()}",
        "compiler": "cpython",
        "platform": f"linux/{'amd64' if platform.machine() == 'x86_64' else 'arm64'}",
    }


def api_versions() -> Object:
    return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}


def _names(registry: Registry) -> list[str]:
    """Return the named groups, each once, in the order of the registry."""
    return list(dict.fromkeys(group for group, _ in registry.groups if group))


def _group(registry: Registry, group: str) -> Object:
    versions = [{"groupVersion": f"{g}/{v}", "version": v} for g, v in registry.groups if g == group]
    return {"name": group, "versions": versions, "preferredVersion": versions[0]}


def groups(registry: Registry) -> Object:
    rows = [_group(registry, group) for group in _names(registry)]
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": rows}


def group(registry: Registry, wanted: str) -> Object | None:
    if wanted not in _names(registry):
        return None
    return {"kind": "APIGroup", "apiVersion": "v1", **_group(registry, wanted)}


def _storage_hash(resource: Resource) -> str:
    """Return the hash by which clients see that objects are stored in another version (KEP-2339)."""
    stored = resource.stored or resource.api_version
    text = f"{stored if '/' in stored else '/' + stored}/{resource.kind}"
    return base64.b64encode(hashlib.sha256(text.encode()).digest()[:8]).decode()


def _row(resource: Resource) -> Object:
    row: Object = {
        "name": resource.plural,
        "singularName": resource.singular,
        "namespaced": resource.namespaced,
        "kind": resource.kind,
        "verbs": list(resource.verbs),
    }
    if resource.short:
        row["shortNames"] = list(resource.short)
    if resource.categories:
        row["categories"] = list(resource.categories)
    if resource.storable:
        row["storageVersionHash"] = _storage_hash(resource)
    return row


def _sub_row(resource: Resource, sub: Subresource) -> Object:
    row: Object = {
        "name": f"{resource.plural}/{sub.name}",
        "singularName": "",
        "namespaced": resource.namespaced,
        "kind": sub.kind,
        "verbs": list(sub.verbs),
    }
    if sub.version:
        row |= {"group": sub.group, "version": sub.version}
    return row


def resources(registry: Registry, wanted: str, version: str) -> Object | None:
    """Return the APIResourceList of one group version, None if the server does not serve this group version."""
    if (wanted, version) not in registry.groups:
        return None
    rows: list[Object] = []
    for resource in (r for r in registry.resources if (r.group, r.version) == (wanted, version)):
        rows += [_row(resource), *(_sub_row(resource, sub) for sub in resource.subs)]
    head: Object = {"kind": "APIResourceList", **({"apiVersion": "v1"} if wanted else {})}
    return {**head, "groupVersion": f"{wanted}/{version}" if wanted else version, "resources": rows}


# ---- the aggregated form


def _kind(kind: str, group: str = "", version: str = "") -> Object:
    return {"group": group, "version": version, "kind": kind}


def _aggregated_row(resource: Resource) -> Object:
    row: Object = {
        "resource": resource.plural,
        "responseKind": _kind(resource.kind),
        "scope": "Namespaced" if resource.namespaced else "Cluster",
        "singularResource": resource.singular,
        "verbs": list(resource.verbs),
    }
    if resource.short:
        row["shortNames"] = list(resource.short)
    if resource.categories:
        row["categories"] = list(resource.categories)
    if resource.subs:
        row["subresources"] = [
            {"subresource": s.name, "responseKind": _kind(s.kind, s.group, s.version), "verbs": list(s.verbs)}
            for s in resource.subs
        ]
    return row


def aggregated(registry: Registry, core: bool) -> Object:
    """Return the APIGroupDiscoveryList of /api (core) or of /apis."""
    items = []
    for name in [""] if core else _names(registry):
        versions = [
            {
                "version": version,
                "freshness": "Current",
                "resources": [
                    _aggregated_row(r) for r in registry.resources if (r.group, r.version) == (group, version)
                ],
            }
            for group, version in registry.groups
            if group == name
        ]
        items.append({"metadata": {"name": name} if name else {}, "versions": versions})
    return {"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items}
