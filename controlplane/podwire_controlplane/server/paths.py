"""Parses the target of an HTTP request: which object, collection or document its path names, and its verb. Pure.

The rules are kube-apiserver's RequestInfo (staging/src/k8s.io/apiserver, pkg/endpoints/request):

    /api/VERSION/..., /apis/GROUP/VERSION/...     objects
    .../namespaces/NAMESPACE/PLURAL/NAME/SUB      an object of a namespace, or its subresource
    .../PLURAL/NAME/SUB                           an object of the cluster
    .../watch/...                                 the deprecated form of a watch

The path is decoded before it is split, as Go does it: "%2F" is a slash like any other. One slash at the end changes
nothing. All other paths name documents (/version, /healthz, /openapi/v3 ...).
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import unquote

VERBS = {"POST": "create", "GET": "get", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_NAMESPACE_SUBS = ("status", "finalize")


@dataclass(frozen=True, slots=True)
class Target:
    """group "" is the core group. plural: "" for a path that names no objects. rest: segments after the subresource.
    watched: the path has the deprecated form of a watch.
    """

    path: str
    group: str = ""
    version: str = ""
    namespace: str = ""
    plural: str = ""
    name: str = ""
    sub: str = ""
    rest: tuple[str, ...] = ()
    watched: bool = False


def split(raw: str) -> tuple[str, str]:
    """Return (path, query) of a request target (RFC 9112 section 3.2), both still percent-encoded."""
    if not raw.startswith("/"):
        scheme, sep, rest = raw.partition("://")
        raw = "/" + rest.partition("/")[2] if sep and scheme.isalpha() else "/" + raw
    path, _, query = raw.partition("#")[0].partition("?")
    return path, query


def _text(path: str) -> str:
    return unquote(path) if "%" in path else path


def parse(path: str) -> Target:
    """Return the target of a percent-encoded path."""
    trimmed = _text(path).removesuffix("/") or "/"
    parts = trimmed.split("/")[1:]
    if parts[0] == "api" and len(parts) > 2:
        group, version, parts = "", parts[1], parts[2:]
    elif parts[0] == "apis" and len(parts) > 3:
        group, version, parts = parts[1], parts[2], parts[3:]
    else:
        return Target(trimmed)
    watched = parts[0] == "watch" and len(parts) > 1
    if watched:
        parts = parts[1:]
    return _objects(trimmed, group, version, parts, watched=watched)


def _objects(path: str, group: str, version: str, parts: list[str], *, watched: bool) -> Target:
    if "" in parts:
        return Target(path, group, version, plural=parts[0] or "-", rest=("",))  # two slashes: no such path
    namespace = ""
    if parts[0] == "namespaces" and len(parts) > 2 and (len(parts) > 3 or parts[2] not in _NAMESPACE_SUBS):
        namespace, parts = parts[1], parts[2:]
    plural, name, sub, *rest = (*parts, "", "", "")[: max(3, len(parts))]
    return Target(path, group, version, namespace, plural, name, sub, tuple(rest), watched)
