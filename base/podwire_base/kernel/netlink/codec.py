"""Encodes and decodes netlink messages (struct nlmsghdr), their attributes (struct nlattr), and errors. Pure.

The headers of netlink and the integers of rtnetlink are in host order (`host_u32`). The integers of netfilter
(nf_tables, conntrack, ipset) are big-endian (`u32`, `u64`).
"""

from __future__ import annotations

import errno
import os
import struct
import sys
from collections.abc import Iterator

HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence number, port id
_HEAD = struct.Struct("=HH")
_U32 = struct.Struct(">I")
_U64 = struct.Struct(">Q")
_HOST_U32 = struct.Struct("=HHI")
_NFGENMSG = struct.Struct(">BBH")
NESTED = 0x8000
TYPE_MASK = 0x3FFF
_PAD = (b"", b"\0\0\0", b"\0\0", b"\0")
# Flags of requests and of answers. Some numbers have different meanings in a query, a change and an answer.
REQUEST, MULTI, ACK, DUMP_INTR = 0x01, 0x02, 0x04, 0x10
REPLACE, EXCL, CREATE, APPEND = 0x100, 0x200, 0x400, 0x800
DUMP = 0x300
CAPPED, ACK_TLVS = 0x100, 0x200
ERROR, DONE = 2, 3  # message types
NFPROTO = {"inet": 1, "ip": 2, "bridge": 7, "ip6": 10}  # families of netfilter


def attr_head(size: int, kind: int) -> bytes:
    """Returns the header of an attribute. size: with the header."""
    return _HEAD.pack(size, kind)


def attr(kind: int, value: bytes) -> bytes:
    """Returns one attribute, padded to a multiple of four bytes."""
    size = len(value) + 4
    return _HEAD.pack(size, kind) + value + _PAD[size & 3]


def nest(kind: int, *inner: bytes) -> bytes:
    return attr(kind | NESTED, b"".join(inner))


def u32(kind: int, value: int) -> bytes:
    """Returns an attribute with a big-endian number. Negative values (priorities, verdict codes) are encoded as two's
    complement.
    """
    return attr(kind, _U32.pack(value & 0xFFFFFFFF))


def u64(kind: int, value: int) -> bytes:
    return attr(kind, _U64.pack(value))


def u8(kind: int, value: int) -> bytes:
    return attr(kind, bytes((value,)))


def host_u32(kind: int, value: int) -> bytes:
    return _HOST_U32.pack(8, kind, value)


def text(kind: int, value: str) -> bytes:
    return attr(kind, value.encode() + b"\0")


def walk(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yields (number, payload) of each attribute in `data`. Stops at a malformed attribute."""
    at, end = 0, len(data)
    while at + 4 <= end:
        size, kind = _HEAD.unpack_from(data, at)
        if size < 4 or at + size > end:
            return
        yield kind & TYPE_MASK, data[at + 4 : at + size]
        at += (size + 3) & ~3


def parse(data: bytes) -> dict[int, bytes]:
    """Returns number -> payload of each attribute. If a number repeats, the last attribute counts."""
    return dict(walk(data))


def find(data: bytes, wanted: int, at: int = 0) -> bytes:
    """Returns the payload of the first attribute with the number `wanted`, from position `at` on; b"" if
    there is none.
    """
    while at + 4 <= len(data):
        size, kind = _HEAD.unpack_from(data, at)
        if kind & TYPE_MASK == wanted:
            return data[at + 4 : at + size]
        if size < 4:
            break
        at += (size + 3) & ~3
    return b""


def to_int(data: bytes | None, default: int = 0) -> int:
    return default if data is None else int.from_bytes(data, "big")


def to_signed(data: bytes) -> int:
    return int.from_bytes(data, "big", signed=True)


def to_text(data: bytes | None) -> str:
    return "" if data is None else data.rstrip(b"\0").decode(errors="replace")


def message(kind: int, flags: int, body: bytes, seq: int = 0) -> bytes:
    """Returns a request. seq 0: the socket sets the sequence number."""
    return HEADER.pack(len(body) + 16, kind, flags | REQUEST, seq, 0) + body


def nfgenmsg(family: int, res_id: int = 0) -> bytes:
    """Returns struct nfgenmsg, the header that follows the netlink header in every netfilter message."""
    return _NFGENMSG.pack(family, 0, res_id)


def split(data: bytes) -> Iterator[tuple[int, int, int, int, bytes]]:
    """Yields (type, flags, sequence number, port id, body after the netlink header) of each message in a datagram."""
    at = 0
    while at + 16 <= len(data):
        length, kind, flags, seq, pid = HEADER.unpack_from(data, at)
        if length < 16:
            return
        yield kind, flags, seq, pid, data[at + 16 : at + length]
        at += (length + 3) & ~3


class NetlinkError(OSError):
    """The kernel refused one message. seq: the message's sequence number, or its position in a batch. extack: the
    kernel's error text (extended ack), often empty. errno: a number of errno.h or of the subsystem.
    """

    def __init__(self, code: int, seq: int, extack: str = "") -> None:
        super().__init__(code, f"{os.strerror(code)} ({extack})" if extack else os.strerror(code))
        self.seq, self.extack = seq, extack

    @property
    def name(self) -> str:
        return errno.errorcode.get(self.errno or 0, str(self.errno))


def decode_error(flags: int, seq: int, body: bytes) -> NetlinkError | None:
    """Decode NLMSG_ERROR. Returns None for an acknowledgement (errno 0). The message has an errno, then the request's
    header (or the complete request, if NETLINK_CAP_ACK is not set), and attributes if a flag says so. Attribute 1 is
    the error text.
    """
    code = -int.from_bytes(body[:4], sys.byteorder, signed=True)
    if not code:
        return None
    extack = ""
    if flags & ACK_TLVS:
        start = 20 if flags & CAPPED else 4 + ((int.from_bytes(body[4:8], sys.byteorder) + 3) & ~3)
        extack = to_text(parse(body[start:]).get(1))
    return NetlinkError(code, seq, extack)
