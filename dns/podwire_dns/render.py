"""RRsets -> values, the answers that wait for their questions (their form: wire.py)."""

from __future__ import annotations

from collections.abc import Iterable

from . import names
from .wire import COUNTS, FIXED, IN
from .zone import AAAA, ADDRESS_TYPES, CNAME, NS, PTR, SRV, TXT, A, RRset, Srv, Zone

OWNER = b"\xc0\x0c"  # a pointer to the question's name
MAX_POINTER = 0x3FFF
MAX_RECORDS = 0xFFFF  # a section counts its records in 16 bits


def question_key(name: str, rtype: int) -> bytes:
    """The lower-case question that a value answers: name, type, class IN."""
    return names.to_wire(name) + rtype.to_bytes(2) + b"\0\x01"


def _data(rtype: int, item: object) -> bytes:
    if rtype in ADDRESS_TYPES:
        return names.packed(str(item))
    if rtype in (CNAME, NS, PTR):
        return names.to_wire(str(item))
    if rtype == TXT:
        raw = str(item).encode()
        return bytes((len(raw),)) + raw
    raise ValueError(f"no rendering for type {rtype}")


def render(rrset: RRset, glue: Iterable[RRset] = ()) -> bytes:
    """The value for the question (rrset.name, rrset.rtype). `glue`: address RRsets of SRV targets (additional section)."""
    if rrset.rtype == SRV:
        return _render_srv(rrset, glue)
    parts = []
    for item in rrset.rdata[:MAX_RECORDS]:
        data = _data(rrset.rtype, item)
        parts.append(OWNER + FIXED.pack(rrset.rtype, IN, rrset.ttl, len(data)) + data)
    return COUNTS.pack(len(parts), 0, 0) + b"".join(parts)


def _render_srv(rrset: RRset, glue: Iterable[RRset]) -> bytes:
    """Targets stand uncompressed (RFC 2782); the additional records' owners may point at them."""
    at = 12 + len(names.to_wire(rrset.name)) + 4
    parts: list[bytes] = []
    where: dict[str, int] = {}
    for item in rrset.rdata[:MAX_RECORDS]:
        assert isinstance(item, Srv)
        target = names.to_wire(item.target)
        where.setdefault(item.target, at + 2 + 10 + 6)
        data = item.priority.to_bytes(2) + item.weight.to_bytes(2) + item.port.to_bytes(2) + target
        parts.append(OWNER + FIXED.pack(SRV, IN, rrset.ttl, len(data)) + data)
        at += len(parts[-1])
    extra = []
    for addresses in glue:
        offset = where.get(addresses.name, MAX_POINTER + 1)
        owner = (0xC000 | offset).to_bytes(2) if offset <= MAX_POINTER else names.to_wire(addresses.name)
        for item in addresses.rdata:
            data = _data(addresses.rtype, item)
            extra.append(owner + FIXED.pack(addresses.rtype, IN, addresses.ttl, len(data)) + data)
    extra = extra[:MAX_RECORDS]
    return COUNTS.pack(len(parts), 0, len(extra)) + b"".join(parts) + b"".join(extra)


def render_key(zone: Zone, name: str, rtype: int) -> bytes | None:
    """The value of one RRset of the zone, None where it has none any more."""
    rrset = zone.get(name, rtype)
    if rrset is None:
        return None
    if rtype != SRV:
        return render(rrset)
    targets = dict.fromkeys(item.target for item in rrset.rdata if isinstance(item, Srv))
    found = (zone.get(target, kind) for target in targets for kind in (A, AAAA))
    return render(rrset, [glue for glue in found if glue is not None])
