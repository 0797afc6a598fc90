"""Validation of volumes and of their mounts (pkg/apis/core/validation)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from podwire_base.kube import quantity
from podwire_base.kube.meta import Object

from . import fields
from .fields import Causes, all_invalid, duplicate, forbidden, invalid, not_found, not_supported, one_of, required

_MODE_MAX = 0o777
_PROPAGATION = ("Bidirectional", "HostToContainer", "None")
_HOST_TYPES = ("", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket")
_FIELDS = ("metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid")
_RESOURCES = ("limits.cpu", "limits.ephemeral-storage", "limits.memory", "requests.cpu", "requests.ephemeral-storage",
              "requests.memory")  # fmt: skip
_MIN_TOKEN, _MAX_TOKEN = 600, 1 << 32
_POLICIES = ("Always", "IfNotPresent", "Never")


def local_path(path: str, text: str) -> Causes:
    """A path below a volume: relative, and never up."""
    if text.startswith("/"):
        yield invalid(path, text, "must be a relative path")
    yield from no_backsteps(path, text)


def no_backsteps(path: str, text: str) -> Causes:
    if ".." in text.split("/"):
        yield invalid(path, text, "must not contain '..'")


def _not_starting_up(path: str, text: str) -> Causes:
    yield from local_path(path, text)
    if text.startswith("..") and not text.startswith("../") and text != "..":
        yield invalid(path, text, "must not start with '..'")


def _mode(path: str, mode: Any) -> Causes:
    if mode is not None and not 0 <= mode <= _MODE_MAX:
        yield invalid(path, mode, "must be a number between 0 and 0777 (octal), both inclusive")


def _key_paths(path: str, items: list[Object]) -> Causes:
    for n, item in enumerate(items):
        if not item.get("key"):
            yield required(f"{path}.items[{n}].key")
        if not item.get("path"):
            yield required(f"{path}.items[{n}].path")
        else:
            yield from _not_starting_up(f"{path}.items[{n}].path", item["path"])
        yield from _mode(f"{path}.items[{n}].mode", item.get("mode"))


def _secret(path: str, source: Object) -> Causes:
    if not source.get("secretName"):
        yield required(f"{path}.secretName")
    yield from _mode(f"{path}.defaultMode", source.get("defaultMode"))
    yield from _key_paths(path, source.get("items") or [])


def _config_map(path: str, source: Object) -> Causes:
    if not source.get("name"):
        yield required(f"{path}.name")
    yield from _mode(f"{path}.defaultMode", source.get("defaultMode"))
    yield from _key_paths(path, source.get("items") or [])


def field_ref(path: str, source: Object, allowed: tuple[str, ...]) -> Causes:
    """A fieldRef: metadata.labels['key'] and metadata.annotations['key'] name one entry."""
    if not source.get("apiVersion"):
        yield required(f"{path}.apiVersion")
    text = source.get("fieldPath") or ""
    if not text:
        yield required(f"{path}.fieldPath")
        return
    name, _, rest = text.partition("[")
    if rest:
        if name not in ("metadata.annotations", "metadata.labels") or not rest.endswith("']") or rest[0] != "'":
            yield invalid(
                f"{path}.fieldPath", text, "error converting fieldPath: field label does not support subscript"
            )
            return
        key = rest[1:-2]
        yield from all_invalid(path, key, fields.qualified(key.lower() if name.endswith("annotations") else key))
    elif text not in allowed:
        if not known_field(text):
            yield invalid(f"{path}.fieldPath", text, "error converting fieldPath: field label not supported")
        else:
            yield not_supported(f"{path}.fieldPath", text, allowed)


def known_field(text: str) -> bool:
    return text in (*_FIELDS, "spec.nodeName", "spec.restartPolicy", "spec.serviceAccountName", "spec.schedulerName",
                    "status.phase", "status.hostIP", "status.hostIPs", "status.podIP", "status.podIPs",
                    "spec.hostNetwork", "status.nominatedNodeName")  # fmt: skip


def resource_ref(path: str, source: Object, volume: bool) -> Causes:
    if volume and not source.get("containerName"):
        yield required(f"{path}.containerName")
    name = source.get("resource") or ""
    if not name:
        yield required(f"{path}.resource")
    elif name not in _RESOURCES and not name.startswith(("limits.hugepages-", "requests.hugepages-")):
        yield not_supported(f"{path}.resource", name, _RESOURCES)
    else:
        allowed = ("1m", "1") if name.endswith("cpu") else ("1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi",
                                                             "1Gi", "1Ti", "1Pi", "1Ei")  # fmt: skip
        divisor = source.get("divisor") or "0"
        if quantity.parse(divisor) and divisor not in allowed:
            yield invalid(
                f"{path}.divisor", divisor, f"only divisor's values {', '.join(allowed)} are supported with it"
            )


def _downward_items(path: str, items: list[Object]) -> Causes:
    for item in items:  # upstream names no index here
        if not item.get("path"):
            yield required(f"{path}.path")
        else:
            yield from _not_starting_up(f"{path}.path", item["path"])
        if (ref := item.get("fieldRef")) is not None:
            yield from field_ref(f"{path}.fieldRef", ref, _FIELDS)
            if item.get("resourceFieldRef") is not None:
                yield invalid(path, "resource", "fieldRef and resourceFieldRef can not be specified simultaneously")
        elif (ref := item.get("resourceFieldRef")) is not None:
            yield from resource_ref(f"{path}.resourceFieldRef", ref, volume=True)
        else:
            yield required(path, "one of fieldRef and resourceFieldRef is required")
        yield from _mode(f"{path}.mode", item.get("mode"))


def _downward(path: str, source: Object) -> Causes:
    yield from _mode(f"{path}.defaultMode", source.get("defaultMode"))
    yield from _downward_items(path, source.get("items") or [])


def _token(path: str, token: Object) -> Causes:
    seconds = token.get("expirationSeconds") or 0
    if seconds < _MIN_TOKEN:
        yield invalid(f"{path}.expirationSeconds", seconds, "may not specify a duration less than 10 minutes")
    if seconds > _MAX_TOKEN:
        yield invalid(f"{path}.expirationSeconds", seconds, "may not specify a duration larger than 2^32 seconds")
    if not token.get("path"):
        yield required(f"{path}.path")
    else:
        yield from _not_starting_up(f"{path}.path", token["path"])


def _projected(path: str, source: Object) -> Causes:
    yield from _mode(f"{path}.defaultMode", source.get("defaultMode"))
    seen: set[str] = set()
    for n, one in enumerate(source.get("sources") or []):
        where, paths = f"{path}.sources[{n}]", list[str]()
        kinds = [kind for kind in one if one[kind] is not None]
        if len(kinds) > 1:
            yield forbidden(f"{where}.{kinds[1]}", "may not specify more than 1 volume type")
        for kind in ("secret", "configMap"):
            if (inner := one.get(kind)) is not None:
                if not inner.get("name"):
                    yield required(f"{where}.{kind}.name")
                yield from _key_paths(f"{where}.{kind}", inner.get("items") or [])
                paths += [i.get("path") or "" for i in inner.get("items") or []]
        if (inner := one.get("downwardAPI")) is not None:
            yield from _downward_items(f"{where}.downwardAPI", inner.get("items") or [])
            paths += [i.get("path") or "" for i in inner.get("items") or []]
        if (inner := one.get("serviceAccountToken")) is not None:
            yield from _token(f"{where}.serviceAccountToken", inner)
            paths.append(inner.get("path") or "")
        for text in paths:
            if text and text in seen:
                yield invalid(path, text, "conflicting duplicate paths")
            seen.add(text)


def _host_path(path: str, source: Object) -> Causes:
    if not source.get("path"):
        yield required(f"{path}.path")
    else:
        yield from no_backsteps(f"{path}.path", source["path"])
    yield from one_of(f"{path}.type", source.get("type") or "", _HOST_TYPES)


def _empty_dir(path: str, source: Object) -> Causes:
    limit = source.get("sizeLimit")
    if limit is not None and quantity.parse(limit) < 0:
        yield forbidden(f"{path}.sizeLimit", "SizeLimit field must be a valid resource quantity")


def _needs(*names: str) -> Callable[[str, Object], Causes]:
    def check(path: str, source: Object) -> Causes:
        for name in names:
            if not source.get(name):
                yield required(f"{path}.{name}")

    return check


def _nfs(path: str, source: Object) -> Causes:
    yield from _needs("server", "path")(path, source)
    if source.get("path") and not source["path"].startswith("/"):
        yield invalid(f"{path}.path", source["path"], "must be an absolute path")


def _iscsi(path: str, source: Object) -> Causes:
    yield from _needs("targetPortal", "iqn")(path, source)
    iqn = source.get("iqn") or ""
    if iqn and not iqn.startswith(("iqn", "eui", "naa")):
        yield invalid(f"{path}.iqn", iqn, "must be valid format starting with iqn, eui, or naa")
    if not 0 <= (source.get("lun") or 0) <= 255:
        yield invalid(f"{path}.lun", source.get("lun"), "must be between 0 and 255, inclusive")


def _ephemeral(path: str, source: Object) -> Causes:
    from .storage import claim_spec

    template = source.get("volumeClaimTemplate")
    if template is None:
        yield required(f"{path}.volumeClaimTemplate")
    else:
        yield from claim_spec(f"{path}.volumeClaimTemplate.spec", template.get("spec") or {})


def _image(path: str, source: Object) -> Causes:
    if not source.get("reference"):
        yield required(f"{path}.reference")
    yield from one_of(f"{path}.pullPolicy", source.get("pullPolicy"), _POLICIES)


SOURCES: Mapping[str, Callable[[str, Object], Causes]] = {
    "awsElasticBlockStore": _needs("volumeID"),
    "azureDisk": _needs("diskName", "diskURI"),
    "azureFile": _needs("secretName", "shareName"),
    "cephfs": _needs("monitors"),
    "cinder": _needs("volumeID"),
    "configMap": _config_map,
    "csi": _needs("driver"),
    "downwardAPI": _downward,
    "emptyDir": _empty_dir,
    "ephemeral": _ephemeral,
    "fc": lambda path, source: iter(()),
    "flexVolume": _needs("driver"),
    "flocker": lambda path, source: iter(()),
    "gcePersistentDisk": _needs("pdName"),
    "gitRepo": _needs("repository"),
    "glusterfs": _needs("endpoints", "path"),
    "hostPath": _host_path,
    "image": _image,
    "iscsi": _iscsi,
    "nfs": _nfs,
    "persistentVolumeClaim": _needs("claimName"),
    "photonPersistentDisk": _needs("pdID"),
    "portworxVolume": _needs("volumeID"),
    "projected": _projected,
    "quobyte": _needs("registry", "volume"),
    "rbd": _needs("monitors", "image"),
    "scaleIO": _needs("gateway", "system", "volumeName"),
    "secret": _secret,
    "storageos": _needs("volumeName"),
    "vsphereVolume": _needs("volumePath"),
}


_FIRST = (  # upstream's order: of two kinds, the later one is the wrong one
    "emptyDir",
    "hostPath",
    "gitRepo",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "secret",
    "nfs",
    "iscsi",
    "glusterfs",
    "flocker",
    "persistentVolumeClaim",
    "rbd",
    "cinder",
    "cephfs",
    "quobyte",
    "downwardAPI",
    "fc",
    "configMap",
)
_ORDER = (*_FIRST, *(kind for kind in SOURCES if kind not in _FIRST))


def source(path: str, one: Object) -> Causes:
    """Exactly one kind of storage."""
    first = True
    for kind in _ORDER:
        if one.get(kind) is None:
            continue
        if not first:
            yield forbidden(f"{path}.{kind}", "may not specify more than 1 volume type")
        else:
            yield from SOURCES[kind](f"{path}.{kind}", one[kind])
        first = False
    if first:
        yield required(path, "must specify a volume type")


def volumes(path: str, found: list[Object], known: dict[str, Object]) -> Causes:
    """known: gets the volumes without an error, by name; only those can be mounted."""
    names: set[str] = set()
    for n, one in enumerate(found):
        causes = list(_volume(f"{path}[{n}]", one, names))
        yield from causes
        if not causes:
            known[one.get("name") or ""] = one


def _volume(where: str, one: Object, names: set[str]) -> Causes:
    own = one.get("name") or ""
    yield from source(where, one)
    if not own:
        yield required(f"{where}.name")
    else:
        yield from all_invalid(f"{where}.name", own, fields.label(own))
    if own in names:
        yield duplicate(f"{where}.name", own)
    names.add(own)


def mounts(path: str, container: Object, known: Mapping[str, Object]) -> Causes:
    """The mounts of a container. known: the pod's volumes, by name."""
    seen: set[str] = set()
    devices = {d.get("devicePath") for d in container.get("volumeDevices") or []}
    device_names = {d.get("name") for d in container.get("volumeDevices") or []}
    for n, mount in enumerate(container.get("volumeMounts") or []):
        where, own, place = f"{path}[{n}]", mount.get("name") or "", mount.get("mountPath") or ""
        if not own:
            yield required(f"{where}.name")
        elif own not in known:
            yield not_found(f"{where}.name", own)
        if not place:
            yield required(f"{where}.mountPath")
        if place in seen:
            yield invalid(f"{where}.mountPath", place, "must be unique")
        seen.add(place)
        if own in device_names:
            yield invalid(f"{where}.name", own, "must not already exist in volumeDevices")
        if place in devices:
            yield invalid(f"{where}.mountPath", place, "must not already exist as a path in volumeDevices")
        if mount.get("subPath"):
            yield from local_path(f"{where}.subPath", mount["subPath"])
        if mount.get("subPathExpr"):
            if mount.get("subPath"):
                yield invalid(
                    f"{where}.subPathExpr", mount["subPathExpr"], "subPathExpr and subPath are mutually exclusive"
                )
            yield from local_path(f"{where}.subPathExpr", mount["subPathExpr"])
        if mount.get("mountPropagation") is not None:
            yield from _propagation(where, mount["mountPropagation"], container)
        yield from _recursive(where, mount)


def _propagation(where: str, value: str, container: Object) -> Causes:
    yield from one_of(f"{where}.mountPropagation", value, _PROPAGATION)
    privileged = (container.get("securityContext") or {}).get("privileged")
    if value == "Bidirectional" and not privileged:
        yield forbidden(
            f"{where}.mountPropagation", "Bidirectional mount propagation is available only to privileged containers"
        )


def _recursive(where: str, mount: Object) -> Causes:
    mode = mount.get("recursiveReadOnly")
    if mode is None:
        return
    if mode not in ("Disabled", "Enabled", "IfPossible"):
        yield not_supported(f"{where}.recursiveReadOnly", mode, ("Disabled", "Enabled", "IfPossible"))
    elif mode != "Disabled":
        if not mount.get("readOnly"):
            yield forbidden(f"{where}.recursiveReadOnly", "may only be specified when readOnly is true")
        if mount.get("mountPropagation") not in (None, "None"):
            yield forbidden(
                f"{where}.recursiveReadOnly", "may only be specified when mountPropagation is None or not specified"
            )


def devices(path: str, container: Object, known: Mapping[str, Object]) -> Causes:
    names: set[str] = set()
    paths: set[str] = set()
    for n, device in enumerate(container.get("volumeDevices") or []):
        where, own, place = f"{path}[{n}]", device.get("name") or "", device.get("devicePath") or ""
        if not own:
            yield required(f"{where}.name")
        if own in names:
            yield invalid(f"{where}.name", own, "must be unique")
        if own and own not in known:
            yield not_found(f"{where}.name", own)
        elif own and not {"persistentVolumeClaim", "ephemeral"} & known[own].keys():
            yield invalid(
                f"{where}.name",
                own,
                "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode",
            )
        if not place:
            yield required(f"{where}.devicePath")
        elif place in paths:
            yield invalid(f"{where}.devicePath", place, "must be unique")
        else:
            yield from no_backsteps(f"{where}.devicePath", place)
        names.add(own)
        paths.add(place)
