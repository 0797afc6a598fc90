"""Concurrent calls: calls for one container, leases that other calls free, networks that share a bridge."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from ipaddress import ip_network
from typing import Any

import pytest

from podwire_base.patience import patient
from podwire_cni.errors import CNIError, ErrorCode
from podwire_cni.ipam.ranges import podcidr_range
from podwire_cni.keyedlock import KeyedLock
from podwire_cni.networkstore import Networks
from podwire_cni.ops import DeleteRoute, Op
from podwire_cni.plan import NodeNet, host_route, host_veth
from podwire_cni.tests.test_verbs import NODE, Host, body
from podwire_cni.types import Attachment, IPAddress

POOL = 13  # the number of pods that Host's node has room for


def ended(work: Callable[[], Any], seconds: float = 10) -> threading.Thread:
    """The thread that ran `work`; a deadlock would keep it from ending."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(patient(seconds))
    assert not thread.is_alive(), "it hangs"
    return thread


def test_an_add_whose_note_cannot_be_written_leaves_nothing() -> None:
    host = Host()
    store, real = host.plugin.allocator.store, host.plugin.allocator.store.wired

    def full(lease: object) -> None:
        raise CNIError(ErrorCode.IO_FAILURE, "no space")

    store.wired = full  # type: ignore[method-assign]  # a disk that is full from the second write on
    assert body(host.call("ADD"))["code"] == 5
    assert host.state() == (set(), set(), set(), set())
    store.wired = real  # type: ignore[method-assign]  # as it was
    assert host.call("ADD").status == 0


def test_the_last_address_may_be_that_of_the_same_containers_dead_interface() -> None:
    host = Host()
    for i in range(POOL):
        assert host.call("ADD", f"c{i}").status == 0
    del host.kernel.veths[host_veth(Attachment("c0", "eth0"))]
    replies = []
    ended(lambda: replies.append(host.call("ADD", "c0", env={"CNI_IFNAME": "net1"})))
    assert replies[0].status == 0
    assert {lease.owner for lease in host.held.values() if lease.owner.container_id == "c0"} == {
        Attachment("c0", "net1")
    }


def test_a_container_that_others_work_on_is_not_freed_under_their_hands() -> None:
    host = Host()
    for i in range(POOL):
        host.call("ADD", f"c{i}")
    del host.kernel.veths[host_veth(Attachment("c0", "eth0"))]
    replies = []
    with host.plugin._locks.of("c0"):
        ended(lambda: replies.append(host.call("ADD", "more")))
    assert body(replies[0])["code"] == 11
    assert host.call("ADD", "more").status == 0


def test_a_start_does_not_take_a_pod_that_is_being_wired() -> None:
    host = Host()
    told: list[str] = []
    start = threading.Thread(target=lambda: told.extend(host.plugin.reconcile()), daemon=True)
    real, listed = host.kernel.apply, threading.Event()
    links = host.kernel.links

    def apply(ops: Any, pod_fd: Any = None) -> None:
        start.start()
        assert listed.wait(patient(10))
        real(ops, pod_fd)

    def seen() -> dict[str, tuple[int, int]]:
        try:
            return links()
        finally:
            listed.set()

    # the moment between lease and links
    host.kernel.apply, host.kernel.links = apply, seen  # type: ignore[method-assign]
    assert host.call("ADD").status == 0
    start.join(10)
    assert not told and len(host.held) == len(host.kernel.veths) == len(host.firewall.pods) == 1


def test_gc_is_of_one_network() -> None:
    """Two networks of different names share the node's bridge: an attachment that one runtime does not list may belong
    to the other network.
    """
    host = Host()
    host.call("ADD", "kubelet's", env={"CNI_CONTAINERID": "a"})
    host.call("ADD", env={"CNI_CONTAINERID": "b"}, name="podman")
    nothing: dict[str, Any] = {"cni.dev/valid-attachments": []}
    assert host.call("GC", name="podman", **nothing).status == 0
    assert {lease.owner.container_id for lease in host.held.values()} == {"a"}
    assert host.call("GC", **nothing).status == 0
    assert not host.held


def test_patience_ends() -> None:
    keyedlock, got = KeyedLock(), list[bool]()

    def other() -> None:
        with keyedlock.of("x", patience=0.01) as mine:
            got.append(mine)

    with keyedlock.of("x") as first, keyedlock.of("x") as again:
        ended(other)
        assert first and again
    ended(other)
    assert got == [False, True] and not keyedlock._locks


@pytest.mark.parametrize("verb", ["ADD", "STATUS"])
def test_another_bridge_waits_for_the_node_too(verb: str, tmp_path: Any) -> None:
    """The node's tables, which its pods need, are made with the podCIDR."""
    host, made = Host(None), list[Any]()
    host.plugin.networks = Networks(tmp_path, made.append, lambda _: None)
    reply = host.call(verb, bridge="lan0", ipam={"ranges": [[{"subnet": "10.50.0.0/24"}]]})
    assert body(reply)["code"] == {"ADD": 11, "STATUS": 50}[verb] and not made


@pytest.mark.parametrize("known", [True, False], ids=["outside", "outside from now on"])
def test_a_route_that_a_sync_adds_ends_with_its_pod(known: bool) -> None:
    """A DEL removes the route of an address outside the podCIDRs. A sync that read the leases before must not add it
    again. known: whether the DEL already sees the new podCIDR.
    """
    host = Host()
    assert host.call("ADD").status == 0
    (address,) = host.held
    moved = NodeNet(((podcidr_range(ip_network("10.244.9.0/28")),),))
    host.node = moved if known else NODE
    routes, remove = {host_route(address).network}, host.kernel.remove
    removing, ending = threading.Event(), threading.Thread(target=lambda: host.call("DEL"), daemon=True)

    def removed(ops: Sequence[Op], meanwhile: Callable[[], None] | None = None) -> None:
        remove(ops, meanwhile)
        for op in ops:
            if isinstance(op, DeleteRoute):
                routes.discard(op.dst)
        removing.set()

    host.kernel.remove = removed  # type: ignore[method-assign]  # FakeKernel keeps no routes

    def ensure(_: NodeNet, unwanted: Sequence[IPAddress]) -> list[str]:
        if not ending.ident:
            ending.start()
            removing.wait(0.2)  # set only if the DEL did not wait
        routes.clear()
        routes.update(host_route(one).network for one in unwanted)
        return []

    read, _ = host.plugin.with_unwanted(moved, ensure)
    assert read == [address]
    host.node = moved
    ending.join(patient(10))
    if known:
        assert not routes, "the DEL has ended"
    if host.plugin.unwanted(moved) != read:
        host.plugin.with_unwanted(moved, ensure)
    assert not routes and not host.held
