"""Random clusters with policies, and random changes of them. Pure: the caller brings the source of chance."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from ipaddress import ip_address
from random import Random
from typing import Any

from .oracle import Object, World

NODES = ("n1", "n2")
SPACES = ("x", "y", "z")
OUTSIDE = ("192.0.2.7", "192.0.2.130", "2001:db8:9::7", "2001:db8:9:1::7")
PORTS = (79, 80, 81, 82, 443, 8080)
PROTOCOLS = ("TCP", "UDP", "SCTP")
_LABELS = {"app": ("a", "b", "c"), "tier": ("front", "back")}


def namespace(name: str, **labels: str) -> Object:
    return {"metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name, **labels}}}


def pod(key: str, labels: dict[str, str], ips: tuple[str, ...], node: str = "n1", **spec: Any) -> Object:
    space, name = key.split("/")
    return {
        "metadata": {"name": name, "namespace": space, "labels": labels, "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"nodeName": node, "containers": [{"name": "c"}], **spec},
        "status": {"phase": "Running", "podIP": ips[0], "podIPs": [{"ip": ip} for ip in ips]},
    }


def policy(key: str, **spec: Any) -> Object:
    space, name = key.split("/")
    return {"metadata": {"name": name, "namespace": space}, "spec": {"podSelector": {}, **spec}}


def addresses(number: int) -> tuple[str, str]:
    return f"10.244.{number % 2}.{10 + number}", str(ip_address(f"fd00:244:{number % 2}::{10 + number:x}"))


class Chance:
    """Draws parts of a world."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self._number = 0

    def some(self, chance: float) -> bool:
        return self.rng.random() < chance

    def labels(self) -> dict[str, str]:
        return {key: self.rng.choice(values) for key, values in _LABELS.items() if self.some(0.7)}

    def selector(self) -> Object:
        kind = self.rng.randrange(5)
        if kind == 0:
            return {}
        key = self.rng.choice(sorted(_LABELS))
        if kind < 3:
            return {"matchLabels": {key: self.rng.choice(_LABELS[key])}}
        operator = self.rng.choice(("In", "NotIn", "Exists", "DoesNotExist"))
        term: Object = {"key": key, "operator": operator}
        if operator in ("In", "NotIn"):
            term["values"] = self.rng.sample(_LABELS[key], self.rng.randint(1, 2))
        return {"matchExpressions": [term]}

    def peer(self) -> Object:
        kind = self.rng.randrange(5)
        if kind == 0:
            return {"podSelector": self.selector()}
        if kind == 1:
            return {"namespaceSelector": self.space_selector()}
        if kind == 2:
            return {"namespaceSelector": self.space_selector(), "podSelector": self.selector()}
        cidr, holes = self.rng.choice(_BLOCKS)
        block: Object = {"cidr": cidr}
        if self.some(0.5):
            block["except"] = self.rng.sample(holes, self.rng.randint(1, len(holes)))
        return {"ipBlock": block}

    def space_selector(self) -> Object:
        kind = self.rng.randrange(3)
        if kind == 0:
            return {}
        if kind == 1:
            return {"matchLabels": {"kubernetes.io/metadata.name": self.rng.choice(SPACES)}}
        return {"matchExpressions": [{"key": "team", "operator": self.rng.choice(("Exists", "DoesNotExist"))}]}

    def port(self) -> Object:
        made: Object = {}
        if self.some(0.7):
            made["protocol"] = self.rng.choice(PROTOCOLS)
        kind = self.rng.randrange(5)
        if kind < 2:
            made["port"] = self.rng.choice(PORTS)
        elif kind == 2:
            made["port"] = self.rng.choice(("http", "dns"))
        elif kind == 3:
            made["port"] = self.rng.choice(PORTS)
            made["endPort"] = self.rng.choice([p for p in (*PORTS, 65535) if p >= made["port"]])
        return made

    def rule(self, end: str) -> Object:
        made: Object = {}
        if self.some(0.75):
            made[end] = [self.peer() for _ in range(self.rng.randint(0, 3))]
        if self.some(0.6):
            made["ports"] = [self.port() for _ in range(self.rng.randint(0, 3))]
        return made

    def policy(self, key: str) -> Object:
        spec: Object = {}
        for way, end in (("ingress", "from"), ("egress", "to")):
            if self.some(0.6):
                spec[way] = [self.rule(end) for _ in range(self.rng.randint(0, 2))]
        if self.some(0.5):
            spec["policyTypes"] = self.rng.choice((["Ingress"], ["Egress"], ["Ingress", "Egress"]))
        return policy(key, **{"podSelector": self.selector(), **spec})

    def cluster(self, name: str) -> Object:
        """Returns a ClusterNetworkPolicy."""
        spec: Object = {
            "tier": self.rng.choice(("Admin", "Baseline")),
            "priority": self.rng.choice((0, 5, 5, 1000)),
            "subject": self.cluster_pods(),
        }
        for way, end in (("ingress", "from"), ("egress", "to")):
            if self.some(0.6):
                spec[way] = [self.cluster_rule(end) for _ in range(self.rng.randint(1, 3))]
        return {"metadata": {"name": name}, "spec": spec}

    def cluster_pods(self) -> Object:
        if self.some(0.5):
            return {"namespaces": self.space_selector()}
        return {"pods": {"namespaceSelector": self.space_selector(), "podSelector": self.selector()}}

    def cluster_rule(self, end: str) -> Object:
        made: Object = {"action": self.rng.choice(("Accept", "Deny", "Pass"))}
        named = self.some(0.2)
        made[end] = [self.cluster_peer(end, named) for _ in range(self.rng.randint(1, 2))]
        if named:
            made["protocols"] = [{"destinationNamedPort": self.rng.choice(("http", "dns"))}]
        elif self.some(0.5):
            made["protocols"] = [self.cluster_port() for _ in range(self.rng.randint(1, 2))]
        return made

    def cluster_peer(self, end: str, named: bool) -> Object:
        kind = self.rng.randrange(6)
        if end == "to" and not named and kind == 0:
            return {"networks": [self.rng.choice(_BLOCKS)[0] for _ in range(self.rng.randint(1, 2))]}
        if end == "to" and not named and kind == 1:
            return {"nodes": self.rng.choice(({}, {"matchLabels": {"role": "edge"}}))}
        return self.cluster_pods()

    def cluster_port(self) -> Object:
        protocol, first = self.rng.choice(PROTOCOLS).lower(), self.rng.choice(PORTS)
        if self.some(0.2):
            return {protocol: {}}
        if self.some(0.6):
            return {protocol: {"destinationPort": {"number": first}}}
        last = self.rng.choice([p for p in (*PORTS, 65535) if p > first])
        return {protocol: {"destinationPort": {"range": {"start": first, "end": last}}}}

    def pod(self, key: str) -> Object:
        self._number += 1
        ports = [{"name": "http", "containerPort": self.rng.choice((80, 8080))}] if self.some(0.6) else []
        if self.some(0.4):
            ports.append({"name": "dns", "protocol": self.rng.choice(PROTOCOLS), "containerPort": 81})
        made = pod(key, self.labels(), addresses(self._number), self.rng.choice(NODES))
        made["spec"]["containers"][0]["ports"] = ports
        made["metadata"]["creationTimestamp"] = f"2026-01-01T00:{self._number % 60:02}:00Z"
        return made

    def world(self) -> World:
        made = World()
        for name in SPACES:
            made.namespaces[name] = namespace(name, **({"team": "t"} if self.some(0.5) else {}))
        for index in range(self.rng.randint(3, 6)):
            key = f"{self.rng.choice(SPACES)}/p{index}"
            made.pods[key] = self.pod(key)
        for index in range(self.rng.randint(1, 4)):
            key = f"{self.rng.choice(SPACES)}/q{index}"
            made.policies[key] = self.policy(key)
        for index in range(self.rng.choice((0, 1, 3))):
            made.clusters[f"c{index}"] = self.cluster(f"c{index}")
        # a Node that is outside here: between machines nobody judges
        addresses = [{"type": "InternalIP", "address": ip} for ip in (OUTSIDE[0], OUTSIDE[2])]
        made.nodes["edge"] = {
            "metadata": {"name": "edge", "labels": {"role": "edge"}},
            "status": {"addresses": addresses},
        }
        return made

    def change(self, world: World) -> tuple[str, str]:
        """Changes one object. Returns its kind (oracle.KINDS) and key."""
        kind = self.rng.choice(("namespaces", "nodes", "pods", "pods", "pods", "policies", "policies", "clusters"))
        objects: dict[str, Object] = getattr(world, kind)
        existing = sorted(objects)
        if kind == "namespaces":
            key = self.rng.choice(SPACES)
            if key in objects and self.some(0.2):
                del objects[key]
            else:
                objects[key] = namespace(key, **({"team": "t"} if self.some(0.5) else {}))
        elif kind == "nodes":
            key = "edge"
            if not objects.pop(key, None) or self.some(0.6):
                labels = {"role": "edge"} if self.some(0.5) else {}
                held = [{"type": "ExternalIP", "address": self.rng.choice(OUTSIDE)}]
                objects[key] = {"metadata": {"name": key, "labels": labels}, "status": {"addresses": held}}
        elif kind == "clusters":
            key = self.rng.choice(existing) if existing and self.some(0.6) else "c9"
            if key in objects and self.some(0.4):
                del objects[key]
            else:
                objects[key] = self.cluster(key)
        elif kind == "policies":
            key = self.rng.choice(existing) if existing and self.some(0.6) else f"{self.rng.choice(SPACES)}/q9"
            if key in objects and self.some(0.4):
                del objects[key]
            else:
                objects[key] = self.policy(key)
        else:
            key = self.rng.choice(existing) if existing and self.some(0.7) else f"{self.rng.choice(SPACES)}/p9"
            self._change_pod(objects, key)
        return kind, key

    def _change_pod(self, pods: dict[str, Object], key: str) -> None:
        if key not in pods:
            pods[key] = self.pod(key)
            if self.some(0.3) and len(pods) > 1:  # the address of another pod, as after a reuse
                pods[key]["status"] = copy.deepcopy(pods[self.rng.choice(sorted(pods))]["status"])
            return
        made = copy.deepcopy(pods[key])
        match self.rng.randrange(6):
            case 0:
                del pods[key]
                return
            case 1:
                made["metadata"]["deletionTimestamp"] = "2026-01-01T01:00:00Z"
            case 2:
                made["status"]["phase"] = self.rng.choice(("Succeeded", "Failed", "Running"))
            case 3:
                made["spec"]["containers"][0]["ports"] = self.pod(key)["spec"]["containers"][0]["ports"]
            case 4:
                made["status"] = self.pod(key)["status"]
            case _:
                made["metadata"]["labels"] = self.labels()
        pods[key] = made


_BLOCKS = (
    ("10.244.0.0/16", ["10.244.0.0/24", "10.244.1.11/32", "10.244.1.8/29"]),
    ("192.0.2.0/24", ["192.0.2.128/25", "192.0.2.0/29"]),
    ("0.0.0.0/0", ["10.0.0.0/8", "192.0.2.7/32", "255.255.255.255/32"]),
    ("::/0", ["fd00:244:1::/48", "2001:db8:9::7/128"]),
    ("fd00:244::/32", ["fd00:244:0::/64", "fd00:244:1::b/128"]),
)


def probes(world: World) -> Iterator[tuple[str, str, str, int]]:
    """Yields (source, destination, protocol, port) between all addresses of each family."""
    known = {one["ip"] for p in world.pods.values() for one in p["status"]["podIPs"]} | set(OUTSIDE)
    for src in sorted(known):
        for dst in sorted(known):
            if (":" in src) != (":" in dst):
                continue
            for protocol in PROTOCOLS:
                for port in PORTS:
                    yield src, dst, protocol, port
            yield src, dst, "ICMP", 0
