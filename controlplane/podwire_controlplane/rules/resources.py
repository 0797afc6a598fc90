"""Validation of resource names and amounts: requests, limits, quotas (pkg/apis/core/validation and helper)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from podwire_base.kube import quantity
from podwire_base.kube.meta import Object

from . import fields
from .fields import Causes, all_invalid, forbidden, invalid, required

STANDARD_CONTAINER = ("cpu", "memory", "ephemeral-storage")
_HUGE = "hugepages-"
OBJECT_QUOTAS = (
    "pods",
    "services",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "services.nodeports",
    "services.loadbalancers",
)
STANDARD_QUOTA = (
    *STANDARD_CONTAINER,
    *(f"{kind}.{name}" for kind in ("requests", "limits") for name in STANDARD_CONTAINER),
    "requests.storage",
    "storage",
    *OBJECT_QUOTAS,
)
INTEGERS = OBJECT_QUOTAS


def is_extended(name: str) -> bool:
    """Whether the name is that of an extended resource, such as example.com/gpu."""
    if "/" not in name or name.split("/", maxsplit=1)[0].endswith("kubernetes.io") or name.startswith("requests."):
        return False
    return not fields.qualified(f"requests.{name}")


def is_native(name: str) -> bool:
    return "/" not in name or "kubernetes.io/" in name


def check_name(path: str, name: str) -> Causes:
    yield from all_invalid(path, name, fields.qualified(name))
    if "/" not in name and name not in STANDARD_QUOTA and not name.startswith(_HUGE):
        yield invalid(path, name, "must be a standard resource type or fully qualified")


def container_name(path: str, name: str) -> Causes:
    yield from check_name(path, name)
    if "/" not in name and name not in STANDARD_CONTAINER and not name.startswith(_HUGE):
        yield invalid(path, name, "must be a standard resource for containers")
    elif "/" in name and is_native(name) is False and not is_extended(name):
        yield invalid(path, name, "doesn't follow extended resource name standard")


def amount(path: str, name: str, text: str) -> Causes:
    """An amount is not negative, and a whole number where parts make no sense."""
    value = quantity.parse(text)
    if value < 0:
        yield invalid(path, text, "must be greater than or equal to 0")
    if (name in INTEGERS or is_extended(name)) and (value.denominator != 1 or value >= 2**63 - 1):
        yield invalid(path, text, "must be an integer")


def requirements(path: str, found: Object | None, claims: set[str]) -> Causes:
    limits, requests = (found or {}).get("limits") or {}, (found or {}).get("requests") or {}
    huge = computing = False
    for name, text in limits.items():
        where = f"{path}.limits[{name}]"
        yield from container_name(where, name)
        yield from amount(where, name, text)
        huge, computing = huge or name.startswith(_HUGE), computing or name in ("cpu", "memory")
    for name, text in requests.items():
        where = f"{path}.requests[{name}]"
        yield from container_name(where, name)
        yield from amount(where, name, text)
        huge, computing = huge or name.startswith(_HUGE), computing or name in ("cpu", "memory")
        yield from _against_limit(path, name, text, limits)
    if huge and not computing:
        yield forbidden(path, "HugePages require cpu or memory")
    seen: set[tuple[Any, Any]] = set()
    for n, claim in enumerate((found or {}).get("claims") or []):
        pair = (claim.get("name"), claim.get("request"))
        if not claim.get("name"):
            yield required(f"{path}.claims[{n}]")
        elif pair in seen:
            yield fields.duplicate(f"{path}.claims[{n}]", claim["name"])
        elif claim["name"] not in claims:
            yield fields.not_found(f"{path}.claims[{n}]", claim["name"])
        seen.add(pair)


def _against_limit(path: str, name: str, text: str, limits: Mapping[str, str]) -> Causes:
    overcommit = is_native(name) and not name.startswith(_HUGE)
    if name not in limits:
        if not overcommit:
            yield required(f"{path}.limits", "Limit must be set for non overcommitable resources")
        return
    asked, allowed = quantity.parse(text), quantity.parse(limits[name])
    if asked != allowed and not overcommit:
        yield invalid(f"{path}.requests", text, f"must be equal to {name} limit of {limits[name]}")
    elif asked > allowed:
        yield invalid(f"{path}.requests", text, f"must be less than or equal to {name} limit of {limits[name]}")


def quota_name(path: str, name: str) -> Causes:
    yield from check_name(path, name)
    if "/" not in name and name not in STANDARD_QUOTA and not name.startswith(("count/", _HUGE, "requests.hugepages-")):
        yield invalid(path, name, "must be a standard resource for quota")
