"""The responder's sockets on one link: questions and claims in, answers and beats out. I/O.

The addresses are on no interface, so they are no local addresses: nothing else on the node answers for them, and
NodePorts are not served there.
"""

from __future__ import annotations

import contextlib
import ctypes
import socket
import struct
from collections.abc import Callable

from podwire_base.kernel.frames import ARP, IPV6
from podwire_base.role import logs

from . import frames

log = logs.get("lb")
SO_ATTACH_FILTER, SO_RCVBUFFORCE, IPV6_JOIN_GROUP, IPV6_LEAVE_GROUP = 26, 33, 20, 21
# Of all IPv6 frames only Neighbor Solicitation and Advertisement: (code, jump true, jump false, k) of linux/filter.h.
_ND_ONLY = (
    (0x30, 0, 0, 20),
    (0x15, 0, 4, 58),
    (0x30, 0, 0, 54),
    (0x15, 1, 0, 135),
    (0x15, 0, 1, 136),
    (0x06, 0, 0, 0xFFFF),
    (0x06, 0, 0, 0),
)


class PacketSocket:
    """`open`, `add_reader` its sockets with `receive`; after an error of the link `open` again."""

    def __init__(self, link: str) -> None:
        self.link, self.mac = link, b""
        self._sockets: dict[int, socket.socket] = {}  # EtherType -> socket
        self._groups: socket.socket | None = None
        self._joined: dict[str, set[str]] = {}  # multicast group -> addresses

    def open(self) -> None:
        """Opens the sockets. Raises OSError if the link does not exist."""
        self.close()
        index = socket.if_nametoindex(self.link)
        for kind in (ARP, IPV6, frames.BEAT):
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0)
            self._sockets[kind] = sock
            if kind == IPV6:
                _filter(sock)
            _room(sock)
            sock.bind((self.link, kind))
        self.mac = bytes(self._sockets[ARP].getsockname()[4][:6])
        with contextlib.suppress(OSError):  # a kernel without IPv6
            self._groups = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            for group in self._joined:
                self._member(IPV6_JOIN_GROUP, group, index)

    def close(self) -> None:
        for sock in (*self._sockets.values(), *([self._groups] if self._groups else [])):
            sock.close()
        self._sockets, self._groups = {}, None

    def sockets(self) -> list[socket.socket]:
        return list(self._sockets.values())

    def receive(self, sock: socket.socket, heard: Callable[[bytes], None]) -> None:
        """Passes every waiting frame to `heard`. Raises OSError if the link disappeared."""
        for _ in range(256):  # then let other tasks run
            try:
                frame, (_, _, kind, _, _) = sock.recvfrom(2048)
            except (BlockingIOError, InterruptedError):
                return
            if kind != socket.PACKET_OUTGOING and frame[6:12] != self.mac:
                heard(frame)

    def send(self, frame: bytes) -> None:
        """Sends a frame. Raises OSError if the link is down."""
        kind = int.from_bytes(frame[12:14], "big")
        with contextlib.suppress(BlockingIOError):
            self._sockets[kind].send(frame)

    def hear_questions(self, ips: set[str]) -> None:
        """Joins the multicast groups for queries of these IPv6 addresses, and leaves all other groups."""
        wanted: dict[str, set[str]] = {}
        for ip in ips:
            if ":" in ip:
                wanted.setdefault(frames.solicited_node(ip), set()).add(ip)
        before, self._joined = self._joined, wanted
        if wanted.keys() != before.keys():
            index = socket.if_nametoindex(self.link)
            for group in wanted.keys() - before.keys():
                self._member(IPV6_JOIN_GROUP, group, index)
            for group in before.keys() - wanted.keys():
                self._member(IPV6_LEAVE_GROUP, group, index)

    def _member(self, verb: int, group: str, index: int) -> None:
        if self._groups is None:
            return
        request = socket.inet_pton(socket.AF_INET6, group) + struct.pack("@I", index)
        try:
            self._groups.setsockopt(socket.IPPROTO_IPV6, verb, request)
        except OSError as err:
            log.warn("cannot receive queries for an IPv6 address", group=group, link=self.link, error=str(err))


def _room(sock: socket.socket) -> None:
    """A megabyte for waiting frames; without CAP_NET_ADMIN as much of it as net.core.rmem_max allows."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 20)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)


def _filter(sock: socket.socket) -> None:
    code = b"".join(struct.pack("=HBBI", *row) for row in _ND_ONLY)
    buffer = ctypes.create_string_buffer(code)
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("@HP", len(_ND_ONLY), ctypes.addressof(buffer)))
