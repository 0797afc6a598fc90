"""What is counted of a node's state between two whole looks of the wiring agent. I/O; each number costs a short dump.

What no count shows (a sysctl of one pod's port, the marks of a port) is found by the whole look that follows every ten
minutes, or by CHECK.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Hashable, Iterable
from pathlib import Path

from podwire_base.kernel.addresses import local_addresses, routes_by
from podwire_base.kernel.netlink import rtnetlink as nl
from podwire_base.kernel.netlink.socket import RouteSocket

from . import routes, wiring


def of_links() -> Hashable:
    """Returns the links with their state, MTU, MAC and bridge, the addresses, podwire's routes and the number of all
    others, and the number of permanent neighbour and forwarding entries. All are those of the calling thread's network
    namespace. Raises OSError.
    """
    with RouteSocket() as sock:
        links = frozenset(map(nl.link_facts, sock.everything(nl.GETLINK, nl.all_links())))
        entries = (sock.everything(nl.GETNEIGH, nl.all_neighbours(fam)) for fam in (nl.AF_UNSPEC, nl.AF_BRIDGE))
        permanent = sum(nl.is_permanent(body) for bodies in entries for body in bodies)
    return links, frozenset(local_addresses()), routes_by(routes.PROTOCOL), permanent


def of_files(paths: Iterable[Path]) -> Hashable:
    """Returns when each file or directory was changed; one that is missing counts as that."""
    return tuple(map(_changed, paths))


def of_sysctls() -> Hashable:
    return tuple(wiring.sysctl(key) for key in wiring.WATCHED_SYSCTLS)


def _changed(path: Path) -> tuple[int, int, int]:
    with contextlib.suppress(OSError):
        found = os.stat(path)
        return found.st_mtime_ns, found.st_size, found.st_ino
    return 0, 0, 0
