"""Takes over the leases of the reference plugin host-local. The directory of host-local has one file for each address,
with the container and the interface.

A pod that the old plugins attached keeps its address until a DEL or a GC, which the runtime now sends to podwire. A
file that is older than the machine's boot belongs to no pod, because host-local removes no file by itself. Each file is
removed only when podwire's lease is on disk, so after an interruption a second run finds the remaining files. Remove
the configuration of the old plugins first: without its files, host-local would allocate the same addresses again.

host-local creates a file and writes it a moment later. So a file without a container is left alone for SETTLED seconds,
and its address is withheld. If it still names none then, its writer was killed in between, and the file belongs to no
pod.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

from ..conf import NAME, ifname_is_good
from ..types import Attachment, RangeSet
from .allocator import Allocator, Lease
from .store import address_of

ORIGIN = "host-local"
SETTLED = 60.0  # seconds


def booted() -> float:
    """Returns the Unix time of the machine's boot."""
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass
class Young:
    """The files that named no container yet: name -> monotonic time of the first look at it."""

    since: dict[str, float] = field(default_factory=dict)

    def settled(self, file: Path) -> bool:
        """Whether the file had SETTLED seconds for its content: by its own time, or by ours, if the clock was set."""
        now = time.monotonic()
        first = self.since.setdefault(file.name, now)
        return max(time.time() - file.stat().st_mtime, now - first) >= SETTLED


def take_over(
    directory: Path,
    allocator: Allocator,
    ranges: Sequence[RangeSet],
    boot_id: str,
    since: float,
    young: Young | None = None,
) -> Iterator[str]:
    """Write a lease for every address of `directory` that lies in `ranges`, with the container in the file as owner.
    since: the Unix time of the machine's boot. young: the files that an earlier call left for their content; only these
    are looked at if there are any. Yields one line for each file. Raises OSError if `directory` cannot be read or
    written, CNIError if the leases cannot be written; then run it again.
    """
    young = Young() if young is None else young
    with _locked(directory):
        files = sorted(directory.iterdir())
        again = [file for file in files if file.name in young.since]
        for gone in young.since.keys() - {file.name for file in again}:
            _settle(young, allocator, gone)
        for file in again or files:
            if address_of(file.name) is not None and file.is_file():  # not lock, last_reserved_ip.N
                yield from _one(file, allocator, ranges, boot_id, since, young)


def _one(
    file: Path, allocator: Allocator, ranges: Sequence[RangeSet], boot_id: str, since: float, young: Young
) -> Iterator[str]:
    address, owner = ip_address(file.name), _owner(file)
    of = f"{address} of {owner}" if owner else str(address)
    if file.stat().st_mtime < since:
        file.unlink()
        _settle(young, allocator, file.name)
        yield f"{of}: from before the boot, free"
        return
    if owner is None:
        if young.settled(file):
            file.unlink()
            _settle(young, allocator, file.name)
            yield f"{of}: names no container, free"
        elif address not in allocator.withheld:
            allocator.withheld.add(address)
            yield f"{of}: names no container yet, looked at again in {SETTLED:g} s"
        return
    _settle(young, allocator, file.name)
    if not any(address in r for s in ranges for r in s):
        yield f"{of}: outside this node's podCIDRs, left alone"
    elif allocator.adopt(Lease(address, owner, boot_id=boot_id, origin=ORIGIN)) or address in [
        mine.address for mine in allocator.owned_by(owner)
    ]:
        file.unlink()
        yield f"{of}: taken over"
    else:
        yield f"{of}: another pod has this address from podwire, left alone"


def _settle(young: Young, allocator: Allocator, name: str) -> None:
    young.since.pop(name, None)
    allocator.withheld.discard(ip_address(name))


def _owner(file: Path) -> Attachment | None:
    """Returns the attachment that the file names: the container, and in files of newer versions the interface. Returns
    None if it is empty or unreadable.
    """
    try:
        container, _, ifname = file.read_text().strip().partition("\n")
    except (OSError, UnicodeDecodeError):
        return None
    owner = Attachment(container.strip(), ifname.strip() or "eth0")
    return owner if NAME.match(owner.container_id) and ifname_is_good(owner.ifname) else None


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold the lock of host-local: an flock on the file `lock`, which host-local takes while it works."""
    fd = os.open(directory / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
