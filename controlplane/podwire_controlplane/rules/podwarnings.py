"""Warnings about pods and pod templates that are valid, but hardly meant (pkg/api/pod/warnings.go)."""

from __future__ import annotations

from typing import Any

from podwire_base.kube import quantity
from podwire_base.kube.meta import Object


def warnings(path: str, spec: Object) -> list[str]:
    """Returns what a client should know of a pod's spec at `path`."""
    found: list[str] = []
    for n, one in enumerate(spec.get("volumes") or []):
        found += _volume_warnings(f"{path}.volumes[{n}]", one)
    for key in spec.get("nodeSelector") or {}:
        if key in _OLD_LABELS:
            found.append(f"{path}.nodeSelector[{key}]: {_OLD_LABELS[key]}")
    for n, one in enumerate(spec.get("topologySpreadConstraints") or []):
        if one.get("labelSelector") is None:
            found.append(
                f"{path}.topologySpreadConstraints[{n}].labelSelector: a null labelSelector results in matching no pod"
            )
    for n, secret in enumerate(spec.get("imagePullSecrets") or []):
        if not secret.get("name"):
            found.append(f'{path}.imagePullSecrets[{n}].name: invalid empty name ""')
    ports: _Ports = {}
    for kind in ("initContainers", "containers"):
        for n, one in enumerate(spec.get(kind) or []):
            found += _container_warnings(f"{path}.{kind}[{n}]", one, ports)
    return found


_OLD_LABELS = {
    "beta.kubernetes.io/arch": 'deprecated since v1.14; use "kubernetes.io/arch" instead',
    "beta.kubernetes.io/os": 'deprecated since v1.14; use "kubernetes.io/os" instead',
    "failure-domain.beta.kubernetes.io/region": 'deprecated since v1.17; use "topology.kubernetes.io/region" instead',
    "failure-domain.beta.kubernetes.io/zone": 'deprecated since v1.17; use "topology.kubernetes.io/zone" instead',
    "beta.kubernetes.io/instance-type": 'deprecated since v1.17; use "node.kubernetes.io/instance-type" instead',
}
_OLD_VOLUMES = {
    "gitRepo": "deprecated in v1.11",
    "scaleIO": "deprecated in v1.16, non-functional in v1.22+",
    "flocker": "deprecated in v1.22, non-functional in v1.25+",
    "storageos": "deprecated in v1.22, non-functional in v1.25+",
    "quobyte": "deprecated in v1.22, non-functional in v1.25+",
    "glusterfs": "deprecated in v1.25, non-functional in v1.26+",
    "cephfs": "deprecated in v1.28, non-functional in v1.31+",
    "rbd": "deprecated in v1.28, non-functional in v1.31+",
}


def _volume_warnings(path: str, one: Object) -> list[str]:
    found = [f"{path}.{kind}: {why}" for kind, why in _OLD_VOLUMES.items() if one.get(kind) is not None]
    projected = one.get("projected")
    if projected is not None and not any(any(s.values()) for s in projected.get("sources") or []):
        found.append(f'volume "{one.get("name")}" (Projected) has no sources provided')
    return found


_Ports = dict[tuple[Any, Any], list[tuple[str, Object]]]  # port and protocol -> where a pod has them


def _port_warnings(path: str, port: Object, others: list[tuple[str, Object]]) -> list[str]:
    """others: the same port and protocol elsewhere in the pod."""
    found = []
    host, address = port.get("hostPort") or 0, port.get("hostIP") or ""
    for where, other in others:
        their_host, their_address = other.get("hostPort") or 0, other.get("hostIP") or ""
        if (host, address) == (their_host, their_address):
            found.append(f"{path}: duplicate port definition with {where}")
        elif not host or not their_host:
            found.append(f"{path}: overlapping port definition with {where}")
        elif host == their_host and bool(address) != bool(their_address):
            found.append(f"{path}: dangerously ambiguous port definition with {where}")
    return found


def _container_warnings(path: str, one: Object, ports: _Ports) -> list[str]:
    """ports: those of the pod's containers before this one; it gets this one's."""
    found: list[str] = []
    names: set[str] = set()
    for n, env in enumerate(one.get("env") or []):
        own = env.get("name") or ""
        if own in names:
            found.append(
                f'{path}.env[{n}]: hides previous definition of "{own}", which may be dropped when using apply'
            )
        names.add(own)
    for n, port in enumerate(one.get("ports") or []):
        others = ports.setdefault((port.get("containerPort"), port.get("protocol")), [])
        found += _port_warnings(f"{path}.ports[{n}]", port, others)
        others.append((f"{path}.ports[{n}]", port))
        if port.get("hostIP") and not port.get("hostPort"):
            shown = f"Name:{port.get('name', '')} HostPort:0 ContainerPort:{port.get('containerPort')}"
            shown += f" Protocol:{port.get('protocol')} HostIP:{port['hostIP']}"
            found.append(f"{path}.ports[{n}]: hostIP set without hostPort: {{{shown}}}")
    requests = (one.get("resources") or {}).get("requests") or {}
    for name in ("memory", "ephemeral-storage"):
        if name in requests and quantity.parse(requests[name]).denominator != 1:
            text = f'fractional byte value "{requests[name]}" is invalid, must be an integer'
            found.append(f"{path}.resources.requests[{name}]: {text}")
    return found
