"""An agent that is replaced does not make its Node NotReady: the plugin's STATUS, ADD and DEL meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lab.cninode import CniNode, put_node, wait_until
from lab.fakeapi import FakeApi
from lab.netns import Lab
from lab.patience import patient
from podwire_base.kernel.nft import ruleset as nft
from podwire_base.kernel.nft import socket as nft_socket
from podwire_cni import native, readiness

CLIENTS = [native.client_path(), Path(native.__file__).parent / "standin" / "podwire-cni"]


@pytest.fixture
def node(lab: Lab, tmp_path: Path) -> Iterator[CniNode]:
    ns = lab.netns("node")
    with FakeApi(ns) as api:
        put_node(api, "n1", "10.244.1.0/24", "192.0.2.1")
        made = CniNode(ns, tmp_path / "run", "n1", api)
        try:
            made.start()
            yield made
        finally:
            made.close()


@pytest.mark.parametrize("kill", [False, True], ids=["SIGTERM", "SIGKILL"])
def test_status_stays_well_while_the_agent_is_replaced(node: CniNode, kill: bool) -> None:
    conf, ended = node.conf("1.1.0"), threading.Event()

    def ask() -> list[str]:
        bad = []
        while not ended.wait(0.02):
            answer = node.cni("STATUS", "", None, conf)
            bad += [answer.out] if answer.status else []
        return bad

    with ThreadPoolExecutor(1) as pool:
        told = pool.submit(ask)
        try:
            for _ in range(2 - kill):
                node.stop(kill=kill)
                time.sleep(0.3)
                node.start()
        finally:
            ended.set()
        assert not told.result()


@pytest.mark.parametrize("client", CLIENTS, ids=["c", "python"])
def test_status_is_well_for_a_minute_and_only_if_the_node_stands(node: CniNode, client: Path) -> None:
    node.client = client
    node.stop()
    conf, file = node.conf("1.1.0"), readiness.path(node.run_dir)
    conflist, written = node.run_dir / "cni" / "net.d" / "10-podwire.conflist", file.read_text()

    def code() -> int:
        answer = node.cni("STATUS", "", None, conf)
        return 0 if answer.status == 0 else int(answer.body["code"])

    def age(seconds: float) -> None:
        file.write_text(readiness.line(time.clock_gettime(time.CLOCK_BOOTTIME) - seconds, conflist))

    assert code() == 0
    for seconds, wanted in ((55, 0), (61, 50), (-5, 50), (0, 0)):
        age(seconds)
        assert code() == wanted, f"{seconds} s after the agent was ready"
    for torn in ("", "podwire-ready/2 at=1 bridge=lo conflist=/etc/hosts\n", written[:20]):
        file.write_text(torn)
        assert code() == 50
    age(0)
    conflist.rename(conflist.with_suffix(".aside"))
    assert code() == 50, "uninstall removes the conflist first"
    conflist.with_suffix(".aside").rename(conflist)
    leases = node.run_dir / "cni" / "leases"
    leases.rename(leases.with_suffix(".aside"))
    assert code() == 50
    leases.with_suffix(".aside").rename(leases)
    assert code() == 0
    node.ns.run(["ip", "link", "set", "podwire0", "down"])
    assert code() == 50
    node.ns.run(["ip", "link", "set", "podwire0", "up"])
    assert code() == 0

    def remove() -> None:
        with nft_socket.Connection() as connection:
            connection.commit(nft.Transaction().remove(nft.Table("ip", "podwire-cni")))

    node.ns.call(remove)
    assert code() == 50


@pytest.mark.parametrize("client", CLIENTS, ids=["c", "python"])
def test_add_and_del_wait_for_the_next_agent(node: CniNode, lab: Lab, client: Path) -> None:
    node.client = client
    first, second = lab.netns("a"), lab.netns("b")
    assert node.cni("ADD", "a", first).status == 0
    node.stop()
    with ThreadPoolExecutor(2) as pool:
        add, end = pool.submit(node.cni, "ADD", "b", second), pool.submit(node.cni, "DEL", "a", first)
        time.sleep(0.5)
        assert not add.done() and not end.done()
        node.start()
        assert add.result().status == 0 and end.result().status == 0, add.result().out + end.result().out
    assert set(node.leases().values()) == {"b"}
    node.stop()
    began = time.monotonic()
    for command in ("CHECK", "GC"):
        assert node.cni(command, "b", second, node.conf("1.1.0")).body["code"] == 11
    assert time.monotonic() - began < patient(8), "a runtime repeats these two"
    began = time.monotonic()
    assert node.cni("ADD", "c", lab.netns("c"), PODWIRE_CNI_WAIT="1").body["code"] == 11
    assert 1 <= time.monotonic() - began < patient(3)


def test_pods_start_while_the_agent_is_rolled_out(node: CniNode, lab: Lab) -> None:
    """Calls that wait in the queue of an agent that ends are served by it."""
    pods = [lab.netns(f"p{i}") for i in range(20)]
    with ThreadPoolExecutor(6) as pool:
        answers = [pool.submit(node.cni, "ADD", f"p{i}", pod) for i, pod in enumerate(pods)]
        time.sleep(0.1)
        node.stop()
        node.start()
        done = [answer.result() for answer in answers]
    assert not [answer.out for answer in done if answer.status]
    assert len(node.leases()) == 20


def test_an_agent_that_never_gets_ready_does_not_renew_it(node: CniNode) -> None:
    node.stop()
    old = readiness.path(node.run_dir).read_text()
    node.first = "import podwire_cni.nodes as n\ndef bad(*a, **k): raise OSError(1, 'no')\nn.sync = bad"
    node.start(wait=False)
    wait_until(lambda: "sync failed" in node.log(), "it tries")
    node.stop()
    assert readiness.path(node.run_dir).read_text() == old
