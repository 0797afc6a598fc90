"""Packs records into values without a DNS library. wire.py describes the form of a value.

A start packs 250,000 values, so a value is a few concatenations. `Packer` packs the common part of each kind of answer
once. Owners point at the question (offset 12). SRV targets are uncompressed (RFC 2782).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from . import names
from .rtypes import AAAA, CNAME, NS, PTR, SRV, TXT, A
from .wire import COUNTS, FIXED, IN

OWNER = b"\xc0\x0c"
MAX_POINTER = 0x3FFF
MAX_RECORDS = 0xFFFF  # a section counts its records in 16 bits
A_IN, AAAA_IN, PTR_IN, SRV_IN, CNAME_IN = (rtype.to_bytes(2) + b"\0\x01" for rtype in (A, AAAA, PTR, SRV, CNAME))
DATA_KINDS = (A_IN, AAAA_IN, CNAME_IN, SRV_IN, PTR_IN)  # a name exists if it owns an answer of such a type
SRV_WEIGHT_SUM = 100


def question(name: str, rtype: int) -> bytes:
    """Returns the lower-case question that a value answers: name, type, class IN."""
    return names.to_wire(name) + rtype.to_bytes(2) + b"\0\x01"


class Targets(NamedTuple):
    """SRV records for several names. glue: (offset of the target in `records`, target, rest of the record)."""

    number: int
    records: bytes
    glue: list[tuple[int, bytes, bytes]]


class Packer:
    """Packs values that all have the same TTL (seconds)."""

    def __init__(self, ttl: int) -> None:
        self.ttl = ttl
        self.a = OWNER + FIXED.pack(A, IN, ttl, 4)
        self.aaaa = OWNER + FIXED.pack(AAAA, IN, ttl, 16)
        self.one_a = COUNTS.pack(1, 0, 0) + self.a
        self.one_aaaa = COUNTS.pack(1, 0, 0) + self.aaaa
        self.a_tail, self.aaaa_tail = self.a[2:], self.aaaa[2:]
        self._named = {
            rtype: [COUNTS.pack(1, 0, 0) + OWNER + FIXED.pack(rtype, IN, ttl, size) for size in range(256)]
            for rtype in (PTR, CNAME, NS)
        }
        self._srv = [OWNER + FIXED.pack(SRV, IN, ttl, 6 + size) for size in range(256)]

    def addresses(self, packed: Iterable[bytes]) -> dict[bytes, bytes]:
        """Returns type and class -> value for addresses of 4 and 16 bytes. Equal sets give equal values (sorted)."""
        found = {}
        every = sorted(set(packed))
        if len(every) == 1:
            return {A_IN: self.one_a + every[0]} if len(every[0]) == 4 else {AAAA_IN: self.one_aaaa + every[0]}
        for size, kind, head in ((4, A_IN, self.a), (16, AAAA_IN, self.aaaa)):
            mine = [item for item in every if len(item) == size][:MAX_RECORDS]
            if mine:
                found[kind] = COUNTS.pack(len(mine), 0, 0) + head + head.join(mine)
        return found

    def named(self, rtype: int, target: bytes) -> bytes:
        """Returns the value of one PTR, CNAME or NS record."""
        return self._named[rtype][len(target)] + target

    def pointers(self, targets: Iterable[bytes]) -> bytes:
        """Returns the value of the PTR records of an address that has several names."""
        every = sorted(set(targets))[:MAX_RECORDS]
        return COUNTS.pack(len(every), 0, 0) + b"".join(self.named(PTR, target)[6:] for target in every)

    def text(self, text: str) -> bytes:
        raw = text.encode()
        return COUNTS.pack(1, 0, 0) + OWNER + FIXED.pack(TXT, IN, self.ttl, len(raw) + 1) + bytes((len(raw),)) + raw

    def targets(self, pairs: Iterable[tuple[int, bytes]], glue: Mapping[bytes, Sequence[bytes]]) -> Targets:
        """Returns SRV records of (port, target) with equal weights. glue: the packed addresses of each target."""
        every = sorted(set(pairs))[:MAX_RECORDS]
        weight = b"\0\0" + max(1, SRV_WEIGHT_SUM // len(every)).to_bytes(2)
        heads, at = self._srv, 18
        parts: list[bytes] = []
        where: dict[bytes, int] = {}
        for port, target in every:
            parts.append(heads[len(target)] + weight + port.to_bytes(2) + target)
            where.setdefault(target, at)
            at += 18 + len(target)
        extra = [
            (offset, target, (self.a_tail if len(item) == 4 else self.aaaa_tail) + item)
            for target, offset in where.items()
            for item in glue.get(target, ())
        ]
        return Targets(len(parts), b"".join(parts), extra[:MAX_RECORDS])

    def srv(self, owner: bytes, targets: Targets) -> bytes:
        """Returns the value of the SRV records at `owner`.

        The owner of an additional record is a pointer to its SRV target if a pointer can reach that offset.
        """
        begin = 12 + len(owner) + 4
        if begin + len(targets.records) <= MAX_POINTER:
            base = 0xC000 + begin
            extra = [(base + offset).to_bytes(2) + tail for offset, _, tail in targets.glue]
        else:
            extra = [
                ((0xC000 + begin + offset).to_bytes(2) if begin + offset <= MAX_POINTER else target) + tail
                for offset, target, tail in targets.glue
            ]
        return COUNTS.pack(targets.number, 0, len(extra)) + targets.records + b"".join(extra)

    def srv_one(self, owner: bytes, port: int, target: bytes, glue: Sequence[bytes]) -> bytes:
        """Returns the result of `srv` for one target, the usual case of a Service with ClusterIP."""
        name = (0xC000 | 34 + len(owner)).to_bytes(2)
        extra = [name + (self.a_tail if len(item) == 4 else self.aaaa_tail) + item for item in glue]
        return (
            b"\0\1\0\0\0"
            + bytes((len(extra),))
            + self._srv[len(target)]
            + b"\0\0\0\x64"
            + port.to_bytes(2)
            + target
            + b"".join(extra)
        )


def pointer_targets(value: bytes) -> list[bytes]:
    """Returns the names in a value that `named` or `pointers` made."""
    found, at = [], 6
    while at < len(value):
        end = at + 12 + int.from_bytes(value[at + 10 : at + 12])
        found.append(value[at + 12 : end])
        at = end
    return found
