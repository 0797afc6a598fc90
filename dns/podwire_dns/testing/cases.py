"""One small cluster and the answers that a client must see.

The answers follow the Kubernetes DNS specification 1.1.0; where the specification is silent, they follow CoreDNS. The
tests send every case to the pure answerer and, over UDP and TCP, to the running server.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]
ZONE = "cluster.local."
SVC = f"testns.svc.{ZONE}"
DNS_ADDRESS = "10.96.0.10"
HTTP = {"name": "http", "protocol": "TCP", "port": 80}
NOERROR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED = "NOERROR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED"


def service(
    name: str,
    namespace: str = "testns",
    *,
    ip: str | Iterable[str] = (),
    ports: Iterable[Mapping[str, Any]] = (),
    **spec: Any,
) -> Object:
    """Returns a Service. ip: one or several ClusterIPs; "None" for a headless Service."""
    addresses = [ip] if isinstance(ip, str) else list(ip)
    found = {"clusterIP": addresses[0], "clusterIPs": addresses} if addresses else {}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {**found, "ports": [dict(p) for p in ports], **spec},
    }


def endpoint(*addresses: str, ready: bool | None = True, hostname: str = "") -> Object:
    return {
        "addresses": list(addresses),
        "conditions": {} if ready is None else {"ready": ready},
        **({"hostname": hostname} if hostname else {}),
    }


def endpoint_slice(
    owner: str,
    endpoints: Iterable[Object],
    *,
    namespace: str = "testns",
    suffix: str = "1",
    ports: Iterable[Mapping[str, Any]] = (HTTP,),
    family: str = "IPv4",
) -> Object:
    metadata = {"name": f"{owner}-{suffix}", "namespace": namespace, "labels": {"kubernetes.io/service-name": owner}}
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "addressType": family,
        "metadata": metadata,
        "endpoints": list(endpoints),
        "ports": [dict(p) for p in ports],
    }


def namespace(name: str) -> Object:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}


DNS_PORTS = ({"name": "dns", "protocol": "UDP", "port": 53}, {"name": "dns-tcp", "protocol": "TCP", "port": 53})

NAMESPACES = [namespace("testns"), namespace("empty"), namespace("kube-system")]
SERVICES = [
    service("svc1", ip="10.96.0.1", ports=[HTTP]),
    service("noport", ip="10.96.0.2"),
    service("unnamed", ip="10.96.0.3", ports=[{"protocol": "TCP", "port": 8080}]),
    service("svc6", ip="fd00:96::6", ports=[HTTP]),
    service("dual", ip=["10.96.0.7", "fd00:96::7"], ports=[HTTP]),
    service("two", ip="10.96.0.8", ports=[HTTP, {"name": "metrics", "protocol": "TCP", "port": 9100}]),
    service("kube-dns", "kube-system", ip=DNS_ADDRESS, ports=DNS_PORTS),
    service("nodeport", ip="10.96.0.9", type="NodePort", ports=[{**HTTP, "nodePort": 30080}]),
    service("unallocated", ip="", ports=[HTTP]),
    service("hdls", ip="None", ports=[HTTP], selector={"app": "x"}),
    service("hdls6", ip="None", ports=[HTTP]),
    service("hand", ip="None", ports=[HTTP]),
    service("portless", ip="None"),
    service("nobody", ip="None", ports=[HTTP]),
    service("asleep", ip="None", ports=[HTTP]),
    service("early", ip="None", ports=[HTTP], publishNotReadyAddresses=True),
    service("ext", type="ExternalName", externalName="www.example.com"),
    service("ext-gone", type="ExternalName", externalName="missing.example.com."),
    service("ext-in", type="ExternalName", externalName=f"svc1.{SVC}"),
    service("ext-hdls", type="ExternalName", externalName=f"hdls.{SVC}"),
    service("ext-ext", type="ExternalName", externalName=f"ext-in.{SVC}"),
    service("ext-loop", type="ExternalName", externalName=f"ext-loop.{SVC}"),
    service("ext-void", type="ExternalName", externalName=f"void.{SVC}"),
]
SLICES = [
    endpoint_slice("svc1", [endpoint("10.244.0.1"), endpoint("10.244.0.2"), endpoint("10.244.0.8", ready=False)]),
    endpoint_slice("two", [endpoint("10.244.0.1"), endpoint("10.244.7.1", hostname="two-0")]),
    endpoint_slice("svc6", [endpoint("fd00:10::5")], family="IPv6"),
    endpoint_slice(
        "hdls",
        [
            endpoint("10.244.0.2"),
            endpoint("10.244.0.3", ready=None),
            endpoint("10.244.0.9", ready=False),
            endpoint("10.244.0.4", hostname="dup"),
            endpoint("10.244.0.5", hostname="dup"),
        ],
    ),
    endpoint_slice("hdls", [endpoint("10.244.0.2"), endpoint("10.244.0.6")], suffix="2"),
    endpoint_slice("hdls6", [endpoint("fd00:10::1"), endpoint("fd00:10::")], family="IPv6"),
    endpoint_slice("hand", [endpoint("192.0.2.42")], ports=[{"name": "http", "protocol": "TCP", "port": 9376}]),
    endpoint_slice("portless", [endpoint("10.244.0.20")], ports=[]),
    endpoint_slice("asleep", [endpoint("10.244.0.30", ready=False)]),
    endpoint_slice("early", [endpoint("10.244.0.31", ready=False, hostname="early-0")]),
]


@dataclass(frozen=True)
class Case:
    """A question and its expected response.

    answer, additional: records as "name ttl type data". Without an answer, the authority section has the SOA of `soa`.
    """

    name: str
    rtype: str
    answer: tuple[str, ...] = ()
    rcode: str = NOERROR
    additional: tuple[str, ...] = ()
    soa: str = ZONE

    def __str__(self) -> str:
        return f"{self.name}/{self.rtype}"


def _one(name: str, rtype: str, *data: str, additional: tuple[str, ...] = ()) -> Case:
    return Case(name, rtype, tuple(f"{name} 5 {rtype} {item}" for item in data), additional=additional)


def _a(name: str, *addresses: str) -> Case:
    return _one(name, "A", *addresses)


def nodata(name: str, rtype: str, soa: str = ZONE) -> Case:
    return Case(name, rtype, soa=soa)


def missing(name: str, rtype: str = "A", soa: str = ZONE) -> Case:
    return Case(name, rtype, rcode=NXDOMAIN, soa=soa)


def _srv(name: str, weight: int, *targets: str, port: int = 80, glue: tuple[str, ...] = ()) -> Case:
    return _one(name, "SRV", *(f"0 {weight} {port} {target}" for target in targets), additional=glue)


_HDLS_TARGETS = tuple(f"{host}.hdls.{SVC}" for host in ("10-244-0-2", "10-244-0-3", "10-244-0-6", "dup"))
_HDLS_GLUE = tuple(
    f"{host}.hdls.{SVC} 5 A {address}"
    for host, address in (
        ("10-244-0-2", "10.244.0.2"),
        ("10-244-0-3", "10.244.0.3"),
        ("10-244-0-6", "10.244.0.6"),
        ("dup", "10.244.0.4"),
        ("dup", "10.244.0.5"),
    )
)
SERVICE_REVERSE, POD_REVERSE = "96.10.in-addr.arpa.", "244.10.in-addr.arpa."

CLUSTER_IP = [
    _a(f"svc1.{SVC}", "10.96.0.1"),
    _a(f"noport.{SVC}", "10.96.0.2"),
    _a(f"nodeport.{SVC}", "10.96.0.9"),
    _one(f"svc6.{SVC}", "AAAA", "fd00:96::6"),
    _a(f"dual.{SVC}", "10.96.0.7"),
    _one(f"dual.{SVC}", "AAAA", "fd00:96::7"),
    _srv(f"_http._tcp.svc1.{SVC}", 100, f"svc1.{SVC}", glue=(f"svc1.{SVC} 5 A 10.96.0.1",)),
    _srv(f"_http._tcp.svc6.{SVC}", 100, f"svc6.{SVC}", glue=(f"svc6.{SVC} 5 AAAA fd00:96::6",)),
    _srv(
        f"_http._tcp.dual.{SVC}",
        100,
        f"dual.{SVC}",
        glue=(f"dual.{SVC} 5 A 10.96.0.7", f"dual.{SVC} 5 AAAA fd00:96::7"),
    ),
    _srv(
        f"_dns._udp.kube-dns.kube-system.svc.{ZONE}",
        100,
        f"kube-dns.kube-system.svc.{ZONE}",
        port=53,
        glue=(f"kube-dns.kube-system.svc.{ZONE} 5 A {DNS_ADDRESS}",),
    ),
    _srv(f"svc1.{SVC}", 100, f"svc1.{SVC}", glue=(f"svc1.{SVC} 5 A 10.96.0.1",)),
    Case(
        f"two.{SVC}",
        "SRV",
        (f"two.{SVC} 5 SRV 0 50 80 two.{SVC}", f"two.{SVC} 5 SRV 0 50 9100 two.{SVC}"),
        additional=(f"two.{SVC} 5 A 10.96.0.8",),
    ),
    _srv(f"unnamed.{SVC}", 100, f"unnamed.{SVC}", port=8080, glue=(f"unnamed.{SVC} 5 A 10.96.0.3",)),
    nodata(f"svc1.{SVC}", "AAAA"),
    nodata(f"svc6.{SVC}", "A"),
    nodata(f"svc1.{SVC}", "MX"),
    nodata(f"svc1.{SVC}", "SOA"),
    nodata(f"svc1.{SVC}", "CNAME"),
    nodata(f"noport.{SVC}", "SRV"),
    nodata(f"_tcp.svc1.{SVC}", "SRV"),
    nodata(f"_http._tcp.svc1.{SVC}", "A"),
    missing(f"_http._udp.svc1.{SVC}", "SRV"),
    missing(f"_https._tcp.svc1.{SVC}", "SRV"),
    missing(f"_tcp.unnamed.{SVC}", "SRV"),
    missing(f"_http._sctp.svc1.{SVC}", "SRV"),
    missing(f"x.svc1.{SVC}"),
    missing(f"svc0.{SVC}"),
    missing(f"svc0.{SVC}", "AAAA"),
    missing(f"svc1.nons.svc.{ZONE}"),
    missing(f"svc1.empty.svc.{ZONE}"),
    missing(f"unallocated.{SVC}"),
    missing(f"*.{SVC}"),
    missing(f"svc1.*.svc.{ZONE}"),
    missing(f"svc1.{ZONE}"),
]
HEADLESS = [
    _a(f"hdls.{SVC}", "10.244.0.2", "10.244.0.3", "10.244.0.4", "10.244.0.5", "10.244.0.6"),
    _a(f"10-244-0-2.hdls.{SVC}", "10.244.0.2"),
    _a(f"10-244-0-3.hdls.{SVC}", "10.244.0.3"),
    _a(f"dup.hdls.{SVC}", "10.244.0.4", "10.244.0.5"),
    _srv(f"_http._tcp.hdls.{SVC}", 25, *_HDLS_TARGETS, glue=_HDLS_GLUE),
    _srv(f"hdls.{SVC}", 25, *_HDLS_TARGETS, glue=_HDLS_GLUE),
    _one(f"hdls6.{SVC}", "AAAA", "fd00:10::1", "fd00:10::"),
    _one(f"fd00-10--1.hdls6.{SVC}", "AAAA", "fd00:10::1"),
    _one(f"fd00-10--0.hdls6.{SVC}", "AAAA", "fd00:10::"),
    _a(f"hand.{SVC}", "192.0.2.42"),
    _a(f"192-0-2-42.hand.{SVC}", "192.0.2.42"),
    _srv(
        f"_http._tcp.hand.{SVC}",
        100,
        f"192-0-2-42.hand.{SVC}",
        port=9376,
        glue=(f"192-0-2-42.hand.{SVC} 5 A 192.0.2.42",),
    ),
    _a(f"portless.{SVC}", "10.244.0.20"),
    _a(f"10-244-0-20.portless.{SVC}", "10.244.0.20"),
    _a(f"early.{SVC}", "10.244.0.31"),
    _a(f"early-0.early.{SVC}", "10.244.0.31"),
    nodata(f"hdls.{SVC}", "AAAA"),
    nodata(f"hdls6.{SVC}", "A"),
    nodata(f"portless.{SVC}", "SRV"),
    missing(f"10-244-0-9.hdls.{SVC}"),
    missing(f"10-244-0-4.hdls.{SVC}"),
    missing(f"nobody.{SVC}"),
    missing(f"asleep.{SVC}"),
    missing(f"asleep.{SVC}", "SRV"),
    missing(f"_http._tcp.asleep.{SVC}", "SRV"),
    missing(f"10-244-0-30.asleep.{SVC}"),
]
REVERSE = [
    _one("1.0.96.10.in-addr.arpa.", "PTR", f"svc1.{SVC}"),
    _one("10.0.96.10.in-addr.arpa.", "PTR", f"kube-dns.kube-system.svc.{ZONE}"),
    _one("7." + "0." * 23 + "6.9.0.0.0.0.d.f.ip6.arpa.", "PTR", f"dual.{SVC}"),
    # endpoints of Services with ClusterIP, as in CoreDNS
    _one(f"10-244-0-1.svc1.{SVC}", "A", "10.244.0.1"),
    _one(f"10-244-0-1.two.{SVC}", "A", "10.244.0.1"),
    _one(f"two-0.two.{SVC}", "A", "10.244.7.1"),
    _one(f"fd00-10--5.svc6.{SVC}", "AAAA", "fd00:10::5"),
    nodata(f"10-244-0-1.svc1.{SVC}", "AAAA"),
    nodata(f"10-244-0-1.svc1.{SVC}", "TXT"),
    nodata(f"fd00-10--5.svc6.{SVC}", "A"),
    missing(f"10-244-0-8.svc1.{SVC}", "A"),
    missing(f"10-244-7-1.two.{SVC}", "A"),
    missing(f"10-244-0-1.dual.{SVC}", "A"),
    missing(f"a.10-244-0-1.svc1.{SVC}", "A"),
    _one("1.7.244.10.in-addr.arpa.", "PTR", f"two-0.two.{SVC}"),
    _one("1.0.244.10.in-addr.arpa.", "PTR", f"10-244-0-1.svc1.{SVC}", f"10-244-0-1.two.{SVC}"),
    _one("2.0.244.10.in-addr.arpa.", "PTR", f"10-244-0-2.hdls.{SVC}", f"10-244-0-2.svc1.{SVC}"),
    nodata("1.0.244.10.in-addr.arpa.", "A", POD_REVERSE),
    nodata("7.244.10.in-addr.arpa.", "PTR", POD_REVERSE),
    missing("8.0.244.10.in-addr.arpa.", "PTR", POD_REVERSE),
    _one("4.0.244.10.in-addr.arpa.", "PTR", f"dup.hdls.{SVC}"),
    _one("42.2.0.192.in-addr.arpa.", "PTR", f"192-0-2-42.hand.{SVC}"),
    nodata("1.0.96.10.in-addr.arpa.", "A", SERVICE_REVERSE),
    nodata("0.96.10.in-addr.arpa.", "PTR", SERVICE_REVERSE),
    nodata(SERVICE_REVERSE, "PTR", SERVICE_REVERSE),
    nodata(POD_REVERSE, "A", POD_REVERSE),
    missing("99.0.96.10.in-addr.arpa.", "PTR", SERVICE_REVERSE),
    missing("9.0.244.10.in-addr.arpa.", "PTR", POD_REVERSE),
    missing("1.1.0.96.10.in-addr.arpa.", "PTR", SERVICE_REVERSE),
]
APEX = [
    _one(f"dns-version.{ZONE}", "TXT", '"1.1.0"'),
    nodata(f"dns-version.{ZONE}", "A"),
    _one(ZONE, "NS", f"ns.dns.{ZONE}"),
    _a(f"ns.dns.{ZONE}", DNS_ADDRESS),
    nodata(f"dns.{ZONE}", "A"),
    nodata(ZONE, "A"),
    nodata(ZONE, "TXT"),
    nodata(f"svc.{ZONE}", "A"),
    nodata(f"svc.{ZONE}", "NS"),
    nodata(f"pod.{ZONE}", "A"),
    nodata(f"testns.svc.{ZONE}", "A"),
    nodata(f"empty.svc.{ZONE}", "A"),
    nodata(f"testns.svc.{ZONE}", "NS"),
    missing(f"nons.svc.{ZONE}"),
    missing(f"foo.{ZONE}", "NS"),
    missing(f"foo.svc.{ZONE}", "NS"),
]
PODS = [
    _a(f"10-244-0-77.testns.pod.{ZONE}", "10.244.0.77"),
    _one(f"fd00--1.testns.pod.{ZONE}", "AAAA", "fd00::1"),
    nodata(f"10-244-0-77.testns.pod.{ZONE}", "AAAA"),
    nodata(f"testns.pod.{ZONE}", "A"),
    missing(f"10-244-0-77.nons.pod.{ZONE}"),
    missing(f"10-244-0.testns.pod.{ZONE}"),
    missing(f"web.testns.pod.{ZONE}"),
    missing(f"a.10-244-0-77.testns.pod.{ZONE}"),
    missing(f"10-244-0-777.testns.pod.{ZONE}"),
]
EXTERNAL = [
    _one(f"ext.{SVC}", "CNAME", "www.example.com."),
    Case(f"ext.{SVC}", "TXT", (f"ext.{SVC} 5 CNAME www.example.com.",)),
    Case(f"ext-in.{SVC}", "A", (f"ext-in.{SVC} 5 CNAME svc1.{SVC}", f"svc1.{SVC} 5 A 10.96.0.1")),
    Case(f"ext-in.{SVC}", "AAAA", (f"ext-in.{SVC} 5 CNAME svc1.{SVC}",)),
    Case(
        f"ext-hdls.{SVC}",
        "A",
        (f"ext-hdls.{SVC} 5 CNAME hdls.{SVC}", *(f"hdls.{SVC} 5 A 10.244.0.{n}" for n in range(2, 7))),
    ),
    Case(
        f"ext-ext.{SVC}",
        "A",
        (f"ext-ext.{SVC} 5 CNAME ext-in.{SVC}", f"ext-in.{SVC} 5 CNAME svc1.{SVC}", f"svc1.{SVC} 5 A 10.96.0.1"),
    ),
    Case(f"ext-loop.{SVC}", "A", (f"ext-loop.{SVC} 5 CNAME ext-loop.{SVC}",)),
    Case(f"ext-void.{SVC}", "A", (f"ext-void.{SVC} 5 CNAME void.{SVC}",)),
    missing(f"endpoint.ext.{SVC}", "CNAME"),
    missing(f"_http._tcp.ext.{SVC}", "SRV"),
]
CASES = [*CLUSTER_IP, *HEADLESS, *REVERSE, *APEX, *PODS, *EXTERNAL]
