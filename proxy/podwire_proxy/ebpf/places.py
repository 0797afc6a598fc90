"""Finds where the programs sit on this machine: the cgroup whose sockets meet them, and the bpffs with their pins. I/O.

The folder of a node's pins is named after the number of its network namespace (SO_NETNS_COOKIE), so that several nodes
share a bpffs, and each finds its own. Below it, a folder is named after the layout of the maps.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import os
import re
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

from podwire_base.kernel.netns import within

SO_NETNS_COOKIE = 71  # socket(7); asm-generic/socket.h
NS_GET_ID = 0x8008B70D  # linux/nsfs.h: _IOR(NSIO, 13, __u64)
BPFFS, FOLDER = Path("/sys/fs/bpf"), "podwire"
_libc = ctypes.CDLL(None, use_errno=True)


def cookie(ns_fd: int | None = None) -> int:
    """Returns the kernel's number of a network namespace; numbers are not used again. Raises OSError.

    Where the kernel tells the number of a namespace's file, no right to enter the namespace is needed.
    """
    if ns_fd is not None and _files_tell():
        return _told(ns_fd)
    return within(ns_fd, _own)


def _own() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        found: int = struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8))[0]
        return found


def _told(ns_fd: int) -> int:
    answer = bytearray(8)
    fcntl.ioctl(ns_fd, NS_GET_ID, answer)
    found: int = struct.unpack("=Q", answer)[0]
    return found


@functools.cache
def _files_tell() -> bool:
    """Whether the number of a namespace's file is that of its sockets: no manual page promises it."""
    fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _told(fd) == _own()
    except OSError:
        return False  # a kernel before 6.18
    finally:
        os.close(fd)


def _mounts(kind: str) -> Iterator[tuple[str, Path]]:
    """Yields (root inside the file system, mount point). Source: proc_pid_mountinfo(5)."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if after.split(" ")[0] == kind:
            root, point = before.split(" ")[3:5]
            yield root, Path(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), point))


def cgroup(wanted: str) -> Path:
    """Returns the cgroup at which the hooks sit. wanted: "": the root of the machine's. Raises OSError."""
    if wanted:
        if not Path(wanted, "cgroup.procs").exists():
            raise OSError(errno.ENOENT, f"{wanted} is not a cgroup of the unified hierarchy (cgroup2)")
        return Path(wanted)
    found = list(_mounts("cgroup2"))
    whole = next((point for root, point in found if root == "/"), None)
    if whole is not None:
        return whole
    if found:
        raise OSError(errno.ENOENT, f"{found[0][1]} is not the machine's cgroup2 but a container's: mount the host's")
    raise OSError(errno.ENOENT, "no cgroup2 is mounted")


def bpffs(wanted: str) -> Path:
    """Returns the bpffs for pins. wanted: "": /sys/fs/bpf, mounted there if nothing is. Raises OSError."""
    point = Path(wanted) if wanted else BPFFS
    if point not in [mount for _, mount in _mounts("bpf")]:
        point.mkdir(mode=0o700, parents=True, exist_ok=True)
        if _libc.mount(b"bpf", os.fsencode(point), b"bpf", ctypes.c_ulong(0), b"mode=0700"):
            code = ctypes.get_errno()
            raise OSError(code, f"no bpffs at {point}, and it cannot be mounted: {os.strerror(code)}")
    return point


def folders(ns_fd: int | None = None, wanted: str = "") -> list[tuple[int, Path]]:
    """Returns (layout, folder) of the pins of this node in every bpffs that this process sees."""
    try:
        name = str(cookie(ns_fd))
    except OSError:
        return []  # a kernel before 5.14 has no such numbers, so no pins either
    points = {mount for _, mount in _mounts("bpf")} | ({Path(wanted)} if wanted else set())
    found: dict[tuple[int, int], tuple[int, Path]] = {}
    for point in sorted(points):
        with contextlib.suppress(OSError):
            for folder in sorted((point / FOLDER / name).iterdir()):
                if folder.name.isdigit():
                    at = folder.stat()
                    found.setdefault((at.st_dev, at.st_ino), (int(folder.name), folder))
    return sorted(found.values())


def make(root: Path, ns_fd: int | None, layout: int) -> Path:
    """Returns the folder for the pins, which only root may enter. Raises OSError."""
    folder = root / FOLDER / str(cookie(ns_fd)) / str(layout)
    for one in (folder.parent.parent, folder.parent, folder):
        one.mkdir(mode=0o700, exist_ok=True)
        one.chmod(0o700)
    return folder


def remove(folder: Path) -> None:
    """Removes a folder of pins, and the node's folder if nothing else is in it. What is unpinned and not attached by
    anybody else ends.
    """
    for pin in folder.iterdir():
        pin.unlink(missing_ok=True)
    folder.rmdir()
    with contextlib.suppress(OSError):
        folder.parent.rmdir()
        folder.parent.parent.rmdir()
