"""One packet that was dropped or refused, whoever saw it: a rule's log (NFLOG) or the kernel's tracepoint. Pure.

Both give a copy of the packet from its network header on, which `packet` reads.
"""

from __future__ import annotations

import struct
from ipaddress import ip_address
from typing import Any, NamedTuple

ICMP, TCP, UDP, DCCP, ICMPV6, SCTP, UDPLITE = 1, 6, 17, 33, 58, 132, 136
PORTS = (TCP, UDP, DCCP, SCTP, UDPLITE)  # protocols that begin with two ports of 16 bits
NAMES = {ICMP: "ICMP", TCP: "TCP", UDP: "UDP", ICMPV6: "ICMPv6", SCTP: "SCTP"}
_EXTENSIONS = (0, 43, 44, 60)  # IPv6 headers before the upper protocol: RFC 8200, section 4
_FRAGMENT = 44


class Packet(NamedTuple):
    """src, dst: addresses as text. protocol: IANA's number. sport, dport: 0 without ports, and in a later fragment.
    kind: of an ICMP message, (type, code); None for all others.
    """

    src: str
    dst: str
    protocol: int
    sport: int = 0
    dport: int = 0
    kind: tuple[int, int] | None = None

    @property
    def v6(self) -> bool:
        return ":" in self.src

    @property
    def named(self) -> str:
        return NAMES.get(self.protocol, str(self.protocol))


class Dropped(NamedTuple):
    """at: seconds since 1970. reason: a code of reasons.py if a rule of ours decided, else the kernel's own name of its
    drop reason (SKB_DROP_REASON_ left out), which has capital letters. interface: the link by which the packet came or
    left, "" if that is not known; ifindex: its number. space: the number of the network namespace
    (SO_NETNS_COOKIE), 0 if it is not known. number: equal packets that this record stands for.
    """

    at: float
    reason: str
    packet: Packet
    interface: str = ""
    ifindex: int = 0
    space: int = 0
    number: int = 1

    def as_json(self) -> dict[str, Any]:
        """Returns the record with its packet's fields beside the others, as other programs read it."""
        made = {**self._asdict(), **self.packet._asdict(), "protocol": self.packet.named}
        del made["packet"]
        return made


def packet(data: bytes) -> Packet | None:
    """Returns what the headers say; None if this is no whole header of IPv4 or IPv6. data: from the network header."""
    try:
        return _v4(data) if data[0] >> 4 == 4 else _v6(data) if data[0] >> 4 == 6 else None
    except (struct.error, IndexError):
        return None


def _v4(data: bytes) -> Packet:
    offset, protocol, src, dst = struct.unpack_from("!6xHxB2x4s4s", data)
    behind = data[(data[0] & 0xF) * 4 :] if not offset & 0x1FFF else b""
    return _upper(str(ip_address(src)), str(ip_address(dst)), protocol, behind)


def _v6(data: bytes) -> Packet:
    following, src, dst = struct.unpack_from("!6xBx16s16s", data)
    at = 40
    while following in _EXTENSIONS and at + 8 <= len(data):
        if following == _FRAGMENT and struct.unpack_from("!H", data, at + 2)[0] >> 3:
            return Packet(str(ip_address(src)), str(ip_address(dst)), data[at])
        length = 8 if following == _FRAGMENT else (data[at + 1] + 1) * 8
        following, at = data[at], at + length
    return _upper(str(ip_address(src)), str(ip_address(dst)), following, data[at:])


def _upper(src: str, dst: str, protocol: int, data: bytes) -> Packet:
    if protocol in PORTS and len(data) >= 4:
        return Packet(src, dst, protocol, *struct.unpack_from("!HH", data))
    if protocol in (ICMP, ICMPV6) and len(data) >= 2:
        return Packet(src, dst, protocol, kind=(data[0], data[1]))
    return Packet(src, dst, protocol)
