"""A container's requests and limits as numbers of its cgroup and OOM score. Pure.

Source: Kubernetes' "Pod Quality of Service Classes" and "Node-pressure Eviction" (OOM scores); KEP-2254 (cgroup v2
takes CRI's shares and converts them).
"""

from __future__ import annotations

from decimal import ROUND_UP, Decimal, InvalidOperation

from podwire_base.kube.meta import Object

PERIOD = 100_000  # microseconds
LEAST_SHARES, LEAST_QUOTA = 2, 1000
_SUFFIXES = {
    "n": Decimal("1e-9"), "u": Decimal("1e-6"), "m": Decimal("1e-3"), "": Decimal(1),
    "k": Decimal(10**3), "M": Decimal(10**6), "G": Decimal(10**9), "T": Decimal(10**12), "P": Decimal(10**15),
    "E": Decimal(10**18), "Ki": Decimal(2**10), "Mi": Decimal(2**20), "Gi": Decimal(2**30), "Ti": Decimal(2**40),
    "Pi": Decimal(2**50), "Ei": Decimal(2**60),
}  # fmt: skip


def amount(text: object) -> Decimal:
    """Return the value of a quantity (apimachinery resource.Quantity). Raises ValueError."""
    word = str(text)
    try:
        return Decimal(word)  # also 1e3
    except InvalidOperation:
        pass
    digits = word.rstrip("numkMGTPEi")
    try:
        return Decimal(digits) * _SUFFIXES[word[len(digits) :]]
    except (InvalidOperation, KeyError):
        raise ValueError(f"{word!r} is not a quantity, such as 100m or 64Mi") from None


def rounded(text: object, unit: int = 1) -> int:
    """Return a quantity as a whole number of 1/unit, rounded up."""
    return int((amount(text) * unit).to_integral_value(rounding=ROUND_UP))


def qos(pod: Object) -> str:
    """Return the pod's QoS class: Guaranteed, Burstable or BestEffort."""
    found, same = False, True
    for container in [*(pod["spec"].get("initContainers") or []), *pod["spec"]["containers"]]:
        part = container.get("resources") or {}
        limits, requests = part.get("limits") or {}, part.get("requests") or {}
        for kind in ("cpu", "memory"):
            limit, request = limits.get(kind), requests.get(kind, limits.get(kind))
            some = [one for one in (limit, request) if one is not None and amount(one)]
            found = found or bool(some)
            same = same and limit is not None and bool(amount(limit)) and amount(limit) == amount(request)
    return "BestEffort" if not found else "Guaranteed" if same else "Burstable"


def oom_score(pod: Object, container: Object, memory: int) -> int:
    """Return oom_score_adj. memory: bytes of the node."""
    kind = qos(pod)
    if kind == "Guaranteed":
        return -997
    if kind == "BestEffort":
        return 1000
    part = container.get("resources") or {}
    request = (part.get("requests") or {}).get("memory", (part.get("limits") or {}).get("memory", 0))
    return max(3, min(999, 1000 - int(1000 * rounded(request) / max(memory, 1))))


def linux(pod: Object, container: Object, memory: int) -> Object:
    """Return LinuxContainerResources."""
    part = container.get("resources") or {}
    limits, requests = part.get("limits") or {}, part.get("requests") or {}
    cpu = requests.get("cpu", limits.get("cpu", 0))
    made: Object = {
        "cpu_shares": max(LEAST_SHARES, rounded(cpu, 1000) * 1024 // 1000),
        "oom_score_adj": oom_score(pod, container, memory),
    }
    if limit := limits.get("cpu"):
        made |= {"cpu_period": PERIOD, "cpu_quota": max(LEAST_QUOTA, rounded(limit, 1000) * PERIOD // 1000)}
    if limit := limits.get("memory"):
        made["memory_limit_in_bytes"] = rounded(limit)
    return made
