"""Validation of containers: ports, environment, probes, hooks, security (pkg/apis/core/validation)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from podwire_base.kube.meta import Object

from . import fields, resources, volumes
from .fields import Causes, all_invalid, duplicate, forbidden, invalid, not_negative, not_supported, one_of, required

PROTOCOLS = ("SCTP", "TCP", "UDP")
PULL_POLICIES = ("Always", "IfNotPresent", "Never")
_TERMINATION = ("FallbackToLogsOnError", "File")
_ENV_FIELDS = (
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
)
_HANDLERS = ("exec", "httpGet", "tcpSocket", "grpc")
_HOOKS = ("exec", "httpGet", "tcpSocket", "sleep")


def ports(path: str, found: list[Object]) -> Causes:
    names: set[str] = set()
    for n, port in enumerate(found):
        where = f"{path}[{n}]"
        if own := port.get("name") or "":
            problems = fields.port_name(own)
            yield from all_invalid(f"{where}.name", own, problems)
            if not problems and own in names:
                yield duplicate(f"{where}.name", own)
            names.add(own)
        if not port.get("containerPort"):
            yield required(f"{where}.containerPort")
        else:
            yield from all_invalid(
                f"{where}.containerPort", port["containerPort"], fields.port_number(port["containerPort"])
            )
        if port.get("hostPort"):
            yield from all_invalid(f"{where}.hostPort", port["hostPort"], fields.port_number(port["hostPort"]))
        yield from one_of(f"{where}.protocol", port.get("protocol") or "", PROTOCOLS)


def env(path: str, found: list[Object]) -> Causes:
    for n, one in enumerate(found):
        where = f"{path}[{n}]"
        if not one.get("name"):
            yield required(f"{where}.name")
        else:
            yield from all_invalid(f"{where}.name", one["name"], fields.env_name(one["name"]))
        if one.get("valueFrom") is not None:
            yield from _env_source(f"{where}.valueFrom", one)


def _env_source(path: str, one: Object) -> Causes:
    source, kinds = one["valueFrom"], 0
    if (ref := source.get("fieldRef")) is not None:
        kinds += 1
        yield from volumes.field_ref(f"{path}.fieldRef", ref, _ENV_FIELDS)
    if (ref := source.get("resourceFieldRef")) is not None:
        kinds += 1
        yield from volumes.resource_ref(f"{path}.resourceFieldRef", ref, volume=False)
    for kind in ("configMapKeyRef", "secretKeyRef"):
        if (ref := source.get(kind)) is not None:
            kinds += 1
            yield from _key_ref(f"{path}.{kind}", ref)
    if (ref := source.get("fileKeyRef")) is not None:
        kinds += 1
        for name in ("key", "volumeName", "path"):
            if not ref.get(name):
                yield required(f"{path}.fileKeyRef.{name}")
    if not kinds:
        yield invalid(
            path, "", "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`"
        )
    elif one.get("value"):
        yield invalid(path, "", "may not be specified when `value` is not empty")
    elif kinds > 1:
        yield invalid(path, "", "may not have more than one field specified at a time")


def _key_ref(path: str, ref: Object) -> Causes:
    if not ref.get("name"):
        yield required(f"{path}.name")
    if not ref.get("key"):
        yield required(f"{path}.key")
    else:
        yield from all_invalid(f"{path}.key", ref["key"], fields.config_key(ref["key"]))


def env_from(path: str, found: list[Object]) -> Causes:
    for n, one in enumerate(found):
        where, kinds = f"{path}[{n}]", 0
        if one.get("prefix"):
            yield from all_invalid(f"{where}.prefix", one["prefix"], fields.env_name(one["prefix"]))
        for kind in ("configMapRef", "secretRef"):
            if (ref := one.get(kind)) is not None:
                kinds += 1
                if not ref.get("name"):
                    yield required(f"{where}.{kind}.name")
        if not kinds:
            yield invalid(where, "", "must specify one of: `configMapRef` or `secretRef`")
        elif kinds > 1:
            yield invalid(where, "", "may not have more than one field specified at a time")


# ---- handlers, probes, hooks


def port_or_name(path: str, value: Any) -> Causes:
    if isinstance(value, str):
        yield from all_invalid(path, value, fields.port_name(value))
    else:
        yield from all_invalid(path, value, fields.port_number(value or 0))


def _handler(path: str, kind: str, action: Object) -> Causes:
    if kind == "exec":
        if not action.get("command"):
            yield required(f"{path}.command")
    elif kind == "httpGet":
        if not action.get("path"):
            yield required(f"{path}.path")
        yield from port_or_name(f"{path}.port", action.get("port"))
        yield from one_of(f"{path}.scheme", action.get("scheme") or "", ("HTTP", "HTTPS"))
        for header in action.get("httpHeaders") or []:
            yield from all_invalid(
                f"{path}.httpHeaders", header.get("name"), fields.header_name(header.get("name") or "")
            )
    elif kind == "tcpSocket":
        yield from port_or_name(f"{path}.port", action.get("port"))
    elif kind == "grpc":
        yield from all_invalid(f"{path}.port", action.get("port"), fields.port_number(action.get("port") or 0))


def _sleep(path: str, action: Object, grace: int | None) -> Causes:
    """A hook sleeps no longer than the pod may take to end (KEP-3960)."""
    seconds = action.get("seconds") or 0
    if grace is not None and not 0 <= seconds <= grace:
        yield invalid(path, seconds, f"must be non-negative and less than terminationGracePeriodSeconds ({grace})")


def handlers(path: str, one: Object, kinds: tuple[str, ...], grace: int | None = None) -> Causes:
    found = [kind for kind in kinds if one.get(kind) is not None]
    for kind in found[1:]:
        yield forbidden(f"{path}.{kind}", "may not specify more than 1 handler type")
    if not found:
        yield required(path, "must specify a handler type")
    elif found[0] == "sleep":
        yield from _sleep(f"{path}.sleep", one["sleep"], grace)
    else:
        yield from _handler(f"{path}.{found[0]}", found[0], one[found[0]])


def _probe(path: str, probe: Object, kind: str, grace: int | None) -> Causes:
    yield from handlers(path, probe, _HANDLERS)
    for name in ("initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"):
        yield from not_negative(f"{path}.{name}", probe.get(name))
    own = probe.get("terminationGracePeriodSeconds")
    if kind == "readinessProbe":
        if own is not None:
            yield invalid(f"{path}.terminationGracePeriodSeconds", own, "must not be set for readinessProbes")
        return
    if own is not None and own <= 0:
        yield invalid(f"{path}.terminationGracePeriodSeconds", own, "must be greater than 0")
    if probe.get("successThreshold") != 1:
        yield invalid(f"{path}.successThreshold", probe.get("successThreshold"), "must be 1")


def probes(path: str, one: Object, grace: int | None) -> Causes:
    for kind in ("livenessProbe", "readinessProbe", "startupProbe"):
        if (probe := one.get(kind)) is not None:
            yield from _probe(f"{path}.{kind}", probe, kind, grace)


def lifecycle(path: str, one: Object, grace: int | None) -> Causes:
    for hook in ("postStart", "preStop"):
        if (action := one.get(hook)) is not None:
            yield from handlers(f"{path}.{hook}", action, _HOOKS, grace)
    signal = one.get("stopSignal")
    if signal is not None and not signal.startswith("SIG"):
        yield invalid(f"{path}.stopSignal", signal, "must be the name of a signal, such as SIGTERM")


# ---- security


def seccomp(path: str, profile: Object | None, field: str = "seccompProfile") -> Causes:
    if profile is None:
        return
    kind, local = profile.get("type") or "", profile.get("localhostProfile")
    where = f"{path}.{field}"
    if kind == "Localhost":
        if not local:
            yield required(f"{where}.localhostProfile", "must be set when type is Localhost")
        else:
            yield from volumes.local_path(f"{where}.localhostProfile", local)
    elif local is not None:
        yield invalid(f"{where}.localhostProfile", local, "can only be set when type is Localhost")
    if not kind:
        yield required(f"{where}.type", "type is required when seccompProfile is set")
    elif kind not in ("Localhost", "RuntimeDefault", "Unconfined"):
        yield not_supported(f"{where}.type", kind, ("Localhost", "RuntimeDefault", "Unconfined"))


def security(path: str, context: Object | None) -> Causes:
    if context is None:
        return
    for name in ("runAsUser", "runAsGroup"):
        value = context.get(name)
        if value is not None and not 0 <= value <= 2**31 - 1:
            yield invalid(f"{path}.{name}", value, "must be between 0 and 2147483647, inclusive")
    if context.get("procMount") is not None:
        yield from one_of(f"{path}.procMount", context["procMount"], ("Default", "Unmasked"))
    yield from seccomp(path, context.get("seccompProfile"))
    yield from seccomp(path, context.get("appArmorProfile"), "appArmorProfile")
    if context.get("allowPrivilegeEscalation") is False:
        if context.get("privileged"):
            yield invalid(path, "", "cannot set `allowPrivilegeEscalation` to false and `privileged` to true")
        if "CAP_SYS_ADMIN" in ((context.get("capabilities") or {}).get("add") or []):
            yield invalid(
                path, "", "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN"
            )


# ---- the container


def container(path: str, one: Object, known: Mapping[str, Object], claims: set[str], grace: int | None) -> Causes:
    """What every container may not do, whatever its part in the pod. known: the pod's volumes, by name."""
    own, image = one.get("name") or "", one.get("image") or ""
    if not own:
        yield required(f"{path}.name")
    else:
        yield from all_invalid(f"{path}.name", own, fields.label(own))
    if not image:
        yield required(f"{path}.image")
    elif image.strip() != image:
        yield invalid(f"{path}.image", image, "must not have leading or trailing whitespace")
    yield from one_of(f"{path}.terminationMessagePolicy", one.get("terminationMessagePolicy") or "", _TERMINATION)
    yield from ports(f"{path}.ports", one.get("ports") or [])
    yield from env(f"{path}.env", one.get("env") or [])
    yield from env_from(f"{path}.envFrom", one.get("envFrom") or [])
    yield from volumes.mounts(f"{path}.volumeMounts", one, known)
    yield from volumes.devices(f"{path}.volumeDevices", one, known)
    yield from one_of(f"{path}.imagePullPolicy", one.get("imagePullPolicy") or "", PULL_POLICIES)
    yield from resources.requirements(f"{path}.resources", one.get("resources"), claims)
    yield from _resize(f"{path}.resizePolicy", one.get("resizePolicy") or [])
    yield from security(f"{path}.securityContext", one.get("securityContext"))


def _resize(path: str, found: list[Object]) -> Causes:
    seen: set[str] = set()
    for n, policy in enumerate(found):
        name = policy.get("resourceName") or ""
        if name in seen:
            yield duplicate(f"{path}[{n}]", name)
        if name not in ("cpu", "memory"):
            yield not_supported(path, name, ("cpu", "memory"))
        if policy.get("restartPolicy") not in ("NotRequired", "RestartContainer"):
            yield not_supported(path, policy.get("restartPolicy"), ("NotRequired", "RestartContainer"))
        seen.add(name)


def restart_policy(path: str, one: Object, allowed: tuple[str, ...]) -> Causes:
    value = one.get("restartPolicy")
    if value is not None and value not in allowed:
        yield not_supported(f"{path}.restartPolicy", value, allowed)


def spec_containers(path: str, spec: Object, known: Mapping[str, Object], claims: set[str]) -> Causes:
    """All containers of a pod, with what their part in it asks for."""
    grace, names = spec.get("terminationGracePeriodSeconds"), set[str]()
    if not spec.get("containers"):
        yield required(f"{path}.containers")
    for n, one in enumerate(spec.get("containers") or []):
        where = f"{path}.containers[{n}]"
        yield from container(where, one, known, claims, grace)
        if one.get("name") in names:
            yield duplicate(f"{where}.name", one["name"])
        names.add(one.get("name") or "")
        if one.get("lifecycle") is not None:
            yield from lifecycle(f"{where}.lifecycle", one["lifecycle"], grace)
        yield from probes(where, one, grace)
        yield from restart_policy(where, one, ("Always", "Never", "OnFailure"))
    yield from _init_containers(f"{path}.initContainers", spec, known, claims, names)
    yield from _host_ports(path, spec)
    yield from _user_namespaces(path, spec)


def _user_namespaces(path: str, spec: Object) -> Causes:
    """A container sees all of /proc only in a user namespace of its own (KEP-4265)."""
    if spec.get("hostUsers") is False:
        return
    for kind in ("initContainers", "containers"):
        for n, one in enumerate(spec.get(kind) or []):
            if (one.get("securityContext") or {}).get("procMount") == "Unmasked":
                why = "`hostUsers` must be false to use `Unmasked`"
                yield invalid(f"{path}.{kind}[{n}].securityContext.procMount", "Unmasked", why)


def _init_containers(path: str, spec: Object, known: Mapping[str, Object], claims: set[str], names: set[str]) -> Causes:
    grace = spec.get("terminationGracePeriodSeconds")
    for n, one in enumerate(spec.get("initContainers") or []):
        where, always = f"{path}[{n}]", one.get("restartPolicy") == "Always"
        yield from container(where, one, known, claims, grace)
        if one.get("name") in names:
            yield duplicate(f"{where}.name", one["name"])
        elif one.get("name"):
            names.add(one["name"])
        yield from restart_policy(where, one, ("Always", "Never", "OnFailure"))
        if always:
            yield from lifecycle(f"{where}.lifecycle", one.get("lifecycle") or {}, grace)
            yield from probes(where, one, grace)
            continue
        if one.get("lifecycle") is not None:
            yield forbidden(f"{where}.lifecycle", "may not be set for init containers without restartPolicy=Always")
        for kind in ("livenessProbe", "readinessProbe", "startupProbe"):
            if one.get(kind) is not None:
                yield forbidden(f"{where}.{kind}", "may not be set for init containers without restartPolicy=Always")


def _host_ports(path: str, spec: Object) -> Causes:
    used: set[tuple[Any, ...]] = set()
    for n, one in enumerate(spec.get("containers") or []):
        for m, port in enumerate(one.get("ports") or []):
            if spec.get("hostNetwork") and port.get("hostPort") not in (None, 0, port.get("containerPort")):
                why = "must match `hostPort` when `hostNetwork` is true"
                yield invalid(f"{path}.containers[{n}].ports[{m}].containerPort", port.get("containerPort"), why)
            if number := port.get("hostPort"):
                key = (port.get("protocol"), port.get("hostIP") or "", number)
                if key in used:
                    yield duplicate(f"{path}.containers[{n}].ports[{m}].hostPort", f"{key[0]}/{key[1]}/{number}")
                used.add(key)
