"""Makes the directories of a pod's volumes on the node, and finds what a subPath leads to."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from .launch import Bind
from .podspec import Refused
from .volumes import CONFIG_ERROR, OF_API, Mount

_TYPES = {"Directory": stat.S_ISDIR, "File": stat.S_ISREG, "Socket": stat.S_ISSOCK}


def make(mounts: Iterable[Mount], group: int | None) -> tuple[Bind, ...]:
    """Make what does not exist yet and return the binds. group: fsGroup, the owner of emptyDirs. Raises Refused."""
    return tuple(Bind(_place(mount, group), mount.path, mount.read_only) for mount in mounts)


def _place(mount: Mount, group: int | None) -> str:
    root = Path(mount.source)
    if mount.kind == "emptyDir" and not root.exists():
        root.mkdir(parents=True)
        root.chmod(0o2777 if group is not None else 0o777)
        if group is not None:
            os.chown(root, -1, group)
    elif mount.kind == "hostPath":
        _host(root, mount)
    return str(root if not mount.sub else _sub(root, mount))


def _host(root: Path, mount: Mount) -> None:
    kind = mount.host_type
    if kind in ("CharDevice", "BlockDevice"):
        raise Refused(CONFIG_ERROR, f"volume {mount.volume}: hostPath type {kind}: podwire's nodes have no devices")
    if kind in ("", "DirectoryOrCreate") and not root.exists():
        root.mkdir(parents=True, mode=0o755)
    elif kind == "FileOrCreate" and not root.exists():
        root.parent.mkdir(parents=True, exist_ok=True)
        root.touch(0o644)
    wanted = _TYPES.get(kind.removesuffix("OrCreate"))
    if wanted and not (root.exists() and wanted(root.stat().st_mode)):
        told = {"Directory": "directory", "File": "file", "Socket": "socket file"}[kind.removesuffix("OrCreate")]
        raise Refused(
            CONFIG_ERROR,
            f"hostPath type check failed: {root} is not a {told} (a hostPath is below the node's directory)",
        )


def _sub(root: Path, mount: Mount) -> Path:
    """Return the path of a subPath. It is made in a volume that the pod writes. No link in it leads out of the
    volume.
    """
    real = Path(os.path.realpath(root / mount.sub))
    if not real.is_relative_to(os.path.realpath(root)):
        raise Refused(CONFIG_ERROR, f"volume {mount.volume}: subPath {mount.sub!r} leads out of the volume")
    if not real.exists() and mount.kind not in OF_API:
        real.mkdir(parents=True)
    return real
