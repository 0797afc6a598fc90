"""Which objects a pod refers to: a node may read those of the pods that are bound to it, and no others. Pure.

Source: pkg/api/v1/pod and the graph of the Node authorizer (documentation "Using Node Authorization").
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from podwire_base.kube.meta import Object, name

Reference = tuple[str, str]  # kind, name; of the pod's namespace
_SECRETS = ("secretRef", "nodePublishSecretRef")  # fields of volume sources


def of_pod(pod: Object) -> set[Reference]:
    """Return the ServiceAccount, Secrets, ConfigMaps, claims of volumes and of devices that a pod names."""
    spec = pod.get("spec") or {}
    found = {("Secret", _name(row)) for row in spec.get("imagePullSecrets") or ()}
    found.add(("ServiceAccount", spec.get("serviceAccountName") or ""))
    for field in ("initContainers", "containers", "ephemeralContainers"):
        for container in spec.get(field) or ():
            found |= set(_of_container(container))
    for volume in spec.get("volumes") or ():
        found |= set(_of_volume(volume, name(pod)))
    claims = (pod.get("status") or {}).get("resourceClaimStatuses") or ()
    for row in (*(spec.get("resourceClaims") or ()), *claims):
        found.add(("ResourceClaim", row.get("resourceClaimName") or ""))
    return {(kind, own) for kind, own in found if own}


def audiences(pod: Object) -> set[str]:
    """Return the audiences of the tokens that a pod's volumes ask for; "" is that of the API server."""
    sources = [s for v in pod["spec"].get("volumes") or () for s in (v.get("projected") or {}).get("sources") or ()]
    return {(s["serviceAccountToken"] or {}).get("audience") or "" for s in sources if "serviceAccountToken" in s}


def _name(row: Any) -> str:
    return str((row or {}).get("name") or "")


def _of_container(container: Object) -> Iterator[Reference]:
    for row in container.get("envFrom") or ():
        yield "Secret", _name(row.get("secretRef"))
        yield "ConfigMap", _name(row.get("configMapRef"))
    for row in container.get("env") or ():
        source = row.get("valueFrom") or {}
        yield "Secret", _name(source.get("secretKeyRef"))
        yield "ConfigMap", _name(source.get("configMapKeyRef"))


def _of_volume(volume: Object, pod: str) -> Iterator[Reference]:
    yield "Secret", (volume.get("secret") or {}).get("secretName") or ""
    yield "Secret", (volume.get("azureFile") or {}).get("secretName") or ""
    yield "ConfigMap", _name(volume.get("configMap"))
    yield "PersistentVolumeClaim", (volume.get("persistentVolumeClaim") or {}).get("claimName") or ""
    if volume.get("ephemeral"):
        yield "PersistentVolumeClaim", f"{pod}-{volume.get('name')}"
    for source in (volume.get("projected") or {}).get("sources") or ():
        yield "Secret", _name(source.get("secret"))
        yield "ConfigMap", _name(source.get("configMap"))
    for source in volume.values():
        if isinstance(source, dict):
            for field in _SECRETS:
                yield "Secret", _name(source.get(field))
