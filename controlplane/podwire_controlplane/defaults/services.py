"""Defaults of Services and of the endpoints behind them (pkg/apis/core/v1, pkg/apis/discovery/v1)."""

from __future__ import annotations

from podwire_base.kube.meta import Object

from .pods import put

AFFINITY_SECONDS = 10800


def service(obj: Object) -> None:
    spec = obj.setdefault("spec", {})
    put(spec, sessionAffinity="None", type="ClusterIP")
    if spec["sessionAffinity"] == "None":
        spec.pop("sessionAffinityConfig", None)
    elif spec["sessionAffinity"] == "ClientIP":
        client = (spec.get("sessionAffinityConfig") or {}).get("clientIP") or {}
        if client.get("timeoutSeconds") is None:
            spec["sessionAffinityConfig"] = {"clientIP": {"timeoutSeconds": AFFINITY_SECONDS}}
    for port in spec.get("ports") or []:
        put(port, protocol="TCP")
        if not port.get("targetPort"):
            port["targetPort"] = port.get("port") or 0
    outside = spec["type"] in ("NodePort", "LoadBalancer") or (spec["type"] == "ClusterIP" and spec.get("externalIPs"))
    if outside and not spec.get("externalTrafficPolicy"):
        spec["externalTrafficPolicy"] = "Cluster"
    if spec["type"] != "ExternalName" and spec.get("internalTrafficPolicy") is None:
        spec["internalTrafficPolicy"] = "Cluster"
    if spec["type"] == "LoadBalancer" and spec.get("allocateLoadBalancerNodePorts") is None:
        spec["allocateLoadBalancerNodePorts"] = True

    if spec["type"] == "LoadBalancer":
        for one in ((obj.get("status") or {}).get("loadBalancer") or {}).get("ingress") or []:
            if one.get("ip") and one.get("ipMode") is None:
                one["ipMode"] = "VIP"


def endpoints(obj: Object) -> None:
    for subset in obj.get("subsets") or []:
        for port in subset.get("ports") or []:
            put(port, protocol="TCP")


def endpoint_slice(obj: Object) -> None:
    for port in obj.get("ports") or []:
        put(port, protocol="TCP")
        if port.get("name") is None:
            port["name"] = ""
