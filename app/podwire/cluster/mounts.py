"""The mounts that keep a cluster's network namespaces alive, and their removal whatever other programs did to them.

A bind mount on a file keeps a network namespace alive. The files are in the directory ns/ of the cluster's run
directory, which is mounted onto itself as unbindable: no mount event leaves it, and `mount --rbind` of a directory
above does not copy it (mount_namespaces(7)).

unlink(2) fails with EBUSY on a file that is a mount point in the caller's mount namespace, also if a later mount hides
that mount. `ip netns add` hides mounts in this way: it mounts /run/netns onto itself. On a file that is a mount point
only in other mount namespaces, unlink(2) succeeds, and the kernel then unmounts the file in all of them. So `remove`
works in a private mount namespace, unmounts there what is in its way, and unlinks. The mounts of other programs stay
in the machine's mount namespace.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from podwire_base.kernel.netns import in_thread, unshare

CLONE_NEWNS = 0x20000
MS_BIND, MS_REC, MS_UNBINDABLE, MS_PRIVATE, MNT_DETACH, UMOUNT_NOFOLLOW = 4096, 16384, 1 << 17, 1 << 18, 2, 8
_libc = ctypes.CDLL(None, use_errno=True)


def _mount(source: str, target: str, flags: int) -> None:
    if _libc.mount(source.encode(), target.encode(), b"none", ctypes.c_ulong(flags), None):
        code = ctypes.get_errno()
        raise OSError(code, f"mount {target}: {os.strerror(code)}")


def _unmount(target: str) -> bool:
    """Unmount the topmost mount of `target`. Returns False if nothing is mounted there."""
    return bool(_libc.umount2(target.encode(), MNT_DETACH | UMOUNT_NOFOLLOW) == 0)


def _table() -> list[tuple[str, str]]:
    """Return (root, mount point) of each mount of the calling thread, in the order of mounting. Source:
    proc_pid_mountinfo(5).
    """
    rows = [line.split(" ")[3:5] for line in Path("/proc/thread-self/mountinfo").read_text().splitlines()]
    return [(root, re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), point)) for root, point in rows]


def points(below: str) -> list[str]:
    """Return the mount points at and below a path, in the order of mounting."""
    return [point for _, point in _table() if point == below or point.startswith(below.rstrip("/") + "/")]


def hold(directory: Path) -> None:
    """Make `directory` a mount that nothing copies. Raises OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    path = os.path.realpath(directory)
    if path not in points(path):
        _mount(path, path, MS_BIND)
        _mount("none", path, MS_UNBINDABLE)


def pin(file: Path) -> None:
    """Keep the network namespace of the calling thread alive by a mount on `file`. Raises OSError."""
    file.touch()
    _mount("/proc/thread-self/ns/net", str(file), MS_BIND)


def unpin(file: Path) -> None:
    """Remove a file that `pin` mounted on, if it exists. Raises OSError."""
    while _unmount(str(file)):
        pass
    file.unlink(missing_ok=True)


def _private(work: Callable[[], None]) -> None:
    """Run `work` in a mount namespace of its own, a copy of the caller's. Raises OSError."""

    def body() -> None:
        unshare(CLONE_NEWNS)
        _mount("none", "/", MS_REC | MS_PRIVATE)
        work()

    in_thread(body)


def remove(run_dir: Path, shared: Path, ours: Callable[[Path], bool], say: Callable[[str], None]) -> list[str]:
    """Remove a cluster's directory, and the entries of `shared` (/run/netns) for which `ours` is true. Returns what
    stays: one line for each file or mount, with the reason and the command that removes it. say: is called with the
    name of each entry that was removed.
    """
    stays: list[str] = []

    def work() -> None:
        busy: dict[str, str] = {}
        while True:  # once for each mount on the directory: it may hide an entry, or a mount on an entry
            _unlink(shared, ours, busy, say)
            if not _unmount(str(shared)):
                break
        stays.extend(busy.values())
        for point in reversed(points(str(run_dir))):
            _unmount(point)
        if left := points(str(run_dir)):  # removing files would now remove those of another file system
            stays.extend(f"mount {point}: `umount -l {point}`" for point in left)
            return
        stays.extend(_rmtree(run_dir))

    try:
        _private(work)
    except OSError:  # the sysctl user.max_mnt_namespaces may forbid it: remove what can be removed in this one
        busy: dict[str, str] = {}
        _unlink(shared, ours, busy, say)
        stays.extend(busy.values())
        for point in reversed(points(str(run_dir))):
            _unmount(point)
        if not points(str(run_dir)):
            stays.extend(_rmtree(run_dir))
    return list(dict.fromkeys(stays))


def _unlink(shared: Path, ours: Callable[[Path], bool], busy: dict[str, str], say: Callable[[str], None]) -> None:
    """Remove our entries of a directory. busy: name -> what stays and why; a later success removes the line."""
    try:
        entries = sorted(shared.iterdir())
    except OSError:
        return
    for entry in filter(ours, entries):
        if not entry.is_symlink():
            _unmount_copies(entry)
        try:
            entry.unlink()
        except FileNotFoundError:
            continue
        except OSError as err:
            busy[entry.name] = f"{entry}: {err.strerror}: `umount -l {entry}; rm {entry}`"
            continue
        busy.pop(entry.name, None)
        say(f"namespace {entry.name}")


def _unmount_copies(entry: Path) -> None:
    """Unmount a network namespace from a file, and from its copies that `mount --rbind` of a directory above made."""
    with contextlib.suppress(OSError):
        root = f"net:[{entry.stat().st_ino}]"
        for point in [point for found, point in reversed(_table()) if found == root]:
            _unmount(point)
    while _unmount(str(entry)):
        pass


def _rmtree(directory: Path) -> list[str]:
    """Remove a directory and return what stays. Another process may write into the directory, or remove it too."""
    for _ in range(3):
        shutil.rmtree(directory, ignore_errors=True)
        if not os.path.lexists(directory):
            return []
    reason = ""
    try:
        for folder, _, files in os.walk(directory, topdown=False):
            for file in files:
                os.unlink(os.path.join(folder, file))  # noqa: PTH108 - os.walk gives strings
            os.rmdir(folder)  # noqa: PTH106 - as above
    except OSError as err:
        reason = f"{err.filename}: {os.strerror(err.errno or errno.EIO)}"
    return [f"{reason or directory}: `rm -r {directory}`"] if os.path.lexists(directory) else []


def empty(directories: Sequence[Path]) -> None:
    """Remove each of the directories that is empty."""
    for directory in directories:
        with contextlib.suppress(OSError):
            directory.rmdir()
