"""LimitRanger's judgement: the minimum, maximum and ratio of a LimitRange (k8s.io/kubernetes, plugin/pkg/admission/
limitranger). Pure. The defaults are in admission.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from typing import Any

from podwire_base.kube import quantity
from podwire_base.kube.meta import Object

Amounts = Mapping[str, Fraction]


def _parsed(values: Mapping[str, Any] | None) -> dict[str, Fraction]:
    return {name: Fraction(quantity.parse(str(value))) for name, value in (values or {}).items()}


def _bounds(kind: str, item: Object, requests: Amounts, limits: Amounts) -> Iterator[str]:
    for name, low in _parsed(item.get("min")).items():
        told, asked, most = item["min"][name], requests.get(name), limits.get(name)
        if asked is None:
            yield f"minimum {name} usage per {kind} is {told}.  No request is specified"
        elif asked < low or (most is not None and most < low):
            yield f"minimum {name} usage per {kind} is {told}, but {'request' if asked < low else 'limit'} is less"
    for name, high in _parsed(item.get("max")).items():
        told, asked, most = item["max"][name], requests.get(name), limits.get(name)
        if kind == "PersistentVolumeClaim":
            if asked is not None and asked > high:
                yield f"maximum {name} usage per {kind} is {told}, but request is more"
        elif most is None:
            yield f"maximum {name} usage per {kind} is {told}.  No limit is specified"
        elif most > high or (asked is not None and asked > high):
            yield f"maximum {name} usage per {kind} is {told}, but limit is more"
    for name, ratio in _parsed(item.get("maxLimitRequestRatio")).items():
        told, asked, most = item["maxLimitRequestRatio"][name], requests.get(name), limits.get(name)
        if not asked or not most:
            yield f"{name} max limit to request ratio per {kind} is {told}, but no request or limit is specified"
        elif most / asked > ratio:
            real = f"{float(most / asked):f}"
            yield f"{name} max limit to request ratio per {kind} is {told}, but provided ratio is {real}"


def _sum(rows: Iterable[Mapping[str, Fraction]]) -> dict[str, Fraction]:
    total: dict[str, Fraction] = {}
    for row in rows:
        for name, value in row.items():
            total[name] = total.get(name, Fraction(0)) + value
    return total


def pod_amounts(spec: Object, which: str) -> dict[str, Fraction]:
    """Return what a pod asks for (which: requests or limits): the sum of its containers, or more if an init container
    needs more. Init containers that restart run beside the others.
    """
    if (own := (spec.get("resources") or {}).get(which)) is not None and own:
        rest = _containers_amounts(spec, which)
        return {**rest, **_parsed(own)}
    return _containers_amounts(spec, which)


def _containers_amounts(spec: Object, which: str) -> dict[str, Fraction]:
    beside = [c for c in spec.get("initContainers") or [] if c.get("restartPolicy") == "Always"]
    total = _sum(_parsed((c.get("resources") or {}).get(which)) for c in [*(spec.get("containers") or []), *beside])
    before: list[Mapping[str, Fraction]] = []
    for one in spec.get("initContainers") or []:
        row = _parsed((one.get("resources") or {}).get(which))
        if one in beside:
            before.append(row)
            continue
        for name, value in _sum([*before, row]).items():
            total[name] = max(total.get(name, Fraction(0)), value)
    return total


def storage(claim: Object) -> Fraction | None:
    """Return the storage that a PersistentVolumeClaim asks for."""
    asked = ((claim["spec"].get("resources") or {}).get("requests") or {}).get("storage")
    return Fraction(quantity.parse(str(asked))) if asked is not None else None


def problems(kind: str, obj: Object, ranges: Iterable[Object]) -> list[str]:
    """Return what the LimitRanges of a namespace forbid about a Pod or a PersistentVolumeClaim."""
    found: list[str] = []
    spec = obj.get("spec") or {}
    for item in (item for one in ranges for item in one["spec"].get("limits") or []):
        wanted = item.get("type")
        if kind == "PersistentVolumeClaim" and wanted == kind:
            found += _bounds(kind, item, _parsed((spec.get("resources") or {}).get("requests")), {})
        elif kind == "Pod" and wanted == "Container":
            for one in (*(spec.get("containers") or []), *(spec.get("initContainers") or [])):
                parts = one.get("resources") or {}
                found += _bounds("Container", item, _parsed(parts.get("requests")), _parsed(parts.get("limits")))
        elif kind == "Pod" and wanted == "Pod":
            found += _bounds("Pod", item, pod_amounts(spec, "requests"), pod_amounts(spec, "limits"))
    return found
