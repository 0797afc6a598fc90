"""Netlink attributes (struct nlattr): the few lines of TLV that everything here is made of.

nf_tables integers are big-endian on the wire; the netlink headers themselves are in host order.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

_HEAD = struct.Struct("=HH")
_U32 = struct.Struct(">I")
_U64 = struct.Struct(">Q")
NESTED = 0x8000
TYPE_MASK = 0x3FFF
_PAD = (b"", b"\0\0\0", b"\0\0", b"\0")


def attr(kind: int, value: bytes) -> bytes:
    """One attribute, padded to four bytes."""
    size = len(value) + 4
    return _HEAD.pack(size, kind) + value + _PAD[size & 3]


def nest(kind: int, *inner: bytes) -> bytes:
    return attr(kind | NESTED, b"".join(inner))


def u32(kind: int, value: int) -> bytes:
    """Negative values (priorities, verdict codes) go as two's complement."""
    return attr(kind, _U32.pack(value & 0xFFFFFFFF))


def u64(kind: int, value: int) -> bytes:
    return attr(kind, _U64.pack(value))


def u8(kind: int, value: int) -> bytes:
    return attr(kind, bytes((value,)))


def text(kind: int, value: str) -> bytes:
    return attr(kind, value.encode() + b"\0")


def walk(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(attribute number, payload) of each attribute in `data`; stops at a malformed one."""
    at, end = 0, len(data)
    while at + 4 <= end:
        size, kind = _HEAD.unpack_from(data, at)
        if size < 4 or at + size > end:
            return
        yield kind & TYPE_MASK, data[at + 4 : at + size]
        at += (size + 3) & ~3


def parse(data: bytes) -> dict[int, bytes]:
    """Attributes by number; where a number repeats, the last one counts."""
    return dict(walk(data))


def to_int(data: bytes | None, default: int = 0) -> int:
    return default if data is None else int.from_bytes(data, "big")


def to_signed(data: bytes) -> int:
    return int.from_bytes(data, "big", signed=True)


def to_text(data: bytes | None) -> str:
    return "" if data is None else data.rstrip(b"\0").decode(errors="replace")
