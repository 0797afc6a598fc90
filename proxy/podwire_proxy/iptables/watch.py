"""Detects changes of the proxy's rules by other programs. I/O.

For the nft variant, netlink reports every commit. The module identifies the proxy's commits by the generations of the
namespace, because each program of iptables has a separate netlink port. For the legacy variant, the kernel reports no
change: a timer checks the number and the size of the rules in each table with one system call. The kernel reports no
changes of sets either: the timer counts the ClusterIPs.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
import struct
from collections.abc import Callable

from podwire_base.kernel.ip import Family
from podwire_base.kernel.netns import within
from podwire_base.kernel.nft import ruleset as nft
from podwire_base.kernel.nft import socket as nft_socket

from .ipset import IpSetError, IpSets
from .layout import TableName, cluster_ips

PERIOD = 1.0  # seconds between two checks
GET_INFO = 64  # IPT_SO_GET_INFO, IP6T_SO_GET_INFO
_INFO = struct.Struct("=32sI5I5III")  # struct ipt_getinfo
_SOL = {"ip": 0, "ip6": 41}
_CLOCK_MONOTONIC = 1
_libc = ctypes.CDLL(None, use_errno=True)


class Timer:
    """A descriptor that becomes readable every PERIOD; `look` returns whether the rules differ."""

    def __init__(self, look: Callable[[], bool]) -> None:
        self._look = look
        self._fd = _libc.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        seconds, rest = divmod(PERIOD, 1)
        both = struct.pack("=4q", *(int(seconds), int(rest * 1e9)) * 2)
        if self._fd < 0 or _libc.timerfd_settime(self._fd, 0, both, None):
            raise OSError(ctypes.get_errno(), "timerfd")

    def fileno(self) -> int:
        return int(self._fd)

    def close(self) -> None:
        os.close(self._fd)

    def changed(self) -> bool:
        with contextlib.suppress(BlockingIOError):
            os.read(self._fd, 8)
            return self._look()
        return False


class Legacy:
    """Reads the number and the size of the rules in tables of legacy iptables."""

    def __init__(self, ns_fd: int | None) -> None:
        def make() -> dict[Family, socket.socket]:
            made: dict[Family, socket.socket] = {}
            for family, domain in (("ip", socket.AF_INET), ("ip6", socket.AF_INET6)):
                with contextlib.suppress(OSError):  # a host without IPv6
                    made[family] = socket.socket(  # type: ignore[index]  # the two literals above
                        domain, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_RAW
                    )
            return made

        self._socks = within(ns_fd, make)

    def close(self) -> None:
        for sock in self._socks.values():
            sock.close()

    def shape(self, family: Family, table: TableName) -> tuple[int, int]:
        """Returns (entries, bytes) of a table; (0, 0) if the table does not exist.

        A query creates the table, so query only tables that the proxy wrote.
        """
        sock = self._socks.get(family)
        if sock is None:
            return 0, 0
        buffer = ctypes.create_string_buffer(table.encode(), _INFO.size)
        length = ctypes.c_uint32(_INFO.size)
        if _libc.getsockopt(sock.fileno(), _SOL[family], GET_INFO, buffer, ctypes.byref(length)):
            return 0, 0
        found = _INFO.unpack(buffer.raw)
        return found[-2], found[-1]


class Generations:
    """Separates foreign commits from commits in `during`. Raises OSError on a kernel without nf_tables."""

    def __init__(self, ns_fd: int | None) -> None:
        self._conn = nft_socket.Connection(ns_fd)
        self._own = 0
        self._seen = self._conn.generation()
        self.suspect = False

    def close(self) -> None:
        self._conn.close()

    def foreign(self) -> int:
        return self._conn.generation() - self._own

    def during(self, work: Callable[[], None], commits: int) -> None:
        """Runs `work`, which makes `commits` commits for the proxy."""
        before = self._conn.generation()
        try:
            work()
        finally:
            self._seen = self._conn.generation()
        self._own += min(commits, self._seen - before)
        self.suspect = self.suspect or self._seen - before != commits

    def news(self) -> bool:
        """Whether another program has committed since the last call, according to the generations."""
        now, suspect = self._conn.generation(), self.suspect
        news = now != self._seen or suspect
        self._seen, self.suspect = now, False
        return news


class TableWatch:
    """Watches one table of the nft variant."""

    def __init__(self, family: Family, table: TableName, generations: Generations, ns_fd: int | None) -> None:
        self._watcher = nft_socket.Watcher(nft.Table(family, table), 0, ns_fd)
        self._generations = generations

    def fileno(self) -> int:
        return self._watcher.fileno()

    def close(self) -> None:
        self._watcher.close()

    def changed(self) -> bool:
        return self._watcher.changed() and self._generations.news()


def lost(sets: IpSets, family: Family, members: int) -> bool:
    """Whether the set of ClusterIPs has the wrong size."""
    try:
        return sets.count(cluster_ips(family)) != members
    except IpSetError as err:
        return err.errno != errno.EBUSY
