"""Records the packets that pass an interface, decoded by scapy.

The socket is opened inside the namespace. scapy's own sniffer does not do this reliably: its thread sees the interfaces
of the namespace in which the thread was started.
"""

from __future__ import annotations

import socket
import struct
from typing import Self

from scapy.layers.inet import IP
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from .netns import Inside

ETH_P_ALL, SO_RCVBUFFORCE = 3, 33
SOL_PACKET, PACKET_STATISTICS = 263, 6


class Capture:
    """Use as `with Capture(ns, "eth0") as seen: ...; seen.packets()`. It records every incoming and outgoing frame."""

    def __init__(self, ns: Inside, interface: str) -> None:
        def start() -> socket.socket:
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)  # a stock net.core.rmem_max holds 200 frames
            sock.bind((interface, ETH_P_ALL))
            return sock

        self.sock = ns.call(start)
        self.sock.setblocking(False)
        self.seen: list[Packet] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def packets(self) -> list[Packet]:
        """Return all packets recorded so far. Raises AssertionError if the kernel dropped packets."""
        while True:
            try:
                self.seen.append(Ether(self.sock.recv(65536)))
            except BlockingIOError:
                break
        dropped = struct.unpack("=II", self.sock.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))[1]
        assert not dropped, f"{dropped} packets were not captured"
        return list(self.seen)

    def pairs(self, layer: type[Packet] = IP) -> list[tuple[str, str]]:
        """Return (IP source, IP destination) of each packet that has `layer`."""
        return [(p[IP].src, p[IP].dst) for p in self.packets() if IP in p and layer in p]
