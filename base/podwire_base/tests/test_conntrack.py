"""ctnetlink's messages: answers of the kernel as recorded bytes of its layout, and our requests."""

from __future__ import annotations

import struct

import pytest

from podwire_base.kernel.conntrack import codec
from podwire_base.kernel.conntrack.codec import Flow, Tuple
from podwire_base.kernel.ip import Family, packed
from podwire_base.kernel.netlink.codec import CREATE, NFPROTO, attr, nest, nfgenmsg, parse, u32


def tuple_of(number: int, protocol: int, way: Tuple) -> bytes:
    four = ":" not in way.source
    return nest(
        number,
        nest(1, attr(1 if four else 3, packed(way.source)), attr(2 if four else 4, packed(way.destination))),
        nest(
            2,
            attr(1, bytes((protocol,))),
            attr(2, way.source_port.to_bytes(2, "big")),
            attr(3, way.destination_port.to_bytes(2, "big")),
        ),
    )


def entry(family: Family, protocol: int, one: Tuple, other: Tuple, *more: bytes) -> bytes:
    return nfgenmsg(NFPROTO[family]) + tuple_of(1, protocol, one) + tuple_of(2, protocol, other) + b"".join(more)


@pytest.mark.parametrize(
    ("family", "client", "service", "pod"),
    [("ip", "192.0.2.7", "10.96.0.1", "10.244.1.2"), ("ip6", "2001:db8::7", "fd00:96::1", "fd00:244::2")],
)
def test_an_entry_is_told_whole(family: Family, client: str, service: str, pod: str) -> None:
    one, other = Tuple(client, 40000, service, 53), Tuple(pod, 5353, client, 40000)
    body = entry(family, 17, one, other, u32(codec.STATUS, 0x1A), u32(codec.ID, 77), attr(codec.ZONE, b"\0\3"))
    flow = codec.decode(body)
    assert flow == Flow(family, 17, one, other, flow.ident, 0x1A)
    assert not flow.opening
    assert not flow.over
    ident = parse(flow.ident)
    assert (ident[codec.ID], ident[codec.ZONE]) == (b"\0\0\0\x4d", b"\0\3"), "deleted by its id, and in its zone"
    assert codec.decode(nfgenmsg(NFPROTO[family]) + flow.ident + tuple_of(2, 17, other)).original == one


@pytest.mark.parametrize(
    ("state", "status", "opening", "over"),
    [
        (codec.SYN_SENT, 0, True, False),
        (codec.SYN_SENT, 2, False, False),
        (3, 6, False, False),
        (codec.TIME_WAIT, 6, False, True),
        (codec.CLOSE, 2, False, True),
    ],
)
def test_states_of_tcp(state: int, status: int, opening: bool, over: bool) -> None:
    way = Tuple("192.0.2.7", 40000, "10.96.0.1", 80)
    info = nest(codec.PROTOINFO, nest(1, attr(1, bytes((state,)))))
    flow = codec.decode(entry("ip", 6, way, way, u32(codec.STATUS, status), info))
    assert (flow.opening, flow.over, flow.tcp_state) == (opening, over, state)


def test_a_protocol_without_ports_has_none() -> None:
    body = nfgenmsg(2) + b"".join(
        nest(n, nest(1, attr(1, b"\1\1\1\1"), attr(2, b"\2\2\2\2")), nest(2, attr(1, b"\1"), attr(4, b"\0\7")))
        for n in (1, 2)
    )
    assert codec.decode(body).original == Tuple("1.1.1.1", 0, "2.2.2.2", 0)


@pytest.mark.parametrize(
    ("kind", "flags", "told"),
    [(0x100, CREATE, "new"), (0x100, 0, "update"), (0x102, 0, "destroy"), (0x101, 0, None), (0x200, CREATE, None)],
)
def test_kinds_of_events(kind: int, flags: int, told: str | None) -> None:
    way = Tuple("192.0.2.7", 40000, "10.96.0.1", 53)
    event = codec.decode_event(kind, flags, entry("ip", 17, way, way))
    assert (event and event.kind) == told


def filters(body: bytes) -> tuple[int, dict[int, bytes], dict[int, bytes]]:
    """(flags, IP attributes, protocol attributes) of the filter."""
    got = parse(body)
    parts = parse(got[codec.TUPLE_ORIG])
    flags = struct.unpack("=I", parse(got[codec.FILTER])[1])[0]
    return flags, parse(parts.get(1, b"")), parse(parts[2])


def test_what_the_kernel_is_asked() -> None:
    assert filters(codec.matching(6)) == (codec.BY_PROTOCOL, {}, {1: b"\x06"})
    assert filters(codec.matching(17, port=53)) == (codec.BY_PROTOCOL | codec.BY_PORT, {}, {1: b"\x11", 3: b"\0\x35"})
    assert filters(codec.matching(17, "10.96.0.1", 53)) == (0x2A, {2: b"\x0a\x60\0\1"}, {1: b"\x11", 3: b"\0\x35"})
    assert filters(codec.matching(17, "fd00::1", 53))[0] == 0x28, "the kernel compares IPv6 addresses the wrong way"
    asked = parse(codec.matching(6, unanswered=True))
    assert (asked[codec.STATUS], asked[codec.STATUS_MASK]) == (bytes(4), b"\0\0\0\2")
