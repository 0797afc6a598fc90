"""What `podwire check` creates: a namespace, probe pods on every node, and Services of each type. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from podwire_base.kube.meta import Object, annotations_of, labels, name
from podwire_base.kube.times import parse_time, timestamp

LABEL, EXPIRES, OWNER = "podwire.io/check", "podwire.io/expires", "podwire.io/owner"
LIFE = 60.0  # seconds; a run renews its expiry every LIFE / 4
PORT = 8080
HOST_PORT = 34567
APP = "podwire-check"
START = "import os; exec(os.environ['PODWIRE_PROBE'])"  # the probe's source is in its environment
RESTRICTED: Object = {
    "runAsNonRoot": True,
    "runAsUser": 65534,
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}


def expiry(now: float) -> str:
    return timestamp(now + LIFE)


def namespace(own: str, owner: str, now: float) -> Object:
    """owner: "HOST/PID" of the run."""
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": own, "labels": {LABEL: "true"}, "annotations": {EXPIRES: expiry(now), OWNER: owner}},
    }


def is_abandoned(space: Object, now: float, alive: Iterable[str]) -> bool:
    """Return whether the run that made a namespace of `podwire check` is over. alive: the owners of runs on this
    machine that go on; runs of other machines are over when their expiry has passed.
    """
    if labels(space).get(LABEL) != "true":
        return False
    notes = annotations_of(space)
    owner = notes.get(OWNER, "")
    if owner in alive:
        return False
    try:
        return parse_time(notes[EXPIRES]).timestamp() < now
    except (KeyError, ValueError):
        return True


def probe(
    own: str, node: str, image: str, python: str, source: str, *, host: bool = False, host_port: int = 0, plain: bool
) -> Object:
    """Return a probe pod on a node. host: in the node's own network. host_port: also reached at this port of the node.
    plain: without a security context, which podwire's own runtime has no use for.
    """
    port: Object = {"containerPort": PORT, "protocol": "TCP"}
    ports = [port, {**port, "protocol": "UDP"}]
    if host_port:
        ports = [{**p, "hostPort": host_port} for p in ports]
    serving = str(HOST_PORT + 1 if host else PORT)
    container: Object = {
        "name": "probe",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": [python, "-c", START, "serve", serving],
        "env": [{"name": "PODWIRE_PROBE", "value": source}, {"name": "PODWIRE_PROBE_NAME", "value": own}],
        **({} if host else {"ports": ports, "readinessProbe": {"tcpSocket": {"port": PORT}, "periodSeconds": 1}}),
        **({} if plain else {"securityContext": RESTRICTED}),
    }
    spec: Object = {
        "nodeName": node,
        "containers": [container],
        "terminationGracePeriodSeconds": 0,
        "tolerations": [{"operator": "Exists"}],
        "enableServiceLinks": False,
        "restartPolicy": "Always",
        **({"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"} if host else {}),
    }
    app = {} if host or host_port else {"app": APP}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": own, "labels": {**app, "probe": own}}, "spec": spec}


def _service(own: str, selector: Object | None, protocols: Sequence[str] = ("TCP", "UDP"), **spec: object) -> Object:
    ports = [{"name": p.lower(), "port": 80, "targetPort": PORT, "protocol": p} for p in protocols]
    chosen = {} if selector is None else {"selector": selector}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": own},
        "spec": {**chosen, "ports": ports, **spec},
    }


def services(space: str, domain: str, single: str) -> list[Object]:
    """Return the Services. single: the probe that is the only endpoint of the Service for hairpins."""
    every = {"app": APP}
    return [
        _service("cluster-ip", every),
        _service("node-port", every, type="NodePort"),
        _service("load-balancer", every, type="LoadBalancer"),
        _service("headless", every, clusterIP="None"),
        _service("nobody", {"app": "nobody"}),
        _service("single", {"probe": single}),
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "external-name"},
            "spec": {"type": "ExternalName", "externalName": f"cluster-ip.{space}.svc.{domain}"},
        },
        _service("by-hand", None, ("TCP",)),
    ]


def slice_by_hand(address: str) -> Object:
    """Return the EndpointSlice of the Service without selector."""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "by-hand-1", "labels": {"kubernetes.io/service-name": "by-hand"}},
        "addressType": "IPv6" if ":" in address else "IPv4",
        "ports": [{"name": "tcp", "port": PORT, "protocol": "TCP"}],
        "endpoints": [{"addresses": [address], "conditions": {"ready": True}}],
    }


def is_ready(pod: Object) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or []
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def why_not_ready(pod: Object) -> str:
    """Return one line: the waiting reason of a container, or the pod's phase."""
    status = pod.get("status") or {}
    for container in status.get("containerStatuses") or []:
        waiting = (container.get("state") or {}).get("waiting") or {}
        if waiting.get("reason"):
            return f"{name(pod)}: {waiting['reason']} {waiting.get('message') or ''}".strip()
    return (
        f"{name(pod)}: {status.get('reason') or status.get('phase') or 'Pending'} {status.get('message') or ''}".strip()
    )
