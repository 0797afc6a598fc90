"""What rules log of refused packets: the messages of the kernel, and the expressions that send them."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire_base.kernel import nflog
from podwire_base.kernel.dropped import Packet
from podwire_base.kernel.ip import packed
from podwire_base.kernel.netlink.codec import attr, nfgenmsg, parse, text
from podwire_base.kernel.nflog import Logged
from podwire_base.kernel.nft import expr
from podwire_base.kernel.nft.decode import decode_exprs
from podwire_base.kernel.reasons import Reason

TCP = struct.pack("!HH", 40000, 80)


def v4(protocol: int, rest: bytes, options: bytes = b"") -> bytes:
    head = struct.pack("!BBHHHBBH", 0x45 + len(options) // 4, 0, 60, 1, 0, 64, protocol, 0)
    return head + packed("10.244.0.2") + packed("10.96.0.10") + options + rest


def v6(protocol: int, rest: bytes) -> bytes:
    return struct.pack("!IHBB", 6 << 28, 20, protocol, 64) + packed("fd00::2") + packed("fd00:96::a") + rest


def message(packet: bytes, prefix: str) -> bytes:
    return nfgenmsg(2, nflog.GROUP) + attr(1, bytes(4)) + text(10, prefix) + attr(9, packet)


@pytest.mark.parametrize("reason", [Reason.NO_ENDPOINTS, Reason.WRONG_PORT, Reason.NO_LOCAL_ENDPOINTS])
def test_packets_and_reasons(reason: Reason) -> None:
    words = nflog.prefix(reason)
    assert nflog.read(message(v4(6, TCP), words)) == Logged(reason, Packet("10.244.0.2", "10.96.0.10", 6, 40000, 80))
    with_options = nflog.read(message(v4(17, TCP, bytes(8)), words))
    assert with_options is not None
    assert with_options.packet.dport == 80
    sixth = nflog.read(message(v6(132, TCP), words))
    assert sixth is not None
    assert sixth.packet == Packet("fd00::2", "fd00:96::a", 132, 40000, 80)
    ping = nflog.read(message(v4(1, b"\x08\0\0\0"), words))
    assert ping is not None
    assert (ping.packet.sport, ping.packet.dport, ping.packet.kind) == (0, 0, (8, 0))
    later = bytearray(v4(17, TCP))
    later[6:8] = struct.pack("!H", 3)
    fragment = nflog.read(message(bytes(later), words))
    assert fragment is not None
    assert fragment.packet.dport == 0, "a later fragment begins with no ports"


@pytest.mark.parametrize(
    "body",
    [
        message(v4(6, TCP), "somebody else's"),
        message(v4(6, TCP), "podwire unheard-of"),
        message(v4(6, TCP)[:18], "podwire no-endpoints"),
        message(b"", "podwire no-endpoints"),
        b"",
    ],
)
def test_what_is_not_ours_or_too_short(body: bytes) -> None:
    assert nflog.read(body) is None


@given(st.binary(max_size=80))
def test_any_bytes_are_read_or_left(data: bytes) -> None:
    nflog.read(message(data, "podwire no-endpoints"))
    nflog.read(data)


def test_the_request_of_a_reader() -> None:
    body = nflog.bind()
    got = parse(body[4:])
    assert (body[2:4], got[1], got[2]) == (b"\x70\x77", b"\1", struct.pack(">IBB", 128, 2, 0))


def test_the_expressions_survive_a_dump() -> None:
    made = (expr.Limit(100, 50), expr.Log(7, "podwire policy", 128))
    assert decode_exprs(b"".join(one.encode() for one in made)) == made
