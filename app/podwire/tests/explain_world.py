"""Two nodes in memory, with the rules that the proxy would write, for tests of explain without a kernel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from podwire.explain.answer import Answer
from podwire.explain.ask import explain
from podwire.explain.catalogue import Catalogue
from podwire.explain.facts import Facts, Inside, Link, Route
from podwire.explain.names import parse, source, target
from podwire.explain.packets import Asked
from podwire.explain.reach import Looked
from podwire.explain.steps import Unreachable, from_json
from podwire.explain.walk import walk
from podwire_base.kernel.listening import Listener
from podwire_base.kernel.nft.fake import FakeConnection
from podwire_base.kube.meta import key, labels
from podwire_proxy import backends
from podwire_proxy.changes import Tracker
from podwire_proxy.model import NodeInfo
from podwire_proxy.nftables.layout import Layout
from podwire_proxy.nftables.plan import Planner

from .explain_cluster import NODES

RANGES = (("10.244.0.0/16",), ("10.96.0.0/16",))
PODS = {
    "10.244.1.2": "node1",
    "10.244.1.9": "node1",
    "10.244.1.8": "node1",
    "10.244.2.2": "node2",
    "10.244.2.3": "node2",
}
LINKS = {
    "lo": Link("lo", 1, 65536),
    "eth0": Link("eth0", 2),
    "podwire0": Link("podwire0", 3, kind="bridge"),
}


def port_of(ip: str) -> str:
    return f"veth{ip.rpartition('.')[2]}"


def tracker(node: str, catalogue: Catalogue) -> Tracker:
    made = Tracker(NodeInfo(node, NODES[node], "", *RANGES))
    for service in catalogue.of("Service"):
        if not labels(service):
            made.service(key(service), service)
    for one in catalogue.of("EndpointSlice"):
        if labels(one):
            made.slice(key(one), one)
    made.flush()
    return made


def rules(node: str, catalogue: Catalogue) -> Any:
    """What a proxy writes for these objects, as read back."""
    made, fake = tracker(node, catalogue), FakeConnection()
    layout = Layout("ip")
    fake.commit(Planner(layout, made.dataplane.node).full(made.dataplane, None))
    return backends.ALL[0].live({"ip": fake.state[layout.table]})


def inside(ip: str, **changes: Any) -> Inside:
    listening = [
        Listener("TCP", "", 9376, "46"),
        Listener("TCP", "", 5432, "46"),
        Listener("TCP", "127.0.0.1", 7000, "4"),
    ]

    def route(dst: str, _src: str, _iif: str) -> Route:
        return Route("local", "lo") if dst == ip else Route("unicast", "eth0", "10.244.1.1")

    made = Inside(
        ip,
        f"default/{ip}",
        port_of(ip),
        {"lo": Link("lo", 1, 65536), "eth0": Link("eth0", 2, kind="veth", mac="02:00:00:00:00:02")},
        (ip, "127.0.0.1"),
        tuple(listening),
        (),
        route,
    )
    return replace(made, **changes)


def node(name: str, catalogue: Catalogue, *, bound: bool = True, **changes: Any) -> Facts:
    """bound: the address of the cluster DNS is on lo."""
    mine = {ip: inside(ip) for ip, owner in PODS.items() if owner == name}
    addresses = (*NODES[name], "127.0.0.1", f"10.244.{name[-1]}.1", "10.96.0.10") if bound else NODES[name]
    other = "node2" if name == "node1" else "node1"

    def route(dst: str, _src: str, _iif: str) -> Route:
        if dst in addresses:
            return Route("local", "lo", source=dst)
        if dst.startswith(f"10.244.{name[-1]}."):
            return Route("unicast", "podwire0", source=f"10.244.{name[-1]}.1")
        via = NODES[other][0] if dst.startswith(("10.244.", NODES[other][0])) else "172.30.0.1"
        return Route("unicast", "eth0", via if dst != via else "", source=NODES[name][0])

    links = dict(LINKS)
    for index, ip in enumerate(mine):
        links[port_of(ip)] = Link(port_of(ip), 10 + index, master="podwire0", kind="veth")
    info = NodeInfo(name, addresses, "", *RANGES)
    made = Facts(
        name, addresses, info, rules(name, catalogue), links=links, route=route, inside=mine.get,
        forwarding={"ip": True, "ip6": True}, conntrack=(5, 1000),
        listeners=(Listener("TCP", "", 10250, "46"), Listener("UDP", "10.96.0.10", 53, "4")),
        roles={"proxy": {"ready": True, "message": "11 Services"}},
    )  # fmt: skip
    return replace(made, **changes)


class Nodes:
    """A Reach over nodes in memory. Everything goes through JSON's types, as over a socket."""

    def __init__(self, nodes: Mapping[str, Facts]) -> None:
        self.nodes, self.asked = dict(nodes), list[Asked]()

    def look(self, name: str, asks: Sequence[Asked]) -> Looked:
        if name not in self.nodes:
            raise Unreachable(f"node {name} is away")
        facts = self.nodes[name]
        self.asked += asks
        told = {
            "addresses": list(facts.addresses), "podCIDRs": list(facts.info.pod_cidrs),
            "serviceCIDRs": list(facts.info.service_cidrs), "rules": facts.live.place if facts.live else "",
            "roles": dict(facts.roles),
        }  # fmt: skip
        return Looked([from_json(walk(facts, ask).to_json()) for ask in asks], told)


def say(
    src: str,
    dst: str,
    catalogue: Catalogue,
    *,
    written: Catalogue | None = None,
    node1: Mapping[str, Any] | None = None,
    node2: Mapping[str, Any] | None = None,
    enters: str = "",
) -> Answer:
    """What explain says. written: the objects that the proxies know, if they are behind. node1, node2: changed facts.
    enters: the node that a packet from outside enters.
    """
    known = written or catalogue
    nodes = Nodes({"node1": node("node1", known, **(node1 or {})), "node2": node("node2", known, **(node2 or {}))})
    sender = source(src, catalogue, node=enters)
    return explain(sender, target(parse(dst), catalogue, sender), catalogue, nodes)
