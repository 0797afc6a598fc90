"""Validation of volumes, claims and classes of storage (pkg/apis/core/validation, pkg/apis/storage/validation)."""

from __future__ import annotations

from podwire_base.kube import quantity
from podwire_base.kube.meta import Object

from . import fields, meta, resources, scheduling, volumes
from .fields import Causes, all_invalid, forbidden, invalid, not_supported, one_of, required

MODES = ("ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod")
_VOLUME_MODES = ("Block", "Filesystem")
_RECLAIM = ("Delete", "Recycle", "Retain")
_NOT_SOURCES = (
    "capacity",
    "accessModes",
    "claimRef",
    "persistentVolumeReclaimPolicy",
    "storageClassName",
    "mountOptions",
    "volumeMode",
    "nodeAffinity",
    "volumeAttributesClassName",
)


def _access(path: str, modes: list[str]) -> Causes:
    if not modes:
        yield required(path, "at least 1 access mode is required")
    for mode in modes:
        if mode not in MODES:
            yield not_supported(path, mode, MODES)
    if "ReadWriteOncePod" in modes and len(modes) > 1:
        yield forbidden(path, "may not use ReadWriteOncePod with other access modes")


def claim_spec(path: str, spec: Object) -> Causes:
    yield from _access(f"{path}.accessModes", spec.get("accessModes") or [])
    if spec.get("selector") is not None:
        yield from meta.label_selector(f"{path}.selector", spec["selector"])
    size = ((spec.get("resources") or {}).get("requests") or {}).get("storage")
    if size is None:
        yield required(f"{path}.resources[storage]")
    elif quantity.parse(size) <= 0:
        yield invalid(f"{path}.resources[storage]", size, "must be greater than zero")
    else:
        yield from resources.amount(f"{path}.resources[storage]", "storage", size)
    name = spec.get("storageClassName")
    if name:
        yield from all_invalid(f"{path}.storageClassName", name, fields.subdomain(name))
    if spec.get("volumeMode") is not None:
        yield from one_of(f"{path}.volumeMode", spec["volumeMode"], _VOLUME_MODES)
    for field in ("dataSource", "dataSourceRef"):
        if (source := spec.get(field)) is not None:
            yield from _data_source(f"{path}.{field}", source)


def _data_source(path: str, source: Object) -> Causes:
    for name in ("name", "kind"):
        if not source.get(name):
            yield required(f"{path}.{name}")
    if not source.get("apiGroup") and source.get("kind") not in ("PersistentVolumeClaim", None, ""):
        yield invalid(path, source.get("kind"), "must be 'PersistentVolumeClaim' when referencing the default apiGroup")


def claim(obj: Object) -> Causes:
    yield from claim_spec("spec", obj.get("spec") or {})


def claim_update(obj: Object, before: Object) -> Causes:
    """A claim may be bound once, and grow while it is bound."""
    ours, theirs = dict(obj.get("spec") or {}), dict(before.get("spec") or {})
    if not theirs.get("volumeName"):
        theirs["volumeName"] = ours.get("volumeName")
        if theirs["volumeName"] is None:
            del theirs["volumeName"]
    for spec in (ours, theirs):
        spec.pop("volumeAttributesClassName", None)
    new, old = (((s.get("resources") or {}).get("requests") or {}).get("storage") for s in (ours, theirs))
    bound = (before.get("status") or {}).get("phase") == "Bound"
    if bound and new is not None:
        kept = ((before.get("status") or {}).get("capacity") or {}).get("storage") or old
        if kept and quantity.parse(new) < quantity.parse(kept) and new != old:
            yield forbidden("spec.resources.requests.storage", "field can not be less than status.capacity")
        ours = {**ours, "resources": theirs.get("resources")}
    if ours != theirs:
        yield forbidden(
            "spec",
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims",
        )


def volume(obj: Object) -> Causes:
    spec = obj.get("spec") or {}
    yield from _access("spec.accessModes", spec.get("accessModes") or [])
    capacity = spec.get("capacity") or {}
    if not capacity:
        yield required("spec.capacity")
    if set(capacity) != {"storage"}:
        yield not_supported("spec.capacity", sorted(capacity), ("storage",))
    for name, text in capacity.items():
        if quantity.parse(text) <= 0:
            yield invalid(f"spec.capacity[{name}]", text, "must be greater than zero")
    if spec.get("persistentVolumeReclaimPolicy"):
        yield from one_of("spec.persistentVolumeReclaimPolicy", spec["persistentVolumeReclaimPolicy"], _RECLAIM)
    if (required_terms := (spec.get("nodeAffinity") or {}).get("required")) is not None:
        yield from scheduling.node_selector("spec.nodeAffinity.required", required_terms)
    elif spec.get("nodeAffinity") is not None:
        yield required("spec.nodeAffinity.required", "must specify required node constraints")
    yield from _volume_sources(spec)
    if name := spec.get("storageClassName"):
        yield from all_invalid("spec.storageClassName", name, fields.subdomain(name))
    if spec.get("volumeMode") is not None:
        yield from one_of("spec.volumeMode", spec["volumeMode"], _VOLUME_MODES)


def _volume_sources(spec: Object) -> Causes:
    kinds = [k for k in sorted(spec, key=_source_order) if k not in _NOT_SOURCES and spec[k] is not None]
    for n, kind in enumerate(kinds):
        if n:
            yield forbidden(f"spec.{kind}", "may not specify more than 1 volume type")
        elif kind == "local":
            if not spec["local"].get("path"):
                yield required("spec.local.path")
            else:
                yield from volumes.no_backsteps("spec.local.path", spec["local"]["path"])
            if not (spec.get("nodeAffinity") or {}).get("required"):
                yield required("spec.nodeAffinity", "Local volume requires node affinity")
        elif kind == "csi":
            for name in ("driver", "volumeHandle"):
                if not spec["csi"].get(name):
                    yield required(f"spec.csi.{name}")
        elif kind in volumes.SOURCES:
            yield from volumes.SOURCES[kind](f"spec.{kind}", spec[kind])
    if not kinds:
        yield required("spec", "must specify a volume type")
    path = (spec.get("hostPath") or {}).get("path") or ""
    if path.rstrip("/") == "" and path and spec.get("persistentVolumeReclaimPolicy") == "Recycle":
        yield forbidden("spec.persistentVolumeReclaimPolicy", "may not be 'recycle' for a hostPath mount of '/'")


def _source_order(kind: str) -> int:
    order = ("hostPath", "gcePersistentDisk", "awsElasticBlockStore", "glusterfs", "flocker", "nfs")
    return order.index(kind) if kind in order else len(order)


def volume_update(obj: Object, before: Object) -> Causes:
    ours, theirs = ({k: v for k, v in (o.get("spec") or {}).items() if k not in _NOT_SOURCES} for o in (obj, before))
    if ours != theirs:
        yield forbidden("spec.persistentvolumesource", "spec.persistentvolumesource is immutable after creation")
    if (obj.get("spec") or {}).get("volumeMode") != (before.get("spec") or {}).get("volumeMode"):
        yield meta.immutable("spec.volumeMode", (obj.get("spec") or {}).get("volumeMode"))


def storage_class(obj: Object) -> Causes:
    name = obj.get("provisioner") or ""
    if not name:
        yield required("provisioner")
    else:
        yield from all_invalid("provisioner", name, fields.qualified(name.lower()))
    for key in obj.get("parameters") or {}:
        if not key:
            yield invalid("parameters", key, "field can not be empty.")
    if obj.get("reclaimPolicy"):
        yield from one_of("reclaimPolicy", obj["reclaimPolicy"], ("Delete", "Retain"))
    if not obj.get("volumeBindingMode"):
        yield required("volumeBindingMode")
    else:
        yield from one_of("volumeBindingMode", obj["volumeBindingMode"], ("Immediate", "WaitForFirstConsumer"))


def storage_class_update(obj: Object, before: Object) -> Causes:
    if (obj.get("parameters") or {}) != (before.get("parameters") or {}):
        yield forbidden("parameters", "updates to parameters are forbidden.")
    if obj.get("provisioner") != before.get("provisioner"):
        yield meta.immutable("provisioner", obj.get("provisioner"))
    if obj.get("reclaimPolicy") != before.get("reclaimPolicy"):
        yield forbidden("reclaimPolicy", "updates to reclaimPolicy are forbidden.")
    if obj.get("volumeBindingMode") != before.get("volumeBindingMode"):
        yield meta.immutable("volumeBindingMode", obj.get("volumeBindingMode"))


def csi_driver_warnings(obj: Object) -> list[str]:
    spec = obj.get("spec") or {}
    if spec.get("tokenRequests") and spec.get("serviceAccountTokenInSecrets") is None:
        why = "set to true to prevent possible logging of tokens in volume attributes"
        return [f"spec.serviceAccountTokenInSecrets is unset; if supported by this CSI driver, {why}"]
    return []
