"""Parses every response with both dnslib and dnspython. The two results must be equal."""

from __future__ import annotations

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
from dnslib import QTYPE, RCODE, DNSRecord

from .cases import Case


def _by_dnspython(data: bytes) -> tuple[str, list[set[str]]]:
    message = dns.message.from_wire(data)
    sections = [
        {f"{s.name} {s.ttl} {dns.rdatatype.to_text(s.rdtype)} {r.to_text()}".lower() for s in section for r in s}
        for section in (message.answer, message.authority, message.additional)
    ]
    return dns.rcode.to_text(message.rcode()), sections


def _by_dnslib(data: bytes) -> tuple[str, list[set[str]]]:
    message = DNSRecord.parse(data)
    sections = [
        {f"{r.rname} {r.ttl} {QTYPE[r.rtype]} {r.rdata}".lower() for r in section if r.rtype != QTYPE.OPT}
        for section in (message.rr, message.auth, message.ar)
    ]
    extended = sum(r.ttl >> 24 << 4 for r in message.ar if r.rtype == QTYPE.OPT)
    return RCODE.forward.get(message.header.rcode + extended, "BADVERS"), sections


def read(data: bytes) -> tuple[str, list[set[str]]]:
    """Returns (rcode, [answer, authority, additional]), with records as lower-case text.

    Fails if the two parsers disagree.
    """
    first, second = _by_dnspython(data), _by_dnslib(data)
    assert first == second, f"dnspython and dnslib read different things:\n{first}\n{second}"
    return first


def check(case: Case, data: bytes) -> None:
    """Fails unless the response is exactly the response of the case, with its duplicates and its order of CNAMEs."""
    rcode, (answer, authority, additional) = read(data)
    message = dns.message.from_wire(data)
    assert rcode == case.rcode
    assert answer == {record.lower() for record in case.answer}
    assert sum(len(rrset) for rrset in message.answer) == len(case.answer), "a record twice"
    assert additional == {record.lower() for record in case.additional}
    assert message.flags & dns.flags.AA
    assert message.question[0].to_text() == f"{case.name} IN {case.rtype}"
    if case.answer:
        assert not authority
        aliases = [rrset.rdtype == dns.rdatatype.CNAME for rrset in message.answer]
        assert aliases == sorted(aliases, reverse=True), "an alias after its target"
    else:
        (soa,) = authority
        owner, ttl, kind, mname, rname, _serial, *times = soa.split()
        assert (owner, ttl, kind) == (case.soa, "5", "soa")
        assert (mname, rname) == ("ns.dns.cluster.local.", "hostmaster.cluster.local.")
        assert times == ["7200", "1800", "86400", "5"]
