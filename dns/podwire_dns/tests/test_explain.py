"""Every answer has an explanation that names its source, and every negative answer one that gives the reason."""

from __future__ import annotations

import pytest

from podwire_dns import names
from podwire_dns.build import Builder
from podwire_dns.explain import explain
from podwire_dns.rtypes import AAAA, PTR, SRV, A
from podwire_dns.testing import builders, cases
from podwire_dns.testing.cases import SVC, ZONE


@pytest.fixture(scope="module")
def builder() -> Builder:
    bad = cases.service("bad", type="ExternalName", externalName="192.0.2.1")
    made = builders.builder([*cases.SERVICES, bad], cases.SLICES, cases.NAMESPACES)
    made.flush(1)
    return made


@pytest.mark.parametrize(
    ("name", "rtype", "said"),
    [
        (f"svc1.{SVC}", A, "comes from Service testns/svc1"),
        (f"svc1.{SVC}", AAAA, "other record types"),
        (f"_http._tcp.svc1.{SVC}", SRV, "comes from Service testns/svc1"),
        ("1.0.96.10.in-addr.arpa.", PTR, "comes from Service testns/svc1"),
        (f"_tcp.svc1.{SVC}", A, "only because names below it"),
        (f"svc0.{SVC}", A, "no Service testns/svc0"),
        (f"svc1.nons.svc.{ZONE}", A, "no namespace 'nons'"),
        (f"asleep.{SVC}", A, "none of its 1 endpoints is ready"),
        (f"nobody.{SVC}", A, "it has no endpoints"),
        (f"_ftp._tcp.svc1.{SVC}", SRV, "no named port or ready endpoint '_ftp._tcp'"),
        (f"10-244-0-9.hdls.{SVC}", A, "no named port or ready endpoint '10-244-0-9'"),
        (f"unallocated.{SVC}", A, "no address yet"),
        (f"bad.{SVC}", A, "spec.externalName '192.0.2.1' is an IP address"),
        (f"nothing.{ZONE}", A, "no object gives this name"),
        ("example.com.", A, "forwarded to the upstreams"),
    ],
)
def test_why(builder: Builder, name: str, rtype: int, said: str) -> None:
    (line,) = explain(builder, names.fqdn(name), rtype)
    assert said in line
