"""The demo's upstream DNS server. It answers a few names of example.test with dnslib."""

from __future__ import annotations

import sys
import time

from dnslib import QTYPE, RCODE, RR, A, DNSRecord
from dnslib.server import BaseResolver, DNSServer

RECORDS = {"www.example.test.": "192.0.2.42", "example.test.": "192.0.2.42"}


class Resolver(BaseResolver):  # type: ignore[misc]  # dnslib ships no types
    def resolve(self, request: DNSRecord, _handler: object) -> DNSRecord:
        reply = request.reply()
        name = str(request.q.qname).lower()
        if name not in RECORDS:
            reply.header.rcode = RCODE.NXDOMAIN
        elif request.q.qtype in (QTYPE.A, QTYPE.ANY):
            reply.add_answer(RR(request.q.qname, QTYPE.A, rdata=A(RECORDS[name]), ttl=60))
        return reply


def main() -> None:
    for tcp in (False, True):
        DNSServer(Resolver(), address=sys.argv[1], port=53, tcp=tcp).start_thread()
    while True:
        time.sleep(60)


if __name__ == "__main__":
    main()
