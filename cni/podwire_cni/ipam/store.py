"""Leases on disk: one small file an address, so that `ls` shows them and each stands or falls alone.

A file appears whole or not at all (written beside, then linked to its name, which also refuses a taken address); a second
line is appended when its ADD is done. There is no fsync on purpose: what a power failure could tear is void after it anyway,
because the boot id in each lease is then another one. A crash of the process loses nothing that it wrote.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterable
from ipaddress import ip_address
from pathlib import Path

from podwire_controlplane.client import logs

from ..conf import port_mappings
from ..errors import CNIError
from ..types import Attachment, IPAddress
from .allocator import Lease

log = logs.get("wiring")
WIRED = b"wired\n"


def boot_id() -> str:
    """The id that the kernel draws at each boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


class Busy(OSError):
    """Another process has the leases."""


class DirStore:
    """A directory of leases, held exclusively (flock) from construction to close, so that one process only gives addresses.

    Raises Busy where another process still has it after `wait` seconds.
    """

    def __init__(self, path: Path, *, wait: float = 0) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(path / ".lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + wait
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError as err:
                if time.monotonic() >= deadline:
                    os.close(self._lock)
                    raise Busy(err.errno, "another wiring agent or plugin holds the leases", str(path)) from err
            time.sleep(0.02)

    def close(self) -> None:
        os.close(self._lock)

    def _file(self, address: IPAddress) -> Path:
        return self.path / str(address)

    def leases(self) -> Iterable[Lease]:
        found = []
        for file in sorted(self.path.iterdir(), key=_age):
            if file.name.startswith("."):
                if file.name.startswith(".new-"):
                    file.unlink(missing_ok=True)  # a writer died between write and link
                continue
            lease = _read(file)
            if lease is None:
                log.warn("unreadable lease removed", file=str(file))
                file.unlink(missing_ok=True)
            else:
                found.append(lease)
        return found

    def reserve(self, lease: Lease) -> bool:
        fresh = self.path / f".new-{lease.address}"
        fresh.write_text(json.dumps(lease.to_json()) + "\n")
        try:
            os.link(fresh, self._file(lease.address))
        except FileExistsError:
            return False
        finally:
            fresh.unlink(missing_ok=True)
        return True

    def wired(self, lease: Lease) -> None:
        with open(self._file(lease.address), "ab", buffering=0) as file:
            file.write(WIRED)

    def release(self, address: IPAddress) -> None:
        self._file(address).unlink(missing_ok=True)


def _age(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _read(file: Path) -> Lease | None:
    try:
        first, _, rest = file.read_bytes().partition(b"\n")
        raw = json.loads(first)
        return Lease(ip_address(file.name), Attachment(str(raw["containerID"]), str(raw["ifname"])), str(raw["pod"]),
                     str(raw["podUID"]), str(raw["bootID"]), str(raw["mac"]), rest.startswith(WIRED),
                     port_mappings(raw.get("ports"), "ports"))
    except (OSError, ValueError, KeyError, TypeError, CNIError):
        return None
