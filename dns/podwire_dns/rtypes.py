"""Record types (RFC 1035, 2782, 3596)."""

from __future__ import annotations

from dnslib import QTYPE

A, NS, CNAME, SOA, PTR, TXT, AAAA, SRV = 1, 2, 5, 6, 12, 16, 28, 33
ADDRESS_TYPES = (A, AAAA)
TYPE_NAMES = {A: "A", NS: "NS", CNAME: "CNAME", SOA: "SOA", PTR: "PTR", TXT: "TXT", AAAA: "AAAA", SRV: "SRV"}


def type_name(qtype: int) -> str:
    """Returns the name of a record type, such as "A"; "TYPE65280" (RFC 3597) for a type without a name."""
    return str(QTYPE.forward.get(qtype, f"TYPE{qtype}"))
