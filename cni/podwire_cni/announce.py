"""Who has an address now, told to everybody on its link: a pod that got the address of another with another MAC would
not be found until their neighbour tables forget (a minute, or never).

Gratuitous ARP is that of RFC 5227, section 3; unsolicited neighbour advertisements that of RFC 4861, section 7.2.6.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from ipaddress import IPv6Address, ip_address

from .netlink import mac_bytes
from .ops import Announce
from .types import IPAddress

_ALL_NODES, _ALL_NODES_MAC = ip_address("ff02::1").packed, b"\x33\x33\0\0\0\1"
_EVERYBODY = b"\xff" * 6
_OVERRIDE = 0x20000000


def frame(mac: str, address: IPAddress) -> bytes:
    """The Ethernet frame that says that `mac` has `address`."""
    source = mac_bytes(mac)
    if isinstance(address, IPv6Address):
        return _ALL_NODES_MAC + source + b"\x86\xdd" + _advertisement(source, address)
    arp = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + source + address.packed + bytes(6) + address.packed
    return _EVERYBODY + source + b"\x08\x06" + arp


def _advertisement(source: bytes, address: IPv6Address) -> bytes:
    def body(checksum: int) -> bytes:
        return struct.pack("!BBHI", 136, 0, checksum, _OVERRIDE) + address.packed + b"\2\1" + source

    length, hop_limit, icmp = len(body(0)), 255, 58
    pseudo = address.packed + _ALL_NODES + struct.pack("!II", length, icmp) + body(0)
    total = sum(struct.unpack(f"!{len(pseudo) // 2}H", pseudo))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return (
        struct.pack("!IHBB", 0x60000000, length, icmp, hop_limit) + address.packed + _ALL_NODES + body(total ^ 0xFFFF)
    )


def send(op: Announce) -> None:
    """In the calling thread's network namespace. Also has the kernel do it whenever the link comes up again. Raises
    OSError."""
    for family, key in (("ipv4", "arp_notify"), ("ipv6", "ndisc_notify")):
        # A container runtime may have made it read-only, or the kernel have no IPv6.
        with contextlib.suppress(OSError), open(f"/proc/sys/net/{family}/conf/{op.link}/{key}", "w") as file:
            file.write("1")
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
        sock.bind((op.link, 0))
        for address in op.addresses:
            sock.send(frame(op.mac, address))
