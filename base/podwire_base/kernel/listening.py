"""Reads which addresses and ports the processes of a network namespace listen on, by NETLINK_SOCK_DIAG. I/O.

sock_diag(7) finds listening sockets without a walk over all connections, as a read of /proc/net/tcp would need.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from typing import NamedTuple

from .netlink import codec
from .netlink.socket import Netlink

SOCK_DIAG, BY_FAMILY = 4, 20  # linux/netlink.h, linux/sock_diag.h
_LISTEN, _CLOSE = 1 << 10, 1 << 7  # states of net/tcp_states.h: a TCP listener; an unconnected UDP socket
_KINDS = (("TCP", socket.IPPROTO_TCP, _LISTEN), ("UDP", socket.IPPROTO_UDP, _CLOSE))
_REQUEST = struct.Struct("=BBBxI48x")  # inet_diag_req_v2: family, protocol, extensions, states, an empty sockid
_ANSWER = 72  # bytes of inet_diag_msg, before the attributes
_SKV6ONLY = 11


class Listener(NamedTuple):
    """A socket that receives what nobody else got. ip: "" for every address of the `families` ("4", "6" or "46")."""

    protocol: str
    ip: str
    port: int
    families: str

    def hears(self, protocol: str, ip: str, port: int) -> bool:
        return (self.protocol, self.port) == (protocol, port) and (
            self.ip == ip or (not self.ip and ("6" if ":" in ip else "4") in self.families)
        )


def parse(protocol: str, body: bytes) -> Listener:
    """Parses one inet_diag_msg."""
    v6 = body[0] == socket.AF_INET6
    port = int.from_bytes(body[4:6], "big")
    raw = body[8:24] if v6 else body[8:12]
    ip = "" if not any(raw) else str(ipaddress.ip_address(raw))
    both = v6 and not any(kind == _SKV6ONLY and any(value) for kind, value in codec.walk(body[_ANSWER:]))
    mapped = ipaddress.IPv6Address(raw).ipv4_mapped if v6 and ip else None
    return Listener(protocol, str(mapped or ip), port, "46" if both else "6" if v6 else "4")


def listeners(ns_fd: int | None = None) -> list[Listener]:
    """Returns the TCP listeners and unconnected UDP sockets of a network namespace (None: the caller's). Raises
    OSError, ENOENT on a kernel without inet_diag.
    """
    found = []
    with Netlink(SOCK_DIAG, ns_fd) as sock:
        for protocol, number, states in _KINDS:
            for family in (socket.AF_INET, socket.AF_INET6):
                request = _REQUEST.pack(family, number, 0, states)
                found += [parse(protocol, body) for _, body in sock.request(BY_FAMILY, request, codec.DUMP)]
    return [one for one in found if one.port]
