"""The node's ends of pods' veths, addresses that no pod has, and namespaces and sockets that are not for pods."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any, get_args

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

from lab.cnicluster import Cluster, two_nodes
from lab.cniframes import Pod, emit, gateway, neighbours, pod, port
from lab.cninode import CniNode, ask, wait_until
from lab.netns import Lab, NetNS
from podwire_cni import tunneltable
from podwire_cni.firewall import Firewall
from podwire_cni.nodetable import NodeRules, OtherNet, PodRules
from podwire_cni.routes import Peer
from podwire_cni.tunneltable import Sources, TunnelRules
from podwire_cni.types import PORT_GROUP, Attachment

NOARP_FLAG, STICKY = 0x80, 0x40


@pytest.fixture(scope="module")
def machine() -> Iterator[NetNS]:
    """A namespace that plays the machine of an embedded cluster."""
    with Lab() as lab:
        yield lab.netns("machine")


@pytest.fixture(scope="module")
def cluster(machine: NetNS, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with two_nodes(tmp_path_factory.mktemp, "--no-pod", machine.path, dual=True) as made:
        yield made


@pytest.fixture(autouse=True)
def no_pods_stay(cluster: Cluster) -> Iterator[None]:
    yield
    cluster.clear()


def tell(ns: NetNS, *addresses: str) -> None:
    """Send a datagram to each address, as any process can."""
    for family in (socket.AF_INET, socket.AF_INET6):
        with ns.call(lambda family=family: socket.socket(family, socket.SOCK_DGRAM)) as sock:  # type: ignore[misc]  # a default binds it
            for address in addresses:
                if (":" in address) == (family == socket.AF_INET6):
                    sock.sendto(b"x", (address, 9))


def test_addresses_without_a_lease_are_unreachable(cluster: Cluster) -> None:
    """From a pod, from a pod of another node, from the node itself and by a Service of it: nobody looks for them."""
    a, node = pod(cluster, "a"), cluster.nodes[0].ns
    far, _ = cluster.pod(cluster.nodes[1], "far")
    unused = [*(f"10.244.1.{n}" for n in range(100, 255)), *(f"fd00:1::{n:x}:77" for n in range(1, 196))]
    before = neighbours(node)
    tell(a.ns, *unused)
    tell(far, *unused)
    strange = Ether(src=a.mac, dst=gateway(cluster)) / IP(src=a.ip) / TCP(sport=5, dport=6, flags="FPU")
    for n in range(100, 150):  # what conntrack calls invalid passes no chain of NAT
        strange[IP].dst = f"10.244.1.{n}"
        emit(a, strange)
    for ns, address in ((a.ns, "10.244.1.99"), (a.ns, "fd00:1::99"), (node, "10.244.1.99"), (node, "fd00:1::99")):
        with pytest.raises(OSError, match="No route to host"):
            ask(ns, address, 80)
    node.run(
        ["nft", "-f", "-"],
        input="""table ip service {
 chain output { type nat hook output priority -100; ip daddr 10.96.0.9 udp dport 9 dnat to 10.244.1.98; }
}""",
    )
    node.netlink(lambda ipr: ipr.route("add", dst="10.96.0.0/16", oif=ipr.link_lookup(ifname="eth0")[0]))
    with pytest.raises(PermissionError):
        tell(node, "10.96.0.9")
    node.run(["nft", "delete", "table", "ip", "service"])
    assert neighbours(node) == before == set()


def test_the_address_of_a_pod_that_ended_is_unreachable_at_once(cluster: Cluster) -> None:
    a, node = pod(cluster, "a"), cluster.nodes[0]
    b = pod(cluster, "b")
    for address in (b.ip, b.ip6):
        with pytest.raises(ConnectionRefusedError):  # the pod answers
            ask(a.ns, address, 80)
    assert node.cni("DEL", "b").status == 0
    for address in (b.ip, b.ip6):
        with pytest.raises(OSError, match="No route to host"):
            ask(a.ns, address, 80)
    assert neighbours(node.ns) == set()


def sysctl(ns: NetNS, key: str) -> str:
    return ns.call(lambda: Path(f"/proc/sys/{key}").read_text().strip())


def marks(node: NetNS, a: Pod) -> dict[str, Any]:
    """Everything that makes a link a pod's port, besides its bridge."""
    link = port(node, a)
    name = link.get("IFLA_IFNAME")
    state = link.get_nested("IFLA_LINKINFO", "IFLA_INFO_SLAVE_DATA")
    flags = node.netlink(
        lambda ipr: [
            e["flags"]
            for e in ipr.get_neighbours(family=socket.AF_BRIDGE)
            if e.get("NDA_LLADDR") == a.mac and e.get("NDA_MASTER")
        ]
    )
    return {
        "group": link.get("IFLA_GROUP"),
        "answers ARP": not link["flags"] & NOARP_FLAG,
        "learning": state.get("IFLA_BRPORT_LEARNING"),
        "sticky": [bool(f & STICKY) for f in flags],
        "IPv6": node.netlink(
            lambda ipr: len(ipr.get_addr(family=socket.AF_INET6, index=ipr.link_lookup(ifname=name)[0]))
        ),
        "accept_ra": sysctl(node, f"net/ipv6/conf/{name}/accept_ra"),
    }


MARKED = {
    "group": PORT_GROUP,
    "answers ARP": False,
    "learning": 0,
    "sticky": [True],
    "IPv6": 0,
    "accept_ra": "0",
}


def no_link_local_learning(node: NetNS) -> bool:
    shown = node.run(["ip", "-d", "link", "show", "podwire0"]).stdout
    return "no_linklocal_learn 1" in shown


def test_ports_of_an_older_version_become_like_ours(cluster: Cluster) -> None:
    """An agent that starts marks them; and it marks them again when another program took a mark away."""
    a, node = pod(cluster, "a"), cluster.nodes[0]
    assert marks(node.ns, a) == MARKED and no_link_local_learning(node.ns)
    node.stop()
    name = port(node.ns, a).get("IFLA_IFNAME")
    for key, value in (("accept_ra", "1"), ("addr_gen_mode", "0"), ("disable_ipv6", "1"), ("disable_ipv6", "0")):
        node.ns.sysctl(f"net/ipv6/conf/{name}/{key}", value)
    assert marks(node.ns, a)["IPv6"] == 1
    for command in (
        f"ip link set dev {name} group default arp on",
        f"bridge link set dev {name} learning on",
        f"bridge fdb replace {a.mac} dev {name} master static",
        "ip link set podwire0 type bridge no_linklocal_learn 0",
    ):
        node.ns.run(command.split())
    assert marks(node.ns, a)["group"] == 0 and not no_link_local_learning(node.ns)
    node.start()
    assert wait_until(lambda: marks(node.ns, a) == MARKED, "the agent marks the port") and no_link_local_learning(
        node.ns
    )
    assert "marked as a pod's port" in node.log()
    node.ns.run(["ip", "link", "set", "dev", name, "group", "default"])
    node.look()
    wait_until(lambda: marks(node.ns, a) == MARKED, "the agent marks the port again")


def refusal(node: CniNode, path: str, **env: str) -> tuple[int, str]:
    answer = node.cni("ADD", "stranger", path, **env)
    return answer.body.get("code", 0), answer.body.get("msg", "")


def test_the_machine_and_other_nodes_are_no_pods(cluster: Cluster, machine: NetNS) -> None:
    """Not by another path of the same namespace either, and not where the runtime overrides the check of its own."""
    node = cluster.nodes[0]
    links = machine.netlink(lambda ipr: len(ipr.get_links()))
    for path in (machine.path, f"/proc/self/../{machine.path.removeprefix('/proc/')}"):
        for env in ({}, {"CNI_NETNS_OVERRIDE": "true"}):
            code, why = refusal(node, path, **env)
            assert code == 4 and machine.path in why
    assert machine.netlink(lambda ipr: len(ipr.get_links())) == links and node.leases() == {}


def test_agents_have_no_socket_that_a_pod_could_reach(cluster: Cluster) -> None:
    """Neither a port on any address, nor an abstract socket, which has no owner and no mode; the one in the file
    system is root's."""
    node = cluster.nodes[0]
    assert node.agent is not None
    inodes = {
        target.removeprefix("socket:[").removesuffix("]")
        for fd in Path(f"/proc/{node.agent.pid}/fd").iterdir()
        if (target := fd.readlink().name).startswith("socket:[")
    }
    tables = {
        name: [line.split() for line in Path(f"/proc/{node.agent.pid}/net/{name}").read_text().splitlines()[1:]]
        for name in ("tcp", "tcp6", "udp", "udp6", "raw", "raw6", "unix")
    }
    listening = [
        row[1]
        for name in ("tcp", "tcp6", "udp", "udp6", "raw", "raw6")
        for row in tables[name]
        if row[9] in inodes and (not name.startswith("tcp") or row[3] == "0A")
    ]
    named = [row[7] for row in tables["unix"] if row[6] in inodes and len(row) > 7]
    assert listening == [] and named == [str(node.run_dir / f".cni.sock.{node.agent.pid}")]
    assert (node.run_dir / "cni.sock").stat().st_mode & 0o777 == 0o600


def test_a_changed_rule_is_noticed_where_its_comment_is_the_same(lab: Lab) -> None:
    """Another bridge in the place of one changes no number of rules and no comment, and `nft replace` may keep one."""
    ns = lab.netns("node")
    pod_rules = PodRules("veth1", "0a:58:0a:f4:01:02", (ip_address("10.244.1.2"), ip_address("fd00::2")))
    rules = NodeRules(("10.244.1.0/24",), frozenset({"10.0.0.0/8"}), others=(OtherNet("br-a", ()),))
    rules = replace(rules, mac="0a:58:0a:f4:01:01")
    peers, sources = (Peer("n2", (), (ip_address("192.0.2.2"),)),), get_args(Sources)
    chain = "ip podwire-tunnel prerouting"
    with contextlib.closing(ns.call(Firewall)) as firewall:
        assert firewall.sync(rules, {Attachment("a", "eth0"): pod_rules}) == ["tables written"]
        assert firewall.sync(rules) == [], "the kernel gives back what was written"
        assert firewall.sync(replace(rules, others=(OtherNet("br-b", ()),)))
        for each in sources:
            tunnels = tunneltable.plan(TunnelRules(peers, sources=each))
            assert firewall.guard(tunnels)
            assert firewall.guard(tunnels) == []
        listed = ns.run(["nft", "-a", "list", "chain", *chain.split()]).stdout
        handle = re.search(r"not from a tunnel.*handle (\d+)", listed)
        assert handle
        ns.run(["nft", f'replace rule {chain} handle {handle[1]} accept comment "not from a tunnel"'])
        assert firewall.guard(tunnels)
        assert firewall.guard(tunnels) == []
