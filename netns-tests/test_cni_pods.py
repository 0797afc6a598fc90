"""Pods attached by the plugin binary and a live agent: where their packets arrive."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from scapy.layers.inet import ICMP, IP

from lab.capture import Capture
from lab.cnicluster import OUTSIDE, Cluster, two_nodes
from lab.cninode import ask, put_node, wait_until
from lab.netns import NetNS
from lab.patience import patient
from podwire_base.kernel.netns import in_thread, setns


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with two_nodes(tmp_path_factory.mktemp) as cluster:
        yield cluster


@pytest.fixture
def cluster(running: Cluster) -> Iterator[Cluster]:
    """The running cluster without pods; everything that a test adds is removed, and nothing of it may stay."""
    yield running
    running.clear()


@pytest.fixture(params=["0", "1"])
def nf_call(request: pytest.FixtureRequest, cluster: Cluster) -> str:
    """Bridges with and without netfilter calls: pods must not notice a difference."""
    for node in cluster.nodes:
        node.ns.sysctl("net/bridge/bridge-nf-call-iptables", request.param)
    return str(request.param)


def ping(ns: NetNS, address: str) -> IP | None:
    """The reply to one ICMP echo request that the namespace's own stack sends."""
    sock = ns.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP))
    with sock:
        sock.settimeout(patient(5))
        sock.sendto(bytes(ICMP(id=77, seq=1) / b"podwire"), (address, 0))
        while True:
            try:
                reply = IP(sock.recv(1500))
            except TimeoutError:
                return None
            if reply[ICMP].type == 0 and reply[ICMP].id == 77:
                return reply


def test_tcp_between_pods_keeps_the_source(cluster: Cluster, nf_call: str) -> None:
    one, two = cluster.nodes
    (a, a_ip), (b, b_ip), (c, c_ip) = cluster.pod(one, "a"), cluster.pod(one, "b"), cluster.pod(two, "c")
    pods = [(ns, ip, cluster.serve(ns, ip)) for ns, ip in ((a, a_ip), (b, b_ip), (c, c_ip))]
    for ns, ip, _ in pods:
        for _, peer, port in pods:
            assert ask(ns, peer, port) == ip, f"{ip} to {peer}, bridge-nf-call-iptables={nf_call}"


def test_ping_on_the_wire_has_the_pods_addresses(cluster: Cluster) -> None:
    one, two = cluster.nodes
    (a, a_ip), (c, c_ip) = cluster.pod(one, "a"), cluster.pod(two, "c")
    with Capture(two.ns, "eth0") as wire:
        assert ping(a, c_ip)
        assert wire.pairs(ICMP) == [(a_ip, c_ip), (c_ip, a_ip)]
    assert ping(c, a_ip)


def test_same_node_traffic_is_routed(cluster: Cluster) -> None:
    """A routed packet's TTL is one lower: only if packets are routed do replies of a Service pass the node's NAT."""
    one = cluster.nodes[0]
    (a, _), (_, b_ip) = cluster.pod(one, "a"), cluster.pod(one, "b")
    reply = ping(a, b_ip)
    assert reply is not None and reply.ttl == 63


def test_pods_and_nodes_see_each_other_without_nat(cluster: Cluster, nf_call: str) -> None:
    one, two = cluster.nodes
    a, a_ip = cluster.pod(one, "a")
    assert ask(a, "192.0.2.1", cluster.serve(one.ns, "0.0.0.0")) == a_ip
    assert ask(a, "192.0.2.2", cluster.serve(two.ns, "0.0.0.0")) == a_ip
    port = cluster.serve(a, a_ip)
    assert ask(two.ns, a_ip, port) == "192.0.2.2"
    assert ask(one.ns, a_ip, port) == "10.244.1.1"


def test_pod_to_outside_is_masqueraded(cluster: Cluster, nf_call: str) -> None:
    a, _ = cluster.pod(cluster.nodes[0], "a")
    assert ask(a, OUTSIDE, cluster.serve(cluster.outside, OUTSIDE)) == "192.0.2.1"


def test_established_masqueraded_flow_survives_an_agent_restart(cluster: Cluster) -> None:
    one = cluster.nodes[0]
    a, _ = cluster.pod(one, "a")
    listener = cluster.outside.call(lambda: socket.create_server((OUTSIDE, 7000)))
    flow = a.call(lambda: socket.create_connection((OUTSIDE, 7000), timeout=5))
    far, peer = listener.accept()
    with flow, far, listener:
        assert peer[0] == "192.0.2.1"
        one.stop()
        one.start()
        flow.sendall(b"still here")
        far.settimeout(patient(5))
        assert far.recv(100) == b"still here"
        far.sendall(b"so am I")
        assert flow.recv(100) == b"so am I"


def test_restart_without_the_api_server_keeps_pod_to_node_unmasqueraded(cluster: Cluster, tmp_path: Path) -> None:
    """The agent does not know the other nodes then; its predecessor's table does."""
    one, two = cluster.nodes
    a, a_ip = cluster.pod(one, "a")
    kubeconfig = one.kubeconfig
    one.stop()
    one.kubeconfig = tmp_path / "kubeconfig"
    one.kubeconfig.write_text(kubeconfig.read_text().replace("192.0.2.1:", "127.0.0.1:"))
    try:
        one.start(wait=False)
        wait_until(lambda: one.cni("STATUS", "", None, one.conf("1.1.0")).status == 0, "pods can be wired")
        assert ask(a, "192.0.2.2", cluster.serve(two.ns, "0.0.0.0")) == a_ip
        b, b_ip = cluster.pod(one, "b")
        assert ask(b, "192.0.2.2", cluster.serve(two.ns, "0.0.0.0")) == b_ip
    finally:
        one.stop()
        one.kubeconfig = kubeconfig
        one.start()


def test_routes_follow_the_nodes(cluster: Cluster) -> None:
    one = cluster.nodes[0]

    def routes() -> dict[str, str]:
        found = one.ns.netlink(lambda ipr: list(ipr.get_routes(family=socket.AF_INET, table=254)))
        return {f"{r.get('RTA_DST')}/{r['dst_len']}": r.get("RTA_GATEWAY") for r in found if r.get("RTA_GATEWAY")}

    one.ns.netlink(lambda ipr: ipr.route("add", dst="198.51.100.0/24", gateway="192.0.2.42"))  # another program's route
    put_node(cluster.api, "n3", "10.244.3.0/24", "192.0.2.3")
    wait_until(lambda: routes().get("10.244.3.0/24") == "192.0.2.3", "a route to a new node")
    put_node(cluster.api, "n3", "10.244.3.0/24", "192.0.2.33")
    wait_until(lambda: routes().get("10.244.3.0/24") == "192.0.2.33", "the route follows a changed address")
    cluster.api.delete("/api/v1/nodes", "n3")
    wait_until(lambda: "10.244.3.0/24" not in routes(), "the route goes with the node")
    assert routes() == {"10.244.2.0/24": "192.0.2.2", "198.51.100.0/24": "192.0.2.42"}


def test_an_uplink_that_was_down_is_used_again_as_it_was(cluster: Cluster) -> None:
    """Without a route to the other nodes, none of them seems to be on the link. That is no reason for tunnels, which
    would not have a route either.
    """
    (a, a_ip), (b, b_ip) = (cluster.pod(node, name) for node, name in zip(cluster.nodes, ("a", "b"), strict=True))
    two = cluster.nodes[1]

    def wire(state: str) -> None:
        two.ns.netlink(lambda ipr: ipr.link("set", index=ipr.link_lookup(ifname="eth0")[0], state=state))

    two.first = "from podwire_cni import following; following.RESYNC_SECONDS = 1"
    two.stop()
    two.start()
    before = sorted(two.links())
    wire("down")
    try:
        wait_until(lambda: two.status().get("reason") == "LinkDown", "the agent looks at its routes, and says so")
        assert sorted(two.links()) == before
    finally:
        wire("up")
    wait_until(lambda: two.status().get("ready"), "the routes are there again")
    assert ask(b, a_ip, cluster.serve(a, a_ip)) == b_ip
    assert ask(a, b_ip, cluster.serve(b, b_ip)) == a_ip
    assert sorted(two.links()) == before
    two.first = ""
    two.stop()
    two.start()


def test_first_packet_of_a_fresh_pod_arrives(cluster: Cluster) -> None:
    """No address resolution, no learning or listening port: a packet that a pod sends right after ADD arrives."""
    one = cluster.nodes[0]
    (b, b_ip) = cluster.pod(one, "b")
    box = b.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    box.bind((b_ip, 5000))
    box.settimeout(patient(5))
    with box:
        for i in range(10):
            pod, ip = cluster.pod(one, f"fresh{i}")
            sender = pod.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            with sender:
                sender.sendto(b"one datagram, no second try", (b_ip, 5000))
                assert box.recvfrom(100)[1][0] == ip


def test_address_reused_by_another_pod_is_reached_at_once(cluster: Cluster) -> None:
    one, two = cluster.nodes
    client, _ = cluster.pod(one, "client")
    first, ip = cluster.pod(two, "first")
    ask(client, ip, cluster.serve(first, ip))
    assert two.cni("DEL", "first", first).status == 0
    second = cluster.lab.netns("second")
    answer = two.cni("ADD", "second", second, two.conf(runtimeConfig={"ips": [ip]}))
    assert answer.status == 0 and answer.address == ip, answer.out
    cluster.made.append((two, "second"))
    assert ask(client, ip, cluster.serve(second, ip)).startswith("10.244.1.")


def test_32_adds_at_once_get_addresses_of_their_own(cluster: Cluster) -> None:
    one = cluster.nodes[0]
    pods = [cluster.lab.netns(f"p{i}") for i in range(32)]
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda pair: one.cni("ADD", f"p{pair[0]}", pair[1]), enumerate(pods)))
    assert [a.out for a in answers if a.status] == []
    addresses = [a.address for a in answers]
    assert len(set(addresses)) == 32 and "10.244.1.1" not in addresses
    port = cluster.serve(pods[0], addresses[0])
    assert [ask(pod, addresses[0], port) for pod in pods[1:]] == addresses[1:]
    with ThreadPoolExecutor(32) as pool:
        gone = list(pool.map(lambda pair: one.cni("DEL", f"p{pair[0]}", pair[1]), enumerate(pods)))
    assert {a.status for a in gone} == {0}
    assert one.leases() == {} and not [name for name in one.links() if name.startswith("veth")]


def test_pod_sees_its_own_interface_only(cluster: Cluster) -> None:
    pod, ip = cluster.pod(cluster.nodes[0], "a", "1.1.0")

    def look() -> tuple[set[str], set[str], bool]:
        def inside() -> tuple[set[str], set[str], bool]:
            from pyroute2 import IPRoute

            setns(pod.fd)
            with IPRoute() as ipr:
                links = {link.get("IFLA_IFNAME"): link["state"] for link in ipr.get_links()}
                index = ipr.link_lookup(ifname="eth0")[0]
                addresses = {
                    f"{a.get('IFA_ADDRESS')}/{a['prefixlen']}" for a in ipr.get_addr(index=index, family=socket.AF_INET)
                }
            return set(links), addresses, all(state == "up" for state in links.values())

        return in_thread(inside)

    assert look() == ({"lo", "eth0"}, {f"{ip}/32"}, True)


def test_conflist_is_what_a_runtime_reads(cluster: Cluster) -> None:
    one = cluster.nodes[0]
    conflist = json.loads((one.run_dir / "cni" / "net.d" / "10-podwire.conflist").read_text())
    assert conflist["cniVersion"] == "1.0.0" and conflist["name"] == "podwire"
    assert [p["type"] for p in conflist["plugins"]] == [one.client.name]
    assert conflist["plugins"][0]["ipam"]["ranges"] == [[{"subnet": "10.244.1.0/24", "gateway": "10.244.1.1"}]]
