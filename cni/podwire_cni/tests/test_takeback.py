"""Leases of nobody are taken back on the word of two sources."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire_cni import runtimes, takeback
from podwire_cni.commands import Sandbox
from podwire_cni.plan import host_veth
from podwire_cni.takeback import Doubts, Evidence
from podwire_cni.testing.cri import answer_of, frame, runtime
from podwire_cni.types import Attachment

from .test_verbs import Host

OWNER = Attachment("c1", "eth0")
NETNS = "4:4026532345 /run/netns/a"
K8S = {"CNI_ARGS": "K8S_POD_NAMESPACE=default;K8S_POD_NAME=web"}


@pytest.mark.parametrize(
    ("evidence", "taken"),
    [
        (Evidence(link=False, runtime=False, asked=True), True),
        (Evidence(link=False, namespace=False, runtime=False, asked=True), True),
        (Evidence(link=False, this_boot=False), True),
        # one source alone
        (Evidence(link=True, runtime=False, asked=True), False),
        (Evidence(link=True, this_boot=False), False),
        (Evidence(link=False, namespace=False), False),
        (Evidence(link=False, namespace=False, runtime=True, asked=True), False),
        # the sources contradict each other, or one is silent
        (Evidence(link=False, namespace=True, runtime=False, asked=True), False),
        (Evidence(link=False, runtime=None, asked=True), False),
        (Evidence(link=False, namespace=False, runtime=None, asked=True, this_boot=False), False),
        (Evidence(link=False, namespace=True, this_boot=False), False),
        # a container of another program than the runtime that was asked
        (Evidence(link=False, runtime=False, asked=True, kubernetes=False), False),
        (Evidence(link=False, namespace=False, runtime=False, asked=True, kubernetes=False), True),
    ],
)
def test_evidence(evidence: Evidence, taken: bool) -> None:
    assert bool(takeback.gone(evidence)) is taken
    assert "and" in takeback.gone(evidence) or not taken, "the log names both sources"


GONE, THERE = Evidence(link=False, runtime=False, asked=True), Evidence(link=True)
LOOKS = st.lists(st.tuples(st.floats(0.1, 100), st.sampled_from([GONE, GONE, THERE, None])), max_size=20)


@given(LOOKS)
def test_twice_within_a_minute_and_always_between(looks: list[tuple[float, Evidence | None]]) -> None:
    doubts, now, unbroken = Doubts(), 0.0, list[float]()
    for pause, evidence in looks:
        now += pause
        taken = doubts.look(now, {} if evidence is None else {OWNER: evidence})
        if evidence is not GONE or (unbroken and now - unbroken[-1] > takeback.WITHIN):
            unbroken = []
        unbroken += [now] if evidence is GONE else []
        assert bool(taken) == bool(unbroken and now - unbroken[0] >= takeback.AGAIN)


def test_a_lease_is_taken_back_and_the_living_keeps_its_own() -> None:
    host = Host()
    for name in ("dead", "alive", "hidden"):
        assert host.call("ADD", name, Sandbox(9, "", netns=NETNS + name), env=K8S).status == 0
    host.kernel.namespaces = {NETNS + "dead": False, NETNS + "alive": True}
    for name in ("dead", "alive"):
        del host.kernel.veths[host_veth(Attachment(name, "eth0"))]
    known = frozenset({"other"})
    for now in (0.0, 10.0):
        assert host.plugin.take_back(host.plugin.vanished(), known, now, asked=True) == []
    told = host.plugin.take_back(host.plugin.vanished(), known, 20.0, asked=True)
    assert told == ["10.244.1.2 of default/web: its namespace is gone, and the runtime does not know its sandbox"]
    assert {lease.owner.container_id for lease in host.held.values()} == {"alive", "hidden"}
    assert len(host.firewall.pods) == 2


def test_a_pod_without_its_link_keeps_its_lease_while_its_namespace_lives() -> None:
    """Also at a restart, where the pool is exhausted, and where its hostPort is asked for."""
    host = Host()
    ports: dict[str, Any] = {"runtimeConfig": {"portMappings": [{"hostPort": 80, "containerPort": 80}]}}
    host.kernel.namespaces[NETNS] = True
    assert host.call("ADD", "alive", Sandbox(9, "", netns=NETNS), **ports).status == 0
    for n in range(12):
        assert host.call("ADD", f"c{n}").status == 0
    del host.kernel.veths[host_veth(Attachment("alive", "eth0"))]
    assert host.call("ADD", "more").status == 1 and host.call("STATUS").status == 1
    host.call("DEL", "c0")
    assert host.call("ADD", "more", **ports).status == 1
    assert host.restart() == [] and any(x.owner.container_id == "alive" for x in host.held.values())
    host.kernel.namespaces[NETNS] = False
    assert host.call("ADD", "more", **ports).status == 0
    assert all(x.owner.container_id != "alive" for x in host.held.values())


def test_no_answer_of_the_runtime_takes_nothing() -> None:
    host = Host()
    host.call("ADD", "c1", Sandbox(9, "", netns=NETNS), env=K8S)
    host.kernel.namespaces[NETNS] = False
    del host.kernel.veths[host_veth(OWNER)]
    host.held.update({a: replace(lease, boot_id="earlier") for a, lease in host.held.items()})
    for now in (0.0, 30.0, 60.0):
        assert host.plugin.take_back(host.plugin.vanished(), None, now, asked=True) == []


# ---- the runtime's socket ----


TRAILERS = frame(1, 5, 1, b"\x88")
SETTINGS = frame(4, 0, 0, b"")
ANSWER = answer_of(("one", "two"))


def test_the_sandboxes_of_a_runtime(tmp_path: Path) -> None:
    path, ping = tmp_path / "cri.sock", frame(6, 0, 0, b"12345678")
    pieces = b"".join(frame(0, 0, 1, ANSWER[i : i + 7]) for i in range(0, len(ANSWER), 7))
    with runtime(path, SETTINGS + ping + frame(1, 4, 1, b"\x88") + pieces + TRAILERS) as got:
        assert runtimes.present([tmp_path / "none", tmp_path, path]) == [path]
        assert runtimes.sandboxes(path, 5) == {"one", "two"}
    sent = b"".join(got)
    assert b"/runtime.v1.RuntimeService/ListPodSandbox" in sent
    assert frame(4, 1, 0, b"") in sent and frame(6, 1, 0, b"12345678") in sent


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        SETTINGS + TRAILERS,  # a gRPC error has no message
        SETTINGS + frame(0, 0, 1, ANSWER),  # breaks off before the end
        SETTINGS + frame(0, 0, 1, ANSWER[:-1]) + TRAILERS,
        SETTINGS + frame(0, 0, 1, b"\1" + ANSWER[1:]) + TRAILERS,  # compressed
        SETTINGS + frame(3, 0, 1, bytes(4)),
        SETTINGS + frame(0, 0, 1, bytes(4) + b"\3\x0a\x7fx") + TRAILERS,  # a length beyond the message
    ],
)
def test_anything_else_is_no_answer(tmp_path: Path, answer: bytes) -> None:
    with runtime(tmp_path / "cri.sock", answer), pytest.raises((runtimes.NoAnswer, OSError)):
        runtimes.sandboxes(tmp_path / "cri.sock", 5)


def test_an_empty_list_is_an_answer(tmp_path: Path) -> None:
    with runtime(tmp_path / "cri.sock", SETTINGS + frame(0, 0, 1, bytes(5)) + TRAILERS):
        assert runtimes.sandboxes(tmp_path / "cri.sock", 5) == frozenset()
