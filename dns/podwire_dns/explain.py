"""Explains the origin of an answer or the reason for a missing answer, from the feeder's objects and records."""

from __future__ import annotations

from . import names
from .build import Builder
from .pack import question
from .rtypes import TYPE_NAMES
from .schema import endpoint_count, unpack_service


def explain(builder: Builder, name: str, rtype: int) -> list[str]:
    """Returns lines about one name (lower case, final dot) and record type."""
    cluster = builder.config.zone
    if question(name, rtype) in builder.answers:
        return [f"the {TYPE_NAMES[rtype]} record comes from {source}" for source in builder.sources(name, rtype)]
    sources = builder.sources(name)
    if names.within(name, builder.config.origins) is None:
        return ["not a name of the cluster: it is forwarded to the upstreams"]
    if sources:
        return [f"{' and '.join(sources)} gives this name other record types, not this one: NODATA"]
    if builder.exists(name):
        return ["the name exists only because names below it, or its namespace, exist: NODATA"]
    suffix = f".svc.{cluster}"
    if not name.endswith(suffix):
        return ["no object gives this name: NXDOMAIN"]
    return _missing_service(builder, name.removesuffix(suffix).split("."))


def _missing_service(builder: Builder, labels: list[str]) -> list[str]:
    """Returns lines about the part of [..., service, namespace] that does not exist."""
    namespace = labels[-1]
    if not builder.exists(f"{namespace}.svc.{builder.config.zone}"):
        return [f"there is no namespace {namespace!r}: NXDOMAIN"]
    if len(labels) == 1:
        return ["no object gives this name: NXDOMAIN"]
    key = f"{namespace}/{labels[-2]}"
    service, problem = builder.services.get(key), builder.told("Service", key)
    if service is None:
        return [f"there is no Service {key}: NXDOMAIN"]
    if problem:
        return [f"Service {key} is left out of the DNS: {problem}"]
    spec = unpack_service(service).get("spec") or {}
    if spec.get("clusterIP") == "None" and not builder.exists(f"{labels[-2]}.{namespace}.svc.{builder.config.zone}"):
        total = sum(endpoint_count(piece) for piece in builder.slices_of(key))
        why = (
            f"none of its {total} endpoints is ready"
            if total
            else "it has no endpoints; do its selector and pods match?"
        )
        return [f"Service {key} is headless and {why}: NXDOMAIN"]
    if len(labels) == 2:
        return [f"Service {key} has no address yet: NXDOMAIN"]
    return [f"Service {key} exists, but it has no named port or ready endpoint {'.'.join(labels[:-2])!r}: NXDOMAIN"]
