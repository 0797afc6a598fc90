"""Destroys connected sockets that point at an endpoint which their Service no longer has. I/O.

A socket that a hook connected keeps its endpoint: no rule and no conntrack entry stands between. So a UDP client would
send to a dead address for ever. The kernel's sock_diag lists the sockets of a namespace: those of TCP together with
what the hooks noted for each (its storage in the map `memory`), those of UDP with a number, by which the map `dialling`
has the same. So a socket that dialled the endpoint's own address is never taken for one. After SOCK_DESTROY a blocked
recv() ends with ECONNABORTED, and connect() works again. Source: sock_diag(7), linux/inet_diag.h.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from podwire_base.kernel.netlink import codec
from podwire_base.kernel.netlink.socket import Netlink

from ..dataplane import Key
from ..model import PROTOCOLS, Destination, Protocol
from . import maps

SOCK_DIAG, BY_FAMILY, DESTROY = 4, 20, 21  # linux/netlink.h, linux/sock_diag.h
ESTABLISHED, SYN_SENT = 1 << 1, 1 << 2  # states of net/tcp_states.h; a connected UDP socket is ESTABLISHED
REQ_STORAGES, REQ_MAP_FD = 2, 1  # INET_DIAG_REQ_SK_BPF_STORAGES, SK_DIAG_BPF_STORAGE_REQ_MAP_FD
STORAGES, STORAGE, VALUE = 20, 1, 3  # INET_DIAG_SK_BPF_STORAGES, SK_DIAG_BPF_STORAGE and its value
_REQUEST = struct.Struct("=BBBxI48x")  # inet_diag_req_v2 without a socket's identity
_SOCKET = slice(4, 52)  # inet_diag_sockid in inet_diag_msg
_ANSWER = 72  # bytes of inet_diag_msg, before the attributes
_DIALLED = struct.Struct("<20s20sQ")  # struct dialled of native/sock.bpf.c

_COOKIE = slice(44, 52)  # the socket's number
BOTH: tuple[Protocol, ...] = ("TCP", "UDP")

Gone = Callable[[Key, Destination], bool]
Stored = Callable[[bytes], bytes | None]  # the number of a UDP socket -> struct dialled


class Dialled(NamedTuple):
    """A socket with what its program dialled and what it got. family, ident: name the socket to the kernel."""

    key: Key
    to: Destination
    family: int
    ident: bytes


def parse(body: bytes, stored: Stored) -> Dialled | None:
    """Parses one inet_diag_msg; None for a socket that no hook connected to what it is connected to now."""
    v6 = body[0] == socket.AF_INET6
    remote = str(ipaddress.ip_address(body[24:40] if v6 else body[24:28]))
    values = [
        codec.parse(one).get(VALUE, b"")
        for kind, held in codec.walk(body[_ANSWER:])
        if kind == STORAGES
        for _, one in codec.walk(held)
    ] or [stored(body[_COOKIE]) or b""]
    for value in values:
        if len(value) >= _DIALLED.size:
            dialled, to, at = _DIALLED.unpack_from(value)
            got = maps.key_of(to) if at else None
            if got and maps.mapped(got.ip) == maps.mapped(remote) and got.port == int.from_bytes(body[6:8], "big"):
                return Dialled(maps.key_of(dialled), Destination(got.ip, got.port), body[0], body[_SOCKET])
    return None


def dialled(sock: Netlink, memory: int, stored: Stored, protocol: Protocol) -> Iterator[Dialled]:
    """Yields the connected sockets of the namespace that hooks connected. memory: the descriptor of the map."""
    asked = codec.nest(REQ_STORAGES, codec.host_u32(REQ_MAP_FD, memory))
    for family in (socket.AF_INET, socket.AF_INET6):
        request = _REQUEST.pack(family, PROTOCOLS[protocol], 0, ESTABLISHED | SYN_SENT) + asked
        for body in sock.everything(BY_FAMILY, request):
            if (found := parse(body, stored)) is not None and found.key.protocol == protocol:
                yield found


def destroy(spaces: Iterable[str | int], memory: int, stored: Stored, gone: Gone) -> list[Dialled]:
    """Destroys the sockets in these namespaces (paths or descriptors) for which `gone` is true. Returns them. A
    namespace that has ended is passed over. Raises OSError.
    """
    found = list[Dialled]()
    for space in spaces:
        with contextlib.ExitStack() as stack:
            try:
                fd = space if isinstance(space, int) else os.open(space, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            if fd != space:
                stack.callback(os.close, fd)
            sock = stack.enter_context(Netlink(SOCK_DIAG, fd))
            for protocol in BOTH:
                for one in [one for one in dialled(sock, memory, stored, protocol) if gone(one.key, one.to)]:
                    request = _REQUEST.pack(one.family, PROTOCOLS[protocol], 0, 0)[:8] + one.ident
                    with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                        for _ in sock.request(DESTROY, request, codec.ACK):
                            pass
                        found.append(one)
    return found
