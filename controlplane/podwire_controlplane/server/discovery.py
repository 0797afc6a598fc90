"""Discovery documents: the groups, versions and kinds that the API serves. kubectl reads them first."""

from __future__ import annotations

from podwire_base.kube.meta import Object
from podwire_base.kube.registry import GROUPS, RESOURCES

VERSION: Object = {
    "major": "1",
    "minor": "33",
    "gitVersion": "v1.33.0+podwire",
    "gitCommit": "",
    "gitTreeState": "clean",
    "buildDate": "",
    "goVersion": "",
    "compiler": "cpython",
    "platform": "linux",
}
_VERBS = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]


def api_versions() -> Object:
    return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}


def _group(group: str, version: str) -> Object:
    both = {"groupVersion": f"{group}/{version}", "version": version}
    return {"name": group, "versions": [both], "preferredVersion": both}


def groups() -> Object:
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": [_group(g, v) for g, v in GROUPS if g]}


def group(wanted: str) -> Object | None:
    found = next(((g, v) for g, v in GROUPS if g and g == wanted), None)
    return {"kind": "APIGroup", "apiVersion": "v1", **_group(*found)} if found else None


def resources(wanted: str, version: str) -> Object | None:
    """Return the APIResourceList of one group version, None if the server does not serve this group version."""
    if (wanted, version) not in GROUPS:
        return None
    rows: list[Object] = []
    for resource in (r for r in RESOURCES if (r.group, r.version) == (wanted, version)):
        row: Object = {
            "name": resource.plural,
            "singularName": resource.singular,
            "namespaced": resource.namespaced,
            "kind": resource.kind,
            "verbs": _VERBS,
        }
        if resource.short:
            row["shortNames"] = list(resource.short)
        if resource.categories:
            row["categories"] = list(resource.categories)
        rows.append(row)
        for sub in resource.subresources:
            extra = (
                {"kind": "Scale", "group": "autoscaling", "version": "v1"}
                if sub == "scale"
                else {"kind": resource.kind}
            )
            rows.append(
                {
                    "name": f"{resource.plural}/{sub}",
                    "singularName": "",
                    "namespaced": resource.namespaced,
                    "verbs": ["get", "patch", "update"],
                    **extra,
                }
            )
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "resources": rows,
        "groupVersion": f"{wanted}/{version}" if wanted else version,
    }


def openapi_index() -> Object:
    paths = {(f"apis/{g}/{v}" if g else f"api/{v}"): (g, v) for g, v in GROUPS}
    return {"paths": {path: {"serverRelativeURL": f"/openapi/v3/{path}?hash=podwire"} for path in paths}}
