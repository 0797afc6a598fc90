"""Built-in admission: what the cluster adds to an object that is created, in upstream's order. Pure.

A plugin is a function and the kinds that it reads. It gets a new object after its defaults, and the objects of those
kinds (of the same namespace, for namespaced kinds), and changes the object or raises a 403. Plugins that judge come
after validation and will have a list of their own.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from podwire_base.kube.errors import StatusError
from podwire_base.kube.meta import Object, annotations_of, name
from podwire_base.kube.registry import of

from .rbac.nodes import MIRROR
from .strategies.base import forbidden

Found = Mapping[str, Sequence[Object]]  # kind -> objects
TOKEN_PATH = "/var/run/secrets/kubernetes.io/serviceaccount"
TOKEN_VOLUME = "kube-api-access-"
_LETTERS = "bcdfghjklmnpqrstvwxz2456789"
_TOKEN_SECONDS = 3607  # a few more than an hour: so upstream tells its own volumes from those of users
_TOLERATED = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
_TOLERATION_SECONDS = 300
_PREEMPT = "PreemptLowerPriority"
_SYSTEM_PRIORITIES = {"system-cluster-critical": 2_000_000_000, "system-node-critical": 2_000_001_000}


@dataclass(frozen=True, slots=True)
class Plugin:
    """change: (object, what `reads` names). Raises StatusError 403."""

    change: Callable[[Object, Found], None]
    reads: tuple[str, ...] = ()


def _refuse(obj: Object, why: str) -> StatusError:
    return forbidden(of(obj["kind"]), name(obj), why)


# ---- ServiceAccount


def _token_volume(own: str) -> Object:
    token = {"expirationSeconds": _TOKEN_SECONDS, "path": "token"}
    authority = {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}
    space = {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}
    sources = [{"serviceAccountToken": token}, {"configMap": authority}, {"downwardAPI": {"items": [space]}}]
    return {"name": own, "projected": {"sources": sources, "defaultMode": 0o644}}


def service_account(pod: Object, found: Found) -> None:
    """Every pod has an account: `default` if it names none. Its token is mounted, and its pull secrets are the pod's,
    unless the pod has its own. Where nothing has made the account `default` yet, the pod has only its name.
    """
    spec = pod["spec"]
    if MIRROR in annotations_of(pod):
        return  # the copy of a static pod has no account
    wanted = spec.get("serviceAccountName") or "default"
    account = next((a for a in found["ServiceAccount"] if name(a) == wanted), None)
    if account is None and spec.get("serviceAccountName") not in (None, "", "default"):
        space = pod["metadata"].get("namespace")
        raise _refuse(pod, f'error looking up service account {space}/{wanted}: serviceaccount "{wanted}" not found')
    spec["serviceAccountName"] = spec["serviceAccount"] = wanted
    if account is None:
        return
    mounted = spec.get("automountServiceAccountToken")
    mounted = account.get("automountServiceAccountToken") if mounted is None else mounted
    if mounted is not False:
        _mount_token(spec)
    if not spec.get("imagePullSecrets") and account.get("imagePullSecrets"):
        spec["imagePullSecrets"] = [dict(secret) for secret in account["imagePullSecrets"]]


def _mount_token(spec: Object) -> None:
    volumes = spec.get("volumes") or []
    known = next((v["name"] for v in volumes if v.get("name", "").startswith(TOKEN_VOLUME)), "")
    own, needed = known or TOKEN_VOLUME + "".join(random.choices(_LETTERS, k=5)), False
    for kind in ("initContainers", "containers"):
        for one in spec.get(kind) or []:
            mounts = one.get("volumeMounts") or []
            if all(m.get("mountPath") != TOKEN_PATH for m in mounts):
                one["volumeMounts"] = [*mounts, {"name": own, "readOnly": True, "mountPath": TOKEN_PATH}]
                needed = True
    if needed and not known:
        spec["volumes"] = [*volumes, _token_volume(own)]


# ---- priority, tolerations


def priority(pod: Object, found: Found) -> None:
    """The number behind priorityClassName, or behind the class that is the cluster's default."""
    spec, wanted = pod["spec"], pod["spec"].get("priorityClassName")
    policy, value = _PREEMPT, 0
    if wanted:
        known = next((c for c in found["PriorityClass"] if name(c) == wanted), None)
        if known is None and wanted not in _SYSTEM_PRIORITIES:
            raise _refuse(pod, f"no PriorityClass with name {wanted} was found")
        value = _SYSTEM_PRIORITIES.get(wanted, 0) if known is None else known.get("value") or 0
        policy = (known or {}).get("preemptionPolicy") or _PREEMPT
    elif defaults := [c for c in found["PriorityClass"] if c.get("globalDefault")]:
        chosen = min(defaults, key=lambda c: c.get("value") or 0)
        spec["priorityClassName"], value = name(chosen), chosen.get("value") or 0
        policy = chosen.get("preemptionPolicy") or _PREEMPT
    if spec.get("priority") not in (None, value):
        raise _refuse(pod, f"the integer value of priority ({spec['priority']}) must not be provided in pod spec")
    if spec.get("preemptionPolicy") not in (None, policy):
        text = f"the string value of PreemptionPolicy ({spec['preemptionPolicy']}) must not be provided in pod spec"
        raise _refuse(pod, text)
    spec["priority"], spec["preemptionPolicy"] = value, policy


def tolerations(pod: Object, _found: Found) -> None:
    """A pod stays for five minutes on a node that is not ready or that cannot be reached, unless it says otherwise."""
    held = pod["spec"].get("tolerations") or []
    for key in _TOLERATED:
        if not any(t.get("key") in (None, "", key) and t.get("effect") in (None, "", "NoExecute") for t in held):
            more = {"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": _TOLERATION_SECONDS}
            held = [*held, more]
    if held:
        pod["spec"]["tolerations"] = held


# ---- limits, classes


def limits(pod: Object, found: Found) -> None:
    """The defaults of the namespace's LimitRanges, for containers that name no limits or requests of their own. An
    annotation tells what was set.
    """
    rules = [i for r in found["LimitRange"] for i in r["spec"].get("limits") or [] if i.get("type") == "Container"]
    wanted = {"request": "defaultRequest", "limit": "default"}
    told = []
    for kind, what in (("containers", "container"), ("initContainers", "init container")):
        for one in pod["spec"].get(kind) or []:
            for field, source in wanted.items():
                values = {k: v for rule in rules for k, v in (rule.get(source) or {}).items()}
                parts = one.setdefault("resources", {}).get(field + "s") or {}
                new = {k: v for k, v in values.items() if k not in parts}
                if new:
                    one["resources"][field + "s"] = {**parts, **new}
                    told.append(f"{', '.join(sorted(new))} {field} for {what} {one.get('name')}")
    if told:
        notes = {**annotations_of(pod), "kubernetes.io/limit-ranger": f"LimitRanger plugin set: {'; '.join(told)}"}
        pod["metadata"]["annotations"] = notes


def runtime_class(pod: Object, found: Found) -> None:
    """The overhead that the pod's RuntimeClass tells."""
    wanted = pod["spec"].get("runtimeClassName")
    if not wanted:
        return
    known = next((c for c in found["RuntimeClass"] if name(c) == wanted), None)
    if known is None:
        raise _refuse(pod, f'pod rejected: RuntimeClass "{wanted}" not found')
    if fixed := (known.get("overhead") or {}).get("podFixed"):
        pod["spec"]["overhead"] = dict(fixed)


def _default_class(found: Sequence[Object], annotation: str) -> str:
    """Return the name of the default class, "" if there is none; of several, the newest."""
    marked = [c for c in found if annotations_of(c).get(annotation) == "true"]
    marked.sort(key=name)
    newest = max(marked, key=lambda c: str(c["metadata"].get("creationTimestamp") or ""), default=None)
    return name(newest) if newest is not None else ""


def storage_class(claim: Object, found: Found) -> None:
    if claim["spec"].get("storageClassName") is None:
        chosen = _default_class(found["StorageClass"], "storageclass.kubernetes.io/is-default-class")
        if chosen:
            claim["spec"]["storageClassName"] = chosen


def ingress_class(ingress: Object, found: Found) -> None:
    given = ingress["spec"].get("ingressClassName") is not None
    if given or "kubernetes.io/ingress.class" in annotations_of(ingress):
        return
    if chosen := _default_class(found["IngressClass"], "ingressclass.kubernetes.io/is-default-class"):
        ingress["spec"]["ingressClassName"] = chosen


# ---- protection of storage, nodes that are new

NOT_READY = "node.kubernetes.io/not-ready"
PROTECTED = {  # kind -> the finalizer that the controllers of protection.py remove when nothing uses the object
    "PersistentVolume": "kubernetes.io/pv-protection",
    "PersistentVolumeClaim": "kubernetes.io/pvc-protection",
    "VolumeAttributesClass": "kubernetes.io/vac-protection",
}


def protect(obj: Object, _found: Found) -> None:
    held = obj["metadata"].get("finalizers") or []
    if PROTECTED[obj["kind"]] not in held:
        obj["metadata"]["finalizers"] = [*held, PROTECTED[obj["kind"]]]


def not_ready(node: Object, _found: Found) -> None:
    """A new node gets no pods until the node lifecycle controller has seen it ready."""
    spec = node.setdefault("spec", {})
    held = spec.get("taints") or []
    if not any(t.get("key") == NOT_READY and t.get("effect") == "NoSchedule" for t in held):
        spec["taints"] = [*held, {"key": NOT_READY, "effect": "NoSchedule"}]


# (group, kind) -> plugins that change a new object, in upstream's order
MUTATING: dict[tuple[str, str], tuple[Plugin, ...]] = {
    ("", "Pod"): (
        Plugin(limits, ("LimitRange",)),
        Plugin(service_account, ("ServiceAccount",)),
        Plugin(priority, ("PriorityClass",)),
        Plugin(tolerations),
        Plugin(runtime_class, ("RuntimeClass",)),
    ),
    ("", "Node"): (Plugin(not_ready),),
    ("", "PersistentVolume"): (Plugin(protect),),
    ("", "PersistentVolumeClaim"): (Plugin(storage_class, ("StorageClass",)), Plugin(protect)),
    ("networking.k8s.io", "Ingress"): (Plugin(ingress_class, ("IngressClass",)),),
    ("storage.k8s.io", "VolumeAttributesClass"): (Plugin(protect),),
}
# the same for updates: plugins that read nothing
UPDATING: dict[tuple[str, str], tuple[Plugin, ...]] = {("", "Pod"): (Plugin(tolerations),)}
