"""Valid queries of every kind, and ways to corrupt them."""

from __future__ import annotations

import random

import dns.message

from . import cases


def seeds() -> list[bytes]:
    """Valid queries of every kind, as seeds for mutations."""
    found = []
    for case in cases.CASES[::3]:
        found.append(dns.message.make_query(case.name, case.rtype).to_wire())
        found.append(
            dns.message.make_query(case.name, case.rtype, use_edns=0, payload=4096, want_dnssec=True).to_wire()
        )
    found.append(dns.message.make_query("www.example.com.", "A", use_edns=0, payload=65535).to_wire())
    found.append(b"\0" * 64)
    return found


def mutate(data: bytes, rand: random.Random) -> bytes:
    raw = bytearray(data)
    for _ in range(rand.choice((1, 1, 2, 3, 8))):
        kind, at = rand.randrange(6), rand.randrange(len(raw) + 1)
        if kind == 0 and raw:
            raw[at % len(raw)] = rand.choice((0, 1, 0x3F, 0x40, 0x80, 0xC0, 0xFF, rand.randrange(256)))
        elif kind == 1 and raw:
            raw[at % len(raw)] ^= 1 << rand.randrange(8)
        elif kind == 2:
            del raw[at:]
        elif kind == 3:
            raw[at:at] = rand.randbytes(rand.randrange(1, 20))
        elif kind == 4:
            raw[at:at] = raw[rand.randrange(len(raw) + 1) :][:40]
        else:
            del raw[at : at + rand.randrange(1, 5)]
    return bytes(raw)
