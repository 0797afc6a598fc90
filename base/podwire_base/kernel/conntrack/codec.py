"""conntrack entries as data, and ctnetlink's messages about them. Pure.

Source: linux/netfilter/nfnetlink_conntrack.h, nf_conntrack_common.h, nf_conntrack_tcp.h.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from ..ip import Family, packed, unpacked
from ..netlink.codec import CREATE, NFPROTO, attr, host_u32, nest, nfgenmsg, parse, to_int

SUBSYS = 1 << 8  # NFNL_SUBSYS_CTNETLINK
NEW, GET, DELETE = 0, 1, 2  # IPCTNL_MSG_CT_*
GROUPS = {"new": 1, "update": 2, "destroy": 3}  # NFNLGRP_CONNTRACK_*
TUPLE_ORIG, TUPLE_REPLY, STATUS, PROTOINFO, ID, ZONE, FILTER, STATUS_MASK = 1, 2, 3, 4, 12, 18, 25, 26  # CTA_*
BY_ADDRESS, BY_PROTOCOL, BY_PORT = 0x02, 0x08, 0x20  # CTA_FILTER_FLAG: IP_DST, PROTO_NUM, PROTO_DST_PORT
SEEN_REPLY, ASSURED = 2, 4  # IPS_*
SYN_SENT, TIME_WAIT, CLOSE = 1, 7, 8  # TCP_CONNTRACK_*
TCP, UDP = 6, 17

Kind = Literal["new", "update", "destroy"]


class Tuple(NamedTuple):
    """One direction of a flow: addresses as canonical text; ports are 0 for a protocol without ports."""

    source: str
    source_port: int
    destination: str
    destination_port: int


@dataclass(frozen=True, slots=True)
class Flow:
    """One entry. original: the direction of the first packet; reply: the direction of the answers. A translation is the
    difference between the two. protocol: IPPROTO_*. ident: the kernel's own description, for deleting exactly this
    entry. status: IPS_* bits. tcp_state: TCP_CONNTRACK_*, 0 for other protocols.
    """

    family: Family
    protocol: int
    original: Tuple
    reply: Tuple
    ident: bytes = b""
    status: int = 0
    tcp_state: int = 0

    @property
    def opening(self) -> bool:
        """A TCP flow of which only the client's SYN was seen."""
        return self.tcp_state == SYN_SENT and not self.status & SEEN_REPLY

    @property
    def over(self) -> bool:
        """A closed or reset TCP flow, whose entry only waits to expire."""
        return self.tcp_state in (TIME_WAIT, CLOSE)


class Event(NamedTuple):
    """An entry was created, changed its state or ended."""

    kind: Kind
    flow: Flow


def matching(protocol: int, ip: str = "", port: int = 0, *, unanswered: bool = False) -> bytes:
    """The limits of a dump: entries of a protocol whose original destination is `port` and `ip`; unanswered: entries
    without a reply. Older kernels return more than requested (tuple: before 5.8; status: before 5.18). For IPv6 they do
    not compare addresses (Linux 6.18 and before compare them the wrong way round). So check each flow again.
    """
    raw = packed(ip) if ip else b""
    flags = BY_PROTOCOL | (BY_PORT if port else 0) | (BY_ADDRESS if len(raw) == 4 else 0)
    address = nest(1, attr(2 if len(raw) == 4 else 4, raw)) if raw else b""
    number = attr(1, bytes((protocol,))) + (attr(3, port.to_bytes(2, "big")) if port else b"")
    # The flags are in host order, unlike everything else here.
    body = nest(TUPLE_ORIG, address, nest(2, number)) + nest(FILTER, host_u32(1, flags))
    if unanswered:
        body += attr(STATUS, bytes(4)) + attr(STATUS_MASK, SEEN_REPLY.to_bytes(4, "big"))
    return body


def question(family: Family, body: bytes = b"") -> bytes:
    """The body of a request about entries of one family; body: see `matching`."""
    return nfgenmsg(NFPROTO[family]) + body


def _tuple(raw: bytes) -> tuple[int, Tuple]:
    """(protocol, tuple)."""
    parts = parse(raw)
    ip, proto = parse(parts[1]), parse(parts[2])
    source, destination = unpacked(ip.get(1) or ip[3]), unpacked(ip.get(2) or ip[4])
    return to_int(proto.get(1)), Tuple(source, to_int(proto.get(2)), destination, to_int(proto.get(3)))


def decode(body: bytes) -> Flow:
    """The entry in a message. Raises KeyError or ValueError if it has no tuples."""
    got = parse(body[4:])
    protocol, original = _tuple(got[TUPLE_ORIG])
    # CTA_PROTOINFO_TCP, CTA_PROTOINFO_TCP_STATE
    state = to_int(parse(parse(got.get(PROTOINFO, b"")).get(1, b"")).get(1)) if protocol == TCP else 0
    # The nested flag is stripped by parse; the kernel takes tuples with or without it.
    ident = nest(TUPLE_ORIG, got[TUPLE_ORIG]) + b"".join(attr(k, got[k]) for k in (ID, ZONE) if k in got)
    return Flow(
        "ip" if body[0] == NFPROTO["ip"] else "ip6",
        protocol,
        original,
        _tuple(got[TUPLE_REPLY])[1],
        ident,
        to_int(got.get(STATUS)),
        state,
    )


def decode_event(kind: int, flags: int, body: bytes) -> Event | None:
    """A notification; None for a message of another subsystem or about other objects."""
    if kind == SUBSYS | NEW:
        return Event("new" if flags & CREATE else "update", decode(body))
    return Event("destroy", decode(body)) if kind == SUBSYS | DELETE else None
