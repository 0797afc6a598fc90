"""PodSecurity: what the levels baseline and restricted of the Pod Security Standards forbid
(k8s.io/pod-security-admission, policy). Pure. The labels pod-security.kubernetes.io/enforce and warn of a namespace
choose the level; the versions that labels may name are read as the latest.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from podwire_base.kube.errors import Cause
from podwire_base.kube.meta import Object, annotations_of, labels

from .rules.fields import invalid

PREFIX = "pod-security.kubernetes.io/"
PRIVILEGED, BASELINE, RESTRICTED = LEVELS = ("privileged", "baseline", "restricted")
MODES = ("enforce", "audit", "warn")
_VERSION = re.compile(r"latest|v1\.(0|[1-9][0-9]*)")
_CAPABILITIES = frozenset(
    ("AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "SETFCAP",
     "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT")
)  # fmt: skip
_SYSCTLS = frozenset(
    ("kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.ip_local_reserved_ports",
     "net.ipv4.ip_unprivileged_port_start", "net.ipv4.ping_group_range", "net.ipv4.tcp_fin_timeout",
     "net.ipv4.tcp_keepalive_intvl", "net.ipv4.tcp_keepalive_probes", "net.ipv4.tcp_keepalive_time",
     "net.ipv4.tcp_rmem", "net.ipv4.tcp_syncookies", "net.ipv4.tcp_wmem")
)  # fmt: skip
_SELINUX = ("", "container_t", "container_init_t", "container_kvm_t", "container_engine_t")
_VOLUMES = ("configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret")
_APPARMOR = "container.apparmor.security.beta.kubernetes.io/"
_TEMPLATES = {
    ("", "PodTemplate"): ("template",),
    ("", "ReplicationController"): ("spec", "template"),
    ("apps", "DaemonSet"): ("spec", "template"),
    ("apps", "Deployment"): ("spec", "template"),
    ("apps", "ReplicaSet"): ("spec", "template"),
    ("apps", "StatefulSet"): ("spec", "template"),
    ("batch", "CronJob"): ("spec", "jobTemplate", "spec", "template"),
    ("batch", "Job"): ("spec", "template"),
}
Found = Iterator[tuple[str, str]]  # (what is wrong, where)
Check = Callable[[Object, Object], Found]  # (metadata, spec)


def check_labels(namespace: Object) -> Iterator[Cause]:
    """Yield every label of a namespace that names no level or no version."""
    for key, value in labels(namespace).items():
        if not key.startswith(PREFIX):
            continue
        mode = key.removeprefix(PREFIX)
        if mode in MODES and value not in LEVELS:
            yield invalid(f"metadata.labels[{key}]", value, f"must be one of {', '.join(LEVELS)}")
        elif mode.removesuffix("-version") in MODES and mode not in MODES and not _VERSION.fullmatch(value):
            yield invalid(f"metadata.labels[{key}]", value, 'must be "latest" or "v1.x"')


def level(namespace: Object, mode: str) -> str:
    """Return the level of a mode. One that nobody knows is the strictest, as upstream."""
    found = labels(namespace).get(PREFIX + mode, PRIVILEGED)
    return found if found in LEVELS else RESTRICTED


def pod_of(group: str, kind: str, obj: Object) -> Object | None:
    """Return the pod, or the template of a workload, that is judged."""
    if (group, kind) == ("", "Pod"):
        return obj
    found: Any = obj
    for part in _TEMPLATES.get((group, kind), ("",)):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found if isinstance(found, dict) else None


def violations(pod: Object, wanted: str) -> str:
    """Return what a pod or a template has that the level forbids, "" if it has nothing."""
    if wanted == PRIVILEGED:
        return ""
    metadata, spec = pod.get("metadata") or {}, pod.get("spec") or {}
    rows: dict[str, list[str]] = {}
    for check in _BASELINE if wanted == BASELINE else (*_BASELINE, *_RESTRICTED):
        for what, where in check(metadata, spec):
            rows.setdefault(what, []).append(where)
    return ", ".join(f"{what} ({'; '.join(found)})" for what, found in rows.items())


def refusal(pod: Object, namespace: Object) -> str:
    """Return why the namespace's mode enforce refuses a pod, "" if it does not."""
    wanted = level(namespace, "enforce")
    found = violations(pod, wanted)
    return f'violates PodSecurity "{_told(namespace, "enforce", wanted)}": {found}' if found else ""


def warning(pod: Object, namespace: Object) -> str:
    wanted = level(namespace, "warn")
    found = violations(pod, wanted)
    return f'would violate PodSecurity "{_told(namespace, "warn", wanted)}": {found}' if found else ""


def _told(namespace: Object, mode: str, wanted: str) -> str:
    return f"{wanted}:{labels(namespace).get(f'{PREFIX}{mode}-version', 'latest')}"


# ---- parts of a pod


def _containers(spec: Object) -> Iterator[Object]:
    for kind in ("initContainers", "containers", "ephemeralContainers"):
        yield from spec.get(kind) or []


def _contexts(spec: Object) -> Iterator[tuple[str, Object]]:
    """Yield (name, securityContext) of the pod and of every container."""
    yield "pod", spec.get("securityContext") or {}
    for one in _containers(spec):
        yield f'container "{one.get("name")}"', one.get("securityContext") or {}


def _inner(context: Object, *path: str) -> Any:
    found: Any = context
    for part in path:
        found = (found or {}).get(part)
    return found


# ---- baseline


def _host_namespaces(_: Object, spec: Object) -> Found:
    used = [field for field in ("hostNetwork", "hostPID", "hostIPC") if spec.get(field)]
    if used:
        yield "host namespaces", ", ".join(f"{field}=true" for field in used)


def _host_process(_: Object, spec: Object) -> Found:
    for where, context in _contexts(spec):
        if _inner(context, "windowsOptions", "hostProcess"):
            yield "hostProcess", f"{where} must not set securityContext.windowsOptions.hostProcess=true"


def _privileged(_: Object, spec: Object) -> Found:
    for where, context in _contexts(spec):
        if where != "pod" and context.get("privileged"):
            yield "privileged", f"{where} must not set securityContext.privileged=true"


def _capabilities(_: Object, spec: Object) -> Found:
    for where, context in _contexts(spec):
        extra = [one for one in _inner(context, "capabilities", "add") or [] if one not in _CAPABILITIES]
        if extra:
            yield "non-default capabilities", f'{where} must not include "{", ".join(extra)}" in capabilities.add'


def _host_path(_: Object, spec: Object) -> Found:
    for volume in spec.get("volumes") or []:
        if volume.get("hostPath") is not None:
            yield "hostPath volumes", f'volume "{volume.get("name")}"'


def _host_ports(_: Object, spec: Object) -> Found:
    for one in _containers(spec):
        used = [str(port["hostPort"]) for port in one.get("ports") or [] if port.get("hostPort")]
        if used:
            yield "hostPort", f'container "{one.get("name")}" uses hostPort {", ".join(used)}'


def _host_probes(_: Object, spec: Object) -> Found:
    for one in _containers(spec):
        handlers = [one.get(f"{kind}Probe") for kind in ("liveness", "readiness", "startup")]
        handlers += [(one.get("lifecycle") or {}).get(kind) for kind in ("postStart", "preStop")]
        for handler in filter(None, handlers):
            if any((handler.get(how) or {}).get("host") for how in ("httpGet", "tcpSocket")):
                yield "probe or lifecycle host", f'container "{one.get("name")}" uses probe or lifecycle hosts'


def _app_armor(metadata: Object, spec: Object) -> Found:
    for key, value in annotations_of({"metadata": metadata}).items():
        if key.startswith(_APPARMOR) and value not in ("", "runtime/default") and not value.startswith("localhost/"):
            yield "forbidden AppArmor profile", f'annotation {key}="{value}"'
    for where, context in _contexts(spec):
        kind = _inner(context, "appArmorProfile", "type")
        if kind not in (None, "RuntimeDefault", "Localhost"):
            yield "forbidden AppArmor profile", f'{where} must not set AppArmor profile type to "{kind}"'


def _selinux(_: Object, spec: Object) -> Found:
    for where, context in _contexts(spec):
        options = context.get("seLinuxOptions") or {}
        if (options.get("type") or "") not in _SELINUX:
            yield "seLinuxOptions", f'{where} set forbidden securityContext.seLinuxOptions: type "{options["type"]}"'
        for field in ("user", "role"):
            if options.get(field):
                yield "seLinuxOptions", f"{where} set forbidden securityContext.seLinuxOptions: {field} may not be set"


def _proc_mount(_: Object, spec: Object) -> Found:
    for where, context in _contexts(spec):
        if context.get("procMount") not in (None, "Default"):
            yield "procMount", f'{where} must not set securityContext.procMount to "{context["procMount"]}"'


def _seccomp(_: Object, spec: Object) -> Found:
    for where, context in _contexts(spec):
        if _inner(context, "seccompProfile", "type") == "Unconfined":
            yield "seccompProfile", f'{where} must not set securityContext.seccompProfile.type to "Unconfined"'


def _sysctls(_: Object, spec: Object) -> Found:
    rows = _inner(spec, "securityContext", "sysctls") or []
    bad = [str(row.get("name")) for row in rows if row.get("name") not in _SYSCTLS]
    if bad:
        yield "forbidden sysctls", ", ".join(bad)


# ---- restricted


def _volume_types(_: Object, spec: Object) -> Found:
    for volume in spec.get("volumes") or []:
        kinds = [field for field, value in volume.items() if field != "name" and value is not None]
        if any(kind not in _VOLUMES for kind in kinds):
            yield "restricted volume types", f'volume "{volume.get("name")}" uses restricted volume type "{kinds[0]}"'


def _windows(spec: Object) -> bool:
    return bool((spec.get("os") or {}).get("name") == "windows")


def _escalation(_: Object, spec: Object) -> Found:
    for where, context in () if _windows(spec) else _contexts(spec):
        if where != "pod" and context.get("allowPrivilegeEscalation") is not False:
            yield (
                "allowPrivilegeEscalation != false",
                f"{where} must set securityContext.allowPrivilegeEscalation=false",
            )


def _drop_all(_: Object, spec: Object) -> Found:
    for where, context in () if _windows(spec) else _contexts(spec):
        found = context.get("capabilities") or {}
        if where == "pod":
            continue
        if "ALL" not in (found.get("drop") or []):
            yield "unrestricted capabilities", f'{where} must set securityContext.capabilities.drop=["ALL"]'
        extra = [one for one in found.get("add") or [] if one != "NET_BIND_SERVICE"]
        if extra:
            yield "unrestricted capabilities", f'{where} must not include "{", ".join(extra)}" in capabilities.add'


def _non_root(_: Object, spec: Object) -> Found:
    pod, own = _inner(spec, "securityContext", "runAsNonRoot"), list(_contexts(spec))[1:]
    if pod is False:
        yield "runAsNonRoot != true", "pod must not set securityContext.runAsNonRoot=false"
    for where, context in own:
        found = context.get("runAsNonRoot")
        if found is False or (found is None and not pod):
            yield "runAsNonRoot != true", f"pod or {where} must set securityContext.runAsNonRoot=true"


def _root_user(_: Object, spec: Object) -> Found:
    for where, context in _contexts(spec):
        if context.get("runAsUser") == 0:
            yield "runAsUser=0", f"{where} must not set runAsUser=0"


def _seccomp_set(_: Object, spec: Object) -> Found:
    pod = _inner(spec, "securityContext", "seccompProfile", "type")
    for where, context in () if _windows(spec) else list(_contexts(spec))[1:]:
        found = _inner(context, "seccompProfile", "type") or pod
        if found not in ("RuntimeDefault", "Localhost"):
            want = 'securityContext.seccompProfile.type to "RuntimeDefault" or "Localhost"'
            yield "seccompProfile", f"pod or {where} must set {want}"


_BASELINE: tuple[Check, ...] = (
    _app_armor,
    _capabilities,
    _host_namespaces,
    _host_path,
    _host_ports,
    _host_probes,
    _host_process,
    _privileged,
    _proc_mount,
    _seccomp,
    _selinux,
    _sysctls,
)
_RESTRICTED: tuple[Check, ...] = (_escalation, _drop_all, _non_root, _root_user, _seccomp_set, _volume_types)


def judge(pods: Iterable[Object], namespace: Object) -> list[str]:
    """Return a warning for a namespace whose new labels its pods violate."""
    wanted = level(namespace, "enforce")
    bad = sum(bool(violations(pod, wanted)) for pod in pods)
    return [f'existing pods in namespace violate the new PodSecurity enforce level "{wanted}": {bad}'] if bad else []
