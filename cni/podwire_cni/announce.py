"""Announces to the link which MAC has an address now. A pod that got an address with another MAC would be unreachable
until the neighbour tables of its peers expire (a minute, or never).

Gratuitous ARP is that of RFC 5227, section 3; unsolicited neighbour advertisements that of RFC 4861, section 7.2.6.
"""

from __future__ import annotations

import contextlib
import socket

from podwire_base.kernel.frames import gratuitous
from podwire_base.kernel.ip import mac_bytes

from .ops import Announce
from .types import IPAddress


def frame(mac: str, address: IPAddress) -> bytes:
    """The Ethernet frame that announces `address` at `mac`."""
    return gratuitous(str(address), mac_bytes(mac))


def send(op: Announce) -> None:
    """Send the frames in the calling thread's network namespace. Also make the kernel announce again whenever the link
    comes up. Raises OSError.
    """
    for family, key in (("ipv4", "arp_notify"), ("ipv6", "ndisc_notify")):
        # A container runtime may have made it read-only, or the kernel may lack IPv6.
        with contextlib.suppress(OSError), open(f"/proc/sys/net/{family}/conf/{op.link}/{key}", "w") as file:
            file.write("1")
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
        sock.bind((op.link, 0))
        for address in op.addresses:
            sock.send(frame(op.mac, address))
