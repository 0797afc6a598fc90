"""Stores leases on disk. Each address has one small file, so `ls` shows the leases, and a damaged file affects only one
address.

A reader sees a complete file or none, because a file is written under a temporary name and then renamed. A lock
excludes other writers. When the ADD is complete, a second line is appended to the file. Both writes happen before the
plugin prints its result, so a crash of the process loses no lease. The store deliberately does not call fsync. Only a
power failure could damage or lose a file. But a power failure also ends every pod, and the boot id then differs from
the boot id in each lease. So fsync would change no outcome. (The reference plugin host-local does not call fsync
either.)

The file of a released lease is renamed to `.rest-ADDRESS`. The change time (ctime) of this file is the time of the
release. The file `.layout` has the number of the layout of all these files. Version 0.2 wrote none.

An address whose file is unreadable is not allocated until the kernel shows that no pod uses it, or until its owner is
known.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import time
from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from pathlib import Path

from podwire_base.role import files, layout, logs

from ..capabilities import port_mappings
from ..errors import CNIError, ErrorCode
from ..types import Attachment, IPAddress
from .allocator import Lease

log = logs.get("wiring")
WIRED = b"wired\n"
REST = ".rest-"
LAYOUT = 1  # raised by a change that an older agent would misread
LAYOUT_FILE = ".layout"


def boot_id() -> str:
    """Returns the kernel's boot id, a random id that differs at each boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


class Busy(OSError):
    """Another process has locked the directory of leases."""


class DirStore:
    """A directory of leases. The constructor locks it (flock) until `close`, so that only one process allocates
    addresses.

    Raises Busy if another process still has the lock after `wait` seconds, and layout.NewerLayout for leases of a later
    version.
    """

    def __init__(self, path: Path, *, wait: float = 0) -> None:
        self.path, self._prefix = path, f"{path}/"
        path.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(path / ".lock", os.O_CREAT | os.O_RDONLY | os.O_CLOEXEC, 0o600)
        self._damaged: set[IPAddress] = set()
        deadline = time.monotonic() + wait
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as err:
                if time.monotonic() >= deadline:
                    os.close(self._lock)
                    raise Busy(err.errno, "another wiring agent or plugin holds the leases", str(path)) from err
            time.sleep(0.02)
        try:
            if self._layout() < LAYOUT:
                with contextlib.suppress(OSError):  # a full disk must not prevent the end of a pod
                    files.write(path / LAYOUT_FILE, f"{LAYOUT}\n")
        except BaseException:
            self.close()
            raise

    def _layout(self) -> int:
        """Returns the layout of the leases; 0 if none is told. Raises layout.NewerLayout."""
        try:
            found = int((self.path / LAYOUT_FILE).read_text()[:9])
        except FileNotFoundError:
            return 0
        except ValueError:  # a damaged file tells nothing, and each lease is checked by itself
            return 0
        if found > LAYOUT:
            raise layout.NewerLayout(layout.refusal(f"leases of {self.path}", found, LAYOUT))
        return found

    def forget_layout(self) -> None:
        """Removes the number, for an older version that knows none."""
        (self.path / LAYOUT_FILE).unlink(missing_ok=True)

    def close(self) -> None:
        os.close(self._lock)

    def leases(self) -> Iterable[Lease]:
        found = []
        for file in sorted(self.path.iterdir(), key=_age):
            if file.name.startswith("."):
                if file.name.startswith(".new-"):
                    file.unlink(missing_ok=True)  # a writer ended between write and rename
                continue
            lease = _read(file)
            if lease is not None:
                found.append(lease)
            elif (address := address_of(file.name)) is None or file.is_dir():
                log.warn("not a lease, ignored", file=str(file))
            else:
                log.error("unreadable lease, its address is not given until its pod is gone", file=str(file))
                self._damaged.add(address)
        return found

    def damaged(self) -> frozenset[IPAddress]:
        return frozenset(self._damaged)

    def reserve(self, lease: Lease) -> bool:
        # Plain system calls and string paths are faster than pathlib, and a pod waits for this.
        name = str(lease.address)
        if os.access(self._prefix + name, os.F_OK):
            # The allocator knows all leases, so this file came from elsewhere; settle_damaged looks for its pod.
            if not Path(self._prefix + name).is_dir():
                self._damaged.add(lease.address)
            return False
        self._put(name, lease, b"")
        return True

    def mend(self, lease: Lease) -> None:
        self._put(str(lease.address), lease, WIRED)
        self._damaged.discard(lease.address)

    def _put(self, name: str, lease: Lease, note: bytes) -> None:
        fresh, final = f"{self._prefix}.new-{name}", self._prefix + name
        try:
            files.put(fresh, final, json.dumps(lease.to_json()).encode() + b"\n" + note)
        except OSError as err:
            raise self._refusal(fresh, err) from err

    def wired(self, lease: Lease) -> None:
        path = self._prefix + str(lease.address)
        try:
            _append(path, WIRED)
        except OSError as err:
            raise self._refusal(path, err) from err

    def release(self, address: IPAddress, *, rest: bool = False) -> None:
        path = self._prefix + str(address)
        if rest:
            with contextlib.suppress(OSError):  # a full disk must not prevent the end of a pod
                os.rename(path, f"{self._prefix}{REST}{address}")  # noqa: PTH104 - as below
                return
        try:
            os.unlink(path)  # noqa: PTH108 - a pod's end waits for this
        except FileNotFoundError:
            pass  # the file is already absent
        except OSError as err:
            raise self._refusal(path, err) from err
        self._damaged.discard(address)

    def resting(self) -> Mapping[IPAddress, float]:
        files = [
            (file, address_of(file.name.removeprefix(REST)))
            for file in self.path.iterdir()
            if file.name.startswith(REST)
        ]
        found = sorted((file.stat().st_ctime, str(address), address) for file, address in files if address)
        return {address: at for at, _, address in found}

    def forget(self, address: IPAddress) -> None:
        # If the deletion fails, the file still exists at the next start and only prolongs the quarantine.
        with contextlib.suppress(OSError):
            os.unlink(f"{self._prefix}{REST}{address}")  # noqa: PTH108 - as above

    def _refusal(self, path: str, err: OSError) -> CNIError:
        """Returns a disk error as a CNI error."""
        return CNIError(
            ErrorCode.IO_FAILURE,
            f"the lease {path} cannot be written: {err.strerror}",
            f"make room, or make {self.path} writable for the wiring agent",
        )


def _append(path: str, data: bytes) -> None:
    """Append `data` to a file. Raises OSError, also if only a part of `data` was written."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_APPEND, 0o644)
    try:
        if os.write(fd, data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(fd)


def _age(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def address_of(name: str) -> IPAddress | None:
    """Returns the address that names a lease's file; None for another name."""
    try:
        return ip_address(name)
    except ValueError:
        return None


def _read(file: Path) -> Lease | None:
    try:
        first, _, rest = file.read_bytes().partition(b"\n")
        raw = json.loads(first)
        owner = Attachment(str(raw["containerID"]), str(raw["ifname"]))
        if not owner.container_id:  # an earlier version took such leases over from host-local
            return None
        return Lease(
            ip_address(file.name),
            owner,
            str(raw["pod"]),
            str(raw["podUID"]),
            str(raw["bootID"]),
            str(raw["mac"]),
            rest.startswith(WIRED),
            port_mappings(raw.get("ports"), "ports"),
            str(raw.get("bridge", "")),
            tuple(map(str, raw.get("aliases", ()))),
            str(raw.get("origin", "")),
            str(raw.get("network", "")),
            str(raw.get("netns", "")),
            int(raw.get("mtu", 0)),
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError, CNIError):
        return None
