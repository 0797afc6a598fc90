"""conntrack's messages with counters and times, as one flat record: for readers of many. Pure.

Two parsers give the same record. `fixed` unpacks the layout that the kernel writes for TCP, UDP and SCTP and compares
its attribute headers; it returns None for any other layout. `generic` walks the attributes. The order of attributes is
that of ctnetlink_conntrack_event in linux/net/netfilter/nf_conntrack_netlink.c.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Literal, NamedTuple

from ..netlink.codec import CREATE, HEADER, NESTED, NFPROTO, attr, attr_head, parse, to_int
from . import codec

COUNTERS_ORIG, COUNTERS_REPLY, TIMESTAMP, TIMESTAMP_EVENT = 9, 10, 20, 27  # CTA_*
UNKNOWN = -1  # a counter that the kernel does not have: its entry is older than nf_conntrack_acct

What = Literal["new", "update", "destroy", "entry"]


class Counted(NamedTuple):
    """An entry at one moment. what: "entry" in a dump. number: CTA_ID. Addresses are packed. endpoint, endpoint_port:
    who answers; it differs from the destination after DNAT. packets, size: of the first packet's direction, back_*: of
    the answers', UNKNOWN without. start, stop, at: ns since 1970 by the kernel's clock, 0 where it does not tell; at:
    of the event. state: TCP_CONNTRACK_*.
    """

    what: What
    number: int
    protocol: int
    source: bytes
    source_port: int
    destination: bytes
    port: int
    endpoint: bytes
    endpoint_port: int
    status: int
    state: int = 0
    packets: int = UNKNOWN
    size: int = UNKNOWN
    back_packets: int = UNKNOWN
    back_size: int = UNKNOWN
    start: int = 0
    stop: int = 0
    at: int = 0

    @property
    def replied(self) -> bool:
        return bool(self.status & codec.SEEN_REPLY)


def _tuple_heads(kind: int, width: int) -> tuple[bytes, ...]:
    ip = 8 + 2 * (width + 4) - 4
    return (
        attr_head(4 + ip + 28, kind | NESTED)
        + attr_head(ip, 1 | NESTED)
        + attr_head(width + 4, 1 if width == 4 else 3),
        attr_head(width + 4, 2 if width == 4 else 4),
        attr_head(28, 2 | NESTED) + attr_head(5, 1),
        attr_head(6, 2),
        attr_head(6, 3),
    )


def _tuples(width: int) -> tuple[struct.Struct, tuple[bytes, ...], tuple[bytes, ...]]:
    one = f"12s{width}s4s{width}s8sB3x4sH2x4sH2x"
    return struct.Struct(">4x" + one + one), _tuple_heads(1, width), _tuple_heads(2, width)


_TUPLES = {NFPROTO["ip"]: _tuples(4), NFPROTO["ip6"]: _tuples(16)}
_COMMON = (attr_head(8, codec.ID), attr_head(8, codec.STATUS), attr_head(8, 7))
_PAIR = tuple(attr_head(28, kind | NESTED) + attr_head(12, 1) for kind in (COUNTERS_ORIG, COUNTERS_REPLY, TIMESTAMP))
_SECOND, _EVENT = attr_head(12, 2), attr_head(12, TIMESTAMP_EVENT)
_STATE_LONG = attr_head(48, codec.PROTOINFO | NESTED) + attr_head(44, 1 | NESTED) + attr_head(5, 1)
_STATE_SHORT = attr_head(16, codec.PROTOINFO | NESTED) + attr_head(12, 1 | NESTED) + attr_head(5, 1)
_ID = "4sI4sI4s4x"
_THREE = "8sQ4sQ" * 3
# number of bytes after the tuples -> the layout: (struct, whether it has a TCP state, whether the entry is gone)
_TAILS = {
    36: (struct.Struct(f">{_ID}4sQ"), False, False),
    84: (struct.Struct(f">{_ID}12sB35x4sQ"), True, False),
    120: (struct.Struct(f">{_ID}{_THREE}4sQ"), False, True),
    136: (struct.Struct(f">{_ID}{_THREE}12sB3x4sQ"), True, True),
}


def fixed(what: What, body: bytes) -> Counted | None:
    """Returns the record of a message in the usual layout, None for any other. body: after the netlink header."""
    made = _TUPLES.get(body[0]) if body else None
    if made is None or what == "entry":
        return None
    tuples, orig, reply = made
    rest = len(body) - tuples.size
    tail = _TAILS.get(rest)
    if tail is None:
        return None
    a, source, b, destination, c, protocol, d, sport, e, dport, \
        f, endpoint, g, _, h, _, i, eport, j, _ = tuples.unpack_from(body)  # fmt: skip
    if (a, b, c, d, e) != orig or (f, g, h, i, j) != reply:
        return None
    layout, stateful, over = tail
    got = layout.unpack_from(body, tuples.size)
    if (got[0], got[2], got[4]) != _COMMON or got[-2] != _EVENT:
        return None
    state = 0
    if stateful:
        if got[-4] != (_STATE_SHORT if over else _STATE_LONG):
            return None
        state = got[-3]
    if not over:
        return Counted(
            what, got[1], protocol, source, sport, destination, dport, endpoint, eport, got[3], state, at=got[-1]
        )
    if (got[5], got[9], got[13]) != _PAIR or not got[7] == got[11] == got[15] == _SECOND:
        return None
    return Counted(
        what, got[1], protocol, source, sport, destination, dport, endpoint, eport, got[3], state,
        got[6], got[8], got[10], got[12], got[14], got[16], got[-1],
    )  # fmt: skip


def _ends(raw: bytes) -> tuple[int, bytes, int, bytes, int]:
    """(protocol, source, source port, destination, destination port)."""
    parts = parse(raw)
    ip, proto = parse(parts[1]), parse(parts[2])
    source, destination = ip.get(1) or ip[3], ip.get(2) or ip[4]
    return to_int(proto.get(1)), source, to_int(proto.get(2)), destination, to_int(proto.get(3))


def _counters(raw: bytes | None) -> tuple[int, int]:
    got = parse(raw or b"")
    return to_int(got.get(1), UNKNOWN), to_int(got.get(2), UNKNOWN)


def generic(what: What, body: bytes) -> Counted:
    """Returns the record of a message in any layout. Raises KeyError if it has no tuples."""
    got = parse(body[4:])
    protocol, source, sport, destination, dport = _ends(got[codec.TUPLE_ORIG])
    _, endpoint, eport, _, _ = _ends(got[codec.TUPLE_REPLY])
    state = 0
    if protocol == codec.TCP:
        state = to_int(parse(parse(got.get(codec.PROTOINFO, b"")).get(1, b"")).get(1))
    times = parse(got.get(TIMESTAMP, b""))
    return Counted(
        what, to_int(got.get(codec.ID)), protocol, source, sport, destination, dport, endpoint, eport,
        to_int(got.get(codec.STATUS)), state,
        *_counters(got.get(COUNTERS_ORIG)), *_counters(got.get(COUNTERS_REPLY)),
        to_int(times.get(1)), to_int(times.get(2)), to_int(got.get(TIMESTAMP_EVENT)),
    )  # fmt: skip


def what_of(kind: int, flags: int) -> What | None:
    """Returns what a notification tells, None if it is not conntrack's."""
    if kind == codec.SUBSYS | codec.NEW:
        return "new" if flags & CREATE else "update"
    return "destroy" if kind == codec.SUBSYS | codec.DELETE else None


def read(data: bytes) -> Iterator[Counted]:
    """Yields the record of each notification in a datagram. Malformed messages are left out."""
    at, end = 0, len(data)
    while at + 16 <= end:
        length, kind, flags, _, _ = HEADER.unpack_from(data, at)
        if length < 16:
            return
        what = what_of(kind, flags)
        if what is not None:
            body = data[at + 16 : at + length]
            found = fixed(what, body)
            if found is None:
                try:
                    found = generic(what, body)
                except KeyError:
                    found = None
            if found is not None:
                yield found
        at += (length + 3) & ~3


def of_status(status: int, mask: int) -> bytes:
    """Returns the filter of a dump: entries whose IPS_* bits in `mask` are those of `status`. Kernels before 5.18
    ignore it and return all entries.
    """
    return attr(codec.STATUS, status.to_bytes(4, "big")) + attr(codec.STATUS_MASK, mask.to_bytes(4, "big"))
