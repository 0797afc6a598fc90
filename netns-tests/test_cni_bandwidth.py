"""Bandwidth limits (capability bandwidth).

Nothing is timed. A burst is larger than the bucket and the queue together, so a part of it is lost; the test counts the
packets that arrive. The rate is the one test that lasts a while.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from lab.cnicluster import OUTSIDE, Cluster, two_nodes
from lab.cninode import ask, received, wait_until
from lab.netns import NetNS
from lab.patience import patient

SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33
SALVO, SIZE = 200, 1000
# 100 kB/s; the bucket holds 20 kB, and the queue two packets of 1500 bytes: 22 packets with their headers.
LOW, HIGH, PER_SECOND = 18, 30, 100
RATE, BURST = 800_000, 160_000


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with two_nodes(tmp_path_factory.mktemp) as cluster:
        yield cluster


@pytest.fixture
def cluster(running: Cluster) -> Iterator[Cluster]:
    yield running
    running.clear()


def limited(cluster: Cluster, **limits: int) -> tuple[NetNS, str]:
    return cluster.pod(cluster.nodes[0], "limited", runtimeConfig={"bandwidth": limits})


def through(sender: NetNS, receiver: NetNS, address: str) -> tuple[int, float]:
    """The number of datagrams of a burst that arrive, and the seconds that it took to send it."""
    to, back = (ns.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for ns in (receiver, sender))
    with to, back:
        to.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
        back.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 8 << 20)
        to.bind((address, 0))
        to.settimeout(patient(5))
        back.sendto(b"", to.getsockname())  # resolve neighbours first: the queue for unresolved neighbours is small
        assert to.recv(1) == b""
        to.settimeout(0.4)
        began = time.monotonic()
        for _ in range(SALVO):
            back.sendto(bytes(SIZE), to.getsockname())
        seconds, count = time.monotonic() - began, 0
        while True:
            try:
                to.recv(2000)
            except TimeoutError:
                return count, seconds
            count += 1


def free(sender: NetNS, receiver: NetNS, address: str) -> bool:
    return through(sender, receiver, address)[0] == SALVO


def held_back(sender: NetNS, receiver: NetNS, address: str) -> bool:
    """The limits: the size of bucket and queue, plus the rate times the duration of the burst (the sender may be
    stopped in the middle).
    """
    count, seconds = through(sender, receiver, address)
    return LOW <= count <= HIGH + seconds * PER_SECOND


def test_what_a_pod_receives(cluster: Cluster) -> None:
    pod, ip = limited(cluster, ingressRate=RATE, ingressBurst=BURST)
    assert held_back(cluster.nodes[0].ns, pod, ip)
    assert free(pod, cluster.outside, OUTSIDE), "the other direction is free"


def test_what_a_pod_sends(cluster: Cluster) -> None:
    pod, ip = limited(cluster, egressRate=RATE, egressBurst=BURST)
    assert held_back(pod, cluster.outside, OUTSIDE)
    assert free(cluster.nodes[0].ns, pod, ip)
    other, other_ip = cluster.pod(cluster.nodes[0], "other")
    assert free(other, cluster.outside, OUTSIDE), "another pod is free"
    time.sleep(0.3)  # the bucket fills again
    assert held_back(pod, other, other_ip), "also to a pod next door"


@pytest.mark.parametrize(
    ("way", "rate", "burst"),
    [
        ("ingress", 10**7, 4294967295),  # containerd
        ("egress", 10**7, 4294967295 * 8),  # CRI-O
        ("ingress", 2 * 10**6, 10**12),  # chosen, larger than a second
    ],
)
def test_rate_in_the_first_seconds_however_large_the_burst(cluster: Cluster, way: str, rate: int, burst: int) -> None:
    node = cluster.nodes[0]
    pod, ip = limited(cluster, **{f"{way}Rate": rate, f"{way}Burst": burst})
    to, address = (pod, ip) if way == "ingress" else (cluster.outside, OUTSIDE)
    count, took = received(node.ns if way == "ingress" else pod, to, address, 1.0)
    at_once = rate // 8 if burst == 10**12 else rate // 80
    # the receiver may be stopped before it reads the clock, and the sender for a part of the time
    assert 0.4 * took * rate / 8 < count < 1.1 * (at_once + (took + 0.05) * rate / 8)
    (queue,) = (q for q in json.loads(node.ns.run(["tc", "-j", "-d", "qdisc"]).stdout) if q["kind"] == "tbf")
    # iproute2 reports the time that the queue takes beyond the bucket, or the bytes
    limit = queue["options"].get("limit") or queue["options"].get("lat", 0) * rate / 8 / 10**6
    assert limit <= max(rate / 8 * 0.025, 2 * 1518) + 1, queue
    assert "is cut to" in node.log()


def test_limited_pods_work_and_leave_nothing(cluster: Cluster) -> None:
    """TCP in both directions, with the sources kept; `cluster` finds links that stay."""
    one = cluster.nodes[0]
    pod, ip = limited(cluster, egressRate=10**9, ingressRate=40 * 10**9, ingressBurst=2**31 - 1)
    other, other_ip = cluster.pod(one, "other")
    assert ask(other, ip, cluster.serve(pod, ip)) == other_ip
    assert ask(pod, other_ip, cluster.serve(other, other_ip)) == ip
    assert [name for name in one.links() if name.startswith("ifb")]


@pytest.mark.parametrize("ingress", [RATE, 40 * 10**9])  # one that does not fit the kernel's first field
def test_check_sees_a_limit_that_is_gone(cluster: Cluster, ingress: int) -> None:
    one, pod = cluster.nodes[0], cluster.lab.netns("a")
    conf: dict[str, Any] = one.conf(runtimeConfig={"bandwidth": {"ingressRate": ingress, "egressRate": 2 * RATE}})
    added = one.cni("ADD", "a", pod, conf)
    assert added.status == 0, added.out
    cluster.made.append((one, "a"))
    assert one.cni("CHECK", "a", pod, {**conf, "prevResult": added.body}).status == 0
    ifb = next(name for name in one.links() if name.startswith("ifb"))
    one.ns.run(["tc", "qdisc", "del", "dev", ifb, "root"])
    answer = one.cni("CHECK", "a", pod, {**conf, "prevResult": added.body})
    assert answer.status == 1 and f"{ifb} is not limited to 200000 bytes a second" in answer.body["msg"]


def test_pod_whose_namespace_died(cluster: Cluster) -> None:
    """The veth goes with the namespace, but the other device does not; DEL finds it."""
    one = cluster.nodes[0]
    pod, _ = limited(cluster, egressRate=RATE)
    pod.close()
    wait_until(lambda: not [name for name in one.links() if name.startswith("veth")], "the veth goes")
    assert [name for name in one.links() if name.startswith("ifb")]
