"""Defaults of pods, pod templates and volumes (k8s.io/kubernetes, pkg/apis/core/v1/defaults.go)."""

from __future__ import annotations

from typing import Any

from podwire_base.kube.meta import Object

CONTAINERS = ("initContainers", "containers", "ephemeralContainers")
_MODE = 0o644
_RBD = {"pool": "rbd", "user": "admin", "keyring": "/etc/ceph/keyring"}
_AZURE_DISK = {"cachingMode": "ReadWrite", "kind": "Shared", "fsType": "ext4", "readOnly": False}
_SCALE_IO = {"storageMode": "ThinProvisioned", "fsType": "xfs"}


def put(obj: Object, **values: Any) -> None:
    """Set fields that are absent, null or empty. Go's types do not tell an empty text from an absent one."""
    for field, value in values.items():
        if obj.get(field) in (None, ""):
            obj[field] = value


def pull_policy(image: str) -> str:
    """Return Always for the tag `latest`, given or implied, and IfNotPresent otherwise, also for a digest."""
    last = image.rsplit("/", 1)[-1]
    return "Always" if "@" not in last and (":" not in last or last.endswith(":latest")) else "IfNotPresent"


def _http(action: Object | None) -> None:
    if action is not None:
        put(action, path="/", scheme="HTTP")


def _probe(probe: Object | None) -> None:
    if probe is None:
        return
    for field, value in (
        ("timeoutSeconds", 1),
        ("periodSeconds", 10),
        ("successThreshold", 1),
        ("failureThreshold", 3),
    ):
        probe[field] = probe.get(field) or value
    _http(probe.get("httpGet"))
    if (grpc := probe.get("grpc")) is not None and grpc.get("service") is None:
        grpc["service"] = ""


def _field(source: Object | None) -> None:
    if source is not None:
        put(source, apiVersion="v1")


def container(one: Object) -> None:
    put(one, imagePullPolicy=pull_policy(one.get("image") or ""))
    put(one, terminationMessagePath="/dev/termination-log", terminationMessagePolicy="File")
    for port in one.get("ports") or []:
        put(port, protocol="TCP")
    for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
        _probe(one.get(probe))
    for hook in ("postStart", "preStop"):
        _http(((one.get("lifecycle") or {}).get(hook) or {}).get("httpGet"))
    for env in one.get("env") or []:
        source = env.get("valueFrom") or {}
        _field(source.get("fieldRef"))
        if (file := source.get("fileKeyRef")) is not None and file.get("optional") is None:
            file["optional"] = False


def _items(items: list[Object] | None) -> None:
    for item in items or []:
        _field(item.get("fieldRef"))


def _projected(source: Object) -> None:
    if source.get("defaultMode") is None:
        source["defaultMode"] = _MODE
    for one in source.get("sources") or []:
        _items((one.get("downwardAPI") or {}).get("items"))
        token = one.get("serviceAccountToken")
        if token is not None and not token.get("expirationSeconds"):
            token["expirationSeconds"] = 3600


def storage_source(source: Object) -> None:
    """Set the defaults of the kinds of storage that volumes and PersistentVolumes share."""
    if (path := source.get("hostPath")) is not None and path.get("type") is None:
        path["type"] = ""
    if (iscsi := source.get("iscsi")) is not None:
        put(iscsi, iscsiInterface="default")
    for field, defaults in (("rbd", _RBD), ("scaleIO", _SCALE_IO), ("azureDisk", _AZURE_DISK)):
        if (found := source.get(field)) is not None:
            put(found, **defaults)


def claim_spec(spec: Object) -> None:
    put(spec, volumeMode="Filesystem")


def volume(one: Object) -> None:
    if not any(value is not None for field, value in one.items() if field != "name"):
        one["emptyDir"] = {}
    storage_source(one)
    for field in ("secret", "configMap", "downwardAPI"):
        if (source := one.get(field)) is not None:
            if source.get("defaultMode") is None:
                source["defaultMode"] = _MODE
            if field == "downwardAPI":
                _items(source.get("items"))
    if (projected := one.get("projected")) is not None:
        _projected(projected)
    template = (one.get("ephemeral") or {}).get("volumeClaimTemplate")
    if template is not None:
        claim_spec(template.setdefault("spec", {}))
    if (image := one.get("image")) is not None:
        put(image, pullPolicy=pull_policy(image.get("reference") or ""))


def pod_spec(spec: Object) -> None:
    put(spec, restartPolicy="Always", dnsPolicy="ClusterFirst", schedulerName="default-scheduler")
    if spec.get("terminationGracePeriodSeconds") is None:
        spec["terminationGracePeriodSeconds"] = 30
    if spec.get("securityContext") is None:
        spec["securityContext"] = {}
    # The older name of the field is kept equal to the new one, in both directions.
    account = spec.get("serviceAccountName") or spec.get("serviceAccount")
    if account:
        spec["serviceAccountName"] = spec["serviceAccount"] = account
    for kind in CONTAINERS:
        for one in spec.get(kind) or []:
            container(one)
    for one in spec.get("volumes") or []:
        volume(one)


def _host_ports(spec: Object) -> None:
    for kind in ("initContainers", "containers"):
        for one in spec.get(kind) or []:
            for port in one.get("ports") or []:
                port["hostPort"] = port.get("hostPort") or port.get("containerPort") or 0


def _requests(one: Object) -> None:
    """A container's requests are its limits where it names only those."""
    resources = one.get("resources") or {}
    limits, requests = resources.get("limits"), resources.get("requests") or {}
    if limits:
        resources["requests"] = {**limits, **requests}


def _pod_resources(spec: Object) -> None:
    """The requests of the pod as a whole (KEP-2837): its limits, or what its containers request together, where the pod
    has limits and names no requests.
    """
    resources = spec.get("resources") or {}
    limits, requests = resources.get("limits") or {}, dict(resources.get("requests") or {})
    if not limits:
        return
    for name, limit in limits.items():
        every = [c.get("resources", {}).get("requests", {}).get(name) for c in spec.get("containers") or []]
        if name not in requests and not any(every):
            requests[name] = limit
    resources["requests"] = requests


def _addresses(status: Object) -> None:
    """podIP and the first of podIPs are one value. Where they differ, podIP is right: older kubelets write it alone."""
    one, rows = status.get("podIP"), status.get("podIPs") or []
    if one and (not rows or rows[0].get("ip") != one):
        status["podIPs"] = [{"ip": one}]
    elif rows and not one:
        status["podIP"] = rows[0].get("ip") or ""


def pod(obj: Object) -> None:
    spec = obj.setdefault("spec", {})
    pod_spec(spec)
    if obj.get("status"):
        _addresses(obj["status"])
    if spec.get("enableServiceLinks") is None:
        spec["enableServiceLinks"] = True
    if spec.get("hostNetwork"):
        _host_ports(spec)
    for kind in ("initContainers", "containers"):
        for one in spec.get(kind) or []:
            _requests(one)
    _pod_resources(spec)


def template(obj: Object) -> None:
    pod_spec(obj.setdefault("spec", {}))
