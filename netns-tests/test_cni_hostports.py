"""hostPort (capability portMappings): where packets to a port of the node arrive."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.layers.sctp import SCTP, SCTPChunkInit

from lab.capture import Capture
from lab.cnicluster import OUTSIDE, Cluster, give, two_nodes
from lab.cninode import ask, put_node, wait_until
from lab.netns import NetNS
from lab.patience import patient

NODE, NODE6, OTHER = "192.0.2.1", "fd0a::1", "192.0.2.101"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with two_nodes(tmp_path_factory.mktemp, dual=True) as cluster:
        give(cluster.nodes[0].ns, OTHER)
        yield cluster


@pytest.fixture
def cluster(running: Cluster) -> Iterator[Cluster]:
    yield running
    running.clear()


def ports(*entries: dict[str, Any]) -> dict[str, Any]:
    return {"runtimeConfig": {"portMappings": list(entries)}}


def mapped(cluster: Cluster, name: str, host_port: int, **more: Any) -> tuple[NetNS, str]:
    """A pod of the first node with a TCP server that returns the client's address, behind `host_port`."""
    pod = cluster.lab.netns(name)
    node = cluster.nodes[0]
    # The server has to be there first: its port is the containerPort.
    port = cluster.serve(pod, "0.0.0.0")
    answer = node.cni("ADD", name, pod, node.conf(**ports({"hostPort": host_port, "containerPort": port, **more})))
    assert answer.status == 0, answer.out
    cluster.made.append((node, name))
    return pod, answer.address


def refused(ns: NetNS, address: str, port: int) -> bool:
    try:
        ask(ns, address, port, 0.5)
    except (TimeoutError, OSError):
        return True
    return False


@pytest.mark.parametrize("nf_call", ["0", "1"])
def test_everybody_reaches_the_port_and_keeps_his_address(cluster: Cluster, nf_call: str) -> None:
    one, two = cluster.nodes
    for node in cluster.nodes:
        node.ns.sysctl("net/bridge/bridge-nf-call-iptables", nf_call)
    pod, _ = mapped(cluster, "server", 8080)
    assert ask(cluster.outside, NODE, 8080) == OUTSIDE
    assert ask(two.ns, NODE, 8080) == "192.0.2.2"
    assert ask(one.ns, NODE, 8080) == NODE
    neighbour, neighbour_ip = cluster.pod(one, "neighbour")
    far, far_ip = cluster.pod(two, "far")
    assert ask(neighbour, NODE, 8080) == neighbour_ip
    assert ask(far, NODE, 8080) == far_ip
    assert ask(pod, NODE, 8080) == "10.244.1.1", "a pod that asks itself must not see a packet from itself"
    assert ask(one.ns, "127.0.0.1", 8080) == "10.244.1.1"
    assert ask(one.ns, "127.8.8.8", 8080) == "10.244.1.1"
    assert refused(cluster.outside, NODE, 8081) and refused(cluster.outside, "192.0.2.2", 8080)


def test_ipv6(cluster: Cluster) -> None:
    one = cluster.nodes[0]
    pod = cluster.lab.netns("six")
    port = cluster.serve(pod, "::")
    answer = one.cni("ADD", "six", pod, one.conf(**ports({"hostPort": 8080, "containerPort": port})))
    assert answer.status == 0, answer.out
    cluster.made.append((one, "six"))
    assert ask(cluster.outside, NODE6, 8080) == "fd0a::42"
    assert ask(cluster.outside, NODE, 8080) == f"::ffff:{OUTSIDE}"
    neighbour, _ = cluster.pod(one, "neighbour")
    assert ask(neighbour, NODE6, 8080).startswith("fd00:1::")
    assert refused(one.ns, "::1", 8080), "nothing can be led away from ::1, so it is refused and does not hang"


def test_host_ip(cluster: Cluster) -> None:
    one = cluster.nodes[0]
    mapped(cluster, "a", 8080, hostIP=OTHER)
    assert ask(cluster.outside, OTHER, 8080) == OUTSIDE
    assert refused(cluster.outside, NODE, 8080) and refused(one.ns, "127.0.0.1", 8080)
    mapped(cluster, "b", 8080, hostIP=NODE)
    mapped(cluster, "c", 8080, hostIP="127.0.0.1")
    assert ask(cluster.outside, NODE, 8080) == OUTSIDE and ask(one.ns, "127.0.0.1", 8080) == "10.244.1.1"


def test_spelling_of_go_marshallers(cluster: Cluster) -> None:
    one, pod = cluster.nodes[0], cluster.lab.netns("go")
    port = cluster.serve(pod, "0.0.0.0")
    conf = one.conf(
        runtimeConfig={
            "PortMappings": [
                {"HostPort": 8080, "ContainerPort": port, "Protocol": "TCP", "HostIP": ""},
                {"HostPort": 0, "ContainerPort": 9},
            ]
        }
    )
    assert one.cni("ADD", "go", pod, conf).status == 0
    cluster.made.append((one, "go"))
    assert ask(cluster.outside, NODE, 8080) == OUTSIDE


def test_one_port_has_one_holder(cluster: Cluster) -> None:
    one = cluster.nodes[0]
    first, second = cluster.lab.netns("first"), cluster.lab.netns("second")
    cluster.made.append((one, "first"))
    assert one.cni("ADD", "first", first, one.conf(**ports({"hostPort": 8080, "containerPort": 1}))).status == 0
    conf = one.conf(**ports({"hostPort": 8080, "containerPort": 1, "hostIP": NODE}))
    answer = one.cni("ADD", "second", second, conf)
    assert (answer.status, answer.body["code"]) == (1, 11) and "held by default/first" in answer.body["msg"]
    assert set(one.leases().values()) == {"first"}
    first.close()
    wait_until(
        lambda: not [name for name in one.links() if name.startswith("veth")], "the veth goes with its namespace"
    )
    cluster.made.append((one, "second"))
    assert one.cni("ADD", "second", second, conf).status == 0, "a dead pod holds no port"


def test_del_takes_away_its_own_and_nothing_else(cluster: Cluster) -> None:
    one = cluster.nodes[0]
    _, kept_ip = mapped(cluster, "kept", 8080)
    _, gone_ip = mapped(cluster, "gone", 8081)
    before = one.table_elements()
    assert one.cni("DEL", "gone").status == 0
    assert refused(cluster.outside, NODE, 8081) and ask(cluster.outside, NODE, 8080) == OUTSIDE
    # Another pod gets the address of the deleted one; a late second DEL must not affect it.
    pod = cluster.lab.netns("heir")
    port = cluster.serve(pod, "0.0.0.0")
    heir = one.cni(
        "ADD",
        "heir",
        pod,
        one.conf(runtimeConfig={"ips": [gone_ip], "portMappings": [{"hostPort": 8081, "containerPort": port}]}),
    )
    cluster.made.append((one, "heir"))
    assert heir.address == gone_ip != kept_ip
    assert one.cni("DEL", "gone").status == 0 and one.table_elements() == before
    assert ask(cluster.outside, NODE, 8081) == OUTSIDE


# ---- UDP ----


@contextlib.contextmanager
def udp_echo(ns: NetNS, name: str) -> Iterator[int]:
    """Answers each datagram with `name`; yields its port."""
    import threading

    sock = ns.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    sock.bind(("0.0.0.0", 0))

    def loop() -> None:
        while True:
            data, peer = sock.recvfrom(100)
            if data == b"end":
                return
            sock.sendto(name.encode(), peer)

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield sock.getsockname()[1]
    finally:
        with ns.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as end:
            end.sendto(b"end", ("127.0.0.1", sock.getsockname()[1]))
        thread.join()
        sock.close()


def says(sock: socket.socket, port: int, address: str = NODE, seconds: float = 3) -> str:
    """The answer to one datagram; "" for silence."""
    sock.settimeout(seconds)
    try:
        sock.sendto(b"?", (address, port))
        return sock.recv(100).decode()
    except (TimeoutError, ConnectionRefusedError):
        return ""


def test_udp_flows_follow_the_mapping(cluster: Cluster) -> None:
    """One client socket, so one flow for conntrack, from before the first pod to after the second."""
    one = cluster.nodes[0]
    client = cluster.outside.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    with client, contextlib.ExitStack() as stack:
        client.bind((OUTSIDE, 0))
        # The node keeps a flow that began untranslated. (A port that is closed by ICMP would end it.)
        silent = stack.enter_context(one.ns.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)))
        silent.bind((NODE, 5300))
        assert says(client, 5300, seconds=0.3) == ""
        for name in ("first", "second"):
            pod = cluster.lab.netns(name)
            port = stack.enter_context(udp_echo(pod, name))
            entry = {"hostPort": 5300, "containerPort": port, "protocol": "udp"}
            cluster.made.append((one, name))
            assert one.cni("ADD", name, pod, one.conf(**ports(entry))).status == 0
            assert says(client, 5300) == name
            assert one.cni("DEL", name).status == 0
        flows = one.ns.run(["conntrack", "-L", "-p", "udp", "--dport", "5300"]).stdout
        assert "10.244.1." not in flows, flows


def test_udp_flows_of_others_are_left_alone(cluster: Cluster) -> None:
    """A flow to the same port of another machine, through this node, keeps its entry, and so does a flow of another
    hostPort.
    """
    one = cluster.nodes[0]
    asking, _ = cluster.pod(one, "asking")
    with udp_echo(cluster.outside, "outside") as port:
        sock = asking.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        with sock:
            assert says(sock, port, OUTSIDE) == "outside"

            def entry() -> str:
                listed = one.ns.run(["conntrack", "-L", "-p", "udp", "--dport", str(port), "-o", "id"]).stdout
                return listed.split(" id=")[1].split()[0]

            before = entry()
            pod = cluster.lab.netns("server")
            conf = one.conf(**ports({"hostPort": port, "containerPort": 5, "protocol": "udp"}))
            cluster.made.append((one, "server"))
            assert one.cni("ADD", "server", pod, conf).status == 0
            assert entry() == before
            assert one.cni("DEL", "server", pod, conf).status == 0
            assert entry() == before


def test_udp_flows_of_another_holder_of_the_port_are_left_alone(cluster: Cluster) -> None:
    """One port, two pods, each at an address of its own."""
    one = cluster.nodes[0]
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(one.ns.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)))
        seen = []
        for name, address in (("first", "127.0.0.1"), ("second", NODE)):
            pod = cluster.lab.netns(name)
            port = stack.enter_context(udp_echo(pod, name))
            entry = {"hostPort": 5300, "containerPort": port, "protocol": "udp", "hostIP": address}
            cluster.made.append((one, name))
            assert one.cni("ADD", name, pod, one.conf(**ports(entry))).status == 0
            assert says(client, 5300, "127.0.0.1") == "first"
            seen.append(
                one.ns.run(["conntrack", "-L", "-p", "udp", "--dst", "127.0.0.1", "-o", "id"]).stdout.split(" id=")[1]
            )
        assert seen[0] == seen[1]


def test_sctp(cluster: Cluster) -> None:
    """Without an SCTP stack: an INIT chunk arrives at the pod, translated."""
    one, pod = cluster.nodes[0], cluster.lab.netns("sctp")
    conf = one.conf(**ports({"hostPort": 3868, "containerPort": 99, "protocol": "SCTP"}))
    answer = one.cni("ADD", "sctp", pod, conf)
    assert answer.status == 0, answer.out
    cluster.made.append((one, "sctp"))
    chunk = SCTPChunkInit(init_tag=7, n_out_streams=1, n_in_streams=1)
    init = IP(src=OUTSIDE, dst=NODE) / SCTP(sport=40000, dport=3868) / chunk
    with Capture(pod, "eth0") as seen:
        raw = cluster.outside.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW))
        with raw:
            raw.sendto(bytes(init), (NODE, 0))
        arrived = wait_until(lambda: [p for p in seen.packets() if SCTP in p], "the INIT at the pod")
    assert (arrived[0][IP].src, arrived[0][IP].dst, arrived[0][SCTP].dport) == (OUTSIDE, answer.address, 99)


# ---- side effects that must not occur ----


def test_pods_do_not_reach_the_nodes_loopback(cluster: Cluster) -> None:
    """Serving 127.0.0.1 needs route_localnet, which alone would open the node's 127.0.0.1 to its pods
    (CVE-2020-8558).
    """
    one = cluster.nodes[0]
    mapped(cluster, "server", 8080)
    bad, bad_ip = cluster.pod(one, "bad")
    gateway = one.ns.netlink(lambda ipr: ipr.get_links(ifname="podwire0")[0].get("IFLA_ADDRESS"))
    own = bad.netlink(lambda ipr: ipr.get_links(ifname="eth0")[0].get("IFLA_ADDRESS"))
    server = one.ns.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    with server:
        server.bind(("0.0.0.0", 0))
        server.settimeout(patient(2))
        raw = bad.call(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
        with raw:
            raw.bind(("eth0", 0))
            for target in ("127.0.0.1", NODE):
                frame = (
                    Ether(src=own, dst=gateway)
                    / IP(src=bad_ip, dst=target)
                    / UDP(sport=7, dport=server.getsockname()[1])
                )
                raw.send(bytes(frame / target.encode()))
        assert server.recv(100) == NODE.encode(), "the first datagram to get through is the harmless one"


@contextlib.contextmanager
def another_look(cluster: Cluster) -> Iterator[None]:
    """Whatever happens inside: the agents check the kernel afterwards, and not only ten seconds later."""
    yield
    put_node(cluster.api, "n3", "10.244.3.0/24", "192.0.2.3")
    cluster.api.delete("/api/v1/nodes", "n3")


def test_ports_survive_a_restart_and_a_flushed_table(cluster: Cluster) -> None:
    one = cluster.nodes[0]
    mapped(cluster, "server", 8080)
    cluster.pod(one, "other")
    one.stop()
    assert ask(cluster.outside, NODE, 8080) == OUTSIDE
    one.start()
    assert ask(cluster.outside, NODE, 8080) == OUTSIDE

    def closed() -> bool:
        """The agent hears of the flush, and may have its tables again before the packet comes."""
        one.ns.run(["nft", "flush", "ruleset"])
        return refused(cluster.outside, NODE, 8080)

    wait_until(closed, "without the rules nobody answers")
    with another_look(cluster):
        gone = one.cni("DEL", "other")
        assert gone.status == 0, gone.out + one.log()
    wait_until(lambda: not refused(cluster.outside, NODE, 8080), "the agent repairs its tables")
    wait_until(lambda: "table ip podwire-cni was gone" in one.log(), "it says so, when it is done")


def test_an_add_meets_flushed_tables(cluster: Cluster) -> None:
    one = cluster.nodes[0]
    mapped(cluster, "server", 8080)
    one.ns.run(["nft", "flush", "ruleset"])
    mapped(cluster, "second", 8081)
    assert {ask(cluster.outside, NODE, port) for port in (8080, 8081)} == {OUTSIDE}, "everybody's rules are there again"


def test_localhost_is_served_by_a_bridge_that_was_made_again(cluster: Cluster) -> None:
    one = cluster.nodes[0]
    mapped(cluster, "server", 8080)
    assert ask(one.ns, "127.0.0.1", 8080) == "10.244.1.1"
    with another_look(cluster):
        one.ns.netlink(lambda ipr: ipr.link("del", ifname="podwire0"))
    wait_until(lambda: not refused(one.ns, "127.0.0.1", 8080), "route_localnet is on again")


def test_udp_flows_that_began_without_the_tables(cluster: Cluster) -> None:
    """A client that keeps sending keeps its flow, which leads nowhere, forever."""
    one, pod = cluster.nodes[0], cluster.lab.netns("a")
    # Another program translates too, so the kernel tracks flows even while our table is gone.
    one.ns.run(["nft", "add table ip other; add chain ip other nat { type nat hook prerouting priority -100; }"])
    one.ns.run(["nft", "add rule ip other nat ip daddr 203.0.113.1 dnat to 203.0.113.2"])
    client = cluster.outside.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    try:
        with (
            client,
            udp_echo(pod, "pod") as port,
            one.ns.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as silent,
        ):
            silent.bind((NODE, 5300))
            cluster.made.append((one, "a"))
            mapping = ports({"hostPort": 5300, "containerPort": port, "protocol": "udp"})
            assert one.cni("ADD", "a", pod, one.conf(**mapping)).status == 0
            with another_look(cluster):
                one.ns.run(["nft", "delete", "table", "ip", "podwire-cni"])
                says(client, 5300, seconds=0.1)
            wait_until(lambda: says(client, 5300, seconds=0.3) == "pod", "the flow is led to the pod")
    finally:
        one.ns.run(["nft", "delete", "table", "ip", "other"])


def test_check_names_what_is_missing(cluster: Cluster) -> None:
    one, pod = cluster.nodes[0], cluster.lab.netns("a")
    conf = one.conf(**ports({"hostPort": 8080, "containerPort": 80}))
    added = one.cni("ADD", "a", pod, conf)
    cluster.made.append((one, "a"))
    checked = {**conf, "prevResult": added.body}
    assert one.cni("CHECK", "a", pod, checked).status == 0
    answer = one.complaint(
        lambda: one.ns.run(["nft", "flush", "map", "ip", "podwire-cni", "hostports"]),
        lambda: one.cni("CHECK", "a", pod, checked),
        "hostports lacks tcp . 8080",
    )
    assert answer.status == 1 and "hostports lacks tcp . 8080" in answer.body["msg"], answer.out


def test_nft_lists_the_tables(cluster: Cluster) -> None:
    """An administrator reads them with nft(8): names, ports and reasons."""
    one = cluster.nodes[0]
    mapped(cluster, "server", 8080)
    listed = one.ns.run(["nft", "list", "table", "ip", "podwire-cni"]).stdout
    assert "tcp . 8080 : 10.244.1." in listed and "pods to the world outside" in listed
    assert "MAC that is not its own" in one.ns.run(["nft", "list", "table", "bridge", "podwire-cni"]).stdout
    assert one.ns.run(["nft", "-j", "list", "ruleset"]).returncode == 0
