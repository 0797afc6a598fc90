"""More rows of the conformance table: externalIPs that are a node's own address (externalips.py).

The node at HOST is one that packets of this node reach only by routing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from podwire_base.kube import meta

from ..model import Claimable
from ..verdict import NO_ENDPOINTS, NO_LOCAL_ENDPOINTS, PASS
from .builders import endpoint, endpoint_slice, port, service
from .table import (
    ALL,
    ALL_M,
    BOTH,
    HERE,
    HOST,
    INFO,
    NODE2_IP,
    NODE_IP,
    OUT,
    POD,
    POD_C,
    PORT,
    SELF,
    TARGET,
    VIP,
    VIP2,
    C,
    H,
    Scenario,
    packet,
    to,
)

RULES = Claimable(frozenset({NODE_IP, NODE2_IP, HOST}), ports=((22, 22), (30000, 32767)))
NEAR = replace(INFO, reserved=(*INFO.pod_cidrs, *INFO.service_cidrs), claimable=RULES)


def _made(*numbers: int, ips: tuple[str, ...] = (NODE_IP, NODE2_IP), **spec: Any) -> meta.Object:
    return service("my-service", VIP, [port(n, name=f"p{n}") for n in numbers], externalIPs=list(ips), **spec)


def _ends(*endpoints: Mapping[str, Any], numbers: tuple[int, ...] = (PORT,)) -> meta.Object:
    return endpoint_slice("my-service", endpoints, [(f"p{n}", "TCP", TARGET) for n in numbers])


def node_addresses() -> list[Scenario]:
    elsewhere = service("web", VIP2, [port(PORT)]), endpoint_slice("web", [endpoint(HOST)], [("", "TCP", TARGET)])
    both = (NODE_IP, NODE2_IP)
    return [
        Scenario(
            "externalIPs of nodes",
            (_made(PORT, 8443), _ends(*BOTH, numbers=(PORT, 8443))),
            {
                **{packet(source, ip, n): ALL_M for source in (POD, SELF) for ip in both for n in (PORT, 8443)},
                **{packet(OUT, NODE_IP, n): ALL_M for n in (PORT, 8443)},
                **{packet(OUT, NODE_IP, n): PASS for n in (22, 81, 8080)},
                packet(OUT, NODE_IP, PORT, "UDP"): PASS,
                packet(POD, VIP): ALL,
            },
            NEAR,
        ),
        Scenario(
            "externalIPs of nodes: externalTrafficPolicy Local",
            (_made(PORT, externalTrafficPolicy="Local"), _ends(*BOTH)),
            {packet(POD, NODE_IP): ALL, packet(SELF, NODE2_IP): ALL_M, packet(OUT, NODE_IP): HERE},
            NEAR,
        ),
        Scenario(
            "externalIPs of nodes: none here, Local",
            (_made(PORT, externalTrafficPolicy="Local"), _ends(endpoint(POD_C, "n2"))),
            {packet(OUT, NODE_IP): NO_LOCAL_ENDPOINTS, packet(POD, NODE_IP): to([C], False)},
            NEAR,
        ),
        Scenario(
            "externalIPs of nodes: reserved ports",
            (_made(22, PORT, 30090), _ends(*BOTH, numbers=(22, PORT, 30090))),
            {
                **{packet(source, ip, n): PASS for source in (POD, SELF) for ip in both for n in (22, 30090)},
                packet(OUT, NODE_IP, 22): PASS,
                packet(OUT, NODE_IP): ALL_M,
                packet(POD, VIP, 22): ALL,
            },
            NEAR,
        ),
        Scenario(
            "externalIPs of nodes: a reserved port of another node",
            (_made(TARGET, ips=(HOST,)), _ends(*BOTH, numbers=(TARGET,))),
            {packet(POD, HOST, TARGET): PASS, packet(SELF, HOST, TARGET): PASS, packet(POD, VIP, TARGET): ALL},
            replace(NEAR, claimable=replace(RULES, ports=((TARGET, TARGET),))),
        ),
        Scenario(
            "externalIPs of nodes: refused by the setting",
            (_made(PORT, TARGET, ips=(HOST, NODE_IP)), _ends(*BOTH, numbers=(PORT, TARGET))),
            {packet(POD, HOST, TARGET): PASS, packet(OUT, NODE_IP): PASS, packet(POD, VIP, TARGET): ALL},
            replace(NEAR, claimable=replace(RULES, serve=False)),
        ),
        Scenario(
            "externalIPs of nodes: no endpoints, a host-network endpoint of another Service there",
            (_made(PORT, TARGET, ips=(HOST, NODE_IP)), _ends(numbers=(PORT, TARGET)), *elsewhere),
            {
                packet(POD, HOST, TARGET): PASS,
                packet(OUT, NODE_IP): PASS,
                packet(POD, VIP2): to([H], False),
                packet(POD, VIP, TARGET): NO_ENDPOINTS,
            },
            NEAR,
        ),
        Scenario(
            "a load balancer's address that is the node's own",
            (
                service(
                    "my-service", VIP, [port(PORT), port(22, name="b")], type="LoadBalancer", ingress=[{"ip": NODE_IP}]
                ),
                endpoint_slice("my-service", BOTH, [("", "TCP", TARGET)]),
            ),
            {
                **{packet(source, NODE_IP): ALL_M for source in (POD, SELF, OUT)},
                packet(OUT, NODE_IP, 22): NO_ENDPOINTS,
                packet(OUT, NODE_IP, 81): PASS,
            },
            NEAR,
        ),
        Scenario(
            "an endpoint that has the address of a Service without endpoints",
            (_made(TARGET, ips=(HOST,)), _ends(numbers=(TARGET,)), *elsewhere),
            {packet(POD, HOST, TARGET): NO_ENDPOINTS, packet(POD, VIP2): to([H], False)},
        ),
    ]
