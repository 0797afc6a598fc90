"""Tells when another program changes what a role keeps in the kernel: its routes, and the addresses and the state of
its links. I/O.

The kernel sends each change of a route, an address and a link to all listeners, also those of pods' links, whose starts
must not wait for this. So a filter in the kernel (classic BPF) passes on only:

- a deleted route with the role's protocol number,
- a deleted address of a watched link,
- the end of a watched link, and that it was set down,
- each new state of the uplink: routes that went with it do not come back by themselves.

A bridge loses and gets its carrier with its last and first pod, which must not wake the role either. The role's own
changes pass: a look that finds nothing to mend is cheap.

Sources: rtnetlink(7), netlink(7), <linux/rtnetlink.h>, <linux/filter.h>.
"""

from __future__ import annotations

import contextlib
import ctypes
import socket
import struct
from collections.abc import Iterable

from .netlink.socket import ROUTE, open_socket, waiting

# multicast groups: LINK, IPV4_IFADDR, IPV4_ROUTE, IPV6_IFADDR, IPV6_ROUTE
GROUPS = (1, 5, 7, 9, 11)
NEWLINK, DELLINK, DELADDR, DELROUTE = 16, 17, 21, 25
SO_ATTACH_FILTER = 26
# Offsets in a message: nlmsg_type; then, after the header, ifi_index or ifa_index, rtm_protocol, and ifi_flags.
_TYPE, _INDEX, _PROTOCOL, _FLAGS = 4, 20, 21, 24
IFF_UP = 1
_LOAD_WORD, _LOAD_HALF, _LOAD_BYTE, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x28, 0x30, 0x15, 0x45, 0x06
_ALL = 0xFFFF
Step = tuple[int, int, int, int]  # code, jump if true, jump if false, constant


def program(links: Iterable[int], uplink: int = 0, protocol: int = 0) -> list[Step]:
    """Returns the filter. links: the indexes of the watched links, at most 100. uplink: that of the uplink, or 0.
    protocol: that of the watched routes; 0: none. BPF reads numbers in network byte order, and netlink has them in that
    of the machine.
    """
    own = [socket.htonl(index) for index in sorted({*links} - {uplink})]
    every, up = [*own, socket.htonl(uplink)], socket.htonl(IFF_UP)
    take, leave = (_RETURN, 0, 0, _ALL), (_RETURN, 0, 0, 0)
    of_address = [(_LOAD_WORD, 0, 0, _INDEX), *_one_of(every), leave, take]
    of_link = [
        (_LOAD_WORD, 0, 0, _INDEX),
        (_EQUAL, len(own) + 3, 0, every[-1]),
        *_one_of(own),
        leave,
        (_LOAD_WORD, 0, 0, _FLAGS),
        (_ANY_BIT, 1, 0, up),
        take,
        leave,
    ]
    of_route = [(_LOAD_BYTE, 0, 0, _PROTOCOL), (_EQUAL, 0, 1, protocol or 0xFFFF), take, leave]
    kinds = ((NEWLINK, 0), (DELLINK, 0), (DELADDR, len(of_link)), (DELROUTE, len(of_link) + len(of_address)))
    first = [(_EQUAL, len(kinds) - at + before, 0, socket.htons(kind)) for at, (kind, before) in enumerate(kinds)]
    return [(_LOAD_HALF, 0, 0, _TYPE), *first, leave, *of_link, *of_address, *of_route]


def _one_of(numbers: list[int]) -> list[Step]:
    """Returns the steps that skip one more step if the number is one of these."""
    return [(_EQUAL, len(numbers) - at, 0, number) for at, number in enumerate(numbers)]


class NetWatch:
    """A socket in the network namespace of the calling thread. It becomes readable after a change."""

    def __init__(self, protocol: int = 0) -> None:
        """protocol: the protocol number of the watched routes; 0: no routes are watched."""
        self._links, self._uplink, self._protocol = frozenset[int](), 0, protocol
        self._sock = open_socket(ROUTE, groups=GROUPS)
        try:
            self._attach()
            self._sock.setblocking(False)
            self.changed()  # what came before the filter
        except BaseException:
            self._sock.close()
            raise

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        self._sock.close()

    def watch(self, links: Iterable[int], uplink: int = 0) -> None:
        """Watch these links, by index, instead of those before."""
        if (wanted := (frozenset(links), uplink)) != (self._links, self._uplink):
            self._links, self._uplink = wanted
            self._attach()

    def changed(self) -> bool:
        """Read everything that came. Returns whether anything did, or was lost."""
        found = False
        for _ in waiting(self._sock):
            found = True
        return found

    def _attach(self) -> None:
        attach_filter(self._sock, program(self._links, self._uplink, self._protocol))


def attach_filter(sock: socket.socket, steps: list[Step]) -> None:
    """Let only the messages that a classic BPF program accepts reach the socket."""
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("@HP", len(steps), ctypes.addressof(code)))


def index_of(name: str) -> int:
    """Returns the index of a link of the calling thread's network namespace; 0 if there is none of that name."""
    with contextlib.suppress(OSError):
        return socket.if_nametoindex(name)
    return 0
