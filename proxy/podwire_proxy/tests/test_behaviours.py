"""The conformance table is complete: every behaviour of a Service has rows, and counted ones have the required
number.
"""

from __future__ import annotations

from collections import Counter

import pytest

from podwire_proxy.changes import Tracker
from podwire_proxy.decide import decide
from podwire_proxy.model import LOCALHOST, Destination, NodeInfo
from podwire_proxy.testing import scenarios as s
from podwire_proxy.testing.builders import endpoint, endpoint_slice, port, service
from podwire_proxy.testing.frontends import range_flows, sctp
from podwire_proxy.testing.selection import selection
from podwire_proxy.verdict import NO_ENDPOINTS, NOT_IN_RANGE, Kind, Verdict

NAMES = [row.name for row in s.SCENARIOS] + [row.name for row in s.AFFINITY]

# The behaviours of a Service, and how the names of their rows begin.
BEHAVIOURS: dict[str, tuple[str, ...]] = {
    "ExternalName is left alone": ("headless and ExternalName", "a Service of type ExternalName"),
    "headless Services are left alone": ("headless and ExternalName",),
    "service-proxy-name": ("another proxy's Service",),
    "headless label on slices": ("headless label on the slice",),
    "FQDN slices": ("an FQDN slice",),
    "one number in several protocols": ("TCP and UDP on one number", "SCTP: another protocol", "TCP only"),
    "named ports that differ per slice": ("TCP and UDP on one number, named target ports",),
    "slice ports without name or number": ("slice ports without",),
    "condition defaults, first address": ("conditions left out",),
    "duplicates": ("an address twice", "an endpoint in two slices"),
    "sloppy addresses and ranges": ("leading zeros",),
    "zero CIDR": ("source ranges: everyone",),
    "ipMode Proxy, host names": ("load balancer that wants", "an ingress by host name"),
    "ClusterIP, NodePort, externalIP, load balancer": (
        "Cluster/Cluster, TCP",
        "Cluster/Cluster, UDP",
        "SCTP: ClusterIP",
    ),
    "nodePortAddresses": ("NodePorts on chosen addresses",),
    "NodePorts on 127.0.0.1": ("NodePorts on 127.0.0.1: TCP", "NodePorts on 127.0.0.1: UDP"),
    "externalIPs are refused": (
        "externalIPs of others",
        "externalIPs of nodes: reserved",
        "externalIPs of nodes: refused",
    ),
    "externalIPs at a node's address": ("externalIPs of nodes", "externalIPs of nodes: no endpoints"),
    "load balancer addresses of nodes": ("a load balancer's address that is the node's own",),
    "refusals and endpoints at one address": ("an endpoint that has the address of a Service",),
    "no NodePort allocated": ("LoadBalancer without NodePort",),
    "two Services, same pods": ("two Services, same pods",),
    "internalTrafficPolicy": ("internalTrafficPolicy Local", "selection: internalTrafficPolicy Local, some here"),
    "externalTrafficPolicy": ("externalTrafficPolicy Local", "selection: internal Cluster, external Local"),
    "terminating fallback": (
        "only terminating",
        "terminating beside",
        "selection: all terminating",
        "selection: external Local",
    ),
    "publishNotReadyAddresses": ("ready is what counts",),
    "zone hints": ("zone hints", "selection: zone hints"),
    "node hints": ("selection: node hints",),
    "affinity": (
        "affinity: a pod",
        "affinity: outside",
        "affinity: another client",
        "affinity: externalTrafficPolicy Local",
    ),
    "local-traffic detectors": ("detector: interface prefix", "detector: one interface", "no detector"),
    "masqueradeAll": ("masquerade all, Cluster", "masquerade all, no detector"),
    "hairpin": ("hairpin", "hairpin, externalTrafficPolicy Local"),
    "no endpoint: refused": ("no endpoints", "no endpoints, UDP", "SCTP: no endpoints"),
    "Local, endpoints only elsewhere: dropped": (
        "externalTrafficPolicy Local, none here",
        "internalTrafficPolicy Local, none here",
    ),
    "wrong port, ping of a ClusterIP": ("wrong port or protocol",),
    "unallocated address": ("unallocated Service address",),
    "address bound on the node": ("a Service address that is bound",),
    "families that the Service does not have": ("a family that the Service does not have", "both families"),
    "other traffic": ("pod to pod is left alone", "an endpoint outside the cluster"),
}


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_every_behaviour_has_its_rows(behaviour: str) -> None:
    missing = [start for start in BEHAVIOURS[behaviour] if not any(name.startswith(start) for name in NAMES)]
    assert not missing


def test_counted_rows() -> None:
    assert (len(selection()), len(range_flows()), len(sctp())) == (32, 13, 4)
    assert all(len(row.expect) == 1 for row in range_flows())
    assert sorted(Counter(NAMES).values())[-1] == 1, "a name is one row"
    assert all(row.expect for row in s.SCENARIOS)


def test_the_masquerade_matrix_is_whole() -> None:
    """Source x frontend x policy, in each of the four settings of detector and masqueradeAll; and 127.0.0.1."""
    rows = s.masquerade()
    assert len(rows) == 12
    cells = {(p.src, p.dst, p.port) for p in rows[0].expect}
    assert len(cells) == 12
    assert all({(p.src, p.dst, p.port) for p in row.expect} == cells for row in rows)
    assert len({(bool(row.node.pod_cidrs), row.node.masquerade_all) for row in rows}) == 4
    gap = next(row for row in rows if row.name == "externalTrafficPolicy Local")
    assert gap.expect[s.packet(s.NODE_IP, s.NODE_IP, s.NODE_PORT)] == s.ALL_M, (
        "the cell that Kubernetes' own tests miss"
    )
    near = [p for row in s.localhost() if row.node.localhost for p in row.expect if p.dst == LOCALHOST and p.node]
    assert len(near) == 4


def test_a_dual_stack_service_keeps_its_families_apart() -> None:
    """Each family has its own endpoints, source ranges and verdict; a family without endpoints refuses."""
    info = NodeInfo(
        s.NODE, (s.NODE_IP, "fd00:30::11"), "", ("10.244.0.0/16", "fd00:244::/32"), ("10.96.0.0/16", "fd00:96::/112")
    )
    tracker = Tracker(info)
    tracker.service(
        "default/my-service",
        service(
            "my-service",
            [s.VIP, "fd00:96::20"],
            [port(s.PORT, node_port=s.NODE_PORT)],
            type="LoadBalancer",
            ingress=[{"ip": s.BALANCER}, {"ip": "2001:db8:51::8"}],
            loadBalancerSourceRanges=["10.244.0.0/16"],
        ),
    )
    four = endpoint_slice("my-service", [endpoint(s.POD_B, s.NODE)], [("", "TCP", s.TARGET)])
    six = endpoint_slice(
        "my-service", [endpoint("fd00:244:2::2", "n2")], [("", "TCP", s.TARGET)], name="six", family="IPv6"
    )
    tracker.slice("four", four)
    tracker.flush()

    def verdict(src: str, dst: str, number: int = s.PORT) -> Verdict:
        return decide(tracker.dataplane, s.packet(src, dst, number))

    pod6 = "fd00:244:1::2"
    assert verdict(s.POD_A, s.VIP).to == {(Destination(s.POD_B, s.TARGET), False)}
    assert verdict(pod6, "fd00:96::20") == NO_ENDPOINTS
    tracker.slice("six", six)
    tracker.flush()
    assert verdict(s.POD_A, s.VIP).to == {(Destination(s.POD_B, s.TARGET), False)}
    assert verdict(pod6, "fd00:96::20").to == {(Destination("fd00:244:2::2", s.TARGET), False)}
    assert verdict(pod6, "fd00:30::11", s.NODE_PORT).to == {(Destination("fd00:244:2::2", s.TARGET), True)}
    assert verdict(s.OUTSIDE, s.BALANCER) == NOT_IN_RANGE
    assert verdict("2001:db8::1", "2001:db8:51::8").kind is Kind.FORWARD, "no range of that family: open to all of it"
