"""Announces on a link which MAC an address has now. If an address gets another MAC, the pod would otherwise be
unreachable until the entries in its peers' neighbour tables expire (after a minute, or never).

Sources: RFC 5227, section 3 (gratuitous ARP); RFC 4861, section 7.2.6 (unsolicited neighbour advertisements).
"""

from __future__ import annotations

import contextlib
import socket

from podwire_base.kernel.frames import gratuitous
from podwire_base.kernel.ip import mac_bytes

from .ops import Announce
from .types import IPAddress


def frame(mac: str, address: IPAddress) -> bytes:
    """Returns the Ethernet frame that announces that `address` has the MAC `mac`."""
    return gratuitous(str(address), mac_bytes(mac))


def send(op: Announce) -> None:
    """Send the frames in the calling thread's network namespace. Also configure the kernel to announce the addresses
    whenever the link comes up. Raises OSError.
    """
    for family, key in (("ipv4", "arp_notify"), ("ipv6", "ndisc_notify")):
        # The container runtime may have mounted /proc/sys read-only, or the kernel may lack IPv6.
        with contextlib.suppress(OSError), open(f"/proc/sys/net/{family}/conf/{op.link}/{key}", "w") as file:
            file.write("1")
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
        sock.bind((op.link, 0))
        for address in op.addresses:
            sock.send(frame(op.mac, address))
