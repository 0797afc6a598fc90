"""conntrack's events and entries, read from the kernel. I/O, in the calling process' network namespace."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from podwire_base.kernel.conntrack import codec, counted
from podwire_base.kernel.conntrack.counted import Counted
from podwire_base.kernel.ip import FAMILIES
from podwire_base.kernel.netlink.codec import DUMP
from podwire_base.kernel.netlink.socket import MANY_ANSWERS, NETFILTER, Netlink, open_socket, waiting

SO_MEMINFO, DROPS = 55, 8  # SK_MEMINFO_DROPS
AT_ONCE = 2048  # datagrams that one read takes, so that readers are served meanwhile
ASSURED = 4  # IPS_ASSURED


class Read(NamedTuple):
    events: list[Counted]
    lost: int
    more: bool  # whether others are waiting


class Events:
    """A subscription to the beginnings and ends of connections."""

    def __init__(self, room: int) -> None:
        """room: bytes of the queue. Raises OSError."""
        self._sock = open_socket(NETFILTER, room=room, groups=[codec.GROUPS["new"], codec.GROUPS["destroy"]])
        self._sock.setblocking(False)
        self._dropped = 0

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        self._sock.close()

    def read(self) -> Read:
        """Returns what is waiting, and how many events the kernel has dropped since the last call (exactly: it counts
        each one that the queue had no room for). Raises OSError.
        """
        events: list[Counted] = []
        overrun, taken = False, 0
        for data in islice(waiting(self._sock), AT_ONCE):
            taken += 1
            if data is None:
                overrun = True
            else:
                events += counted.read(data)
        return Read(events, self._lost() if overrun else 0, taken == AT_ONCE)

    def _lost(self) -> int:
        raw = self._sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 64)
        dropped = struct.unpack_from("=I", raw, DROPS * 4)[0] if len(raw) >= (DROPS + 1) * 4 else self._dropped
        more, self._dropped = (dropped - self._dropped) & 0xFFFFFFFF, dropped
        return int(more)


def entries() -> Iterator[Counted]:
    """Yields the entries that a poll needs: connections that both ends confirmed, and those without an answer. Raises
    OSError.
    """
    with Netlink(NETFILTER, room=MANY_ANSWERS) as sock:
        for family in FAMILIES:
            for which in (counted.of_status(ASSURED, ASSURED), counted.of_status(0, codec.SEEN_REPLY)):
                body = codec.question(family, which)
                for _, answer in sock.request(codec.SUBSYS | codec.GET, body, DUMP):
                    yield counted.generic("entry", answer)
