"""A container's requests and limits as numbers of its cgroup and OOM score. Pure.

Source: Kubernetes' "Pod Quality of Service Classes" and "Node-pressure Eviction" (OOM scores); KEP-2254 (cgroup v2
takes CRI's shares and converts them).
"""

from __future__ import annotations

from math import ceil

from podwire_base.kube import quantity
from podwire_base.kube.meta import Object

PERIOD = 100_000  # microseconds
LEAST_SHARES, LEAST_QUOTA = 2, 1000


def rounded(text: object, unit: int = 1) -> int:
    """Return a quantity as a whole number of 1/unit, rounded up. Raises BadQuantity."""
    return ceil(quantity.parse(str(text)) * unit)


def oom_score(pod: Object, container: Object, memory: int) -> int:
    """Return oom_score_adj. memory: bytes of the node. The API server has told the pod's QoS class."""
    kind = (pod.get("status") or {}).get("qosClass", "BestEffort")
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
