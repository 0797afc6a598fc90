"""More rows of the conformance table: which objects count, which sources the ranges allow, and SCTP."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from podwire_base.kube.meta import Object

from ..decide import Packet
from ..model import Destination
from ..verdict import NO_ENDPOINTS, NOT_IN_RANGE, PASS, UNALLOCATED, Verdict
from .builders import endpoint, endpoint_slice, port, service
from .table import (
    ALL,
    ALL_M,
    BALANCER,
    BALANCER2,
    BOTH,
    EXTERNAL,
    HERE,
    HERE_M,
    HOST,
    INFO,
    NODE,
    NODE_IP,
    NODE_PORT,
    OUT,
    POD,
    POD_B,
    POD_C,
    PORT,
    SELF,
    TARGET,
    VIP,
    Scenario,
    _v6,
    everything,
    packet,
    rows,
    some_slice,
    to,
)


def range_flows() -> list[Scenario]:
    """The 13 flows of a load balancer with two addresses and loadBalancerSourceRanges, one per row. Allowed: a client
    outside and the node; refused: the pods and another host.
    """
    made = service(
        "my-service",
        VIP,
        [port(PORT, node_port=NODE_PORT)],
        type="LoadBalancer",
        ingress=[{"ip": BALANCER}, {"ip": BALANCER2}],
        loadBalancerSourceRanges=[f" {OUT}/32", f"{NODE_IP}/32 "],
    )
    flows: list[tuple[str, Packet, Verdict]] = [
        ("a pod to the ClusterIP", packet(POD, VIP), ALL),
        ("outside to the NodePort", packet(OUT, NODE_IP, NODE_PORT), ALL_M),
        ("another host to the NodePort, which does not ask", packet(HOST, NODE_IP, NODE_PORT), ALL_M),
        ("outside to the first address", packet(OUT, BALANCER), ALL_M),
        ("outside to the second address", packet(OUT, BALANCER2), ALL_M),
        ("another host to the first address", packet(HOST, BALANCER), NOT_IN_RANGE),
        ("another host to the second address", packet(HOST, BALANCER2), NOT_IN_RANGE),
        ("a pod to the first address", packet(POD, BALANCER), NOT_IN_RANGE),
        ("a pod to the second address", packet(POD, BALANCER2), NOT_IN_RANGE),
        ("the node to the first address", packet(SELF, BALANCER), ALL_M),
        ("the node to the second address", packet(SELF, BALANCER2), ALL_M),
        ("the first address to itself", Packet(BALANCER, BALANCER, "TCP", PORT, True), ALL_M),
        ("the second address to itself", Packet(BALANCER2, BALANCER2, "TCP", PORT, True), ALL_M),
    ]
    return [
        Scenario(f"source ranges, flow: {name}", (made, some_slice(*BOTH)), {sent: verdict})
        for name, sent, verdict in flows
    ]


def frontends() -> list[Scenario]:
    """Returns the rows for malformed, incomplete and duplicate objects."""
    plain = service("my-service", VIP, [port(PORT)])
    one = some_slice(endpoint(POD_B, NODE))
    named = service("my-service", VIP, [port(PORT, "TCP", "http"), port(PORT + 1, "TCP", "admin")])
    ending = endpoint_slice(
        "my-service",
        [endpoint(POD_B, NODE, ready=False, serving=True, terminating=True)],
        [("", "TCP", TARGET)],
        name="old",
    )
    return [
        Scenario(
            "a Service of type ExternalName that has a cluster address",
            (service("my-service", VIP, [port(PORT)], type="ExternalName", externalName="example.com"), one),
            {packet(POD, VIP): UNALLOCATED},
        ),
        Scenario(
            "an FQDN slice",
            (
                plain,
                endpoint_slice("my-service", [{"addresses": ["example.com"]}], [("", "TCP", TARGET)], family="FQDN"),
            ),
            {packet(POD, VIP): NO_ENDPOINTS},
        ),
        Scenario(
            "slice ports without a name or a number",
            (
                named,
                endpoint_slice(
                    "my-service", [endpoint(POD_B, NODE)], [("http", "TCP", TARGET), ("admin", "TCP", None)]
                ),
                endpoint_slice(
                    "my-service",
                    [endpoint(POD_C, "n2")],
                    [(None, "TCP", TARGET)],  # type: ignore[list-item]  # the API can have such a port
                    name="nameless",
                ),
            ),
            {
                packet(POD, VIP): HERE,
                packet(POD, VIP, PORT + 1): NO_ENDPOINTS,
            },
        ),
        Scenario(
            "conditions left out, further addresses",
            (plain, some_slice({"addresses": [POD_B, POD_C], "nodeName": NODE})),
            {packet(POD, VIP): HERE},
        ),
        Scenario(
            "an address twice: the one that does not terminate counts", (plain, ending, one), {packet(POD, VIP): HERE}
        ),
        Scenario(
            "an endpoint in two slices",
            (
                plain,
                one,
                endpoint_slice(
                    "my-service", [endpoint(POD_B, NODE), endpoint(POD_C, "n2")], [("", "TCP", TARGET)], name="second"
                ),
            ),
            {packet(POD, VIP): ALL},
        ),
        Scenario(
            "leading zeros and white space",
            (
                service(
                    "my-service",
                    "10.96.0.020",
                    [port(PORT)],
                    externalIPs=[f" {EXTERNAL}"],
                    type="LoadBalancer",
                    ingress=[{"ip": f"{BALANCER} "}],
                    loadBalancerSourceRanges=[f"  {OUT}/32 "],
                ),
                one,
            ),
            {
                packet(POD, VIP): HERE,
                packet(POD, EXTERNAL): HERE_M,
                packet(OUT, BALANCER): HERE_M,
                packet(POD, BALANCER): NOT_IN_RANGE,
            },
        ),
        Scenario(
            "an ingress by host name only",
            (
                service("my-service", VIP, [port(PORT)], type="LoadBalancer", ingress=[{"hostname": "lb.example.com"}]),
                one,
            ),
            {packet(POD, VIP): HERE, packet(POD, BALANCER): PASS},
        ),
        Scenario(
            "TCP only: the same NodePort over UDP is nobody's",
            (everything(), some_slice(*BOTH)),
            {
                packet(OUT, NODE_IP, NODE_PORT): ALL_M,
                packet(OUT, NODE_IP, NODE_PORT, "UDP"): PASS,
                packet(POD, EXTERNAL, PORT, "UDP"): PASS,
            },
        ),
        Scenario(
            "ready is what counts, published or not",
            (
                service("my-service", VIP, [port(PORT)], publishNotReadyAddresses=True),
                some_slice(endpoint(POD_B, NODE, ready=True, serving=False), endpoint(POD_C, "n2", ready=False)),
            ),
            {packet(POD, VIP): HERE},
        ),
        Scenario(
            "a slice of a Service that is not there",
            (plain, one, endpoint_slice("nobody", [endpoint(POD_C, "n2")], [("", "TCP", TARGET)])),
            {packet(POD, VIP): HERE},
        ),
    ]


def families() -> list[Scenario]:
    """A Service has frontends and endpoints in the IP families of its ClusterIPs only. The packets go to a server
    outside that listens on the address and port.
    """
    server, node_ip, pod = (_v6(ip) for ip in (HOST, NODE_IP, POD))
    names = [("s", "TCP", TARGET), ("", "TCP", TARGET)]
    one = endpoint_slice("my-service", [endpoint(POD_B, NODE)], names)
    six = endpoint_slice("my-service", [endpoint(_v6(POD_C), "n2")], names, name="six", family="IPv6")
    dual = replace(
        INFO,
        addresses=(NODE_IP, node_ip),
        pod_cidrs=(*INFO.pod_cidrs, "fd00:244::/32"),
        service_cidrs=(*INFO.service_cidrs, "fd00:96::/112"),
    )

    def made(ips: str | list[str], **spec: Any) -> Object:
        ports = [port(TARGET, name="s"), port(PORT, node_port=NODE_PORT)]
        ingress = [{"ip": BALANCER}, {"ip": _v6(BALANCER)}]
        return service(
            "my-service", ips, ports, type="LoadBalancer", externalIPs=[EXTERNAL, server], ingress=ingress, **spec
        )

    mine = {packet(POD, ip): HERE_M for ip in (EXTERNAL, BALANCER)}
    foreign = dict.fromkeys(
        (packet(pod, server, TARGET), packet(pod, _v6(BALANCER)), packet(pod, node_ip, NODE_PORT)), PASS
    )
    away = to([Destination(_v6(POD_C), TARGET)], True)
    return [
        Scenario(
            "a family that the Service does not have: routing decides",
            (made(VIP), one, six),
            mine | foreign,
            dual,
            True,
        ),
        Scenario(
            "a family that the Service does not have: its slices are ignored",
            (made(VIP, ipFamilies=["IPv4"]), six),
            dict.fromkeys(mine, NO_ENDPOINTS) | foreign,
            dual,
            True,
        ),
        Scenario(
            "a ClusterIP of a family that spec.ipFamilies does not have",
            (made([VIP, _v6(VIP)], ipFamilies=["IPv4"]), one, six),
            mine | foreign | {packet(pod, _v6(VIP)): UNALLOCATED},
            dual,
            True,
        ),
        Scenario(
            "both families: each has its own frontends and endpoints",
            (made([VIP, _v6(VIP)], ipFamilies=["IPv4", "IPv6"]), one, six),
            mine | dict.fromkeys(foreign, away),
            dual,
            True,
        ),
    ]


def sctp() -> list[Scenario]:
    """SCTP Services: every frontend, refused with ICMP, apart from TCP and UDP of the same number."""
    spec: dict[str, Any] = {"protocol": "SCTP"}
    both = service("my-service", VIP, [port(PORT, "TCP", "t"), port(PORT, "UDP", "u"), port(PORT, "SCTP", "s")])
    return [
        Scenario(
            "SCTP: ClusterIP, NodePort, externalIP, load balancer",
            (everything(**spec), some_slice(*BOTH, **spec)),
            {**rows(POD, ALL_M, ALL, "SCTP"), **rows(SELF, ALL_M, ALL_M, "SCTP"), **rows(OUT, ALL_M, ALL_M, "SCTP")},
        ),
        Scenario(
            "SCTP: externalTrafficPolicy Local",
            (everything(**spec, externalTrafficPolicy="Local"), some_slice(*BOTH, **spec)),
            {**rows(POD, ALL, ALL, "SCTP"), **rows(OUT, HERE, ALL_M, "SCTP")},
        ),
        Scenario(
            "SCTP: no endpoints",
            (everything(**spec), some_slice(**spec)),
            {**rows(POD, NO_ENDPOINTS, NO_ENDPOINTS, "SCTP"), **rows(OUT, NO_ENDPOINTS, NO_ENDPOINTS, "SCTP")},
        ),
        Scenario(
            "SCTP: another protocol on the same number",
            (
                both,
                endpoint_slice(
                    "my-service",
                    [endpoint(POD_B, NODE)],
                    [("t", "TCP", TARGET), ("u", "UDP", TARGET), ("s", "SCTP", TARGET + 1)],
                ),
            ),
            {
                packet(POD, VIP): HERE,
                packet(POD, VIP, PORT, "UDP"): HERE,
                packet(POD, VIP, PORT, "SCTP"): to([Destination(POD_B, TARGET + 1)], False),
            },
        ),
    ]
