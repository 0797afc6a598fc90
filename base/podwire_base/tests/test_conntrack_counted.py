"""conntrack's messages with counters: the fixed layout gives what the walk over attributes gives."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from podwire_base.kernel.conntrack import codec, counted
from podwire_base.kernel.conntrack.counted import UNKNOWN, Counted, What, fixed, generic
from podwire_base.kernel.netlink.codec import CREATE, HEADER, NFPROTO, attr, nest, nfgenmsg, u32, u64

# As Linux 6.18 sent them, with acct and timestamp: a connection through DNAT that was opened, one that was refused.
OPENED = bytes.fromhex(
    "020000003400018014000180080001000a090001080002000a0909091c000280050001000600000006000200a1e800000600030000500000"
    "3400028014000180080001000a090001080002000a0900011c0002800500010006000000060002001f90000006000300a1e8000008000c00"
    "66265dda08000300000001a80800070000000078300004802c0001800500010001000000050002000a000000050003000000000006000400"
    "0300000006000500000000000c001b0018ecf09c625297be"
)
REFUSED = bytes.fromhex(
    "020000003400018014000180080001000a090001080002000a0900011c0002800500010006000000060002009f8e00000600030000510000"
    "3400028014000180080001000a090001080002000a0900011c00028005000100060000000600020000510000060003009f8e000008000c00"
    "98289b7c080003000000038808000700000000781c0009800c00010000000000000000010c000200000000000000003c1c000a800c000100"
    "00000000000000010c00020000000000000000281c0014800c00010018ecf09c867a209f0c00020018ecf09c867af1e1100004800c000180"
    "05000100080000000c001b0018ecf09c867af2be"
)
UDP6 = bytes.fromhex(
    "0a0000004c0001802c000180140003000000000000000000000000000000000114000400000000000000000000000000000000011c000280"
    "050001001100000006000200c4d2000006000300006300004c0002802c000180140003000000000000000000000000000000000114000400"
    "000000000000000000000000000000011c0002800500010011000000060002000063000006000300c4d2000008000c00066a3ace08000300"
    "00000208080007000000001d1c0009800c00010000000000000000010c00020000000000000000311c000a800c0001000000000000000000"
    "0c00020000000000000000001c0014800c00010018ecf09c98ca8b340c00020018ecf09cb07ce6420c001b0018ecf09cb07ce715"
)


def test_recorded_messages() -> None:
    assert fixed("new", OPENED) == Counted(
        "new", 0x66265DDA, 6, b"\x0a\x09\0\1", 41448, b"\x0a\x09\x09\x09", 80, b"\x0a\x09\0\1", 8080, 0x1A8, 1,
        at=0x18ECF09C625297BE,
    )  # fmt: skip
    refused = fixed("destroy", REFUSED)
    assert refused is not None
    assert (refused.state, refused.packets, refused.size, refused.back_packets, refused.back_size) == (8, 1, 60, 1, 40)
    assert (refused.start, refused.stop) == (0x18ECF09C867A209F, 0x18ECF09C867AF1E1)
    udp = fixed("destroy", UDP6)
    assert udp is not None
    assert (udp.protocol, udp.port, udp.size, udp.back_size) == (17, 99, 0x31, 0)
    for what, body in (("new", OPENED), ("destroy", REFUSED), ("destroy", UDP6)):
        assert fixed(what, body) == generic(what, body)  # type: ignore[arg-type]  # the tuple's words are the literals


def tuple_of(kind: int, protocol: int, source: bytes, sport: int, destination: bytes, dport: int) -> bytes:
    first = 1 if len(source) == 4 else 3
    return nest(
        kind,
        nest(1, attr(first, source), attr(first + 1, destination)),
        nest(2, attr(1, bytes((protocol,))), attr(2, sport.to_bytes(2, "big")), attr(3, dport.to_bytes(2, "big"))),
    )


big, small = st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1)
port = st.integers(0, 65535)


@st.composite
def messages(draw: st.DrawFn) -> tuple[What, bytes, bool]:
    """(what, body, whether it is in the usual layout)."""
    width = draw(st.sampled_from((4, 16)))
    address = st.binary(min_size=width, max_size=width)
    protocol = draw(st.sampled_from((6, 17, 132)))
    ends = draw(address), draw(port), draw(address), draw(port)
    back = draw(address), draw(port), draw(address), draw(port)
    over, tcp, usual = draw(st.booleans()), protocol == 6, draw(st.booleans())
    body = nfgenmsg(NFPROTO["ip" if width == 4 else "ip6"])
    body += tuple_of(1, protocol, *ends) + tuple_of(2, protocol, *back)
    state = attr(1, bytes((draw(st.integers(0, 9)),)))
    if not over:
        state += attr(2, b"\1") + attr(3, b"\0") + attr(4, b"\0\0") + attr(5, b"\0\0")
    parts = [u32(codec.ID, draw(small)), u32(codec.STATUS, draw(small)), u32(7, draw(small))]
    if over:
        parts += [nest(kind, u64(1, draw(big)), u64(2, draw(big))) for kind in (9, 10, 20)]
    parts += [nest(codec.PROTOINFO, nest(1, state))] if tcp else []
    parts += [u64(27, draw(big))]
    if not usual:
        parts = [part for part in draw(st.permutations(parts)) if draw(st.booleans())] + draw(
            st.lists(st.builds(attr, st.sampled_from((8, 11, 18, 22)), st.binary(max_size=20)), max_size=3)
        )
    return ("destroy" if over else "new"), body + b"".join(parts), usual


@given(messages())
def test_the_fixed_layout_is_the_generic_parser(made: tuple[What, bytes, bool]) -> None:
    what, body, usual = made
    quick = fixed(what, body)
    assert quick == generic(what, body) or (quick is None and not usual)


@given(st.sampled_from((OPENED, REFUSED, UDP6)), st.integers(0, 250), st.binary(min_size=1, max_size=6))
def test_a_damaged_message_is_never_misread(body: bytes, at: int, noise: bytes) -> None:
    damaged = (body[:at] + noise + body[at + len(noise) :])[: len(body)]
    quick = fixed("destroy", damaged)
    if quick is not None:
        assert quick == generic("destroy", damaged)


def test_a_datagram_of_many_messages() -> None:
    def message(kind: int, flags: int, body: bytes) -> bytes:
        return HEADER.pack(len(body) + 16, kind, flags, 0, 0) + body

    data = message(0x100, CREATE, OPENED) + message(0x102, 0, REFUSED) + message(0xA00, 0, OPENED)
    data += message(0x100, 0, b"\2\0\0\0") + message(0x100, 0, OPENED)
    assert [found.what for found in counted.read(data)] == ["new", "destroy", "update"]
    assert list(counted.read(data[:30])) == []


def test_what_an_old_entry_lacks_is_unknown() -> None:
    body = OPENED[: 4 + 52 * 2] + u32(codec.ID, 1) + u32(codec.STATUS, 2)
    found = generic("entry", body)
    assert (found.packets, found.back_size, found.start, found.at) == (UNKNOWN, UNKNOWN, 0, 0)
    assert struct.unpack(">I", counted.of_status(4, 4)[4:8]) == (4,)
