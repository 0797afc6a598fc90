"""Network policies of the soak: who may reach the pods of the Service, and changes that move no decision of clients.

Allowed are the client pods, and every address outside of the pods' range, so also clients of NodePorts. The pod
`stranger` is denied from its first packet: each answer that it gets is a leak. The policies that come and go select the
same pods, with other ports, labels and peers, so the programs of these pods change and nobody's rights do.
"""

from __future__ import annotations

import json
import random
import socket
from typing import Any

import yaml

STRANGER = "stranger"
BRIEF = 0.2  # seconds in which an answer would come
_API = "networking.k8s.io/v1"
_APP = {"matchLabels": {"app": "MyApp"}}


def _policy(name: str, **spec: Any) -> dict[str, Any]:
    return {"apiVersion": _API, "kind": "NetworkPolicy", "metadata": {"name": name}, "spec": spec}


def guard(pod_range: str, node: str) -> str:
    """Returns the manifests of the policy and of the stranger on a node."""
    peers = [
        {"podSelector": {"matchLabels": {"app": "client"}}},
        {"ipBlock": {"cidr": "0.0.0.0/0", "except": [pod_range]}},
    ]
    policy = _policy("guard", podSelector=_APP, policyTypes=["Ingress"], ingress=[{"from": peers}])
    container = {"name": "c", "image": "podwire.io/host", "command": ["sleep", "infinity"]}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": STRANGER, "labels": {"app": STRANGER}},
        "spec": {"nodeName": node, "containers": [container]},
    }
    return str(yaml.safe_dump_all((policy, pod)))


def changing(number: int, rand: random.Random) -> tuple[str, str]:
    """Returns (name, manifest) of a policy of which there are three, so that one is also changed in place."""
    name = f"more-{number % 3}"
    peers = [{"podSelector": {"matchLabels": {"app": f"nobody-{rand.randrange(4)}"}}}, {"podSelector": _APP}]
    rules = [{"from": peers[: rand.randint(1, 2)], "ports": [{"port": rand.randint(20000, 20009)}]}]
    return name, json.dumps(_policy(name, podSelector=rand.choice((_APP, {})), policyTypes=["Ingress"], ingress=rules))


def leaks(address: str, port: int) -> str:
    """Returns "" if nobody answers, else what is wrong. For clients that a policy denies."""
    with socket.socket() as sock:
        sock.settimeout(BRIEF)
        try:
            sock.connect((address, port))
        except OSError:  # a timeout, or a refusal in the name of a Service without endpoints
            return ""
        return f"{sock.getsockname()[1]}|LEAK: a denied client was let in"
