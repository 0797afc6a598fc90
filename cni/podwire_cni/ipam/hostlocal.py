"""Takes over the leases of the reference plugin host-local. Its directory has a file for each address, with container
and interface.

A pod that the old plugins attached keeps its address until its DEL or a GC, which the runtime now sends to us. A file
older than the machine's boot belongs to no pod, because host-local forgets nothing by itself. A file is removed once
our lease is on disk, so a second run finds what the first one left. The configuration of the old plugins has to be
removed before: a host-local without its files would give the addresses again.
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
    """The time of the machine's boot, as Unix time."""
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


def take_over(
    directory: Path, allocator: Allocator, ranges: Sequence[RangeSet], boot_id: str, since: float
) -> Iterator[str]:
    """Lease every address of `directory` that lies in `ranges` to the container that holds it there. since: the time of
    the machine's boot. Yields one line for each file. Raises OSError if the directory cannot be read or written,
    CNIError if our leases cannot; then run it again.
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
    """host-local holds an flock on the file `lock` while it works."""
    fd = os.open(directory / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
