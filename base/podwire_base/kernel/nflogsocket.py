"""Reads what rules of podwire log, as the one reader of their group in this network namespace. I/O."""

from __future__ import annotations

from itertools import islice

from . import nflog
from .netlink.codec import ACK, split
from .netlink.socket import MANY_ANSWERS, NETFILTER, Netlink, waiting
from .nflog import Logged

AT_ONCE = 256  # datagrams that one read takes


class Reader(Netlink):
    """Raises OSError: EPERM if another process reads the group, EINVAL without nfnetlink_log."""

    def __init__(self) -> None:
        super().__init__(NETFILTER, room=MANY_ANSWERS)
        try:
            for _ in self.request(nflog.SUBSYS | nflog.CONFIG, nflog.bind(), ACK):
                pass
            self.sock.setblocking(False)
        except OSError:
            self.close()
            raise

    def fileno(self) -> int:
        return self.sock.fileno()

    def read(self) -> tuple[list[Logged], int]:
        """Returns the waiting packets, and how often the queue had no room. Raises OSError."""
        found: list[Logged] = []
        overruns = 0
        for data in islice(waiting(self.sock), AT_ONCE):
            if data is None:
                overruns += 1
                continue
            for kind, _, _, _, body in split(data):
                if kind == nflog.SUBSYS | nflog.PACKET and (one := nflog.read(body)) is not None:
                    found.append(one)
        return found, overruns
