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
# CTA_FILTER_FLAG: IP_SRC, IP_DST, PROTO_NUM, PROTO_DST_PORT
BY_SOURCE, BY_ADDRESS, BY_PROTOCOL, BY_PORT = 0x01, 0x02, 0x08, 0x20
SEEN_REPLY, ASSURED = 2, 4  # IPS_*
SYN_SENT, TIME_WAIT, CLOSE = 1, 7, 8  # TCP_CONNTRACK_*
TCP, UDP = 6, 17

Kind = Literal["new", "update", "destroy"]


class Tuple(NamedTuple):
    """One direction of a flow. Addresses are canonical text. Ports are 0 if the protocol has no ports."""

    source: str
    source_port: int
    destination: str
    destination_port: int


@dataclass(frozen=True, slots=True)
class Flow:
    """One conntrack entry. original: the direction of the first packet. reply: the direction of the answers. If the
    flow is translated (NAT), the two directions differ. protocol: IPPROTO_*. ident: the attributes by which the kernel
    identifies exactly this entry for deletion. status: IPS_* bits. tcp_state: TCP_CONNTRACK_*, 0 for other protocols.
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
        """Whether conntrack has seen only the client's SYN of this TCP flow."""
        return self.tcp_state == SYN_SENT and not self.status & SEEN_REPLY

    @property
    def over(self) -> bool:
        """Whether this is a closed or reset TCP flow whose entry only waits to expire."""
        return self.tcp_state in (TIME_WAIT, CLOSE)


class Event(NamedTuple):
    """An entry was created, changed its state or ended."""

    kind: Kind
    flow: Flow


def matching(protocol: int, ip: str = "", port: int = 0, *, unanswered: bool = False) -> bytes:
    """Returns the filter of a dump. The filter selects the entries of a protocol with `ip` and `port` as original
    destination. unanswered: only entries without a reply. Older kernels ignore parts of the filter and return more
    entries (the tuple before 5.8, the status before 5.18). The filter does not compare IPv6 addresses, because Linux
    6.18 and older compare them the wrong way round. So check each returned flow again.
    """
    raw = packed(ip) if ip else b""
    flags = BY_PROTOCOL | (BY_PORT if port else 0) | (BY_ADDRESS if len(raw) == 4 else 0)
    address = nest(1, attr(2 if len(raw) == 4 else 4, raw)) if raw else b""
    number = attr(1, bytes((protocol,))) + (attr(3, port.to_bytes(2, "big")) if port else b"")
    # The flags are in host order; all other numbers here are big-endian.
    body = nest(TUPLE_ORIG, address, nest(2, number)) + nest(FILTER, host_u32(1, flags))
    if unanswered:
        body += attr(STATUS, bytes(4)) + attr(STATUS_MASK, SEEN_REPLY.to_bytes(4, "big"))
    return body


def sent_by(ip: str, *, answers: bool = False) -> bytes:
    """Returns the filter of a dump that selects the entries whose first packet this IPv4 address sent. answers: those
    whose answers it sends, whatever the destination of the first packet was. Read `matching` about older kernels.
    """
    tuple_, flags = (TUPLE_REPLY, 2) if answers else (TUPLE_ORIG, 1)  # CTA_FILTER_REPLY_FLAGS, CTA_FILTER_ORIG_FLAGS
    return nest(tuple_, nest(1, attr(1, packed(ip)))) + nest(FILTER, host_u32(flags, BY_SOURCE))


def question(family: Family, body: bytes = b"") -> bytes:
    """Returns the body of a request for the entries of one IP family. body: a filter made by `matching`."""
    return nfgenmsg(NFPROTO[family]) + body


def _tuple(raw: bytes) -> tuple[int, Tuple]:
    """(protocol, tuple)."""
    parts = parse(raw)
    ip, proto = parse(parts[1]), parse(parts[2])
    source, destination = unpacked(ip.get(1) or ip[3]), unpacked(ip.get(2) or ip[4])
    return to_int(proto.get(1)), Tuple(source, to_int(proto.get(2)), destination, to_int(proto.get(3)))


def decode(body: bytes) -> Flow:
    """Decode the entry in a message. Raises KeyError or ValueError if the message has no tuples."""
    got = parse(body[4:])
    protocol, original = _tuple(got[TUPLE_ORIG])
    # CTA_PROTOINFO_TCP, CTA_PROTOINFO_TCP_STATE
    state = to_int(parse(parse(got.get(PROTOINFO, b"")).get(1, b"")).get(1)) if protocol == TCP else 0
    # `parse` removes the nested flag. The kernel accepts tuples with or without the flag.
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
    """Decode a notification. Returns None for a message of another subsystem or about other objects."""
    if kind == SUBSYS | NEW:
        return Event("new" if flags & CREATE else "update", decode(body))
    return Event("destroy", decode(body)) if kind == SUBSYS | DELETE else None
