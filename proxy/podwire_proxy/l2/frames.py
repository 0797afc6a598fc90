"""Ethernet frames of the load balancer responder, built and read. Pure.

ARP: RFC 826, gratuitous: RFC 5227. Neighbor Discovery: RFC 4861 (unsolicited advertisement: 7.2.6). Beats (election.py)
travel in broadcast frames of the EtherType that IEEE 802 sets aside for local experiments: they go where ARP goes, no
further, and no firewall or route is in their way.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from ..model import normal_ip, packed

ARP, IPV6, BEAT = 0x0806, 0x86DD, 0x88B5
BROADCAST = b"\xff" * 6
ALL_NODES, ALL_NODES_MAC = packed("ff02::1"), bytes.fromhex("333300000001")
REQUEST, REPLY = 1, 2
SOLICITATION, ADVERTISEMENT = 135, 136
SOLICITED, OVERRIDE = 0x40, 0x20
_ARP_HEAD = struct.pack("!HHBB", 1, 0x0800, 6, 4)
SHORTEST = 60  # Ethernet's, without the checksum


@dataclass(frozen=True, slots=True)
class Question:
    """Somebody asks who has `target`. sender: "" where it has no address yet (ARP probe, DAD)."""

    target: str
    sender: str
    mac: bytes


@dataclass(frozen=True, slots=True)
class Claim:
    """Somebody says that `ip` is at `mac`."""

    ip: str
    mac: bytes


def _frame(dst: bytes, src: bytes, kind: int, body: bytes) -> bytes:
    return (dst + src + kind.to_bytes(2, "big") + body).ljust(SHORTEST, b"\0")


def read(frame: bytes) -> list[Question | Claim]:
    """What an ARP or Neighbor Discovery frame says; [] for all else. Never raises."""
    kind = int.from_bytes(frame[12:14], "big")
    if kind == ARP:
        return _read_arp(frame[14:])
    if kind == IPV6:
        return _read_nd(frame)
    return []


def _read_arp(body: bytes) -> list[Question | Claim]:
    if len(body) < 28 or body[:6] != _ARP_HEAD:
        return []
    operation, mac = int.from_bytes(body[6:8], "big"), body[8:14]
    sender, target = (".".join(map(str, raw)) for raw in (body[14:18], body[24:28]))
    found: list[Question | Claim] = [Claim(sender, mac)] if sender != "0.0.0.0" else []
    if operation == REQUEST and sender != target:
        found.append(Question(target, "" if sender == "0.0.0.0" else sender, mac))
    return found


def _read_nd(frame: bytes) -> list[Question | Claim]:
    # 14 Ethernet, 40 IPv6: next header at 20, hop limit at 21, source at 22; then ICMPv6: type at 54, target at 62.
    if len(frame) < 78 or frame[20] != 58 or frame[21] != 255:
        return []
    target = normal_ip(_text(frame[62:78]))
    mac = frame[6:12]
    if frame[54] == ADVERTISEMENT:
        return [Claim(target, frame[80:86] if len(frame) >= 86 and frame[78] == 2 else mac)]
    if frame[54] == SOLICITATION:
        source = frame[22:38]
        return [Question(target, normal_ip(_text(source)) if any(source) else "", mac)]
    return []


def _text(raw: bytes) -> str:
    return ":".join(raw[i : i + 2].hex() for i in range(0, 16, 2))


def answer(question: Question, mine: bytes) -> bytes:
    """`mine`: the MAC address that has the target."""
    if ":" not in question.target:
        body = _arp(REPLY, mine, question.target, question.mac, question.sender or question.target)
        return _frame(question.mac, mine, ARP, body)
    if not question.sender:
        return _advertisement(question.target, mine, ALL_NODES, ALL_NODES_MAC, OVERRIDE)
    return _advertisement(question.target, mine, packed(question.sender), question.mac, SOLICITED | OVERRIDE)


def announcements(ip: str, mine: bytes) -> list[bytes]:
    """To everyone: `ip` is at `mine` now. ARP in both forms, since some stacks only hear one of them."""
    if ":" in ip:
        return [_advertisement(ip, mine, ALL_NODES, ALL_NODES_MAC, OVERRIDE)]
    return [
        _frame(BROADCAST, mine, ARP, _arp(operation, mine, ip, BROADCAST if operation == REPLY else bytes(6), ip))
        for operation in (REQUEST, REPLY)
    ]


def _arp(operation: int, mine: bytes, ip: str, other: bytes, other_ip: str) -> bytes:
    return _ARP_HEAD + operation.to_bytes(2, "big") + mine + packed(ip) + other + packed(other_ip)


def _advertisement(ip: str, mine: bytes, dst: bytes, mac: bytes, flags: int) -> bytes:
    source = packed(ip)
    body = struct.pack("!BBHI", ADVERTISEMENT, 0, 0, flags << 24) + source + b"\2\1" + mine
    pseudo = source + dst + struct.pack("!II", len(body), 58)
    body = body[:2] + checksum(pseudo + body) + body[4:]
    return _frame(mac, mine, IPV6, struct.pack("!IHBB", 6 << 28, len(body), 58, 255) + source + dst + body)


def checksum(data: bytes) -> bytes:
    """RFC 1071."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return (~total & 0xFFFF).to_bytes(2, "big")


def solicited_node(ip: str) -> str:
    """The multicast group that questions about an IPv6 address go to."""
    tail = packed(ip)[13:].hex()
    return normal_ip(f"ff02::1:ff{tail[:2]}:{tail[2:]}")


def beat(mine: bytes, body: bytes) -> bytes:
    return _frame(BROADCAST, mine, BEAT, len(body).to_bytes(2, "big") + body)


def beat_body(frame: bytes) -> bytes:
    """b"" for a frame that was cut short."""
    size = int.from_bytes(frame[14:16], "big")
    return frame[16 : 16 + size] if len(frame) >= 16 + size else b""
