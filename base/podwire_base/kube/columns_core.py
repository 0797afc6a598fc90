"""The columns of pods, nodes, Services, workloads and storage: see columns.py. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from .cells import (
    AGE,
    NAME,
    NONE,
    UNKNOWN,
    UNSET,
    Cell,
    Column,
    at,
    at_or,
    format_labels,
    format_selector,
    human,
    limited,
    load_balancer,
    number,
    since,
    size,
)
from .meta import Object, deleting
from .times import parse_time

# ---- pods


def _ended(state: Object, prefix: str = "") -> str:
    if state.get("reason"):
        return f"{prefix}{state['reason']}"
    return (
        f"{prefix}Signal:{state['signal']}" if state.get("signal") else f"{prefix}ExitCode:{state.get('exitCode', 0)}"
    )


def _is(obj: Object, condition: str) -> bool:
    rows = at(obj, "status.conditions") or []
    return any(c.get("type") == condition and c.get("status") == "True" for c in rows)


def _sidecars(obj: Object) -> set[str]:
    return {c["name"] for c in at(obj, "spec.initContainers") or [] if c.get("restartPolicy") == "Always"}


def _init_status(obj: Object) -> str:
    """Returns why the pod still initialises, "" if it does not."""
    sidecars, total = _sidecars(obj), len(at(obj, "spec.initContainers") or [])
    for n, row in enumerate(at(obj, "status.initContainerStatuses") or []):
        state = row.get("state") or {}
        ended, waiting = state.get("terminated"), state.get("waiting") or {}
        if (ended and not ended.get("exitCode")) or (row.get("name") in sidecars and row.get("started")):
            continue
        if ended:
            return _ended(ended, "Init:")
        if waiting.get("reason") not in (None, "", "PodInitializing"):
            return f"Init:{waiting['reason']}"
        return f"Init:{n}/{total}"
    return ""


def _pod_status(obj: Object) -> str:
    reason = str(at(obj, "status.reason") or at(obj, "status.phase") or "")
    for row in at(obj, "status.conditions") or []:
        if row.get("type") == "PodScheduled" and row.get("reason") == "SchedulingGated":
            reason = "SchedulingGated"
    init = _init_status(obj)
    if init and not _is(obj, "Initialized"):
        reason = init
    else:
        running = False
        for row in reversed(at(obj, "status.containerStatuses") or []):
            state = row.get("state") or {}
            if (state.get("waiting") or {}).get("reason"):
                reason = state["waiting"]["reason"]
            elif state.get("terminated"):
                reason = _ended(state["terminated"])
            elif row.get("ready") and "running" in state:
                running = True
        if reason == "Completed" and running:
            reason = "Running" if _is(obj, "Ready") else "NotReady"
    if deleting(obj):
        if at(obj, "status.reason") == "NodeLost":
            return "Unknown"
        if at(obj, "status.phase") not in ("Succeeded", "Failed"):
            return "Terminating"
    return reason


def _pod_ready(obj: Object) -> str:
    sidecars = _sidecars(obj)
    rows = [r for r in at(obj, "status.initContainerStatuses") or [] if r.get("name") in sidecars and r.get("started")]
    rows += at(obj, "status.containerStatuses") or []
    ready = sum(bool(r.get("ready") and "running" in (r.get("state") or {})) for r in rows)
    return f"{ready}/{len(at(obj, 'spec.containers') or []) + len(sidecars)}"


def _restarts(obj: Object, now: datetime) -> str:
    init = at(obj, "status.initContainerStatuses") or []
    sidecars = _sidecars(obj)
    rows = [r for r in init if r.get("name") in sidecars] + (at(obj, "status.containerStatuses") or [])
    if _init_status(obj) and not _is(obj, "Initialized"):
        rows = init
    count = sum(int(r.get("restartCount") or 0) for r in rows)
    ends = [at(r, "lastState.terminated.finishedAt") or "" for r in rows]
    last = max(ends, default="")
    return f"{count} ({since(last, now)} ago)" if count and last else str(count)


def _gates(obj: Object) -> str:
    gates = at(obj, "spec.readinessGates") or []
    return f"{sum(_is(obj, g.get('conditionType', '')) for g in gates)}/{len(gates)}" if gates else NONE


def _pod_ip(obj: Object) -> str:
    rows = at(obj, "status.podIPs") or []
    return str(rows[0].get("ip")) if rows else at(obj, "status.podIP") or NONE


# ---- nodes, Services, endpoints


def _node_status(obj: Object) -> str:
    row = next((c for c in at(obj, "status.conditions") or [] if c.get("type") == "Ready"), None)
    ready = "Unknown" if row is None else "Ready" if row.get("status") == "True" else "NotReady"
    return ready + (",SchedulingDisabled" if at(obj, "spec.unschedulable") else "")


def _roles(obj: Object) -> str:
    found = set()
    for key, value in (obj["metadata"].get("labels") or {}).items():
        if key.startswith("node-role.kubernetes.io/"):
            found.add(key.partition("/")[2])
        elif key == "kubernetes.io/role":
            found.add(value)
    return ",".join(sorted(r for r in found if r)) or NONE


def _address(kind: str) -> Cell:
    def cell(obj: Object) -> str:
        rows = at(obj, "status.addresses") or []
        return str(next((a["address"] for a in rows if a.get("type") == kind), NONE))

    return cell


def _kernel(obj: Object) -> str:
    info = at(obj, "status.nodeInfo") or {}
    if not info.get("kernelVersion"):
        return UNKNOWN
    return f"{info['kernelVersion']} ({info['architecture']})" if info.get("architecture") else info["kernelVersion"]


def _cluster_ip(obj: Object) -> str:
    return (at(obj, "spec.clusterIPs") or [at(obj, "spec.clusterIP")])[0] or NONE


def _external(obj: Object) -> str:
    kind, more = at(obj, "spec.type"), at(obj, "spec.externalIPs") or []
    if kind == "ExternalName":
        return at(obj, "spec.externalName") or ""
    found = ",".join([text for text in (load_balancer(obj) if kind == "LoadBalancer" else "", *more) if text])
    return found or ("<pending>" if kind == "LoadBalancer" else NONE)


def _service_ports(obj: Object) -> str:
    def one(port: Object) -> str:
        node = f":{port['nodePort']}" if port.get("nodePort") else ""
        return f"{port.get('port')}{node}/{port.get('protocol', 'TCP')}"

    return ",".join(map(one, at(obj, "spec.ports") or [])) or NONE


def _subsets(obj: Object) -> str:
    if not obj.get("subsets"):
        return NONE
    found = []
    for subset in obj["subsets"]:
        addresses = [a.get("ip", "") for a in subset.get("addresses") or []]
        ports = [f":{p['port']}" for p in subset.get("ports") or []] or [""]
        found += [(f"[{ip}]" if port and ":" in ip else ip) + port for port in ports for ip in addresses]
    return limited(found)


def _slice_ports(obj: Object) -> str:
    found = ["*" if p.get("port") is None else str(p["port"]) for p in obj.get("ports") or []]
    return limited(found) or UNSET


def _slice_addresses(obj: Object) -> str:
    return limited([a for e in obj.get("endpoints") or [] for a in e.get("addresses") or []]) or UNSET


# ---- workloads


def _containers(path: str, field: str) -> Cell:
    return lambda obj: ",".join(str(c.get(field) or "") for c in at(obj, path + ".containers") or [])


def _template(path: str = "spec.template.spec") -> tuple[Column, Column]:
    return (
        Column("Containers", _containers(path, "name"), priority=1),
        Column("Images", _containers(path, "image"), priority=1),
    )


def _selector(path: str = "spec.selector") -> Column:
    return Column("Selector", lambda obj: format_selector(at(obj, path)), priority=1)


def _of_desired(obj: Object) -> str:
    return f"{number('status.readyReplicas')(obj)}/{number('spec.replicas')(obj)}"


def _replicas() -> tuple[Column, ...]:
    return (
        NAME,
        Column("Desired", number("spec.replicas"), "integer"),
        Column("Current", number("status.replicas"), "integer"),
        Column("Ready", number("status.readyReplicas"), "integer"),
        AGE,
        *_template(),
    )


def _job_status(obj: Object) -> str:
    if _is(obj, "Complete") or _is(obj, "Failed"):
        return "Complete" if _is(obj, "Complete") else "Failed"
    if deleting(obj):
        return "Terminating"
    return next((c for c in ("Suspended", "FailureTarget", "SuccessCriteriaMet") if _is(obj, c)), "Running")


def _completions(obj: Object) -> str:
    done, wanted, parallel = (at(obj, p) or 0 for p in ("status.succeeded", "spec.completions", "spec.parallelism"))
    if wanted:
        return f"{done}/{wanted}"
    return f"{done}/1 of {parallel}" if parallel > 1 else f"{done}/1"


def _job_duration(obj: Object, now: datetime) -> str:
    start, end = at(obj, "status.startTime"), at(obj, "status.completionTime")
    if not start:
        return ""
    return human(((parse_time(end) if end else now) - parse_time(start)).total_seconds())


def _controller(obj: Object) -> str:
    for owner in obj["metadata"].get("ownerReferences") or []:
        if owner.get("controller"):
            group = owner.get("apiVersion", "").rpartition("/")[0]
            return f"{owner.get('kind', '').lower()}{'.' if group else ''}{group}/{owner.get('name')}"
    return NONE


def _metrics(obj: Object) -> Iterator[str]:
    spec, current = obj.get("spec") or {}, at(obj, "status.currentMetrics") or []
    if "metrics" not in spec and spec.get("targetCPUUtilizationPercentage"):
        now = at(obj, "status.currentCPUUtilizationPercentage")
        yield f"cpu: {UNKNOWN if now is None else f'{now}%'}/{spec['targetCPUUtilizationPercentage']}%"
    for n, metric in enumerate(spec.get("metrics") or []):
        kind = str(metric.get("type", ""))
        body = metric.get(kind[:1].lower() + kind[1:]) or {}
        seen = (current[n] if n < len(current) else {}).get(kind[:1].lower() + kind[1:]) or {}
        target, found = body.get("target") or {}, seen.get("current") or {}
        prefix = f"{body['name']}: " if body.get("name") else ""
        field = "averageUtilization" if target.get("averageUtilization") is not None else "averageValue"
        field, end = (field, "") if field in target else ("value", "")
        unit, end = ("%", "") if field == "averageUtilization" else ("", " (avg)" if field == "averageValue" else "")
        now = found.get(field)
        yield f"{prefix}{UNKNOWN if now is None else f'{now}{unit}'}/{target.get(field)}{unit}{end}"


def _targets(obj: Object) -> str:
    found = list(_metrics(obj))
    return (", ".join(found[:2]) + (f" + {len(found) - 2} more..." if len(found) > 2 else "")) or NONE


def _minimum(obj: Object) -> str:
    value = at(obj, "spec.minReplicas")
    return UNSET if value is None else str(value)


# ---- storage, quotas

_MODES = {"ReadWriteOnce": "RWO", "ReadOnlyMany": "ROX", "ReadWriteMany": "RWX", "ReadWriteOncePod": "RWOP"}


def _modes(rows: Any) -> str:
    return ",".join(short for mode, short in _MODES.items() if mode in (rows or ()))


def _phase(obj: Object) -> str:
    return "Terminating" if deleting(obj) else at(obj, "status.phase") or "Pending"


def _class(obj: Object) -> str:
    old = (obj["metadata"].get("annotations") or {}).get("volume.beta.kubernetes.io/storage-class")
    return old or at(obj, "spec.storageClassName") or ""


def _quota(limits: bool) -> Cell:
    def cell(obj: Object) -> str:
        hard, used = at(obj, "status.hard") or {}, at(obj, "status.used") or {}
        rows = [f"{k}: {used.get(k, '0')}/{v}" for k, v in sorted(hard.items()) if k.startswith("limits") is limits]
        return ", ".join(rows)

    return cell


_SCALER = (
    NAME,
    Column("Reference", lambda o: f"{at(o, 'spec.scaleTargetRef.kind')}/{at(o, 'spec.scaleTargetRef.name')}"),
    Column("Targets", _targets),
    Column("MinPods", _minimum),
    Column("MaxPods", number("spec.maxReplicas")),
    Column("Replicas", number("status.currentReplicas")),
    AGE,
)
COLUMNS: dict[tuple[str, str], tuple[Column, ...]] = {
    ("", "Namespace"): (NAME, Column("Status", at_or("status.phase", "")), AGE),
    ("", "Node"): (
        NAME,
        Column("Status", _node_status),
        Column("Roles", _roles),
        AGE,
        Column("Version", at_or("status.nodeInfo.kubeletVersion", "")),
        Column("Internal-IP", _address("InternalIP"), priority=1),
        Column("External-IP", _address("ExternalIP"), priority=1),
        Column("OS-Image", at_or("status.nodeInfo.osImage", UNKNOWN), priority=1),
        Column("Kernel-Version", _kernel, priority=1),
        Column("Container-Runtime", at_or("status.nodeInfo.containerRuntimeVersion", UNKNOWN), priority=1),
    ),
    ("", "Pod"): (
        NAME,
        Column("Ready", _pod_ready),
        Column("Status", _pod_status),
        Column("Restarts", timed=_restarts),
        AGE,
        Column("IP", _pod_ip, priority=1),
        Column("Node", at_or("spec.nodeName", NONE), priority=1),
        Column("Nominated Node", at_or("status.nominatedNodeName", NONE), priority=1),
        Column("Readiness Gates", _gates, priority=1),
    ),
    ("", "PodTemplate"): (
        NAME,
        Column("Containers", _containers("template.spec", "name")),
        Column("Images", _containers("template.spec", "image")),
        Column("Pod Labels", lambda o: format_labels(at(o, "template.metadata.labels"))),
    ),
    ("", "Service"): (
        NAME,
        Column("Type", at_or("spec.type", "")),
        Column("Cluster-IP", _cluster_ip),
        Column("External-IP", _external),
        Column("Port(s)", _service_ports),
        AGE,
        Column("Selector", lambda o: format_labels(at(o, "spec.selector")), priority=1),
    ),
    ("", "Endpoints"): (NAME, Column("Endpoints", _subsets), AGE),
    ("", "ConfigMap"): (NAME, Column("Data", lambda o: len(o.get("data") or ()) + len(o.get("binaryData") or ())), AGE),
    ("", "Secret"): (NAME, Column("Type", at_or("type", "")), Column("Data", size("data")), AGE),
    ("", "ReplicationController"): (
        *_replicas(),
        Column("Selector", lambda o: format_labels(at(o, "spec.selector")), priority=1),
    ),
    ("", "ResourceQuota"): (
        NAME,
        Column("Request", _quota(False)),
        Column("Limit", _quota(True)),
        AGE,
    ),
    ("", "PersistentVolume"): (
        NAME,
        Column("Capacity", at_or("spec.capacity.storage", "0")),
        Column("Access Modes", lambda o: _modes(at(o, "spec.accessModes"))),
        Column("Reclaim Policy", at_or("spec.persistentVolumeReclaimPolicy", "")),
        Column("Status", _phase),
        Column("Claim", lambda o: "/".join(filter(None, (at(o, "spec.claimRef." + p) for p in ("namespace", "name"))))),
        Column("StorageClass", _class),
        Column("VolumeAttributesClass", at_or("spec.volumeAttributesClassName", UNSET)),
        Column("Reason", at_or("status.reason", "")),
        AGE,
        Column("VolumeMode", at_or("spec.volumeMode", UNSET), priority=1),
    ),
    ("", "PersistentVolumeClaim"): (
        NAME,
        Column("Status", _phase),
        Column("Volume", at_or("spec.volumeName", "")),
        Column("Capacity", lambda o: at_or("status.capacity.storage", "0")(o) if at(o, "spec.volumeName") else ""),
        Column("Access Modes", lambda o: _modes(at(o, "status.accessModes")) if at(o, "spec.volumeName") else ""),
        Column("StorageClass", _class),
        Column("VolumeAttributesClass", at_or("spec.volumeAttributesClassName", UNSET)),
        AGE,
        Column("VolumeMode", at_or("spec.volumeMode", UNSET), priority=1),
    ),
    ("discovery.k8s.io", "EndpointSlice"): (
        NAME,
        Column("AddressType", at_or("addressType", "")),
        Column("Ports", _slice_ports),
        Column("Endpoints", _slice_addresses),
        AGE,
    ),
    ("apps", "ControllerRevision"): (
        NAME,
        Column("Controller", _controller),
        Column("Revision", number("revision")),
        AGE,
    ),
    ("apps", "DaemonSet"): (
        NAME,
        Column("Desired", number("status.desiredNumberScheduled"), "integer"),
        Column("Current", number("status.currentNumberScheduled"), "integer"),
        Column("Ready", number("status.numberReady"), "integer"),
        Column("Up-to-date", number("status.updatedNumberScheduled"), "integer"),
        Column("Available", number("status.numberAvailable"), "integer"),
        Column("Node Selector", lambda o: format_labels(at(o, "spec.template.spec.nodeSelector"))),
        AGE,
        *_template(),
        _selector(),
    ),
    ("apps", "Deployment"): (
        NAME,
        Column("Ready", _of_desired),
        Column("Up-to-date", number("status.updatedReplicas")),
        Column("Available", number("status.availableReplicas")),
        AGE,
        *_template(),
        _selector(),
    ),
    ("apps", "ReplicaSet"): (*_replicas(), _selector()),
    ("apps", "StatefulSet"): (NAME, Column("Ready", _of_desired), AGE, *_template()),
    ("autoscaling", "HorizontalPodAutoscaler"): _SCALER,
    ("batch", "CronJob"): (
        NAME,
        Column("Schedule", at_or("spec.schedule", "")),
        Column("Timezone", at_or("spec.timeZone", NONE)),
        Column("Suspend", lambda o: str(bool(at(o, "spec.suspend"))), "boolean"),
        Column("Active", size("status.active"), "integer"),
        Column(
            "Last Schedule",
            timed=lambda o, now: since(t, now) if (t := at(o, "status.lastScheduleTime")) else NONE,
        ),
        AGE,
        *_template("spec.jobTemplate.spec.template.spec"),
        _selector("spec.jobTemplate.spec.selector"),
    ),
    ("batch", "Job"): (
        NAME,
        Column("Status", _job_status),
        Column("Completions", _completions),
        Column("Duration", timed=_job_duration),
        AGE,
        *_template(),
        _selector(),
    ),
}
