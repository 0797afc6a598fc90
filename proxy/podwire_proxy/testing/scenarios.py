"""The conformance table. Tests check each row with decide(), with traces of the planned rules, and with real packets
(netns-tests).

Further rows are in selection.py (which endpoints), frontends.py (which objects count, source ranges flow by flow, SCTP)
and nodeaddresses.py (externalIPs that are a node's address).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from podwire_base.kube import meta

from ..decide import Packet
from ..model import LOCALHOST, Destination, NodeInfo, Protocol
from ..verdict import MARTIAN, NO_ENDPOINTS, NO_LOCAL_ENDPOINTS, NOT_IN_RANGE, PASS, UNALLOCATED, WRONG_PORT, Verdict
from .builders import endpoint, endpoint_slice, port, service
from .frontends import families, frontends, range_flows, sctp
from .nodeaddresses import node_addresses
from .selection import selection
from .table import (
    ALL,
    ALL_M,
    BALANCER,
    BALANCER2,
    BOTH,
    EXTERNAL,
    FRONTENDS,
    GATEWAY,
    HERE,
    HERE_M,
    HOST,
    INFO,
    INTERFACES,
    NODE,
    NODE2_IP,
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
    C,
    H,
    Scenario,
    _v6,
    everything,
    packet,
    rows,
    some_slice,
    to,
)

__all__ = [
    "AFFINITY",
    "ALL",
    "ALL_M",
    "BALANCER",
    "BALANCER2",
    "BOTH",
    "EXTERNAL",
    "FRONTENDS",
    "GATEWAY",
    "HERE",
    "HERE_M",
    "HOST",
    "INFO",
    "INTERFACES",
    "LOCALHOST",
    "NODE",
    "NODE2_IP",
    "NODE_IP",
    "NODE_PORT",
    "OUT",
    "OUTSIDE",
    "POD",
    "POD_A",
    "POD_B",
    "POD_C",
    "PORT",
    "SCENARIOS",
    "SELF",
    "TARGET",
    "UNUSED",
    "VIP",
    "VIP2",
    "Affinity",
    "B",
    "C",
    "H",
    "Scenario",
    "_v6",
    "everything",
    "packet",
    "rows",
    "some_slice",
    "to",
]


def masquerade() -> list[Scenario]:
    """The whole masquerade matrix: source x frontend x traffic policy, under four settings of the local-traffic
    detector and of masqueradeAll. A row: (policy, {source: (external frontends, ClusterIP)}). Kubernetes' own tests
    miss the cell of the node that dials a NodePort with externalTrafficPolicy Local: they dial another Service's
    port."""
    cluster: dict[str, Any] = {}
    external, internal = {"externalTrafficPolicy": "Local"}, {"internalTrafficPolicy": "Local"}
    settings = {
        "": (
            INFO,
            (
                (cluster, {POD: (ALL_M, ALL), SELF: (ALL_M, ALL_M), OUT: (ALL_M, ALL_M)}),
                (external, {POD: (ALL, ALL), SELF: (ALL_M, ALL_M), OUT: (HERE, ALL_M)}),
                (internal, {POD: (ALL_M, HERE), SELF: (ALL_M, HERE_M), OUT: (ALL_M, HERE_M)}),
            ),
        ),
        "no detector, ": (
            replace(INFO, pod_cidrs=()),
            (
                (cluster, {POD: (ALL_M, ALL), SELF: (ALL_M, ALL), OUT: (ALL_M, ALL)}),
                (external, {POD: (HERE, ALL), SELF: (ALL_M, ALL), OUT: (HERE, ALL)}),
                (internal, {POD: (ALL_M, HERE), SELF: (ALL_M, HERE), OUT: (ALL_M, HERE)}),
            ),
        ),
        "masquerade all, ": (
            replace(INFO, masquerade_all=True),
            (
                (cluster, {POD: (ALL_M, ALL_M), SELF: (ALL_M, ALL_M), OUT: (ALL_M, ALL_M)}),
                (external, {POD: (ALL, ALL_M), SELF: (ALL_M, ALL_M), OUT: (HERE, ALL_M)}),
                (internal, {POD: (ALL_M, HERE_M), SELF: (ALL_M, HERE_M), OUT: (ALL_M, HERE_M)}),
            ),
        ),
        "masquerade all, no detector, ": (
            replace(INFO, masquerade_all=True, pod_cidrs=()),
            (
                (cluster, {POD: (ALL_M, ALL_M), SELF: (ALL_M, ALL_M), OUT: (ALL_M, ALL_M)}),
                (external, {POD: (HERE, ALL_M), SELF: (ALL_M, ALL_M), OUT: (HERE, ALL_M)}),
                (internal, {POD: (ALL_M, HERE_M), SELF: (ALL_M, HERE_M), OUT: (ALL_M, HERE_M)}),
            ),
        ),
    }
    return [
        Scenario(
            setting + (f"{next(iter(policy))} Local" if policy else "Cluster/Cluster, TCP"),
            (everything(**policy), some_slice(*BOTH)),
            {p: o for source, cells in table.items() for p, o in rows(source, *cells).items()},
            node,
        )
        for setting, (node, policies) in settings.items()
        for policy, table in policies
    ]


def matrix() -> list[Scenario]:
    return [
        *masquerade(),
        Scenario(
            "Cluster/Cluster, UDP",
            (everything(protocol="UDP"), some_slice(*BOTH, protocol="UDP")),
            {**rows(POD, ALL_M, ALL, "UDP"), **rows(SELF, ALL_M, ALL_M, "UDP"), **rows(OUT, ALL_M, ALL_M, "UDP")},
        ),
    ]


def configurations() -> list[Scenario]:
    """How pods are recognised, which addresses have NodePorts, which externalIPs are refused."""
    prefix, one = (replace(INFO, pod_cidrs=(), pod_interface=name) for name in ("veth*", "veth0"))
    ports = replace(INFO, node_ports=(GATEWAY,))
    strict = replace(INFO, reserved=(*INFO.pod_cidrs, *INFO.service_cidrs))
    local = (everything(externalTrafficPolicy="Local"), some_slice(*BOTH))
    return [
        Scenario(
            "detector: interface prefix",
            local,
            {**rows(POD, ALL, ALL), **rows(SELF, ALL_M, ALL_M), **rows(OUT, HERE, ALL_M)},
            prefix,
        ),
        Scenario(
            "detector: one interface",
            local,
            {**rows(POD, ALL, ALL), **rows(POD_C, HERE, ALL_M), **rows(SELF, ALL_M, ALL_M), **rows(OUT, HERE, ALL_M)},
            one,
        ),
        Scenario(
            "NodePorts on chosen addresses",
            (everything(), some_slice(*BOTH)),
            {packet(POD, GATEWAY, NODE_PORT): ALL_M, packet(OUT, NODE_IP, NODE_PORT): PASS, packet(POD, VIP): ALL},
            ports,
        ),
        Scenario(
            "externalIPs of others",
            (service("my-service", VIP, [port(PORT)], externalIPs=[POD_C, UNUSED, EXTERNAL]), some_slice(*BOTH)),
            {packet(POD, POD_C): PASS, packet(POD, UNUSED): UNALLOCATED, packet(POD, EXTERNAL): ALL_M},
            strict,
        ),
    ]


def localhost() -> list[Scenario]:
    """NodePorts on 127.0.0.1, an option: for the machine's own clients only, and always masqueraded."""
    near = replace(INFO, localhost=True)

    def row(verdict: Verdict, protocol: Protocol = "TCP", node: NodeInfo = near, **spec: Any) -> Scenario:
        policy = "".join(f", {key} {value}" for key, value in spec.items())
        return Scenario(
            f"NodePorts on 127.0.0.1: {protocol}{policy}{'' if node.localhost else ', switched off'}",
            (everything(protocol=protocol, **spec), some_slice(*BOTH, protocol=protocol)),
            {
                Packet(LOCALHOST, LOCALHOST, protocol, NODE_PORT, True): verdict,
                packet(OUT, LOCALHOST, NODE_PORT, protocol): MARTIAN if node.localhost else PASS,
                packet(OUT, NODE_IP, NODE_PORT, protocol): HERE if "externalTrafficPolicy" in spec else ALL_M,
            },
            node,
        )

    return [
        row(ALL_M),
        row(ALL_M, "UDP"),
        row(ALL_M, externalTrafficPolicy="Local"),
        row(ALL_M, internalTrafficPolicy="Local"),
        row(PASS, node=INFO),
    ]


def policies() -> list[Scenario]:
    """Traffic policies without a local endpoint, the fallback to terminating endpoints, hints."""
    elsewhere = some_slice(endpoint(POD_C, "n2"))
    c, c_m = to([C], False), to([C], True)
    ending = endpoint(POD_B, NODE, ready=False, serving=True, terminating=True)
    return [
        Scenario(
            "externalTrafficPolicy Local, none here",
            (everything(externalTrafficPolicy="Local"), elsewhere),
            {**rows(POD, c, c), **rows(SELF, c_m, c_m), **rows(OUT, NO_LOCAL_ENDPOINTS, c_m)},
        ),
        Scenario(
            "internalTrafficPolicy Local, none here",
            (everything(internalTrafficPolicy="Local"), elsewhere),
            {
                **rows(POD, c_m, NO_LOCAL_ENDPOINTS),
                **rows(SELF, c_m, NO_LOCAL_ENDPOINTS),
                **rows(OUT, c_m, NO_LOCAL_ENDPOINTS),
            },
        ),
        Scenario(
            "only terminating endpoints",
            (everything(), some_slice(ending)),
            {packet(POD, VIP): HERE, packet(OUT, NODE_IP, NODE_PORT): HERE_M},
        ),
        Scenario(
            "terminating beside ready", (everything(), some_slice(ending, endpoint(POD_C, "n2"))), {packet(POD, VIP): c}
        ),
        Scenario(
            "terminating here, ready elsewhere, Local",
            (everything(externalTrafficPolicy="Local"), some_slice(ending, endpoint(POD_C, "n2"))),
            {packet(POD, VIP): c, packet(OUT, NODE_IP, NODE_PORT): HERE},
        ),
        Scenario(
            "not ready",
            (everything(), some_slice(endpoint(POD_B, NODE, ready=False), endpoint(POD_C, "n2"))),
            {packet(POD, VIP): c},
        ),
        Scenario(
            "zone hints",
            (
                everything(),
                some_slice(
                    endpoint(POD_B, NODE, hints={"forZones": [{"name": "zone-a"}]}),
                    endpoint(POD_C, "n2", hints={"forZones": [{"name": "zone-b"}]}),
                ),
            ),
            {packet(POD, VIP): HERE},
        ),
        Scenario(
            "zone hints, half written",
            (
                everything(),
                some_slice(endpoint(POD_B, NODE, hints={"forZones": [{"name": "zone-a"}]}), endpoint(POD_C, "n2")),
            ),
            {packet(POD, VIP): ALL},
        ),
    ]


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


@dataclass(frozen=True)
class Affinity:
    """Packets of one client. All of `same` go where the first one went; those of `apart` are independent of it."""

    name: str
    objects: tuple[meta.Object, ...]
    same: tuple[Packet, ...]
    apart: tuple[Packet, ...] = ()
    node: NodeInfo = field(default=INFO)

    def scenario(self) -> Scenario:
        return Scenario(self.name, self.objects, dict.fromkeys((*self.same, *self.apart), PASS), self.node)

    def v6(self) -> Affinity:
        changed = self.scenario().v6()
        sent = tuple(changed.expect)
        return Affinity(changed.name, changed.objects, sent[: len(self.same)], sent[len(self.same) :], changed.node)


def affinity() -> list[Affinity]:
    """sessionAffinity ClientIP: by client address and Service port, over all its frontends."""
    sticky: dict[str, Any] = {"sessionAffinity": "ClientIP"}
    brief: dict[str, Any] = {**sticky, "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 30}}}

    def everywhere(source: str, protocol: str = "TCP") -> tuple[Packet, ...]:
        return tuple(rows(source, PASS, PASS, protocol))

    two = service("my-service", VIP, [port(PORT, "TCP", "t"), port(PORT, "UDP", "u")], **sticky)
    both = endpoint_slice("my-service", BOTH, [("t", "TCP", TARGET), ("u", "UDP", TARGET)])
    return [
        Affinity("affinity: a pod, every frontend", (everything(**sticky), some_slice(*BOTH)), everywhere(POD)),
        Affinity("affinity: this node", (everything(**brief), some_slice(*BOTH)), everywhere(SELF)),
        Affinity(
            "affinity: outside, UDP",
            (everything(**sticky, protocol="UDP"), some_slice(*BOTH, protocol="UDP")),
            everywhere(OUT, "UDP"),
        ),
        Affinity(
            "affinity: another port of the Service", (two, both), (packet(POD, VIP),), (packet(POD, VIP, PORT, "UDP"),)
        ),
        Affinity(
            "affinity: another client",
            (everything(**sticky), some_slice(*BOTH)),
            (packet(POD, VIP),),
            (packet(OUT, VIP),),
        ),
        Affinity(
            "affinity: externalTrafficPolicy Local, a pod",
            (everything(**sticky, externalTrafficPolicy="Local"), some_slice(*BOTH)),
            everywhere(POD),
        ),
        Affinity(
            "affinity: externalTrafficPolicy Local, outside",
            (everything(**sticky, externalTrafficPolicy="Local"), some_slice(*BOTH, endpoint(POD_A, NODE))),
            tuple(packet(OUT, ip, n) for ip, n in FRONTENDS),
            (packet(OUT, VIP),),
        ),
        Affinity(
            "affinity: internalTrafficPolicy Local",
            (everything(**sticky, internalTrafficPolicy="Local"), some_slice(*BOTH, endpoint(POD_A, NODE))),
            (packet(OUT, VIP),),
            tuple(packet(OUT, ip, n) for ip, n in FRONTENDS),
        ),
    ]


SCENARIOS = (
    matrix()
    + configurations()
    + localhost()
    + policies()
    + edges()
    + source_ranges()
    + selection()
    + range_flows()
    + frontends()
    + node_addresses()
    + families()
    + sctp()
)
AFFINITY = affinity()
