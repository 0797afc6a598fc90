"""Answers in several steps: a rewritten question, and an alias whose target is a question of its own. Pure.

A query leaves a frame for each step. `unwind` turns the answer to the last question into the answer to the first one.
"""

from __future__ import annotations

from dataclasses import dataclass

from dnslib import DNSHeader, DNSQuestion, DNSRecord

from .patterns import BadRule
from .rewriting import Rewritten, label, restore
from .rtypes import AAAA, ADDRESS_TYPES, CNAME, SRV, A
from .wire import COUNTS, EMPTY, FIXED, HEADER, IN, NOERROR, NXDOMAIN, QR, SERVFAIL, Malformed, name_end, records

MAX_ALIASES = 8
FOLLOWED = frozenset((A, AAAA, SRV))  # the types for which an alias is followed; others get the alias alone


@dataclass(frozen=True, slots=True)
class Alias:
    """The question `key` is answered by an alias, and then by the answer to the alias's target.

    value: the answer with the alias. otherwise: the (rcode, value) if the target does not exist; None: the alias alone.
    """

    key: bytes
    value: bytes
    otherwise: tuple[int, bytes] | None = None


@dataclass(frozen=True, slots=True)
class Back:
    """The question `key` was rewritten: the names of the answer change back."""

    key: bytes
    rewritten: Rewritten


Frame = Alias | Back


def cname(target: bytes, ttl: int) -> bytes:
    """Returns a value: an alias of the question's name. target: in wire form."""
    return COUNTS.pack(1, 0, 0) + b"\xc0\x0c" + FIXED.pack(CNAME, IN, ttl, len(target)) + target


def unwind(frames: tuple[Frame, ...], key: bytes, rcode: int, value: bytes) -> tuple[int, bytes]:
    """Returns the (rcode, value) for the question of the first frame. rcode, value: the answer to `key`.

    Raises BadRule if the records cannot be put together: an upstream may send anything.
    """
    for frame in reversed(frames):
        if isinstance(frame, Back):
            value = restore(frame.key, frame.rewritten, value) if value != EMPTY else value
        elif rcode not in (NOERROR, NXDOMAIN):
            rcode, value = SERVFAIL, EMPTY
        elif rcode == NXDOMAIN and frame.otherwise is not None:
            rcode, value = frame.otherwise
        else:
            rcode, value = NOERROR, joined(frame, key, value if rcode == NOERROR else EMPTY)
        key = frame.key
    return rcode, value


def joined(frame: Alias, key: bytes, value: bytes) -> bytes:
    """Returns the alias and the answer records of `value`, the value for `key`, as one value. Raises BadRule.

    dnslib packs all names again, because the compression pointers in `value` refer to another question.
    """
    if not int.from_bytes(value[:2]):
        return frame.value
    plain = _with_addresses(frame, value)
    if plain is not None:
        return plain
    try:
        out = DNSRecord(DNSHeader(qr=1), q=DNSQuestion(label(frame.key[:-4]), int.from_bytes(frame.key[-4:-2])))
        for question, part in ((frame.key, frame.value), (key, value)):
            message = HEADER.pack(0, QR, 1, int.from_bytes(part[:2]), 0, 0) + question + part[6:]
            out.add_answer(*DNSRecord.parse(message).rr)
        packed = bytes(out.pack())
    # dnslib raises its own errors, struct.error, UnicodeError and IndexError on malformed input
    except Exception as err:
        raise BadRule(f"unreadable answer: {err}") from err
    return COUNTS.pack(len(out.rr), 0, 0) + packed[12 + len(frame.key) :]


def _with_addresses(frame: Alias, value: bytes) -> bytes | None:
    """Returns the result of `joined` for one alias and addresses of its target, without parsing; else None.

    Nearly every answer is of this kind, and dnslib needs several times as long as everything else.
    """
    alias, answers = frame.value, int.from_bytes(value[:2])
    if alias[:10] != b"\0\1\0\0\0\0\xc0\x0c\0\x05":
        return None
    target = (0xC000 | 12 + len(frame.key) + 12).to_bytes(2)  # a pointer to the data of the alias
    try:
        if name_end(alias, 18, pointers=False) != len(alias):
            return None
        found = list(records(value, 6, answers))
    except Malformed:
        return None
    if any(each.rtype not in ADDRESS_TYPES or value[each.start : each.start + 2] != b"\xc0\x0c" for each in found):
        return None
    addresses = b"".join(target + value[each.start + 2 : each.end] for each in found)
    return COUNTS.pack(1 + answers, 0, 0) + alias[6:] + addresses
