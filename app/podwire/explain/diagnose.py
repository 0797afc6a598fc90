"""Reasons behind a reason, from the API's objects: why a Service has no endpoint, which port its pods serve, who has a
hostPort, who answers for a load balancer's address. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from podwire_base.kube.conditions import condition
from podwire_base.kube.meta import Object, deleting, key, labels, name, namespace
from podwire_base.role import hostports
from podwire_base.role.hostports import HostPort

from ..statuspage import NO_ADDRESS, waits
from .catalogue import Catalogue, balancer_ips, counts, ended, is_ready, node_ips
from .steps import fault

_PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


def selected(service: Object, catalogue: Catalogue) -> list[Object]:
    """Returns the pods that the Service's selector fits."""
    wanted = (service.get("spec") or {}).get("selector") or {}
    return [
        pod
        for pod in catalogue.of("Pod")
        if wanted and namespace(pod) == namespace(service) and wanted.items() <= labels(pod).items() and not ended(pod)
    ]


def no_endpoint(service: Object, catalogue: Catalogue, port: int) -> tuple[str, str]:
    """Returns (reason, cause) of a Service without a usable endpoint; ("", "") if the objects do not say why."""
    spec = service.get("spec") or {}
    if not spec.get("selector"):
        if counts(catalogue.slices(key(service)))[0]:
            return "", ""
        return fault.NO_PODS, "it has no selector, and nobody made EndpointSlices for it"
    if "Pod" in catalogue.missing:
        return "", ""
    pods = selected(service, catalogue)
    words = ",".join(f"{k}={v}" for k, v in sorted(spec["selector"].items()))
    if not pods:
        return fault.NO_PODS, f"its selector {words} fits no pod in namespace {namespace(service)}"
    if told := named_port(service, pods, port):
        return fault.NO_NAMED_PORT, told
    waiting = [pod for pod in pods if not is_ready(pod)]
    if len(waiting) < len(pods):
        return "", ""
    return fault.NOT_READY, f"none of its {len(pods)} pods is ready: {unready(waiting[0], catalogue)}"


def named_port(service: Object, pods: Iterable[Object], port: int) -> str:
    """Returns what is wrong with a targetPort that is a name, "" if a pod has it."""
    found = next((p for p in service["spec"].get("ports") or [] if p.get("port") == port), None)
    target = (found or {}).get("targetPort")
    if found is None or not isinstance(target, str) or target.isdecimal():
        return ""
    protocol = found.get("protocol") or "TCP"
    declared = {
        str(p.get("name"))
        for pod in pods
        for container in pod["spec"].get("containers") or []
        for p in container.get("ports") or []
        if p.get("name") and (p.get("protocol") or "TCP") == protocol
    }
    if target in declared:
        return ""
    known = f"they have {', '.join(sorted(declared))}" if declared else "they name no port"
    return f"its targetPort is {target!r}, and none of its pods has a {protocol} port of that name: {known}"


def unready(pod: Object, catalogue: Catalogue) -> str:
    """Returns why a pod is not ready: the container, its probe, and the last error."""
    status = pod.get("status") or {}
    if deleting(pod):
        return f"pod {name(pod)} is being deleted"
    if not (pod.get("spec") or {}).get("nodeName"):
        why = condition(pod, "PodScheduled").get("message") or "no node has been chosen"
        return f"pod {name(pod)} is not scheduled: {why}"
    specs = {c["name"]: c for c in pod["spec"].get("containers") or []}
    for row in status.get("containerStatuses") or []:
        if row.get("ready"):
            continue
        state = row.get("state") or {}
        if waiting := state.get("waiting"):
            return f"container {row['name']} of pod {name(pod)} waits: {_said(waiting)}"
        if gone := state.get("terminated"):
            return f"container {row['name']} of pod {name(pod)} ended with status {gone.get('exitCode')}: {_said(gone)}"
        probe = next((p for p in _PROBES[:2] if p in specs.get(row["name"], {})), "")
        if probe == "startupProbe" and row.get("started"):
            probe = "readinessProbe"
        told = f"the {probe} of container {row['name']} of pod {name(pod)} fails: {_probe(specs[row['name']], probe)}"
        if not probe:
            told = f"container {row['name']} of pod {name(pod)} is not ready"
        return told + _last_error(pod, catalogue)
    why = condition(pod, "Ready").get("message") or status.get("phase") or "its status does not say why"
    return f"pod {name(pod)}: {why}" + _last_error(pod, catalogue)


def _said(row: Mapping[str, Any]) -> str:
    return ": ".join(str(row[field]) for field in ("reason", "message") if row.get(field)) or "without a reason"


def _probe(container: Mapping[str, Any], which: str) -> str:
    """Returns what a probe does, in words."""
    probe = container.get(which) or {}
    if get := probe.get("httpGet"):
        return f"HTTP GET {get.get('path') or '/'} at port {get.get('port')}"
    if tcp := probe.get("tcpSocket"):
        return f"TCP connection to port {tcp.get('port')}"
    if grpc := probe.get("grpc"):
        return f"gRPC health check at port {grpc.get('port')}"
    return f"command {' '.join(map(str, (probe.get('exec') or {}).get('command') or ['?']))!r}"


def _last_error(pod: Object, catalogue: Catalogue) -> str:
    """Returns the newest Event that tells of a failed probe or start."""
    for event in catalogue.events_about(pod):
        if event.get("type") == "Warning":
            return f"; last error: {' '.join(str(event.get('message') or event.get('reason')).split())[:200]}"
    return ""


def refused_by_pod(pod: Object | None, port: int, protocol: str) -> str:
    """Returns the ports that the pod declares, for one that refuses."""
    if pod is None:
        return ""
    declared = sorted(
        {
            int(p["containerPort"])
            for container in pod["spec"].get("containers") or []
            for p in container.get("ports") or []
            if (p.get("protocol") or "TCP") == protocol
        }
    )
    if not declared or port in declared:
        return ""
    return f"; the pod declares {protocol} {', '.join(map(str, declared))}: is targetPort wrong?"


def shadowed(ip: str, port: int, protocol: str, catalogue: Catalogue, holder: Object | None) -> str:
    """Returns which pod's hostPort a Service has at an address of a node, "" if there is none."""
    node = catalogue.node_at(ip)
    if not node or holder is None:
        return ""
    for pod in catalogue.of("Pod"):
        if pod["spec"].get("nodeName") != node or ended(pod):
            continue
        for container in pod["spec"].get("containers") or []:
            for declared in container.get("ports") or []:
                if (declared.get("hostPort"), declared.get("protocol") or "TCP") != (port, protocol):
                    continue
                made = HostPort(port, hostports.PROTOCOLS[protocol.lower()], str(declared.get("hostIP") or ""))
                if made.covers(ip) and not pod["spec"].get("hostNetwork"):
                    return (
                        f"hostPort {port}/{protocol} of pod {key(pod)} is shadowed: Service {key(holder)} has this "
                        "address and port, and a Service comes first"
                    )
    return ""


def announcer(ip: str, nodes: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns why no node answers for a load balancer's address on the link, "" if one does. nodes: name -> what each
    node says of itself.
    """
    said = {}
    for node, told in nodes.items():
        role = (told.get("roles") or {}).get("lb")
        if role is not None:
            if ip in ((role.get("figures") or {}).get("mine") or []):
                return ""
            said[node] = str(role.get("message") or role.get("reason") or "nothing")
    if not said:
        return f"no node answers for {ip} on the link: no node runs the role lb; clients outside need another way to it"
    words = "; ".join(f"{node}: {one}" for node, one in sorted(said.items())[:5])
    return f"no node answers for {ip} on the link: clients outside get no answer to ARP or Neighbor Discovery ({words})"


def is_balancer(service: Object | None, ip: str) -> bool:
    return service is not None and ip in balancer_ips(service)


def without_address(service: Object | None, catalogue: Catalogue) -> str:
    """Returns why a Service has no address of a load balancer, "" if it has one or nobody told why."""
    if service is None or not waits(service):
        return ""
    refused = (event for event in catalogue.events_about(service) if event.get("reason") in NO_ADDRESS)
    why = next((str(event.get("message")) for event in refused), "")
    return f"Service {key(service)} has no load balancer address: {why}" if why else ""


def node_of(ip: str, via: str, catalogue: Catalogue) -> str:
    """Returns the node at which a packet arrives that another node sent to `ip` by way of `via`."""
    pod = catalogue.pod_at(ip)
    if pod is not None and pod["spec"].get("nodeName"):
        return str(pod["spec"]["nodeName"])
    if own := catalogue.node_at(ip):
        return own
    return catalogue.node_at(via) if via else ""


def all_nodes(catalogue: Catalogue) -> list[str]:
    return [name(node) for node in catalogue.of("Node") if node_ips(node)]
