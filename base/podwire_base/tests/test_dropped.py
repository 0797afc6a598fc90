"""Packets that were dropped, as a copy from the network header tells them. Pure."""

from __future__ import annotations

import json
import struct
from ipaddress import ip_address

import pytest

from podwire_base.kernel.dropped import ICMP, ICMPV6, SCTP, TCP, UDP, Dropped, Packet, packet

A, B, A6, B6 = "10.244.0.2", "10.96.0.20", "fd00::2", "fd00::20"


def v4(protocol: int, behind: bytes, *, options: bytes = b"", fragment: int = 0) -> bytes:
    head = struct.pack("!BBHHHBBH", 0x45 + len(options) // 4, 0, 0, 0, fragment, 64, protocol, 0)
    return head + ip_address(A).packed + ip_address(B).packed + options + behind


def v6(following: int, behind: bytes) -> bytes:
    return (
        struct.pack("!IHBB", 6 << 28, len(behind), following, 64)
        + ip_address(A6).packed
        + ip_address(B6).packed
        + behind
    )


PORTS = struct.pack("!HH", 40000, 80)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (v4(TCP, PORTS), Packet(A, B, TCP, 40000, 80)),
        (v4(UDP, PORTS, options=bytes(8)), Packet(A, B, UDP, 40000, 80)),
        (v4(UDP, PORTS, fragment=0x2000), Packet(A, B, UDP, 40000, 80)),  # the first fragment has the ports
        (v4(UDP, PORTS, fragment=0x00B9), Packet(A, B, UDP)),
        (v4(ICMP, b"\x08\0"), Packet(A, B, ICMP, kind=(8, 0))),
        (v4(47, PORTS), Packet(A, B, 47)),
        (v4(TCP, b""), Packet(A, B, TCP)),
        (v6(SCTP, PORTS), Packet(A6, B6, SCTP, 40000, 80)),
        (v6(ICMPV6, b"\x80\0"), Packet(A6, B6, ICMPV6, kind=(128, 0))),
        (v6(0, bytes([TCP, 0]) + bytes(6) + PORTS), Packet(A6, B6, TCP, 40000, 80)),
        (v6(44, bytes([UDP, 0, 0, 1]) + bytes(4) + PORTS), Packet(A6, B6, UDP, 40000, 80)),
        (v6(44, bytes([UDP, 0, 0, 8]) + bytes(4) + PORTS), Packet(A6, B6, UDP)),
        (v6(60, bytes([TCP, 9])), Packet(A6, B6, 60)),
        (b"", None),
        (b"\x50" * 40, None),
        (v4(TCP, PORTS)[:19], None),
        (v6(TCP, PORTS)[:39], None),
    ],
)
def test_headers_are_read(data: bytes, told: Packet | None) -> None:
    assert packet(data) == told


def test_every_copy_that_is_cut_off_is_read_or_refused() -> None:
    for whole in (v4(TCP, PORTS), v6(44, bytes([UDP, 0, 0, 1]) + bytes(4) + PORTS)):
        for end in range(len(whole)):
            found = packet(whole[:end])
            assert found is None or found.src in (A, A6)


def test_a_record_is_flat_as_json() -> None:
    one = Dropped(1.5, "NO_SOCKET", Packet(A, B, TCP, 40000, 80), "eth0", 2, 7)
    told = json.loads(json.dumps(one.as_json()))
    assert (told["src"], told["protocol"], told["reason"], told["number"]) == (A, "TCP", "NO_SOCKET", 1)
    assert not one.packet.v6
