"""Kinds that Kubernetes keeps but no longer recommends. Every answer about them says so (KEP-1693). Pure."""

from __future__ import annotations

from podwire_base.kube.registry import Resource

# (group, version, kind) -> (since, what to use instead)
_KINDS = {
    ("", "v1", "ComponentStatus"): ("v1.19", ""),
    ("", "v1", "Endpoints"): ("v1.33", "discovery.k8s.io/v1 EndpointSlice"),
}


def warning(resource: Resource) -> str:
    """Return the text of the header Warning, "" for a kind that is not deprecated."""
    found = _KINDS.get((resource.group, resource.version, resource.kind))
    if found is None:
        return ""
    since, instead = found
    text = f"{resource.api_version} {resource.kind} is deprecated in {since}+"
    return f"{text}; use {instead}" if instead else text
