"""`podwire flows` on a running cluster: what it says of a connection is what the client saw, once, with exact bytes."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lab.cluster import EXAMPLES, cluster
from lab.flowlog import PORT, REFUSALS, Refusal, free_port, of_port, pods, refused, send, told
from podwire.demo.lab import DemoLab, wait_for
from podwire_base.kernel.netns import call_in


def ready(status: Path) -> bool:
    return bool(json.loads(status.read_text())["ready"])


@pytest.fixture(scope="module")
def lab() -> Iterator[DemoLab]:
    with cluster(2, name="obs", watched=True) as made:
        made.run_tool("apply", "-f", str(EXAMPLES))
        made.wait_pods("MyApp", 4)
        for node in made.config.node_names():
            status = made.config.node_dir(node) / "status" / "observe.json"
            wait_for(partial(ready, status), 20)
        yield made


@pytest.mark.parametrize("where", ["own node", "other node", "Service"])
def test_a_connection_is_told_once_with_both_ends_and_exact_bytes(lab: DemoLab, where: str) -> None:
    first, own, other = pods(lab)
    address = {"own node": own.address, "other node": other.address}.get(where) or lab.cluster_ip("my-loadbalancer")
    port, to = free_port(first), 80 if where == "Service" else PORT
    request = b"GET / HTTP/1.0\r\n\r\n"
    send(first, port, address, to, request)
    found = wait_for(lambda: [one for one in of_port(lab, port) if one["verdict"] != "open"], 25)
    (one,) = found
    assert (one["verdict"], one["source"]["name"], one["node"]) == ("forwarded", first.name, first.node)
    assert one["target"]["kind"] == "pod"
    if where == "Service":
        assert one["service"] == {"namespace": "default", "name": "my-loadbalancer", "port": "80"}
        assert one["ip"] == address != one["endpoint_ip"]
    else:
        assert one["target"]["name"] == (own if where == "own node" else other).name
    headers = 20 + 20  # of IP and TCP, without options: what remains are the request and at most 12 + 20 for options
    rest = one["bytes"] - len(request) - headers * one["packets"]
    assert 0 <= rest <= 12 * one["packets"] + 8, one


def test_who_refuses_is_told_at_once(lab: DemoLab) -> None:
    first, own, other = pods(lab)
    for target in (own, other):
        port = free_port(first)
        send(first, port, target.address, 81, b"x")
        (one,) = wait_for(lambda port=port: of_port(lab, port, "--verdict", "refused"), 5)  # type: ignore[misc]  # bound now
        assert (one["reason"], one["target"]["name"], one["packets"], one["back_packets"]) == (
            "closed-port",
            target.name,
            1,
            1,
        )
        assert one["duration"] is not None
        assert len(of_port(lab, port)) == 1


def test_who_does_not_answer_is_told(lab: DemoLab) -> None:
    first, _, other = pods(lab)
    port = free_port(first)
    send(first, port, other.address, 4444, b"hello", udp=True)  # an ICMP error leaves no mark in conntrack
    (one,) = wait_for(lambda: of_port(lab, port, "--verdict", "unanswered"), 25)
    assert (one["protocol"], one["bytes"]) == ("udp", 33)


@pytest.mark.parametrize("case", REFUSALS, ids=str)
def test_what_a_rule_refuses_is_told_with_its_reason(lab: DemoLab, case: Refusal) -> None:
    refused(lab, case)


def test_refusals_are_counted_by_service_for_prometheus(lab: DemoLab) -> None:
    first, *_ = pods(lab)
    labels = 'namespace="default",service="lonely",verdict="refused",reason="no-endpoints"'

    def counted() -> float:
        with urllib.request.urlopen("http://127.0.0.1:9155/metrics", timeout=5) as answer:
            found = re.search(rf"podwire_observe_connections_total{{{labels}}} (.+)", answer.read().decode())
        return float(found[1]) if found else 0.0

    before = call_in(lab.node_netns(first.node), counted)
    for _ in range(3):
        send(first, free_port(first), lab.cluster_ip("lonely"), 80, b"x")
    wait_for(lambda: call_in(lab.node_netns(first.node), counted) == before + 3, 10)


def test_the_nodes_probes_are_shown_only_if_asked_for(lab: DemoLab) -> None:
    wait_for(lambda: [one for one in told(lab, "--probes") if one["probe"]], 20)
    assert not [one for one in told(lab) if one["probe"]]


def test_sums_by_service(lab: DemoLab) -> None:
    first, *_ = pods(lab)

    def opened() -> int:
        rows = told_sums(lab)
        return next((row["opened"] for row in rows if row["target"] == "default/my-loadbalancer:80"), 0)

    before = opened()
    for _ in range(5):
        send(first, 0, lab.cluster_ip("my-loadbalancer"), 80, b"GET / HTTP/1.0\r\n\r\n")
    wait_for(lambda: opened() >= before + 5, 10)
    assert opened() == before + 5


def told_sums(lab: DemoLab) -> list[dict[str, Any]]:
    return told(lab, "--by", "service")


def test_the_role_dies_and_says_since_when_it_knows(lab: DemoLab) -> None:
    first, own, _ = pods(lab)
    before = lab.supervised(first.node, "observe")
    path = lab.config.node_dir(first.node) / "observe.sock"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    os.kill(before, signal.SIGKILL)
    wait_for(lambda: lab.supervised(first.node, "observe") not in (0, before), 20)
    port = free_port(first)

    def again() -> list[dict[str, Any]]:
        send(first, 0, own.address, 82, b"x")
        try:
            return told(lab, "--to-port", "82", "--verdict", "refused")
        except AssertionError:
            return []  # it does not answer yet

    wait_for(again, 20)
    send(first, port, own.address, 83, b"x")
    assert wait_for(lambda: of_port(lab, port), 10)[0]["verdict"] == "refused"


def test_counters_and_times_are_on_in_the_nodes_and_written_down(lab: DemoLab) -> None:
    for node in lab.config.node_names():
        found = json.loads((lab.config.node_dir(node) / "observe-sysctls.json").read_text())
        assert found == {"nf_conntrack_acct": "0", "nf_conntrack_timestamp": "0"}


class Asked:
    """`podwire ui` as it runs, and what its page asks for."""

    def __init__(self, address: str) -> None:
        self.url, _, self.key = address.partition("#")

    def get(self, path: str, key: str = "") -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {key or self.key}"}
        with urllib.request.urlopen(urllib.request.Request(self.url + path, headers=headers), timeout=60) as answer:
            found: dict[str, Any] = json.load(answer)
            return found


def failing(asked: Asked, verdict: str, to: str) -> list[dict[str, Any]]:
    return [one for one in asked.get("api/at?ago=0")["pairs"] if one["verdict"] == verdict and one["to"] == to]


def test_the_page_shows_a_breakage_and_explains_it(lab: DemoLab) -> None:
    first, _, _ = pods(lab)
    command = [sys.executable, "-m", "podwire.main", "ui", "--kubeconfig", str(lab.config.kubeconfig)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            asked = Asked(child.stdout.readline().strip())
            stream = urllib.request.Request(asked.url + "api/stream", headers={"Authorization": f"Bearer {asked.key}"})
            with urllib.request.urlopen(stream, timeout=30) as lines:
                snapshot = json.loads(lines.readline().removeprefix(b"data: "))
            assert [one["bad"] for one in snapshot["nodes"]] == ["", ""] and snapshot["notes"] == []
            rows = {row["id"]: row["pods"] for space in snapshot["spaces"] for row in space["rows"]}
            assert sum(ready for ready, _ in rows["service default/my-loadbalancer"]) == 4
            send(first, free_port(first), lab.cluster_ip("my-loadbalancer"), 81, b"x")  # no such port
            (one,) = wait_for(lambda: failing(asked, "refused", "service default/my-loadbalancer"), 15)
            told = asked.get(f"api/explain?pair={one['id']}")
            assert any(line.startswith("verdict") and "reject" in line for line in told["lines"]), told
            assert f"default/{first.name}" in told["commands"][0] and told["commands"][1].startswith("podwire flows -f")
            with pytest.raises(urllib.error.HTTPError, match="401"):
                asked.get("api/at?ago=0", "wrong")
        finally:
            child.terminate()
            assert child.wait(20) == 0
