"""SCTP for kernels without SCTP sockets: a client sends an INIT from a raw socket, and a server answers with an INIT
ACK.

The server writes the packet's destination address and source address into the state cookie.
"""

from __future__ import annotations

import itertools
import random
import socket
import time
from pathlib import Path

from scapy.layers.sctp import SCTP, SCTPChunkInit, SCTPChunkInitAck, SCTPChunkParamStateCookie

PROTOCOL = 132
# Each request uses a new port. A recently used port may still have a flow, and NAT would translate by the old flow.
_ports = itertools.cycle(range(20000, 60000))


def tracked() -> bool:
    """Whether the kernel tracks SCTP, as its NAT requires (features.CONNTRACK_SCTP)."""
    return Path("/proc/sys/net/netfilter/nf_conntrack_sctp_timeout_established").exists()


def _socket(ip: str) -> socket.socket:
    return socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_RAW, PROTOCOL)


def _read(sock: socket.socket) -> tuple[SCTP, str]:
    """Return (the SCTP packet, the sender's address), without the IP header that an IPv4 raw socket returns."""
    data, peer = sock.recvfrom(4096)
    return SCTP(data[(data[0] & 15) * 4 if sock.family == socket.AF_INET else 0 :]), peer[0]


def server(ip: str) -> socket.socket:
    """Return the server's socket. Call this function inside the namespace, and `answer` when the socket is readable."""
    sock = _socket(ip)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, 78, 1)  # IPV6_FREEBIND: a fresh address is tentative for a moment
    sock.bind((ip, 0))
    return sock


def answer(sock: socket.socket, ip: str, ports: tuple[int, ...]) -> None:
    packet, peer = _read(sock)
    if SCTPChunkInit not in packet or packet.dport not in ports:
        return
    cookie = SCTPChunkParamStateCookie(cookie=f"{ip} {packet.dport} {peer}".encode())
    tag = packet[SCTPChunkInit].init_tag
    sock.sendto(
        bytes(
            SCTP(sport=packet.dport, dport=packet.sport, tag=tag)
            / SCTPChunkInitAck(init_tag=7, a_rwnd=1 << 16, n_out_streams=1, n_in_streams=1, init_tsn=1, params=[cookie])
        ),
        (peer, 0),
    )


def ask(dst: str, port: int, src: str, timeout: float) -> bytes:
    """Send an INIT and return the answer's cookie. Raises the errors of a socket: ConnectionRefusedError, TimeoutError,
    OSError.
    """
    sport, tag = next(_ports), random.randint(1, 1 << 31)
    with _socket(dst) as sock:
        if src:
            sock.bind((src, 0))
        sock.connect((dst, 0))
        sock.send(
            bytes(
                SCTP(sport=sport, dport=port, tag=0)
                / SCTPChunkInit(init_tag=tag, a_rwnd=1 << 16, n_out_streams=1, n_in_streams=1, init_tsn=1)
            )
        )
        end = time.monotonic() + timeout
        while (left := end - time.monotonic()) > 0:
            sock.settimeout(left)
            packet, _ = _read(sock)
            if (packet.sport, packet.dport, packet.tag) == (port, sport, tag) and SCTPChunkParamStateCookie in packet:
                return bytes(packet[SCTPChunkParamStateCookie].cookie)
    raise TimeoutError
