"""Takes over the leases of the reference plugin host-local. The directory of host-local has one file for each address,
with the container and the interface.

A pod that the old plugins attached keeps its address until a DEL or a GC, which the runtime now sends to podwire. A
file that is older than the machine's boot belongs to no pod, because host-local removes no file by itself. Each file is
removed only when podwire's lease is on disk, so after an interruption a second run finds the remaining files. Remove
the configuration of the old plugins first: without its files, host-local would allocate the same addresses again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from ipaddress import ip_address
from pathlib import Path

from ..types import Attachment, RangeSet
from .allocator import Allocator, Lease

ORIGIN = "host-local"


def booted() -> float:
    """Returns the Unix time of the machine's boot."""
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


def take_over(
    directory: Path, allocator: Allocator, ranges: Sequence[RangeSet], boot_id: str, since: float
) -> Iterator[str]:
    """Write a lease for every address of `directory` that lies in `ranges`, with the container in the file as owner.
    since: the Unix time of the machine's boot. Yields one line for each file. Raises OSError if `directory` cannot be
    read or written, CNIError if the leases cannot be written; then run it again.
    """
    with _locked(directory):
        for file in sorted(directory.iterdir()):
            try:
                address = ip_address(file.name)
            except ValueError:
                continue  # lock, last_reserved_ip.N
            container, _, ifname = file.read_text(errors="replace").strip().partition("\n")
            owner = Attachment(container.strip(), ifname.strip() or "eth0")  # older files have no interface
            lease = Lease(address, owner, boot_id=boot_id, origin=ORIGIN)
            if file.stat().st_mtime < since:
                file.unlink()
                yield f"{address} of {owner}: from before the boot, free"
            elif not any(address in r for s in ranges for r in s):
                yield f"{address} of {owner}: outside this node's podCIDRs, left alone"
            elif allocator.adopt(lease) or address in [mine.address for mine in allocator.owned_by(owner)]:
                file.unlink()
                yield f"{address} of {owner}: taken over"
            else:
                yield f"{address} of {owner}: another pod has this address from podwire, left alone"


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold the lock of host-local: an flock on the file `lock`, which host-local takes while it works."""
    fd = os.open(directory / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
