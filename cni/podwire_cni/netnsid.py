"""Network namespaces by descriptor, path and id (device, inode)."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterable
from pathlib import Path

from podwire_base.kernel.netns import CLONE_NEWNET

NS_GET_NSTYPE = 0xB703


def is_netns(fd: int) -> bool:
    """Whether the descriptor is a network namespace and not another kind of file."""
    try:
        return fcntl.ioctl(fd, NS_GET_NSTYPE) == CLONE_NEWNET
    except OSError:
        return False


def netns_id(fd: int) -> tuple[int, int]:
    """Returns the id of a network namespace (device, inode). Two descriptors of one namespace have the same id."""
    return (found := os.fstat(fd)).st_dev, found.st_ino


def known_netns(paths: Iterable[str]) -> dict[tuple[int, int], str]:
    """Returns the id of each network namespace -> its path. The namespace of process 1 is always one of them: it is the
    machine's. A directory stands for the files in it. Paths that cannot be read are left out.
    """
    found: dict[tuple[int, int], str] = {}
    for path in ("/proc/1/ns/net", *paths):
        with contextlib.suppress(OSError):
            for file in (entry.path for entry in os.scandir(path)) if Path(path).is_dir() else (path,):
                found[(at := os.stat(file)).st_dev, at.st_ino] = file
    return found


def own_netns() -> int:
    """Returns a descriptor of the calling thread's network namespace."""
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def record(path: str, ident: tuple[int, int] | None) -> str:
    """Returns a network namespace for a lease: "DEVICE:INODE PATH". Returns "" if the file at `path`, as this process
    sees it, is not the namespace with this id.
    """
    try:
        return f"{ident[0]}:{ident[1]} {path}" if ident and netns_id_of(path) == ident else ""
    except (OSError, ValueError):
        return ""


def netns_id_of(path: str) -> tuple[int, int]:
    return (found := os.stat(path)).st_dev, found.st_ino
