"""Encodes Ethernet frames that announce or query the MAC of an IP address, and computes the Internet checksum. Pure.

ARP: RFC 826, gratuitous: RFC 5227, section 3. Neighbor Discovery: RFC 4861 (unsolicited advertisement: section 7.2.6).
MAC addresses are 6 bytes, IP addresses canonical text.
"""

from __future__ import annotations

import struct

from .ip import packed

ARP, IPV4, IPV6 = 0x0806, 0x0800, 0x86DD  # EtherTypes
BROADCAST = b"\xff" * 6
ALL_NODES, ALL_NODES_MAC = "ff02::1", bytes.fromhex("333300000001")
REQUEST, REPLY = 1, 2  # ARP operations
SOLICITATION, ADVERTISEMENT = 135, 136  # ICMPv6 types
SOLICITED, OVERRIDE = 0x40, 0x20  # flags of an advertisement
ARP_HEAD = struct.pack("!HHBB", 1, IPV4, 6, 4)  # Ethernet, IPv4 and the lengths of their addresses
SHORTEST = 60  # the least number of bytes of an Ethernet frame, without the frame check sequence
TCP, ICMPV6 = 6, 58


def checksum(data: bytes) -> bytes:
    """Returns the Internet checksum (RFC 1071), two bytes in network order."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return (~total & 0xFFFF).to_bytes(2, "big")


def upper_checksum(source: bytes, destination: bytes, protocol: int, body: bytes) -> bytes:
    """Returns the checksum of TCP, UDP or ICMPv6, including the pseudo header (RFC 9293, 3.1; RFC 8200, 8.1). source,
    destination: packed addresses. The checksum field in `body` must be zero.
    """
    return checksum(source + destination + struct.pack("!II", len(body), protocol) + body)


def ethernet(destination: bytes, source: bytes, kind: int, body: bytes) -> bytes:
    return (destination + source + kind.to_bytes(2, "big") + body).ljust(SHORTEST, b"\0")


def ipv6(source: bytes, destination: bytes, protocol: int, hop_limit: int, body: bytes) -> bytes:
    return struct.pack("!IHBB", 6 << 28, len(body), protocol, hop_limit) + source + destination + body


def arp(operation: int, mac: bytes, ip: str, target_mac: bytes, target: str, *, to: bytes) -> bytes:
    """Returns a frame with an ARP packet. Sender: `mac` and `ip`. Target: `target_mac` and `target`. to: the
    destination MAC of the frame.
    """
    body = ARP_HEAD + operation.to_bytes(2, "big") + mac + packed(ip) + target_mac + packed(target)
    return ethernet(to, mac, ARP, body)


def advertisement(ip: str, mac: bytes, *, to: str = ALL_NODES, to_mac: bytes = ALL_NODES_MAC, flags: int) -> bytes:
    """Returns a frame with a Neighbor Advertisement that `ip` has the MAC `mac`."""
    source, destination = packed(ip), packed(to)
    body = struct.pack("!BBHI", ADVERTISEMENT, 0, 0, flags << 24) + source + b"\2\1" + mac
    body = body[:2] + upper_checksum(source, destination, ICMPV6, body) + body[4:]
    return ethernet(to_mac, mac, IPV6, ipv6(source, destination, ICMPV6, 255, body))


def gratuitous(ip: str, mac: bytes, operation: int = REQUEST) -> bytes:
    """Returns a broadcast frame that announces that `ip` has the MAC `mac` now. operation: the ARP operation, for IPv4
    only.
    """
    if ":" in ip:
        return advertisement(ip, mac, flags=OVERRIDE)
    return arp(operation, mac, ip, BROADCAST if operation == REPLY else bytes(6), ip, to=BROADCAST)
