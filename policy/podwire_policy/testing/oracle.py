"""What the API says about a packet, read sentence by sentence from the objects. Pure, slow, apart from the compiler: it
shares no code with it, so that an error of the one is not an error of the other.

Source: the API reference of networking.k8s.io/v1 and the page "Network Policies" of the Kubernetes documentation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_network
from ipaddress import ip_address as parse
from typing import Any

Object = dict[str, Any]


@dataclass(slots=True)
class World:
    """The objects of a cluster by key: "namespace/name" of Pods and NetworkPolicies, "name" of the others. clusters:
    ClusterNetworkPolicies.
    """

    namespaces: dict[str, Object] = field(default_factory=dict)
    pods: dict[str, Object] = field(default_factory=dict)
    policies: dict[str, Object] = field(default_factory=dict)
    clusters: dict[str, Object] = field(default_factory=dict)
    nodes: dict[str, Object] = field(default_factory=dict)


KINDS = ("namespaces", "nodes", "pods", "policies", "clusters")


def allowed(world: World, src: str, dst: str, protocol: str, port: int = 0) -> bool:
    """Whether a packet may pass. protocol: TCP, UDP, SCTP or another word for one without ports."""
    source, target = pod_at(world, src), pod_at(world, dst)
    out = source is None or _direction(world, source, target, dst, protocol, port, "Egress", target)
    return out and (target is None or _direction(world, target, source, src, protocol, port, "Ingress", target))


def pod_at(world: World, ip: str) -> Object | None:
    """The pod with an address. Pods that have ended have none, and pods on the host's network have the node's. Where
    two claim one, it is that of the pod that is not being deleted, else of the youngest.
    """
    best, wanted = None, ip_address(ip)
    for key in sorted(world.pods):
        pod = world.pods[key]
        addresses = [one["ip"] for one in pod["status"].get("podIPs", [])]
        if pod["status"].get("phase") in ("Succeeded", "Failed") or pod["spec"].get("hostNetwork"):
            continue
        if any(ip_address(one) == wanted for one in addresses):
            alive = "deletionTimestamp" not in pod["metadata"]
            rank = (alive, pod["metadata"].get("creationTimestamp", ""), key)
            if best is None or rank > best[0]:
                best = (rank, pod)
    return best[1] if best else None


def _direction(
    world: World, pod: Object, other: Object | None, ip: str, protocol: str, port: int, way: str, target: Object | None
) -> bool:
    # "Policy tiers are evaluated in the following order: Admin tier, NetworkPolicy tier, Baseline tier"
    verdict = _tier(world, "Admin", pod, other, ip, protocol, port, way, target)
    if verdict in ("Accept", "Deny"):
        return verdict == "Accept"  # "no further evaluation is done"
    isolated = False
    for policy in world.policies.values():
        if _staged(policy):
            continue
        if policy["metadata"]["namespace"] != pod["metadata"]["namespace"]:
            continue  # a policy selects pods of its own namespace only
        if not _labels_match(policy["spec"].get("podSelector"), pod["metadata"].get("labels")):
            continue
        if way not in _types(policy["spec"]):
            continue
        isolated = True  # now only what some policy allows
        rules = policy["spec"].get(way.lower()) or []
        for rule in rules:
            peers = rule.get("from" if way == "Ingress" else "to") or []
            from_there = not peers or any(
                _is_peer(world, peer, policy["metadata"]["namespace"], other, ip) for peer in peers
            )
            ports = rule.get("ports") or []
            over_it = not ports or any(_is_port(one, protocol, port, target) for one in ports)
            if from_there and over_it:
                return True  # policies add up: one that allows is enough
    if isolated:
        # "v1.NetworkPolicy always makes a final decision for selected pods"; it cannot keep a pod from itself
        return pod is other
    # "If a given connection wasn't allowed or denied by any of the tiers [...] all pods can communicate"
    return _tier(world, "Baseline", pod, other, ip, protocol, port, way, target) != "Deny"


def _tier(
    world: World,
    tier: str,
    pod: Object,
    other: Object | None,
    ip: str,
    protocol: str,
    port: int,
    way: str,
    target: Object | None,
) -> str:
    """What the rules of a tier say: Accept, Deny, Pass, or nothing."""
    mine = [
        p
        for p in world.clusters.values()
        if not _staged(p) and p["spec"]["tier"] == tier and _is_subject(world, p["spec"], pod)
    ]
    # "lower priority values have higher precedence"; who has the same one is in the order of the names here
    for policy in sorted(mine, key=lambda p: (p["spec"]["priority"], p["metadata"]["name"])):
        # "a rule that appears at the top [...] would take the highest precedence"
        for rule in policy["spec"].get(way.lower()) or []:
            peers = rule["from" if way == "Ingress" else "to"]
            protocols = rule.get("protocols")
            over_it = protocols is None or any(_is_protocol(one, protocol, port, target) for one in protocols)
            if over_it and any(_is_cluster_peer(world, peer, other, ip) for peer in peers):
                return str(rule["action"])
    return ""


def _staged(policy: Object) -> bool:
    return (policy["metadata"].get("annotations") or {}).get("podwire.io/staged") == "true"  # not in force


def _is_subject(world: World, spec: Mapping[str, Any], pod: Object) -> bool:
    return _selects(world, spec["subject"], pod)


def _selects(world: World, chosen: Mapping[str, Any], pod: Object) -> bool:
    namespace = world.namespaces.get(pod["metadata"]["namespace"])
    if namespace is None:
        return False
    labels = namespace["metadata"].get("labels")
    if "namespaces" in chosen:
        return _labels_match(chosen["namespaces"], labels)
    both = chosen["pods"]
    return _labels_match(both.get("namespaceSelector"), labels) and _labels_match(
        both.get("podSelector"), pod["metadata"].get("labels")
    )


def _is_cluster_peer(world: World, peer: Mapping[str, Any], other: Object | None, ip: str) -> bool:
    if "networks" in peer:
        return any(_in(ip, cidr) for cidr in peer["networks"])
    if "nodes" in peer:  # "matching on the IPs present in the node.Status.Addresses field of the node"
        return any(
            _labels_match(peer["nodes"], node["metadata"].get("labels"))
            and any(ip_address(one["address"]) == ip_address(ip) for one in node["status"]["addresses"])
            for node in world.nodes.values()
        )
    return other is not None and _selects(world, peer, other)


def _is_protocol(given: Mapping[str, Any], protocol: str, port: int, target: Object | None) -> bool:
    if "destinationNamedPort" in given:
        return target is not None and port in _numbers(target, given["destinationNamedPort"], protocol)
    if protocol.lower() not in given:
        return False
    wanted = given[protocol.lower()].get("destinationPort")
    if wanted is None:
        return True
    if "number" in wanted:
        return bool(wanted["number"] == port)
    return bool(wanted["range"]["start"] <= port <= wanted["range"]["end"])


def _types(spec: Mapping[str, Any]) -> list[str]:
    if spec.get("policyTypes"):
        return list(spec["policyTypes"])
    # not given: ingress in any case, egress only if the policy has egress rules
    return ["Ingress", "Egress"] if spec.get("egress") else ["Ingress"]


def _is_peer(world: World, peer: Mapping[str, Any], own: str, other: Object | None, ip: str) -> bool:
    if "ipBlock" in peer:
        block = peer["ipBlock"]
        inside = _in(ip, block["cidr"])
        return inside and not any(_in(ip, hole) for hole in block.get("except") or [])
    if other is None:
        return False  # selectors select pods
    space = other["metadata"]["namespace"]
    if "namespaceSelector" in peer:
        namespace = world.namespaces.get(space)
        if namespace is None or not _labels_match(peer["namespaceSelector"], namespace["metadata"].get("labels")):
            return False
    elif space != own:
        return False
    # both selectors: the pods that match, in the namespaces that match
    return "podSelector" not in peer or _labels_match(peer["podSelector"], other["metadata"].get("labels"))


def _is_port(rule: Mapping[str, Any], protocol: str, port: int, target: Object | None) -> bool:
    if rule.get("protocol", "TCP") != protocol:
        return False
    wanted = rule.get("port")
    if wanted is None:
        return True
    if isinstance(wanted, str):
        return target is not None and port in _numbers(target, wanted, protocol)
    last = rule.get("endPort", wanted)
    return bool(wanted <= port <= last)


def _numbers(pod: Object, name: str, protocol: str) -> Iterable[int]:
    """The numbers that a port of this name has in a pod, in containers that keep running."""
    for container in pod["spec"].get("containers", []):
        for one in container.get("ports", []):
            if one.get("name") == name and one.get("protocol", "TCP") == protocol:
                yield one["containerPort"]
    for container in pod["spec"].get("initContainers", []):
        for one in container.get("ports", []):
            said = (container.get("restartPolicy"), one.get("name"), one.get("protocol", "TCP"))
            if said == ("Always", name, protocol):
                yield one["containerPort"]


def _labels_match(selector: Mapping[str, Any] | None, labels: Mapping[str, str] | None) -> bool:
    have = labels or {}
    for key, value in ((selector or {}).get("matchLabels") or {}).items():
        if have.get(key) != value:
            return False
    for term in (selector or {}).get("matchExpressions") or []:
        key, operator = term["key"], term["operator"]
        if operator == "In" and have.get(key) not in term["values"]:
            return False
        if operator == "NotIn" and key in have and have[key] in term["values"]:
            return False
        if operator == "Exists" and key not in have:
            return False
        if operator == "DoesNotExist" and key in have:
            return False
    return True


def _in(ip: str, cidr: str) -> bool:
    address, net = ip_address(ip), ip_network(cidr, strict=False)
    return address.version == net.version and address in net


@lru_cache(maxsize=1 << 12)
def ip_address(text: str) -> IPv4Address | IPv6Address:
    return parse(text)
