"""Validation of pods and pod templates, and of what an update of a pod may change (pkg/apis/core/validation)."""

from __future__ import annotations

import copy
import re

from podwire_base.kube.meta import Object

from . import containers, fields, meta, resources, scheduling, volumes
from .fields import Causes, all_invalid, duplicate, forbidden, invalid, not_supported, one_of, required

RESTART = ("Always", "Never", "OnFailure")
DNS = ("ClusterFirst", "ClusterFirstWithHostNet", "Default", "None")
_PART = r"[a-z0-9](?:[-_a-z0-9]*[a-z0-9])?"
_SYSCTL = re.compile(rf"(?:{_PART}[./])*{_PART}")
_MAX_NAMESERVERS, _MAX_SEARCHES, _MAX_SEARCH_CHARS = 3, 32, 2048


# ---- the pod


def _dns(path: str, spec: Object) -> Causes:
    config = spec.get("dnsConfig")
    yield from one_of(f"{path}.dnsPolicy", spec.get("dnsPolicy") or "", DNS)
    servers = (config or {}).get("nameservers") or []
    if spec.get("dnsPolicy") == "None" and not servers:
        where = f"{path}.dnsConfig" + (".nameservers" if config is not None else "")
        yield required(where, "must provide at least one DNS nameserver when `dnsPolicy` is None")
    if config is None:
        return
    if len(servers) > _MAX_NAMESERVERS:
        yield invalid(
            f"{path}.dnsConfig.nameservers", servers, f"must not have more than {_MAX_NAMESERVERS} nameservers"
        )
    for n, server in enumerate(servers):
        yield from all_invalid(f"{path}.dnsConfig.nameservers[{n}]", server, fields.ip(server))
    searches = config.get("searches") or []
    if len(searches) > _MAX_SEARCHES:
        yield invalid(f"{path}.dnsConfig.searches", searches, f"must not have more than {_MAX_SEARCHES} search paths")
    if len(" ".join(searches)) > _MAX_SEARCH_CHARS:
        yield invalid(f"{path}.dnsConfig.searches", searches, f"must not have more than {_MAX_SEARCH_CHARS} characters")
    for n, search in enumerate(searches):
        plain = search.removesuffix(".") if search != "." else "a"
        yield from all_invalid(f"{path}.dnsConfig.searches[{n}]", search, fields.subdomain(plain.replace("_", "a")))
    for n, option in enumerate(config.get("options") or []):
        if not option.get("name"):
            yield required(f"{path}.dnsConfig.options[{n}]", "must not be empty")


def _security(path: str, spec: Object) -> Causes:
    context = spec.get("securityContext") or {}
    for name in ("fsGroup", "runAsUser", "runAsGroup"):
        value = context.get(name)
        if value is not None and not 0 <= value <= 2**31 - 1:
            yield invalid(f"{path}.{name}", value, "must be between 0 and 2147483647, inclusive")
    for n, group in enumerate(context.get("supplementalGroups") or []):
        if not 0 <= group <= 2**31 - 1:
            yield invalid(f"{path}.supplementalGroups[{n}]", group, "must be between 0 and 2147483647, inclusive")
    names: set[str] = set()
    for n, one in enumerate(context.get("sysctls") or []):
        own = one.get("name") or ""
        where = f"{path}.sysctls[{n}].name"
        if not own:
            yield required(where)
        elif not _sysctl(own):
            yield invalid(where, own, "must have at most 253 characters and match a kernel parameter's name")
        elif own in names:
            yield duplicate(where, own)
        names.add(own)
    if context.get("fsGroupChangePolicy") is not None:
        yield from one_of(f"{path}.fsGroupChangePolicy", context["fsGroupChangePolicy"], ("Always", "OnRootMismatch"))
    yield from containers.seccomp(path, context.get("seccompProfile"))
    yield from containers.seccomp(path, context.get("appArmorProfile"), "appArmorProfile")


def _sysctl(name: str) -> bool:
    return len(name) <= 253 and _SYSCTL.fullmatch(name) is not None


def _names(path: str, spec: Object) -> Causes:
    for name, form in (("nodeName", fields.subdomain), ("serviceAccountName", fields.subdomain),
                       ("hostname", fields.label), ("subdomain", fields.label), ("runtimeClassName", fields.subdomain),
                       ("priorityClassName", fields.subdomain)):  # fmt: skip
        if spec.get(name):
            yield from all_invalid(f"{path}.{name}", spec[name], form(spec[name]))


def _host_aliases(path: str, found: list[Object]) -> Causes:
    for n, alias in enumerate(found):
        yield from all_invalid(f"{path}[{n}].ip", alias.get("ip"), fields.ip(alias.get("ip") or ""))
        for name in alias.get("hostnames") or []:
            yield from all_invalid(f"{path}[{n}].hostnames", name, fields.subdomain(name))


def _resources(path: str, spec: Object) -> Causes:
    for name, text in (spec.get("overhead") or {}).items():
        yield from resources.amount(f"{path}.overhead", name, text)
    claims: set[str] = set()
    for n, claim in enumerate(spec.get("resourceClaims") or []):
        where, own = f"{path}.resourceClaims[{n}]", claim.get("name") or ""
        if own in claims:
            yield duplicate(f"{where}.name", own)
        elif not own:
            yield required(f"{where}.name")
        else:
            yield from all_invalid(f"{where}.name", own, fields.label(own))
        claims.add(own)
        given = [k for k in ("resourceClaimName", "resourceClaimTemplateName") if claim.get(k) is not None]
        if len(given) != 1:
            yield invalid(where, claim, "must specify exactly one of: `resourceClaimName`, `resourceClaimTemplateName`")


def pod_spec(path: str, spec: Object) -> Causes:
    """Everything that a pod and a template share."""
    known: dict[str, Object] = {}
    claims = {c.get("name") or "" for c in spec.get("resourceClaims") or []}
    yield from volumes.volumes(f"{path}.volumes", spec.get("volumes") or [], known)
    yield from _resources(path, spec)
    yield from containers.spec_containers(path, spec, known, claims)
    yield from one_of(f"{path}.restartPolicy", spec.get("restartPolicy") or "", RESTART)
    yield from _dns(path, spec)
    yield from meta.check_labels(f"{path}.nodeSelector", spec.get("nodeSelector"))
    yield from _security(f"{path}.securityContext", spec)
    yield from scheduling.affinity(f"{path}.affinity", spec.get("affinity"))
    yield from _names(path, spec)
    yield from scheduling.tolerations(f"{path}.tolerations", spec.get("tolerations") or [])
    yield from scheduling.spread(f"{path}.topologySpreadConstraints", spec.get("topologySpreadConstraints") or [])
    yield from _host_aliases(f"{path}.hostAliases", spec.get("hostAliases") or [])
    for n, gate in enumerate(spec.get("readinessGates") or []):
        kind = gate.get("conditionType") or ""
        yield from all_invalid(f"{path}.readinessGates[{n}].conditionType", kind, fields.qualified(kind))
    yield from scheduling.gates(path, spec)
    deadline = spec.get("activeDeadlineSeconds")
    if deadline is not None and not 1 <= deadline <= 2**31 - 1:
        yield invalid(f"{path}.activeDeadlineSeconds", deadline, "must be between 1 and 2147483647, inclusive")
    if spec.get("preemptionPolicy") not in (None, "PreemptLowerPriority", "Never"):
        yield not_supported(f"{path}.preemptionPolicy", spec["preemptionPolicy"], ("Never", "PreemptLowerPriority"))
    yield from _operating_system(path, spec)


def _operating_system(path: str, spec: Object) -> Causes:
    if spec.get("os") is not None:
        name = spec["os"].get("name") or ""
        if not name:
            yield required(f"{path}.os.name", "cannot be empty")
        else:
            yield from one_of(f"{path}.os.name", name, ("linux", "windows"))
        yield from _of_another_system(path, spec, name)
    if spec.get("shareProcessNamespace") and spec.get("hostPID"):
        yield invalid(f"{path}.shareProcessNamespace", True, "ShareProcessNamespace and HostPID cannot both be enabled")
    if spec.get("hostUsers") is False:
        for name in ("hostNetwork", "hostPID", "hostIPC"):
            if spec.get(name):
                yield forbidden(f"{path}.hostUsers", f"when `{name}` is true")


_NOT_WINDOWS = ("hostPID", "hostIPC", "hostUsers", "shareProcessNamespace")
_NOT_WINDOWS_POD = (
    "appArmorProfile", "seLinuxOptions", "seccompProfile", "fsGroup", "fsGroupChangePolicy", "sysctls", "runAsUser",
    "runAsGroup", "supplementalGroups", "supplementalGroupsPolicy",
)  # fmt: skip
_NOT_WINDOWS_CONTAINER = (
    "appArmorProfile", "seLinuxOptions", "seccompProfile", "capabilities", "readOnlyRootFilesystem", "privileged",
    "allowPrivilegeEscalation", "procMount", "runAsUser", "runAsGroup",
)  # fmt: skip


def _of_another_system(path: str, spec: Object, name: str) -> Causes:
    """Yield the fields of a security context that a pod for Windows or Linux cannot have."""
    if name not in ("linux", "windows"):
        return
    context, windows = spec.get("securityContext") or {}, name == "windows"
    why = f"cannot be set for a {name} pod"
    for field in _NOT_WINDOWS if windows else ():
        if spec.get(field) is not None and (spec[field] or field == "hostUsers"):
            yield forbidden(f"{path}.{field}", why)
    for field in _NOT_WINDOWS_POD if windows else ("windowsOptions",):
        if context.get(field) is not None:
            yield forbidden(f"{path}.securityContext.{field}", why)
    for kind in ("initContainers", "containers"):
        for n, one in enumerate(spec.get(kind) or []):
            held = one.get("securityContext") or {}
            for field in _NOT_WINDOWS_CONTAINER if windows else ("windowsOptions",):
                if held.get(field) is not None:
                    yield forbidden(f"{path}.{kind}[{n}].securityContext.{field}", why)


def template(path: str, obj: Object) -> Causes:
    metadata = obj.get("metadata") or {}
    yield from meta.check_labels(f"{path}.labels", metadata.get("labels"))
    yield from meta.check_annotations(f"{path}.annotations", metadata.get("annotations"))
    yield from pod_spec(f"{path}.spec", obj.get("spec") or {})
    if (obj.get("spec") or {}).get("ephemeralContainers"):
        yield forbidden(f"{path}.spec.ephemeralContainers", "ephemeral containers not allowed in pod template")


def create(obj: Object) -> Causes:
    spec = obj["spec"]
    yield from pod_spec("spec", spec)
    if spec.get("ephemeralContainers"):
        yield forbidden("spec.ephemeralContainers", "cannot be set on create")
    if spec.get("nodeName") and spec.get("schedulingGates"):
        yield forbidden("spec.nodeName", "cannot be set until all schedulingGates have been cleared")
    yield from resources.requirements("spec.resources", spec.get("resources"), set())


# ---- updates


def update(obj: Object, before: Object) -> Causes:
    """Yield what an update of a pod may not change: all but images, tolerations that are added, a shorter deadline, and
    gates that are removed. Of a gated pod, also where it may run.
    """
    new, old = copy.deepcopy(obj["spec"]), before["spec"]
    stop = False
    for kind, path in (("containers", "spec.containers"), ("initContainers", "spec.initContainers")):
        ours, theirs = new.get(kind) or [], old.get(kind) or []
        if len(ours) != len(theirs):
            yield forbidden(path, "pod updates may not add or remove containers")
            stop = True
            continue
        for n, one in enumerate(ours):
            image = one.get("image") or ""
            if image.strip() != image or not image:
                yield invalid(f"{path}[{n}].image", image, "must not be empty, nor have leading or trailing whitespace")
    if stop:
        return
    yield from _gate_changes(new, old)
    yield from _toleration_changes(new, old)
    yield from _deadline(new, old)
    _adopt(new, old)
    if new != old:
        allowed = "`spec.containers[*].image`, `spec.initContainers[*].image`, `spec.activeDeadlineSeconds`"
        yield forbidden(
            "spec", f"pod updates may not change fields other than {allowed} or `spec.tolerations` (only additions)"
        )


def _adopt(new: Object, old: Object) -> None:
    """Make equal what an update may change."""
    for kind in ("containers", "initContainers"):
        for one, former in zip(new.get(kind) or [], old.get(kind) or [], strict=True):
            one["image"] = former.get("image")
    for name in ("activeDeadlineSeconds", "tolerations", "schedulingGates"):
        new.pop(name, None)
        if name in old:
            new[name] = old[name]
    if old.get("schedulingGates"):
        for name in ("nodeSelector", "affinity"):
            new.pop(name, None)
            if name in old:
                new[name] = old[name]
    if new.get("terminationGracePeriodSeconds") == 1 and (old.get("terminationGracePeriodSeconds") or 0) < 0:
        new["terminationGracePeriodSeconds"] = old["terminationGracePeriodSeconds"]


def _gate_changes(new: Object, old: Object) -> Causes:
    held = [g.get("name") for g in old.get("schedulingGates") or []]
    for n, gate in enumerate(new.get("schedulingGates") or []):
        if gate.get("name") not in held:
            yield forbidden(
                f"spec.schedulingGates[{n}].name", "only deletion is allowed, but found new scheduling gate"
            )


def _toleration_changes(new: Object, old: Object) -> Causes:
    def same(one: Object, other: Object) -> bool:
        return all(one.get(f) == other.get(f) for f in ("key", "operator", "value", "effect"))

    kept = new.get("tolerations") or []
    for one in old.get("tolerations") or []:
        if not any(same(one, other) for other in kept) and new.get("nodeName"):
            yield forbidden("spec.tolerations", "existing toleration can not be modified except its tolerationSeconds")
            return
    if kept != (old.get("tolerations") or []):
        yield from scheduling.tolerations("spec.tolerations", kept)


def _deadline(new: Object, old: Object) -> Causes:
    ours, theirs = new.get("activeDeadlineSeconds"), old.get("activeDeadlineSeconds")
    if ours is None:
        if theirs is not None:
            yield invalid("spec.activeDeadlineSeconds", None, "must not update from a positive integer to nil value")
    elif not 0 <= ours <= 2**31 - 1:
        yield invalid("spec.activeDeadlineSeconds", ours, "must be between 0 and 2147483647, inclusive")
    elif theirs is not None and theirs < ours:
        yield invalid("spec.activeDeadlineSeconds", ours, "must be less than or equal to previous value")
