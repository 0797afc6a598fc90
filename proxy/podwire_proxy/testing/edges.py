"""Rows of the conformance table: no endpoints, wrong ports, unallocated addresses, hairpin, and source ranges."""

from __future__ import annotations

from typing import Any

from podwire_base.kube import meta

from ..model import Destination
from ..verdict import NO_ENDPOINTS, NOT_IN_RANGE, PASS, UNALLOCATED, WRONG_PORT
from .builders import endpoint, endpoint_slice, port, service
from .table import (
    ALL,
    ALL_M,
    BALANCER,
    BOTH,
    EXTERNAL,
    HERE,
    HERE_M,
    HOST,
    NODE,
    NODE_IP,
    NODE_PORT,
    OUT,
    OUTSIDE,
    POD,
    POD_A,
    POD_B,
    POD_C,
    PORT,
    SELF,
    TARGET,
    UNUSED,
    VIP,
    VIP2,
    B,
    H,
    Scenario,
    everything,
    packet,
    rows,
    some_slice,
    to,
)


def edges() -> list[Scenario]:
    """No endpoints, wrong port, unallocated and bound addresses, hairpin, Services that are not ours."""
    one = some_slice(endpoint(POD_B, NODE))
    plain = service("my-service", VIP, [port(PORT)])
    return [
        Scenario(
            "no endpoints",
            (everything(), some_slice()),
            {
                **rows(POD, NO_ENDPOINTS, NO_ENDPOINTS),
                **rows(SELF, NO_ENDPOINTS, NO_ENDPOINTS),
                **rows(OUT, NO_ENDPOINTS, NO_ENDPOINTS),
            },
        ),
        Scenario(
            "no endpoints, Local",
            (everything(externalTrafficPolicy="Local", internalTrafficPolicy="Local"),),
            {
                **rows(POD, NO_ENDPOINTS, NO_ENDPOINTS),
                **rows(SELF, NO_ENDPOINTS, NO_ENDPOINTS),
                **rows(OUT, NO_ENDPOINTS, NO_ENDPOINTS),
            },
        ),
        Scenario(
            "no endpoints, UDP",
            (everything(protocol="UDP"),),
            {**rows(POD, NO_ENDPOINTS, NO_ENDPOINTS, "UDP"), **rows(OUT, NO_ENDPOINTS, NO_ENDPOINTS, "UDP")},
        ),
        Scenario(
            "wrong port or protocol of a known ClusterIP",
            (plain, one),
            {
                packet(POD, VIP, 81): WRONG_PORT,
                packet(SELF, VIP, 81): WRONG_PORT,
                packet(OUT, VIP, 81): WRONG_PORT,
                packet(POD, VIP, PORT, "UDP"): WRONG_PORT,
                packet(POD, VIP, 0, "ICMP"): WRONG_PORT,
            },
        ),
        Scenario(
            "unallocated Service address",
            (plain, one),
            {
                packet(POD, UNUSED): UNALLOCATED,
                packet(SELF, UNUSED): UNALLOCATED,
                packet(OUT, UNUSED): UNALLOCATED,
                packet(POD, UNUSED, PORT, "UDP"): UNALLOCATED,
                packet(POD, UNUSED, 0, "ICMP"): UNALLOCATED,
            },
        ),
        Scenario(
            "a Service address that is bound on the node",
            (plain, one),
            {packet(POD, "10.96.0.10", 53, bound=True): PASS},
        ),
        Scenario(
            "hairpin",
            (everything(), one),
            {packet(POD_B, VIP): HERE_M, packet(POD_B, NODE_IP, NODE_PORT): HERE_M, packet(POD_A, VIP): HERE},
        ),
        Scenario(
            "hairpin, externalTrafficPolicy Local",
            (everything(externalTrafficPolicy="Local"), one),
            {packet(POD_B, EXTERNAL): HERE_M, packet(POD_B, NODE_IP, NODE_PORT): HERE_M, packet(POD_A, EXTERNAL): HERE},
        ),
        Scenario(
            "an endpoint outside the cluster", (plain, some_slice(endpoint(HOST))), {packet(POD, VIP): to([H], False)}
        ),
        Scenario(
            "pod to pod is left alone", (plain, one), {packet(POD, POD_B, TARGET): PASS, packet(POD, OUTSIDE): PASS}
        ),
        Scenario(
            "headless and ExternalName",
            (
                service("my-service", "None", [port(PORT)]),
                service("named", "", [port(PORT)], type="ExternalName", externalName="example.com"),
                one,
            ),
            {packet(POD, VIP): UNALLOCATED},
        ),
        Scenario(
            "another proxy's Service",
            (
                service("my-service", VIP, [port(PORT)], labels={"service.kubernetes.io/service-proxy-name": "other"}),
                one,
            ),
            {packet(POD, VIP): UNALLOCATED},
        ),
        Scenario(
            "headless label on the slice",
            (
                plain,
                endpoint_slice(
                    "my-service",
                    [endpoint(POD_B, NODE)],
                    [("", "TCP", TARGET)],
                    labels={"service.kubernetes.io/headless": ""},
                ),
            ),
            {packet(POD, VIP): NO_ENDPOINTS},
        ),
        Scenario(
            "TCP and UDP on one number, named target ports",
            (
                service("my-service", VIP, [port(PORT, "TCP", "t"), port(PORT, "UDP", "u")]),
                endpoint_slice("my-service", [endpoint(POD_B, NODE)], [("t", "TCP", TARGET), ("u", "UDP", TARGET + 1)]),
                endpoint_slice("my-service", [endpoint(POD_C, "n2")], [("t", "TCP", TARGET + 1)], name="second"),
            ),
            {
                packet(POD, VIP): to([B, Destination(POD_C, TARGET + 1)], False),
                packet(POD, VIP, PORT, "UDP"): to([Destination(POD_B, TARGET + 1)], False),
            },
        ),
        Scenario(
            "two Services, same pods",
            (
                plain,
                one,
                service("other", VIP2, [port(8080)]),
                endpoint_slice("other", [endpoint(POD_B, NODE)], [("", "TCP", TARGET)]),
            ),
            {packet(POD, VIP): HERE, packet(POD, VIP2, 8080): HERE, packet(POD, VIP2): WRONG_PORT},
        ),
        Scenario(
            "load balancer that wants its packets (ipMode Proxy)",
            (
                service(
                    "my-service", VIP, [port(PORT)], type="LoadBalancer", ingress=[{"ip": BALANCER, "ipMode": "Proxy"}]
                ),
                one,
            ),
            {packet(POD, BALANCER): PASS},
        ),
        Scenario(
            "LoadBalancer without NodePort",
            (service("my-service", VIP, [port(PORT)], type="LoadBalancer", ingress=[{"ip": BALANCER}]), one),
            {packet(POD, BALANCER): HERE_M, packet(OUT, NODE_IP, NODE_PORT): PASS},
        ),
    ]


def source_ranges() -> list[Scenario]:
    """loadBalancerSourceRanges: only the load balancer's address checks the source, before all translation."""

    def row(*ranges: str, **spec: Any) -> tuple[meta.Object, ...]:
        return everything(loadBalancerSourceRanges=list(ranges), **spec), some_slice(*BOTH)

    lb = [packet(source, BALANCER) for source in (POD, SELF, OUT)]
    return [
        Scenario(
            "source ranges: the world outside",
            row(f" {OUT}/32 "),
            {
                lb[0]: NOT_IN_RANGE,
                lb[1]: NOT_IN_RANGE,
                lb[2]: ALL_M,
                packet(HOST, BALANCER): NOT_IN_RANGE,
                packet(POD, VIP): ALL,
                packet(POD, NODE_IP, NODE_PORT): ALL_M,
                packet(OUT, NODE_IP, NODE_PORT): ALL_M,
                packet(HOST, NODE_IP, NODE_PORT): ALL_M,
                packet(HOST, EXTERNAL): ALL_M,
            },
        ),
        Scenario(
            "source ranges: pods and the node",
            row("10.244.0.0/16", f"{NODE_IP}/32"),
            {lb[0]: ALL_M, lb[1]: ALL_M, lb[2]: NOT_IN_RANGE},
        ),
        Scenario(
            "source ranges: everyone", row(f"{OUT}/32", "0.0.0.0/0", "::/0"), {lb[0]: ALL_M, lb[1]: ALL_M, lb[2]: ALL_M}
        ),
        Scenario(
            "source ranges: none that can be used",
            row("10.0.0.0/33", "here"),
            {lb[0]: NOT_IN_RANGE, lb[1]: NOT_IN_RANGE, lb[2]: NOT_IN_RANGE, packet(OUT, NODE_IP, NODE_PORT): ALL_M},
        ),
        Scenario(
            "source ranges, externalTrafficPolicy Local",
            row(f"{OUT}/32", externalTrafficPolicy="Local"),
            {lb[0]: NOT_IN_RANGE, lb[1]: NOT_IN_RANGE, lb[2]: HERE, packet(HOST, NODE_IP, NODE_PORT): HERE},
        ),
        Scenario(
            "source ranges, no endpoints",
            (everything(loadBalancerSourceRanges=[f"{OUT}/32"]), some_slice()),
            {lb[0]: NOT_IN_RANGE, lb[2]: NO_ENDPOINTS, packet(POD, NODE_IP, NODE_PORT): NO_ENDPOINTS},
        ),
    ]
