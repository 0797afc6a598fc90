"""Edge cases of messages, and the required response to each message (RFC 1035, 6891, 7873, 8906).

An empty `rcode` means that the server sends no response. The module also has the answers for names of pods in the other
two modes, and the answers before the first zone.
"""

from __future__ import annotations

from dataclasses import dataclass

import dns.edns
import dns.flags
import dns.message
import dns.opcode

from . import cases
from .cases import POD_REVERSE, SERVICE_REVERSE, SVC, ZONE, Case

FORMERR, SERVFAIL, NOTIMP, REFUSED, BADVERS = "FORMERR", "SERVFAIL", "NOTIMP", "REFUSED", "BADVERS"
WEB = f"svc1.{SVC}"


@dataclass(frozen=True)
class Edge:
    """A message and its required response. answers: the number of records in the answer section."""

    name: str
    message: bytes
    rcode: str
    answers: int = 0


def _query(
    name: str = WEB,
    rtype: str = "A",
    rclass: str = "IN",
    *,
    opcode: dns.opcode.Opcode = dns.opcode.QUERY,
    edns: int = -1,
    payload: int = 1232,
    option: dns.edns.Option | None = None,
    flags: int | None = None,
) -> bytes:
    made = dns.message.make_query(
        name, rtype, rclass, use_edns=edns, payload=payload, options=[option] if option else None, id=4711
    )
    made.set_opcode(opcode)
    if flags is not None:
        made.flags = dns.flags.Flag(flags)
    return made.to_wire()


_COOKIE = dns.edns.GenericOption(dns.edns.OptionType.COOKIE, b"01234567")
_UNKNOWN = dns.edns.GenericOption(dns.edns.OptionType.make(65001), b"x")
_BARE = _query()
EDGES = [
    Edge("letters of both cases", _query(WEB.replace("svc", "SvC")), "NOERROR", 1),
    Edge("no recursion desired", _query(flags=0), "NOERROR", 1),
    Edge("checking disabled", _query(flags=dns.flags.RD | dns.flags.CD), "NOERROR", 1),
    Edge("EDNS with a size below 512", _query(edns=0, payload=100), "NOERROR", 1),
    Edge("an unknown EDNS option", _query(edns=0, option=_UNKNOWN), "NOERROR", 1),
    Edge("a client cookie", _query(edns=0, option=_COOKIE), "NOERROR", 1),
    Edge("EDNS version 1", _query(edns=1), BADVERS),
    Edge("an unknown type", _query(rtype="TYPE65280"), "NOERROR"),
    Edge("ANY", _query(rtype="ANY"), REFUSED),
    Edge("AXFR", _query(ZONE, "AXFR"), REFUSED),
    Edge("IXFR", _query(ZONE, "IXFR"), REFUSED),
    Edge("class ANY", _query(rclass="ANY"), REFUSED),
    Edge("class CH", _query("version.bind.", "TXT", "CH"), REFUSED),
    Edge("NOTIFY", _query(ZONE, "SOA", opcode=dns.opcode.NOTIFY), NOTIMP),
    Edge("UPDATE", _query(ZONE, "SOA", opcode=dns.opcode.UPDATE), NOTIMP),
    Edge("STATUS", _query(opcode=dns.opcode.STATUS), NOTIMP),
    Edge("no question", _BARE[:4] + b"\0" * 8, FORMERR),
    Edge("two questions", _BARE[:4] + b"\0\2" + _BARE[6:] + _BARE[12:], FORMERR),
    Edge("an answer section", _BARE[:6] + b"\0\1" + _BARE[8:] + b"\0\0\1\0\1\0\0\0\0\0\0", FORMERR),
    Edge("bytes after the end", _BARE + b"xx", FORMERR),
    Edge("a truncated question", _BARE[:-3], FORMERR),
    Edge("a pointer in the question", _BARE[:12] + b"\xc0\x0c\0\1\0\1", FORMERR),
    Edge("two OPT records", _BARE[:10] + b"\0\2" + _BARE[12:] + b"\0\0\x29\4\xd0\0\0\0\0\0\0" * 2, FORMERR),
    Edge("an answer", _BARE[:2] + b"\x80" + _BARE[3:], ""),
    Edge("less than a header", _BARE[:11], ""),
]

RUNNING: list[cases.Object] = [
    {
        "metadata": {"name": "a", "namespace": "testns"},
        "status": {"phase": "Running", "podIPs": [{"ip": "10.244.0.77"}, {"ip": "fd00::1"}]},
    },
    {"metadata": {"name": "done", "namespace": "testns"}, "status": {"phase": "Succeeded", "podIP": "10.244.0.78"}},
    {"metadata": {"name": "new", "namespace": "testns"}, "status": {"phase": "Pending"}},
]
_POD = f"testns.pod.{ZONE}"


def _nodata(name: str, rtype: str = "A") -> Case:
    return Case(name, rtype)


def _missing(name: str, rtype: str = "A") -> Case:
    return Case(name, rtype, rcode=cases.NXDOMAIN)


PODS_VERIFIED = [
    Case(f"10-244-0-77.{_POD}", "A", (f"10-244-0-77.{_POD} 5 A 10.244.0.77",)),
    Case(f"fd00--1.{_POD}", "AAAA", (f"fd00--1.{_POD} 5 AAAA fd00::1",)),
    _nodata(f"10-244-0-77.{_POD}", "AAAA"),
    _nodata(_POD),
    _nodata(f"pod.{ZONE}"),
    _missing(f"10-244-0-78.{_POD}"),
    _missing(f"10-244-0-79.{_POD}"),
    _missing(f"10-244-0-77.empty.pod.{ZONE}"),
    _missing(f"10-244-0-77.nons.pod.{ZONE}"),
    _missing(f"a.{_POD}"),
]
PODS_DISABLED = [
    _missing(f"10-244-0-77.{_POD}"),
    _missing(f"fd00--1.{_POD}", "AAAA"),
    _missing(_POD),
    _missing(f"pod.{ZONE}"),
    Case(WEB, "A", (f"{WEB} 5 A 10.96.0.1",)),
]
NOT_SYNCED = [
    (WEB, "A"),
    (WEB, "AAAA"),
    (f"_http._tcp.{WEB}", "SRV"),
    (f"none.{SVC}", "A"),
    (f"none.nons.svc.{ZONE}", "A"),
    (ZONE, "NS"),
    (ZONE, "SOA"),
    (f"dns-version.{ZONE}", "TXT"),
    (f"10-244-0-77.{_POD}", "A"),
    ("1.0.96.10.in-addr.arpa.", "PTR"),
    (SERVICE_REVERSE, "SOA"),
    (f"9.0.{POD_REVERSE}", "PTR"),
]
