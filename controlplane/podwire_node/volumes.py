"""The volumes that a container mounts, as data: where each is on the node. Pure; volumefiles.py makes them.

Source: Kubernetes' documentation "Volumes"; core/v1 VolumeMount. A node is a namespace of the machine, so a hostPath is
below the node's own directory, and never a path of the machine.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass

from podwire_base.kube.meta import Object

from .podspec import Refused, expand

CONFIG_ERROR = "CreateContainerConfigError"
OF_API = ("configMap", "secret", "downwardAPI", "projected")


@dataclass(frozen=True, slots=True)
class Places:
    """Directories of the node. empty: of the pod's emptyDirs. memory: the same in RAM. api: of the volumes that are
    made of API objects. host: the root of the node's own files, for hostPath.
    """

    empty: str
    memory: str
    api: str
    host: str


@dataclass(frozen=True, slots=True)
class Mount:
    """One volumeMount. kind: the volume's field, such as emptyDir. source: on the node, without `sub`. host_type:
    hostPath's type. sub: the path in the volume that is mounted, "" for all of it.
    """

    volume: str
    kind: str
    source: str
    path: str
    read_only: bool
    sub: str = ""
    host_type: str = ""


def kind_of(volume: Object) -> str:
    """Return the field that says what a volume is; a volume without one is an emptyDir."""
    return next((key for key, value in volume.items() if key != "name" and value is not None), "emptyDir")


def mounts(pod: Object, container: Object, places: Places, env: Mapping[str, str]) -> list[Mount]:
    """Return a container's mounts, in the order in which they are made: a path before those below it. Raises Refused
    for a volume that podwire's nodes do not have.
    """
    volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes") or []}
    made = []
    for row in container.get("volumeMounts") or []:
        own = str(row["name"])
        if own not in volumes:
            raise Refused(CONFIG_ERROR, f"volume {own}: not in spec.volumes")
        kind, volume = kind_of(volumes[own]), volumes[own]
        source = _source(own, kind, volume.get(kind) or {}, places)
        sub = row.get("subPath") or expand(str(row.get("subPathExpr") or ""), dict(env))
        made.append(
            Mount(
                own,
                kind,
                source,
                str(row["mountPath"]),
                bool(row.get("readOnly")) or kind in OF_API,
                _inside(own, sub) if sub else "",
                str((volume.get(kind) or {}).get("type") or "") if kind == "hostPath" else "",
            )
        )
    return sorted(made, key=lambda mount: posixpath.normpath(mount.path).count("/"))


def _source(own: str, kind: str, part: Object, places: Places) -> str:
    if kind == "emptyDir":
        return f"{places.memory if part.get('medium') == 'Memory' else places.empty}/{own}"
    if kind in OF_API:
        return f"{places.api}/{own}"
    if kind == "hostPath":
        return places.host + posixpath.normpath("/" + str(part["path"]).lstrip("/"))
    if kind == "persistentVolumeClaim":
        raise Refused(
            CONFIG_ERROR,
            f"volume {own}: persistentVolumeClaim {part.get('claimName')!r}: podwire's nodes have no provisioner; use "
            "an emptyDir, or a hostPath, which is a directory of the node",
        )
    raise Refused(
        CONFIG_ERROR,
        f"volume {own}: {kind} is not supported; podwire's nodes have emptyDir, hostPath, {', '.join(OF_API)}",
    )


def _inside(volume: str, sub: str) -> str:
    clean = posixpath.normpath(sub)
    if clean.startswith(("/", "..")):
        raise Refused(CONFIG_ERROR, f"volume {volume}: subPath {sub!r} is not inside the volume")
    return "" if clean == "." else clean
