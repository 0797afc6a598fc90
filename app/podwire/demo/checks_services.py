"""Demo, parts 3 to 5: ClusterIP, Services without endpoints or selector, NodePort."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections import Counter
from collections.abc import Iterator

from podwire_observe.filters import Filters
from podwire_observe.query import Query
from podwire_observe.record import CLOSED_PORT, Flow, from_json

from ..flows import asking
from .lab import OUTSIDE_CLIENT, OUTSIDE_HOST, Answer, DemoLab, wait_for
from .rows import Row

CLOSED = 81  # a port at which no web pod listens


def _spread(answers: list[Answer]) -> str:
    return ", ".join(
        f"{host.rsplit('-', 1)[-1]} {n}" for host, n in sorted(Counter(a.host for a in answers if a.ok).items())
    )


def _failures(answers: list[Answer]) -> str:
    return "; ".join(sorted({a.error for a in answers if not a.ok}))


def _all_in_use(lab: DemoLab, netns: str, address: str, names: set[str]) -> None:
    """Wait until connections from `netns` reach all endpoints. A pod may have become ready a moment ago, and each node
    learns this separately.
    """

    def look() -> bool:
        return {a.host for a in lab.many(netns, address, 80, 40)} == names

    look.__doc__ = f"every endpoint of {address} in use"
    wait_for(look, 10)


def cluster_ip(lab: DemoLab) -> Iterator[Row]:
    """From a pod and from every node, TCP and UDP, spread over all endpoints."""
    address, names = lab.cluster_ip("my-service"), {p.name for p in lab.pods("MyApp")}
    client = lab.pods("client")[0]
    for netns in (client.netns, *map(lab.node_netns, lab.config.node_names())):
        _all_in_use(lab, netns, address, names)
    for kind, word in ((socket.SOCK_STREAM, "TCP"), (socket.SOCK_DGRAM, "UDP")):
        answers = lab.many(client.netns, address, 80, 80, kind)
        yield Row(
            "3",
            f"80 x {word} my-service {address}:80",
            client.name,
            _spread(answers),
            all(a.ok for a in answers) and {a.host for a in answers} == names,
            _failures(answers),
        )
    for node in lab.config.node_names():
        answers = lab.many(lab.node_netns(node), address, 80, 80)
        yield Row(
            "3",
            f"80 x TCP my-service {address}:80",
            node,
            _spread(answers),
            all(a.ok for a in answers) and {a.host for a in answers} == names,
            _failures(answers),
        )


def same_node(lab: DemoLab) -> Iterator[Row]:
    """Endpoints on the client's own node, and the client pod itself (hairpin), also answer through the Service."""
    address, servers = lab.cluster_ip("my-service"), lab.pods("MyApp")
    for label, sources in (
        ("a pod beside its endpoints", [c for c in lab.pods("client") if any(s.node == c.node for s in servers)]),
        ("the endpoints themselves (hairpin)", servers),
    ):
        answers = [a for pod in sources for a in lab.many(pod.netns, address, 80, 20)]
        yield Row(
            "3",
            f"{len(answers)} x TCP my-service",
            label,
            _spread(answers),
            bool(answers) and all(a.ok for a in answers),
            _failures(answers),
        )


def change(lab: DemoLab) -> Iterator[Row]:
    """A new pod receives connections, a removed pod receives none, and no connection fails meanwhile."""
    address, client = lab.cluster_ip("my-service"), lab.pods("client")[0]
    before = {p.name for p in lab.pods("MyApp")}

    def scale(count: int) -> None:
        lab.run_tool("apply", "-f", "-", stdin=_deployment(lab, count))

    with lab.hammer(client.netns, address, 80) as seen:
        scale(5)
        new = {p.name for p in lab.wait_pods("MyApp", 5)} - before
        reached = wait_for(lambda: new & {a.host for a in lab.many(client.netns, address, 80, 20)}, 10)
        scale(4)
        after = {p.name for p in lab.wait_pods("MyApp", 4)}
        wait_for(lambda: {a.host for a in lab.many(client.netns, address, 80, 40)} == after, 10)
    yield Row(
        "3",
        "scale web 4 -> 5 -> 4 under way",
        client.name,
        f"the new pod {next(iter(reached)).rsplit('-', 1)[-1]} was "
        f"reached, then only the 4 left; {seen['sent']} connections, {len(seen['failed'])} failed",
        not seen["failed"] and seen["sent"] > 20,
        "; ".join(sorted(set(seen["failed"]))),
    )


def _deployment(lab: DemoLab, replicas: int) -> str:
    import yaml

    from .lab import examples_dir

    first = next(iter(yaml.safe_load_all((examples_dir() / "01-pods.yaml").read_text())))
    first["spec"]["replicas"] = replicas
    return yaml.safe_dump(first)


def no_endpoints(lab: DemoLab) -> Iterator[Row]:
    """A connection to a Service without endpoints is refused at once, from a pod and from a node."""
    address, client = lab.cluster_ip("lonely"), lab.pods("client")[0]
    for source, netns in ((client.name, client.netns), ("node1", lab.node_netns("node1"))):
        # A client whose first packet is dropped waits a second, and so can a client without CPU time: use the fastest.
        answers = lab.many(netns, address, 80, 3)
        first = min(answers, key=lambda answer: answer.seconds)
        yield Row(
            "3",
            f"3 x TCP lonely {address}:80 (no endpoints)",
            source,
            f"{first.error}, {first.seconds * 1000:.0f} ms",
            all("refused" in a.error.lower() for a in answers) and first.seconds < 1,
            "; ".join(map(str, answers)),
        )


def flow_log(lab: DemoLab) -> Iterator[Row]:
    """The flow log of the cluster tells who was refused by whom, once, with the reason."""
    client, server = lab.pods("client")[0], lab.pods("MyApp")[0]
    nodes = [asking.node_at(node, lab.config.node_dir(node)) for node in lab.config.running_nodes()]
    chosen = Filters({"from-exact": (f"default/{client.name}",), "verdict": ("refused",), "to-port": (str(CLOSED),)})
    wanted = Query("flows", since=time.time(), filters=chosen)

    async def told() -> list[Flow]:
        return [from_json(one.line["flow"]) async for one in asking.ask(nodes, wanted) if "flow" in one.line]

    answer = lab.tcp(client.netns, server.address, CLOSED)
    found = wait_for(lambda: asyncio.run(told()), 10) or []
    yield Row(
        "3",
        f"TCP {server.name} {server.address}:{CLOSED} (nothing listens)",
        client.name,
        ", ".join(f"{flow.verdict} by {flow.ends.target.name}: {flow.reason}" for flow in found),
        [(flow.ends.target.name, flow.reason) for flow in found] == [(server.name, CLOSED_PORT)],
        str(answer),
    )


def without_selector(lab: DemoLab) -> Iterator[Row]:
    """Hand-made Endpoints at a host outside the cluster."""
    address, client = lab.cluster_ip("my-service", "outside"), lab.pods("client")[0]
    for source, netns in ((client.name, client.netns), ("node2", lab.node_netns("node2"))):

        def ask(netns: str = netns) -> Answer | None:
            found = lab.tcp(netns, address, 80)
            return found if found.ok else None

        answer = wait_for(ask, 10) or Answer(error="nothing")
        node = next((p.node for p in lab.pods("client") if p.name == source), source)
        yield Row(
            "4",
            f"TCP my-service.outside {address}:80",
            source,
            f"{OUTSIDE_HOST} answered, saw {answer.peer}",
            answer.peer == lab.config.node_address(node),
            str(answer),
        )


def node_port(lab: DemoLab) -> Iterator[Row]:
    """From a client outside the cluster to every node, TCP and UDP."""
    client, names = lab.outside("client"), {p.name for p in lab.pods("MyApp")}
    for node in lab.config.node_names():
        address = lab.config.node_address(node)
        for kind, word in ((socket.SOCK_STREAM, "TCP"), (socket.SOCK_DGRAM, "UDP")):
            answers = lab.many(client, address, 30080, 40, kind)
            yield Row(
                "5",
                f"40 x {word} {node} {address}:30080",
                f"outside client {OUTSIDE_CLIENT}",
                _spread(answers),
                all(a.ok for a in answers)
                and {a.host for a in answers} <= names
                and len({a.host for a in answers}) > 1,
                _failures(answers),
            )


def load_balancer(lab: DemoLab) -> Iterator[Row]:
    """A pool address, announced by one node and reached by a client outside the cluster."""

    def address() -> str:
        found = json.loads(lab.run_tool("get", "service", "my-loadbalancer", "-o", "json"))
        return next((str(i["ip"]) for i in found["status"].get("loadBalancer", {}).get("ingress") or []), "")

    client, names, ip = lab.outside("client"), {p.name for p in lab.pods("MyApp")}, wait_for(address, 15)
    wait_for(lambda: lab.tcp(client, ip, 80, 0.5).ok, 15)
    answers = lab.many(client, ip, 80, 40)
    yield Row(
        "5",
        f"40 x TCP my-loadbalancer {ip}:80",
        f"outside client {OUTSIDE_CLIENT}",
        _spread(answers),
        all(a.ok for a in answers) and {a.host for a in answers} <= names and len({a.host for a in answers}) > 1,
        _failures(answers),
    )


CHECKS = (cluster_ip, same_node, change, no_endpoints, flow_log, without_selector, node_port, load_balancer)
