"""The DNS message: parses queries, assembles answers, and cuts them to size. RFC 1035, 6891, 7873, 8906.

An answer without its head is a *value*: ANCOUNT, NSCOUNT, ARCOUNT (two bytes each), then the records. The question is
always at offset 12 and is echoed byte by byte, so compression pointers in a value are valid for every client.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from struct import Struct
from typing import NamedTuple

from .rtypes import AAAA, SOA, A

QR, AA, TC, RD, RA, AD, CD = 0x8000, 0x0400, 0x0200, 0x0100, 0x0080, 0x0020, 0x0010
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED, BADVERS = 0, 1, 2, 3, 4, 5, 16
IN, ANY, OPT = 1, 255, 41
COOKIE, CLIENT_COOKIE_BYTES = 10, 8
UDP_SIZE = 1232  # the largest UDP answer, both sent and announced: no fragments on any sane path (DNS flag day 2020)
UDP_MINIMUM, TCP_SIZE = 512, 65535
OPT_BYTES, EMPTY = 11, b"\0\0\0\0\0\0"
HEADER = Struct(">HHHHHH")
COUNTS = Struct(">HHH")
FIXED = Struct(">HHIH")  # type, class, TTL, RDLENGTH: the fields after a record's name
_OPT = Struct(">BHHBBHH")


class Malformed(ValueError):
    """The message does not follow RFC 1035; the text names the place."""


@dataclass(frozen=True, slots=True)
class Edns:
    """size: the largest UDP message that the client accepts. cookie: a client cookie to echo, b"" for none."""

    size: int
    version: int = 0
    dnssec_ok: bool = False
    cookie: bytes = b""


@dataclass(frozen=True, slots=True)
class Query:
    """A parsed query. question: as received (name, type, class). key: the same in lower case."""

    id: int
    flags: int
    question: bytes
    key: bytes
    edns: Edns | None

    @property
    def name(self) -> bytes:
        return self.key[:-4]

    @property
    def qtype(self) -> int:
        return int.from_bytes(self.question[-4:-2])

    @property
    def qclass(self) -> int:
        return int.from_bytes(self.question[-2:])

    def udp_limit(self) -> int:
        return UDP_MINIMUM if self.edns is None else max(UDP_MINIMUM, min(self.edns.size, UDP_SIZE))


def name_end(data: bytes, at: int, *, pointers: bool) -> int:
    """The offset after the name at `at`. Raises Malformed."""
    start = at
    while True:
        if at >= len(data):
            raise Malformed("a name runs over the end of the message")
        length = data[at]
        if length == 0:
            return at + 1
        if length >= 0xC0 and pointers:
            if at + 2 > len(data):
                raise Malformed("a compression pointer is cut off")
            return at + 2
        if length > 63:
            raise Malformed("a label is longer than 63 bytes")
        at += 1 + length
        if at - start > 254:
            raise Malformed("a name is longer than 255 bytes")


class Record(NamedTuple):
    """The position of one record in a message: [start, end), its type, TTL, and the offsets of its TTL and data."""

    start: int
    end: int
    rtype: int
    rclass: int
    ttl: int
    ttl_at: int
    data_at: int


def records(data: bytes, at: int, count: int) -> Iterator[Record]:
    """Walk `count` records from offset `at`. Raises Malformed."""
    size = len(data)
    for _ in range(count):
        # Nearly every owner is a pointer: two bytes, so the name need not be walked.
        behind = at + 2 if at < size and data[at] >= 0xC0 else name_end(data, at, pointers=True)
        if behind + 10 > size:
            raise Malformed("a record is cut off")
        rtype, rclass, ttl, length = FIXED.unpack_from(data, behind)
        end = behind + 10 + length
        if end > size:
            raise Malformed("a record's data runs over the end of the message")
        yield Record(at, end, rtype, rclass, ttl, behind + 4, behind + 10)
        at = end


def lower(question: bytes) -> bytes:
    """A question with its name in lower case; type and class stay (type 65, HTTPS, has the byte of "A")."""
    return question[:-4].lower() + question[-4:]


def parse_query(data: bytes) -> Query:
    """Parse a query (its header has at least 12 bytes, QR is 0). Raises Malformed for a message that deserves
    FORMERR.
    """
    ident, flags, questions, answers, authorities, additionals = HEADER.unpack_from(data)
    if questions != 1:
        raise Malformed(f"{questions} questions; a query has one")
    if answers:
        raise Malformed("a query with an answer section")
    end = name_end(data, 12, pointers=False) + 4
    if end > len(data):
        raise Malformed("the question is cut off")
    question, edns, behind = data[12:end], None, end
    for index, record in enumerate(records(data, end, authorities + additionals)):
        behind = record.end
        if index < authorities or record.rtype != OPT:
            continue
        if edns is not None or data[record.start] != 0:
            raise Malformed("more than one OPT, or an OPT with a name")
        edns = _edns(data, record)
    if behind != len(data):
        raise Malformed("bytes after the last record")
    return Query(ident, flags, question, lower(question), edns)


def _edns(data: bytes, record: Record) -> Edns:
    at, cookie = record.data_at, b""
    while at < record.end:
        if at + 4 > record.end:
            raise Malformed("an EDNS option is cut off")
        code, length = int.from_bytes(data[at : at + 2]), int.from_bytes(data[at + 2 : at + 4])
        if at + 4 + length > record.end:
            raise Malformed("an EDNS option runs over its record")
        if code == COOKIE and length == CLIENT_COOKIE_BYTES:
            cookie = data[at + 4 : at + 4 + length]
        at += 4 + length
    return Edns(record.rclass, record.ttl >> 16 & 0xFF, bool(record.ttl & 0x8000), cookie)


def opt(edns: Edns, rcode: int = 0) -> bytes:
    """Our OPT record: our own size, version 0, DO copied (RFC 3225), a client cookie echoed."""
    option = COOKIE.to_bytes(2) + len(edns.cookie).to_bytes(2) + edns.cookie if edns.cookie else b""
    return _OPT.pack(0, OPT, UDP_SIZE, rcode >> 4, 0, 0x8000 if edns.dnssec_ok else 0, len(option)) + option


def reply(query: Query, value: bytes = EMPTY, *, rcode: int = NOERROR, flags: int = 0, limit: int = TCP_SIZE) -> bytes:
    """The whole response: the echoed question and `value`, at most `limit` bytes, with TC set if something was left
    out.

    flags: AA, RA, AD of the answer; RD and CD are copied from the query.
    """
    tail = b"" if query.edns is None else opt(query.edns, rcode)
    flags |= QR | query.flags & (0x7800 | RD | CD) | rcode & 0xF
    room = limit - 12 - len(query.question) - len(tail)
    if len(value) - 6 > room:
        value, cut = fit(value, 12 + len(query.question), room)
        flags |= TC if cut else 0
    an, ns, ar = COUNTS.unpack_from(value)
    return HEADER.pack(query.id, flags, 1, an, ns, ar + (query.edns is not None)) + query.question + value[6:] + tail


def header_only(data: bytes, rcode: int) -> bytes:
    """An error for a message whose question cannot be echoed: its id, opcode and RD, and nothing else."""
    ident, flags = int.from_bytes(data[:2]), int.from_bytes(data[2:4])
    return HEADER.pack(ident, QR | flags & (0x7800 | RD) | rcode, 0, 0, 0, 0)


def fit(value: bytes, offset: int, room: int) -> tuple[bytes, bool]:
    """As many whole records as fit into `room` bytes, in order, and whether TC must be set.

    Missing additional records need no TC (RFC 2181 section 9). `offset`: the offset of the value's records in the
    message.
    """
    counts = COUNTS.unpack_from(value)
    kept, end, at = [0, 0, 0], 6, 6
    for section, count in enumerate(counts):
        for _ in range(count):
            behind = name_end(value, at, pointers=True)
            at = behind + 10 + int.from_bytes(value[behind + 8 : behind + 10])
            if at - 6 > room:
                return COUNTS.pack(*kept) + value[6:end], section < 2
            kept[section] += 1
            end = at
    return value, False


def rotate(value: bytes, qtype: int, turn: int) -> bytes:
    """An address set that starts at its `turn`-th record (modulo their number); other values unchanged.

    Pass only values made by pack.py: their address records all have one length.
    """
    count = value[0] << 8 | value[1]
    if count < 2 or qtype not in (A, AAAA):
        return value
    size = (len(value) - 6) // count
    at = 6 + turn % count * size
    return value[:6] + value[at:] + value[6:at]


def soa(name: bytes, mname: bytes, rname: bytes, serial: int, ttl: int) -> bytes:
    """One SOA record; the names in wire form, compressed or not."""
    data = mname + rname + b"".join(n.to_bytes(4) for n in (serial, 7200, 1800, 86400, ttl))
    return name + FIXED.pack(SOA, IN, ttl, len(data)) + data
