"""The frames of the load balancer responder: parses questions and claims, builds answers and beats.
Pure; podwire_base.kernel.frames builds the frames themselves.

Beats (election.py) travel in broadcast frames of the EtherType that IEEE 802 sets aside for local experiments: they go
where ARP goes, no further, and no firewall or route is in their way.
"""

from __future__ import annotations

from dataclasses import dataclass

from podwire_base.kernel.frames import (
    ADVERTISEMENT,
    ARP,
    ARP_HEAD,
    BROADCAST,
    ICMPV6,
    IPV6,
    OVERRIDE,
    REPLY,
    REQUEST,
    SOLICITATION,
    SOLICITED,
    advertisement,
    arp,
    ethernet,
    gratuitous,
)
from podwire_base.kernel.ip import packed, unpacked

from ..model import normal_ip

BEAT = 0x88B5


@dataclass(frozen=True, slots=True)
class Question:
    """A host asks for the MAC of `target`. sender: "" if it has no address yet (ARP probe, DAD)."""

    target: str
    sender: str
    mac: bytes


@dataclass(frozen=True, slots=True)
class Claim:
    """A host announces that `ip` is at `mac`."""

    ip: str
    mac: bytes


def read(frame: bytes) -> list[Question | Claim]:
    """Returns the content of an ARP or Neighbor Discovery frame; [] for any other frame. Never raises."""
    kind = int.from_bytes(frame[12:14], "big")
    if kind == ARP:
        return _read_arp(frame[14:])
    if kind == IPV6:
        return _read_nd(frame)
    return []


def _read_arp(body: bytes) -> list[Question | Claim]:
    if len(body) < 28 or body[:6] != ARP_HEAD:
        return []
    operation, mac = int.from_bytes(body[6:8], "big"), body[8:14]
    sender, target = (unpacked(raw) for raw in (body[14:18], body[24:28]))
    found: list[Question | Claim] = [Claim(sender, mac)] if sender != "0.0.0.0" else []
    if operation == REQUEST and sender != target:
        found.append(Question(target, "" if sender == "0.0.0.0" else sender, mac))
    return found


def _read_nd(frame: bytes) -> list[Question | Claim]:
    # 14 Ethernet, 40 IPv6: next header at 20, hop limit at 21, source at 22; then ICMPv6: type at 54, target at 62.
    if len(frame) < 78 or frame[20] != ICMPV6 or frame[21] != 255:
        return []
    target = unpacked(frame[62:78])
    mac = frame[6:12]
    if frame[54] == ADVERTISEMENT:
        return [Claim(target, frame[80:86] if len(frame) >= 86 and frame[78] == 2 else mac)]
    if frame[54] == SOLICITATION:
        source = frame[22:38]
        return [Question(target, unpacked(source) if any(source) else "", mac)]
    return []


def answer(question: Question, mine: bytes) -> bytes:
    """Returns the answer to a question. mine: the MAC address that has the target."""
    if ":" not in question.target:
        return arp(REPLY, mine, question.target, question.mac, question.sender or question.target, to=question.mac)
    if not question.sender:
        return advertisement(question.target, mine, flags=OVERRIDE)
    flags = SOLICITED | OVERRIDE
    return advertisement(question.target, mine, to=question.sender, to_mac=question.mac, flags=flags)


def announcements(ip: str, mine: bytes) -> list[bytes]:
    """Returns frames that announce `ip` at `mine`. ARP has two forms, because some stacks accept only one form."""
    return [gratuitous(ip, mine, form) for form in ((REQUEST,) if ":" in ip else (REQUEST, REPLY))]


def solicited_node(ip: str) -> str:
    """Returns the multicast group for queries of an IPv6 address."""
    tail = packed(ip)[13:].hex()
    return normal_ip(f"ff02::1:ff{tail[:2]}:{tail[2:]}")


def beat(mine: bytes, body: bytes) -> bytes:
    return ethernet(BROADCAST, mine, BEAT, len(body).to_bytes(2, "big") + body)


def beat_body(frame: bytes) -> bytes:
    """Returns the body of a beat; b"" for a truncated frame."""
    size = int.from_bytes(frame[14:16], "big")
    return frame[16 : 16 + size] if len(frame) >= 16 + size else b""
