"""Random Services, EndpointSlices, Nodes and packets, and sequences of changes of them."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from podwire_base.kube import meta
from podwire_proxy.changes import Tracker
from podwire_proxy.convert import RESET_ANNOTATION
from podwire_proxy.decide import Packet
from podwire_proxy.model import Claimable, NodeInfo
from podwire_proxy.testing import scenarios as s
from podwire_proxy.testing.builders import endpoint, endpoint_slice, port, service

NAMES = ("a", "b", "c")
VIPS = ("10.96.0.1", "10.96.0.2", "10.96.0.3")
PODS = (s.POD_A, s.POD_B, s.POD_C, "10.244.2.3")
ports = st.sampled_from([80, 81]).flatmap(lambda number: st.sampled_from(["TCP", "UDP"]).map(lambda p: (number, p)))


@st.composite
def services(draw: st.DrawFn) -> meta.Object:
    """Three names share three addresses, so that Services collide, move and change type."""
    drawn = draw(st.lists(ports, min_size=1, max_size=2, unique=True))
    spec: dict[str, Any] = {"type": draw(st.sampled_from(["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"]))}
    node_ports = spec["type"] in ("NodePort", "LoadBalancer")
    made = [port(n, p, f"p{i}", 30000 + n if node_ports else 0) for i, (n, p) in enumerate(drawn)]
    for field in ("internalTrafficPolicy", "externalTrafficPolicy"):
        spec[field] = draw(st.sampled_from(["Cluster", "Local"]))
    if draw(st.booleans()):
        spec["externalIPs"] = draw(st.sampled_from([[s.EXTERNAL], [s.NODE_IP], [s.EXTERNAL, s.NODE2_IP]]))
    if spec["type"] == "LoadBalancer":
        spec["ingress"] = [{"ip": s.BALANCER}]
        spec["loadBalancerSourceRanges"] = draw(
            st.sampled_from([[], [s.OUTSIDE + "/32"], ["10.244.0.0/16", "172.30.0.0/24"]])
        )
    if draw(st.booleans()):
        spec["sessionAffinity"] = "ClientIP"
    labels = {"service.kubernetes.io/service-proxy-name": "x"} if draw(st.integers(0, 9)) == 0 else {}
    found = service(draw(st.sampled_from(NAMES)), draw(st.sampled_from((*VIPS, "None"))), made, labels=labels, **spec)
    found["metadata"]["creationTimestamp"] = f"2026-01-0{draw(st.integers(1, 2))}T00:00:00Z"
    found["metadata"]["uid"] = draw(st.sampled_from(["", "a", "b"]))
    found["metadata"]["annotations"] = {RESET_ANNOTATION: "true"} if draw(st.booleans()) else {}
    return found


@st.composite
def slices(draw: st.DrawFn) -> meta.Object:
    owner = draw(st.sampled_from(NAMES))
    places = draw(st.lists(st.sampled_from(PODS), max_size=4))
    flags: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
        {}, optional={name: st.booleans() for name in ("ready", "serving", "terminating")}
    )
    found = [endpoint(ip, s.NODE if ip.startswith("10.244.1.") else "n2", **draw(flags)) for ip in places]
    taken = [(f"p{i}", p, draw(st.sampled_from([9376, 9377]))) for i in range(2) for p in ("TCP", "UDP")]
    return endpoint_slice(owner, found, taken, name=f"{owner}-{draw(st.integers(1, 2))}")


@st.composite
def nodes(draw: st.DrawFn) -> NodeInfo:
    addresses = draw(st.sampled_from([(), (s.NODE_IP,), (s.NODE2_IP,)]))
    known = draw(st.sampled_from([frozenset[str](), frozenset({s.NODE_IP}), frozenset({s.NODE_IP, s.NODE2_IP})]))
    rules = Claimable(known, ports=draw(st.sampled_from([(), ((80, 80),)])), known=draw(st.booleans()))
    return NodeInfo(s.NODE, addresses, "", s.INFO.pod_cidrs, s.INFO.service_cidrs, claimable=rules)


# A change: an object to add or replace, the key of one to delete, or new node data.
changes = st.lists(
    st.one_of(
        services(),
        slices(),
        nodes(),
        st.sampled_from([("service", f"default/{n}") for n in NAMES]),
        st.sampled_from([("slice", f"default/{n}-{i}") for n in NAMES for i in (1, 2)]),
    ),
    max_size=12,
)


def play(tracker: Tracker, change: Any) -> None:
    if isinstance(change, NodeInfo):
        tracker.node(change)
    elif isinstance(change, tuple):
        (tracker.service if change[0] == "service" else tracker.slice)(change[1], None)
    else:
        (tracker.service if change["kind"] == "Service" else tracker.slice)(meta.key(change), change)


def fresh(done: list[Any]) -> Tracker:
    """A tracker that sees only the final objects."""
    last: dict[tuple[str, str], Any] = {}
    node = s.INFO
    for change in done:
        if isinstance(change, NodeInfo):
            node = change
        elif isinstance(change, tuple):
            last.pop(change, None)
        else:
            last[("service" if change["kind"] == "Service" else "slice", meta.key(change))] = change
    tracker = Tracker(node)
    for change in last.values():
        play(tracker, change)
    tracker.flush()
    return tracker


def packets() -> st.SearchStrategy[Packet]:
    """Sources that can really appear here: the node's pods, the node, the world outside."""
    targets = [(ip, n) for ip in (*VIPS, "10.96.0.77", s.EXTERNAL, s.BALANCER) for n in (80, 81, 9)]
    targets += [(ip, n) for ip in (s.NODE_IP, s.NODE2_IP) for n in (80, 81, 30080, 30081)] + [(s.POD_B, 9376)]
    sources = st.sampled_from([s.POD_A, s.POD_B, s.NODE_IP, s.OUTSIDE])
    return st.builds(
        lambda src, to, protocol: s.packet(src, to[0], to[1], protocol),
        sources,
        st.sampled_from(targets),
        st.sampled_from(["TCP", "UDP", "ICMP"]),
    )
