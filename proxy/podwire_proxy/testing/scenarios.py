"""The conformance table. Tests check each row with decide(), with traces of the planned rules, and with real packets
(netns-tests).

Further rows are in selection.py (which endpoints), edges.py (no endpoints, wrong ports, source ranges), affinity.py
(clients that are remembered), frontends.py (which objects count, source ranges flow by flow, SCTP) and nodeaddresses.py
(externalIPs that are a node's address).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..decide import Packet
from ..model import LOCALHOST, NodeInfo, Protocol
from ..verdict import MARTIAN, NO_LOCAL_ENDPOINTS, PASS, UNALLOCATED, Verdict
from .affinity import Affinity, affinity
from .builders import endpoint, port, service
from .edges import edges, source_ranges
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
    "source_ranges",
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
