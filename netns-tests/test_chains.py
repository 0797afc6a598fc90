"""The plugin as the first of a chain of Debian's reference plugins, called as libcni calls them (`make test-runtimes`)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import debian
from lab.cninode import CniNode, ask, put_node, tell_peer
from lab.fakeapi import FakeApi
from lab.netns import Lab, NetNS

pytestmark = pytest.mark.runtimes
PACKAGES = ("containernetworking-plugins", "iptables", "libxtables12", "libip4tc2", "libip6tc2", "libnetfilter-conntrack3",
            "libnfnetlink0", "libmnl0", "libnftnl11")
PORTS = [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]
RATES = {"ingressRate": 10**8, "ingressBurst": 10**7, "egressRate": 10**8, "egressBurst": 10**7}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CniNode]:
    with Lab() as lab:
        ns, outside = lab.netns("node"), lab.netns("outside")
        lab.wire(ns, "eth0", outside, "eth0", "192.0.2.1/24", "192.0.2.42/24")
        with FakeApi(ns) as api:
            put_node(api, "n1", "10.244.1.0/24", "192.0.2.1", "fd0a::1", cidr6="fd00:1::/64")
            node = CniNode(ns, tmp_path_factory.mktemp("run"), "n1", api)
            node.start()
            yield node
            node.close()


class Chain:
    """podwire-cni and then `plugins`: (type, configuration)."""

    def __init__(self, node: CniNode, version: str, *plugins: tuple[str, dict[str, Any]]) -> None:
        self.node, root = node, debian.unpack(*PACKAGES)
        self.env, self.version = debian.environment(root), version
        ours = node.conf(version)
        self.links: list[tuple[Path, dict[str, Any]]] = [(node.client, ours)]
        self.links += [(root / "usr/lib/cni" / kind, {"cniVersion": version, "name": ours["name"], "type": kind, **conf})
                       for kind, conf in plugins]

    def call(self, verb: str, pod: NetNS, result: dict[str, Any] | None = None) -> dict[str, Any] | None:
        """The last result of ADD. Every plugin must succeed."""
        for program, conf in self.links if verb != "DEL" else reversed(self.links):
            if verb == "CHECK" and program.name == "portmap":
                continue  # portmap 1.1.1 looks for its IPv4 rules in ip6tables, and so fails after any plugin
            text = json.dumps({**conf, **({"prevResult": result} if result else {})})
            done = self.node.ns.run([str(program)], check=False, input=text,
                                    env={**self.node.environment(verb, "chained", pod), **self.env})
            assert done.returncode == 0, f"{program.name} {verb}: {done.stdout}{done.stderr}"
            result = json.loads(done.stdout) if verb == "ADD" else result
        return result


@pytest.mark.parametrize("version", ["0.4.0", "1.0.0"])
@pytest.mark.parametrize("plugins", [
    [("portmap", {"runtimeConfig": {"portMappings": PORTS}})],
    [("bandwidth", {"runtimeConfig": {"bandwidth": RATES}})],
    [("tuning", {"sysctl": {"net.core.somaxconn": "500"}})],
    [("firewall", {"backend": "iptables"})],
    [("tuning", {"sysctl": {"net.core.somaxconn": "500"}}), ("portmap", {"runtimeConfig": {"portMappings": PORTS}}),
     ("bandwidth", {"runtimeConfig": {"bandwidth": RATES}}), ("firewall", {"backend": "iptables"})]],
    ids=["portmap", "bandwidth", "tuning", "firewall", "all"])
def test_chain(node: CniNode, lab: Lab, version: str, plugins: list[tuple[str, dict[str, Any]]]) -> None:
    chain, pod = Chain(node, version, *plugins), lab.netns("pod")
    result = chain.call("ADD", pod)
    assert result is not None and result["cniVersion"] == version
    assert len(result["ips"]) == 2
    address = result["ips"][0]["address"].split("/")[0]
    with tell_peer(pod, address) as port:
        assert ask(node.ns, address, port) == "10.244.1.1"
    chain.call("CHECK", pod, result)
    chain.call("DEL", pod, result)
    assert node.leases() == {} and node.table_elements() == 0
    assert not [name for name in node.links() if name.startswith("veth")]
