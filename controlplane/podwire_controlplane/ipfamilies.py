"""The IP families of a Service: what its fields say, and what the cluster's ranges add (KEP-563). Pure.

The rules are kube-apiserver's (pkg/registry/core/service/storage/alloc.go: initIPFamilyFields).
"""

from __future__ import annotations

from collections.abc import Sequence

from podwire_base.kube.errors import Cause
from podwire_base.kube.meta import Object

BOTH = ("IPv4", "IPv6")
SINGLE, PREFER, REQUIRE = "SingleStack", "PreferDualStack", "RequireDualStack"
_POLICY = "spec.ipFamilyPolicy"
_PAIRS = ("clusterIPs", "ipFamilies")


def family_of(address: str) -> str:
    return "IPv6" if ":" in address else "IPv4"


def _other(family: str) -> str:
    return BOTH[1 - BOTH.index(family)] if family in BOTH else ""


def normalize(service: Object, before: Object | None) -> None:
    """Make clusterIP and clusterIPs agree, where the client gave or changed only one of them."""
    spec = service["spec"]
    old = before["spec"] if before is not None else {}
    one, many = spec.get("clusterIP") or "", spec.get("clusterIPs") or []
    if before is None:
        if one and not many:
            spec["clusterIPs"] = [one]
        return
    was, were = old.get("clusterIP") or "", old.get("clusterIPs") or []
    if was and not one and many == were:
        spec.pop("clusterIPs", None)
    elif one != was and many == were:
        spec["clusterIPs"] = [one] if one else []
    elif one and not many:
        spec["clusterIPs"] = [one]


def fill(service: Object, before: Object | None, families: Sequence[str]) -> list[Cause]:
    """Set ipFamilyPolicy and ipFamilies. families: those of the cluster's Service ranges, the default one first.
    Returns what is wrong with the fields that the client gave; then the Service is not changed further.
    """
    spec = service["spec"]
    if spec.get("type") == "ExternalName":
        return []
    if before is not None and _keeps_preference(spec, before["spec"]):
        return []
    headless = (spec.get("clusterIPs") or [spec.get("clusterIP")])[0] == "None"
    anything = headless and not spec.get("selector")  # endpoints that the user makes, of any family
    if not spec.get("ipFamilyPolicy"):
        old = (before or {}).get("spec", {}).get("ipFamilyPolicy")
        spec["ipFamilyPolicy"] = old or (REQUIRE if anything else SINGLE)
    policy = spec["ipFamilyPolicy"]
    causes = _change(spec, before["spec"]) if before is not None else []
    if policy == SINGLE:
        causes += [
            Cause(_POLICY, f"must be {REQUIRE} or {PREFER} where spec.{field} has two values")
            for field in _PAIRS
            if len(spec.get(field) or []) > 1
        ]
    wanted, wrong = _of_addresses(spec, families)
    causes += wrong
    if not causes and not anything:
        causes = _configured(policy, wanted, families)
    if not causes:
        wanted = wanted or [families[0]]
        if policy != SINGLE and len(wanted) == 1 and (anything or len(families) == len(BOTH)):
            wanted.append(_other(wanted[0]))
        spec["ipFamilies"] = wanted
    return causes


def _keeps_preference(spec: Object, old: Object) -> bool:
    """Whether an update leaves the families of a PreferDualStack Service alone: such a Service follows no change of the
    cluster's ranges by itself.
    """
    return (
        spec.get("type") == old.get("type")
        and spec.get("ipFamilyPolicy") == PREFER == old.get("ipFamilyPolicy")
        and all((spec.get(field) or []) == (old.get(field) or []) for field in _PAIRS)
    )


def _of_addresses(spec: Object, families: Sequence[str]) -> tuple[list[str], list[Cause]]:
    """Return the families that the client names, or that its addresses have."""
    wanted, causes = list(spec.get("ipFamilies") or []), []
    for n, address in enumerate(spec.get("clusterIPs") or []):
        if address == "None":
            break
        if n >= len(wanted):
            family = family_of(address)
            if family not in families:
                causes.append(Cause(f"spec.clusterIPs[{n}]", f"{family} is not configured on this cluster"))
            wanted.append(family)
    return wanted, causes


def _configured(policy: str, wanted: Sequence[str], families: Sequence[str]) -> list[Cause]:
    causes = []
    if policy == REQUIRE and len(families) < len(BOTH):
        causes.append(Cause("spec.ipFamilyPolicy", "this cluster is not configured for dual-stack Services"))
    return causes + [
        Cause(f"spec.ipFamilies[{n}]", f"{family!r} is not configured on this cluster")
        for n, family in enumerate(wanted)
        if family not in families
    ]


def _change(spec: Object, old: Object) -> list[Cause]:
    """A change to SingleStack drops the second address and family, where the client left both as they were. Under
    another policy no client may drop them.
    """
    if spec["ipFamilyPolicy"] == SINGLE:
        for field in _PAIRS:
            if len(spec.get(field) or []) > 1 and spec[field] == old.get(field):
                spec[field] = spec[field][:1]
        return []
    return [
        Cause(_POLICY, f"must be {SINGLE} to release the second value of spec.{field}")
        for field in _PAIRS
        if spec.get(field) and len(spec[field]) < len(old.get(field) or [])
    ]
