"""What other programs take from a node comes back at once: the kernel tells the agent, whose look is an hour away."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from lab.cnicluster import Cluster, two_nodes
from lab.cninode import ask, wait_until
from lab.netns import Lab
from podwire_base.kernel.netwatch import NetWatch


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    never = "from podwire_cni import following; following.RESYNC_SECONDS = 3600"
    with two_nodes(tmp_path_factory.mktemp, dual=True, first=never) as cluster:
        yield cluster


@pytest.mark.parametrize(
    "command",
    [
        "ip -4 route flush proto 143; ip -6 route flush proto 143",
        "ip route del {far}",
        "ip addr flush dev podwire0",
        "ip link set podwire0 down",
        "ip link set eth0 down; ip link set eth0 up",
    ],
)
def test_it_is_mended_before_the_next_look(cluster: Cluster, command: str) -> None:
    one, two = cluster.nodes
    (pod, ip), (far, far_ip) = cluster.pod(one, "near"), cluster.pod(two, "far")
    port, there = cluster.serve(pod, ip), cluster.serve(far, far_ip)
    wait_until(lambda: answers(pod, far_ip, there) and answers(far, ip, port), "pods reach each other")
    one.ns.run(["bash", "-c", command.format(far=far_ip.rpartition(".")[0] + ".0/24")])
    began = time.monotonic()
    wait_until(lambda: answers(pod, far_ip, there) and answers(far, ip, port), "they do again", 10)
    assert time.monotonic() - began < 60, "RESYNC_SECONDS is an hour"
    cluster.clear()


def answers(pod: object, ip: str, port: int) -> bool:
    try:
        return bool(ask(pod, ip, port))  # type: ignore[arg-type]  # of pods alone
    except OSError:
        return False


def test_pods_that_come_and_go_wake_nobody(lab: Lab) -> None:
    """Their links, addresses and routes pass the filter in the kernel only if a watched link is meant."""
    ns = lab.netns("quiet")
    ns.run(
        [
            "bash",
            "-c",
            "ip link add br0 type bridge mcast_snooping 0; ip link set br0 up; ip addr add 10.1.0.1/24 dev br0",
        ]
    )
    veth = (
        "ip link add {0} type veth peer name {0}p; ip link set {0} master br0; ip link set {0}p up; ip link set {0} up"
    )
    ns.run(["bash", "-c", veth.format("v0")])
    watch = ns.call(lambda: NetWatch(143))
    try:
        bridge, uplink = (ns.call(lambda name=name: socket.if_nametoindex(name)) for name in ("br0", "v0p"))  # type: ignore[misc]  # bound
        watch.watch([bridge, 1 << 20], uplink)

        def told(command: str, expect: bool) -> None:
            watch.changed()
            ns.run(["bash", "-c", command])
            if expect:
                wait_until(watch.changed, command)
            else:
                time.sleep(0.2)
                assert not watch.changed(), command

        wait_until(lambda: "LOWER_UP" in ns.run(["ip", "link", "show", "br0"]).stdout, "the bridge has a carrier")
        time.sleep(1.2)  # the kernel tells of a carrier within a second
        told(veth.format("v1") + "; ip link set v1 alias pod; ip link del v1", False)
        told("ip addr add 10.3.0.1/24 dev v0; ip addr del 10.3.0.1/24 dev v0", False)
        told("ip addr add 10.3.0.1/24 dev v0p; ip addr del 10.3.0.1/24 dev v0p", True)
        told("ip link set v0 down; sleep 1.2; ip link set v0 up; sleep 1.2", True)
        watch.watch([bridge], 1 << 20)
        told("ip link set v0 down; sleep 1.2; ip link set v0 up; sleep 1.2", False)
        told("ip link set br0 mtu 1400", False)
        told("ip route add 10.9.0.0/24 via 10.1.0.2 proto 143", False)
        told("ip route add 10.8.0.0/24 via 10.1.0.2 proto 142; ip route del 10.8.0.0/24", False)
        told("ip route del 10.9.0.0/24", True)
        told("ip addr add 10.4.0.1/24 dev br0; ip addr del 10.4.0.1/24 dev br0", True)
        told("ip link set br0 down", True)
        told("ip link del br0", True)
    finally:
        watch.close()
