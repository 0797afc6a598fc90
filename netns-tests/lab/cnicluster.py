"""Two nodes with live wiring agents and a host outside the cluster, all on one link."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .cninode import CniNode, peer_server, put_node, wait_until
from .fakeapi import FakeApi
from .netns import Lab, NetNS

OUTSIDE = "192.0.2.42"


@dataclass
class Cluster:
    """Two nodes and a host outside the cluster on one link."""

    lab: Lab
    api: FakeApi
    nodes: list[CniNode]
    outside: NetNS
    made: list[tuple[CniNode, str]] = field(default_factory=list)
    servers: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def serve(self, ns: NetNS, address: str) -> int:
        """Start a server that answers with the client's address, and return its port. The server ends with the test."""
        return self.servers.enter_context(peer_server(ns, address))

    def pod(self, node: CniNode, name: str, version: str = "1.0.0", **more: Any) -> tuple[NetNS, str]:
        """Make a pod and return (its namespace, its first address). more: keys of the plugin's configuration, such as
        runtimeConfig.
        """
        pod = self.lab.netns(name)
        answer = node.cni("ADD", name, pod, node.conf(version, **more))
        assert answer.status == 0, answer.out + node.log()
        self.made.append((node, name))
        return pod, answer.address

    def clear(self) -> None:
        """End the servers and the pods. Raises AssertionError if a lease, link or table element of a pod stays."""
        self.servers.close()
        for node, name in self.made:
            assert node.cni("DEL", name).status == 0
        self.made.clear()
        for node in self.nodes:
            assert node.leases() == {} and not [name for name in node.links() if name.startswith(("veth", "ifb"))]
            assert node.table_elements() == 0


def plug(switch: NetNS, port: str) -> None:
    switch.netlink(
        lambda ipr: ipr.link("set", index=ipr.link_lookup(ifname=port)[0], master=ipr.link_lookup(ifname="sw0")[0])
    )


def give(ns: NetNS, address: str) -> None:
    """Add an address to a machine on the link. It is usable at once, without duplicate address detection."""
    ns.netlink(
        lambda ipr: ipr.addr(
            "add",
            index=ipr.link_lookup(ifname="eth0")[0],
            address=address,
            prefixlen=64 if ":" in address else 24,
            **({"flags": 2} if ":" in address else {}),
        )
    )


@contextlib.contextmanager
def two_nodes(make_dir: Callable[[str], Path], *flags: str, dual: bool = False, first: str = "") -> Iterator[Cluster]:
    """Yield the running cluster. flags: of `podwire wiring`. dual: add IPv6, with fd0a::N on the link and fd00:N::/64
    for pods. first: Python that the agents run before anything else.
    """
    with Lab() as lab, contextlib.ExitStack() as stack:
        switch, outside, n1, n2 = (lab.netns(name) for name in ("switch", "outside", "n1", "n2"))
        switch.netlink(lambda ipr: ipr.link("add", ifname="sw0", kind="bridge", state="up"))
        for ns, ip in ((outside, OUTSIDE), (n1, "192.0.2.1"), (n2, "192.0.2.2")):
            port = f"p{ip.split('.')[-1]}"
            lab.wire(ns, "eth0", switch, port, f"{ip}/24")
            plug(switch, port)
            if dual:
                give(ns, f"fd0a::{ip.split('.')[-1]}")
        api = stack.enter_context(FakeApi(n1, "192.0.2.1"))
        nodes = []
        for name, ns in (("n1", n1), ("n2", n2)):
            number = name[1]
            put_node(
                api,
                name,
                f"10.244.{number}.0/24",
                f"192.0.2.{number}",
                f"fd0a::{number}" if dual else None,
                cidr6=f"fd00:{number}::/64" if dual else "",
            )
            node = CniNode(ns, make_dir(name), name, api, flags=flags)
            node.first = first
            stack.callback(node.close)
            node.start(wait=False)
            nodes.append(node)
        for node in nodes:
            wait_until(node.ready, f"agent of {node.name} ready")
        yield Cluster(lab, api, nodes, outside)
