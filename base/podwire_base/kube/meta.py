"""Reads the metadata of objects. Objects are plain dicts, exactly as in the JSON of the Kubernetes API."""

from collections.abc import Mapping
from typing import Any

Object = dict[str, Any]


def name(obj: Mapping[str, Any]) -> str:
    """Returns metadata.name, "" if it is absent."""
    return str(obj.get("metadata", {}).get("name") or "")


def namespace(obj: Mapping[str, Any]) -> str:
    """Returns metadata.namespace, "" for cluster-scoped objects."""
    return str(obj.get("metadata", {}).get("namespace") or "")


def uid(obj: Mapping[str, Any]) -> str:
    return str(obj.get("metadata", {}).get("uid") or "")


def key(obj: Mapping[str, Any]) -> str:
    """Returns the key that every cache uses: "namespace/name", or "name" for cluster-scoped objects."""
    ns = namespace(obj)
    return f"{ns}/{name(obj)}" if ns else name(obj)


def seniority(obj: Mapping[str, Any]) -> tuple[str, str, str]:
    """Of objects that claim the same thing, the first in this order has it: by creationTimestamp, then uid, then key.
    The order is equal on every machine.
    """
    return str(obj["metadata"].get("creationTimestamp") or ""), uid(obj), key(obj)


def labels(obj: Mapping[str, Any]) -> dict[str, str]:
    return obj.get("metadata", {}).get("labels") or {}


def annotations_of(obj: Mapping[str, Any]) -> dict[str, str]:
    return obj.get("metadata", {}).get("annotations") or {}


def resource_version(obj: Mapping[str, Any]) -> str:
    return str(obj.get("metadata", {}).get("resourceVersion") or "")


def controller_of(obj: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Returns the ownerReference with controller=true; None if there is none."""
    for ref in obj.get("metadata", {}).get("ownerReferences") or []:
        if ref.get("controller"):
            return dict(ref)
    return None


def deleting(obj: Mapping[str, Any]) -> bool:
    return bool(obj.get("metadata", {}).get("deletionTimestamp"))
