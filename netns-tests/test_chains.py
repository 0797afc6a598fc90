"""The plugin, called as libcni calls it: every verb in every version, alone, in a chain, and before Debian's reference
plugins."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import debian
from lab.cninode import CniNode, ask, peer_server, put_node
from lab.fakeapi import FakeApi
from lab.libcni import Network, PluginFailed
from lab.netns import Lab
from podwire_cni.types import VERSIONS

pytestmark = pytest.mark.runtimes
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


def network(node: CniNode, version: str, *plugins: tuple[str, dict[str, Any]]) -> Network:
    """podwire-cni and then `plugins`, (type, configuration), of the reference set."""
    root = debian.unpack(*debian.TOOLS["reference plugins"])
    behind = [(root / "usr/lib/cni" / kind, {"type": kind, **conf}) for kind, conf in plugins]
    return Network(
        node.ns,
        "podwire",
        version,
        [(node.client, node.conf(version)), *behind],
        debian.environment(root),
        {"portMappings": PORTS, "bandwidth": RATES},
    )


@pytest.mark.parametrize("version", ["0.4.0", "1.0.0"])
@pytest.mark.parametrize(
    "plugins",
    [
        [("portmap", {"capabilities": {"portMappings": True}})],
        [("bandwidth", {"capabilities": {"bandwidth": True}})],
        [("tuning", {"sysctl": {"net.core.somaxconn": "500"}})],
        [("firewall", {"backend": "iptables"})],
        [
            ("tuning", {"sysctl": {"net.core.somaxconn": "500"}}),
            ("portmap", {"capabilities": {"portMappings": True}}),
            ("bandwidth", {"capabilities": {"bandwidth": True}}),
            ("firewall", {"backend": "iptables"}),
        ],
    ],
    ids=["portmap", "bandwidth", "tuning", "firewall", "all"],
)
def test_chain(node: CniNode, lab: Lab, version: str, plugins: list[tuple[str, dict[str, Any]]]) -> None:
    chain, pod = network(node, version, *plugins), lab.netns("pod")
    # our plugin must ignore capabilities of a later plugin in the chain
    chain.plugins[0][1]["capabilities"].clear()
    result = chain.add("chained", pod)
    assert result["cniVersion"] == version and len(result["ips"]) == 2
    address = result["ips"][0]["address"].split("/")[0]
    with peer_server(pod, address) as port:
        assert ask(node.ns, address, port) == "10.244.1.1"
    # portmap 1.1.1 looks for its IPv4 rules in ip6tables: its CHECK fails after any plugin
    if "portmap" not in dict(plugins):
        chain.check("chained", pod)
    chain.delete("chained", pod)
    nothing_left(node)


def nothing_left(node: CniNode) -> None:
    assert node.leases() == {} and node.table_elements() == 0
    assert not [name for name in node.links() if name.startswith("veth")]


PASS_ON = """#!/bin/sh
# A plugin that adds nothing: ADD answers with what the one before it answered.
echo $CNI_COMMAND >> $(dirname $0)/calls
case $CNI_COMMAND in
VERSION) echo '{"cniVersion": "1.1.0", "supportedVersions": ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]}';;
ADD) exec %s -c 'import json, sys; print(json.dumps(json.load(sys.stdin)["prevResult"]))';;
esac
"""


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("chained", [False, True], ids=["alone", "chained"])
def test_every_verb_in_every_version(node: CniNode, lab: Lab, tmp_path: Path, version: str, chained: bool) -> None:
    conf, other = node.conf(version), tmp_path / "pass-on"
    other.write_text(PASS_ON % sys.executable)
    other.chmod(0o755)
    made = Network(
        node.ns,
        "podwire",
        version,
        [(node.client, conf), *([(other, {"type": "pass-on"})] if chained else [])],
        {"PATH": "/usr/bin:/bin"},
        {"portMappings": PORTS},
    )
    pod, second = lab.netns("pod"), lab.netns("second")
    assert all(version in supported for supported in made.versions())
    result = made.add("one", pod)
    assert result["cniVersion"] == version and [link["name"] for link in result["interfaces"]][2] == "eth0"
    assert [ip.get("version") for ip in result["ips"]] == (["4", "6"] if version < "1.0.0" else [None, None])
    assert ("mtu" in result["interfaces"][2]) == (version >= "1.1.0")
    assert node.table_elements() == 8, "port, MAC, two addresses; of each family a hostPort and its hairpin"
    with pytest.raises(PluginFailed) as caught:
        made.add("one", pod)
    assert caught.value.code == 4, "an interface of that name is there"
    if made.has("CHECK"):
        made.check("one", pod)
    if made.has("STATUS"):
        made.status()
    if made.has("GC"):
        made.cache["two", "eth0"] = Network(node.ns, "podwire", version, made.plugins[:1]).add("two", second)
        made.collect([("one", "eth0")])
        assert set(node.leases().values()) == {"one"}
        made.check("one", pod)
    made.delete("one", pod)
    made.delete("one", pod)
    nothing_left(node)
    if made.has("CHECK"):
        made.cache["one", "eth0"] = result
        with pytest.raises(PluginFailed):
            made.check("one", pod)
    if chained:
        calls = (tmp_path / "calls").read_text().split()
        wanted = {"VERSION", "ADD", "DEL", *(verb for verb in ("CHECK", "STATUS", "GC") if made.has(verb))}
        assert set(calls) == wanted, "every plugin of the list is called for every verb"
