"""Who has an address now, told to everybody on its link: a pod that got the address of another with another MAC would
not be found until their neighbour tables forget (a minute, or never).
"""

from __future__ import annotations

import contextlib
import socket

from podwire_base.kernel.frames import gratuitous
from podwire_base.kernel.ip import mac_bytes

from .ops import Announce
from .types import IPAddress


def frame(mac: str, address: IPAddress) -> bytes:
    """The Ethernet frame that says that `mac` has `address`."""
    return gratuitous(str(address), mac_bytes(mac))


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
