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
UDP_SIZE = 1232  # the largest UDP answer, sent and announced; it avoids fragments (DNS flag day 2020)
UDP_MINIMUM, TCP_SIZE = 512, 65535
OPT_BYTES, EMPTY = 11, b"\0\0\0\0\0\0"
HEADER = Struct(">HHHHHH")
COUNTS = Struct(">HHH")
FIXED = Struct(">HHIH")  # type, class, TTL, RDLENGTH: the fields after a record's name
_OPT = Struct(">BHHBBHH")


class Malformed(ValueError):
    """The message violates RFC 1035. The text names the malformed part."""


@dataclass(frozen=True, slots=True)
class Edns:
    """The EDNS options of a query.

    size: the largest UDP message that the client accepts. cookie: the client cookie to echo; b"" without a cookie.
    """

    size: int
    version: int = 0
    dnssec_ok: bool = False
    cookie: bytes = b""


@dataclass(frozen=True, slots=True)
class Query:
    """A parsed query. question: name, type and class as received. key: the question in lower case."""

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
    """Returns the offset after the name at offset `at`. Raises Malformed."""
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
    """One record in a message: its position [start, end), its type and TTL, and the offsets of its TTL and data."""

    start: int
    end: int
    rtype: int
    rclass: int
    ttl: int
    ttl_at: int
    data_at: int


def records(data: bytes, at: int, count: int) -> Iterator[Record]:
    """Yields `count` records, starting at offset `at`. Raises Malformed."""
    size = len(data)
    for _ in range(count):
        # Nearly every owner is a pointer of two bytes, which needs no call of name_end.
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
    """Returns a question with its name in lower case.

    Type and class stay unchanged: the byte of type 65 (HTTPS) is also the letter "A".
    """
    return question[:-4].lower() + question[-4:]


def parse_query(data: bytes) -> Query:
    """Parses a query. Raises Malformed if the response must be FORMERR.

    data: at least 12 bytes, with QR 0.
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
    """Returns the OPT record of a response: UDP_SIZE, version 0, the query's DO bit (RFC 3225), and its cookie."""
    option = COOKIE.to_bytes(2) + len(edns.cookie).to_bytes(2) + edns.cookie if edns.cookie else b""
    return _OPT.pack(0, OPT, UDP_SIZE, rcode >> 4, 0, 0x8000 if edns.dnssec_ok else 0, len(option)) + option


def reply(query: Query, value: bytes = EMPTY, *, rcode: int = NOERROR, flags: int = 0, limit: int = TCP_SIZE) -> bytes:
    """Returns the whole response: a head, the echoed question, and `value`.

    limit: the maximum size in bytes; a response that must omit required records has TC set. flags: AA, RA and AD of
    the answer; the function copies RD and CD from the query.
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
    """Returns an error response for a message whose question cannot be echoed: id, opcode, RD and `rcode` only."""
    ident, flags = int.from_bytes(data[:2]), int.from_bytes(data[2:4])
    return HEADER.pack(ident, QR | flags & (0x7800 | RD) | rcode, 0, 0, 0, 0)


def fit(value: bytes, offset: int, room: int) -> tuple[bytes, bool]:
    """Returns the value with as many whole records as fit into `room` bytes, and whether TC must be set.

    The records stay in order. Missing additional records need no TC (RFC 2181 section 9). offset: the position in the
    message at which the records of the value begin.
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
    """Returns an address set that starts at its `turn`-th record, modulo the number of records.

    Values of other types stay unchanged. Pass only values of pack.py, whose address records all have one length.
    """
    count = value[0] << 8 | value[1]
    if count < 2 or qtype not in (A, AAAA):
        return value
    size = (len(value) - 6) // count
    at = 6 + turn % count * size
    return value[:6] + value[at:] + value[6:at]


def soa(name: bytes, mname: bytes, rname: bytes, serial: int, ttl: int) -> bytes:
    """Returns one SOA record. The names are in wire form, compressed or not."""
    data = mname + rname + b"".join(n.to_bytes(4) for n in (serial, 7200, 1800, 86400, ttl))
    return name + FIXED.pack(SOA, IN, ttl, len(data)) + data
