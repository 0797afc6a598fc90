"""`podwire status`: what files, beats and conditions say of a role, the reasons, and the page in 80 columns. Pure."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from podwire import connections
from podwire.grid import WIDTH, folded, table
from podwire.statuspage import Report, Seen, late, record, text, with_lag
from podwire_base.kube.meta import Object
from podwire_base.role import beat
from podwire_base.role.standing import BEHIND, HANGS, Standing, standing
from podwire_base.role.status import standings
from podwire_proxy.dataplane import Key
from podwire_proxy.model import Destination
from podwire_proxy.tally import Tallies, Tally

ROW = {"pid": 7, "ready": True, "reason": "Ready", "message": "3 Services", "figures": {"services": 3}}
BEAT = beat.Reading(100.0, 7, True, "815", "synced", "815", 0.0)


def node(own: str = "node1", ready: str = "True", **conditions: str) -> Object:
    rows = [{"type": kind, "status": status, "reason": "R", "message": "why"} for kind, status in conditions.items()]
    return {
        "metadata": {"name": own, "resourceVersion": "5"},
        "spec": {"podCIDR": "10.244.0.0/24"},
        "status": {"conditions": [{"type": "Ready", "status": ready, "reason": "Kubelet", "message": "hm"}, *rows]},
    }


def seen(**stands: Standing) -> Seen:
    return Seen([node()], [], [], [], {"node1": Report(stands, "this machine")})


def test_a_cluster_without_nodes_is_not_well() -> None:
    body = record(Seen([], [], [], []))
    assert not body["ok"] and text(body) == ["! the cluster has no nodes"]


@pytest.mark.parametrize(
    ("row", "reading", "now", "alive", "ready", "reason", "said"),
    [
        (ROW, BEAT, 101, True, True, "Ready", "3 Services"),
        (ROW, BEAT, 100 + HANGS + 1, True, False, "NoProgress", "no progress for 4 s; last: synced"),
        (ROW, BEAT, 105, False, False, "NotRunning", "process 7 is gone; last: 3 Services"),
        (ROW, None, 101, True, True, "Ready", "3 Services"),
        (ROW, replace(BEAT, pid=6, at=1.0), 101, True, True, "Ready", "3 Services"),  # of the process before
        (ROW, replace(BEAT, since=99.0), 101, True, True, "Ready", "3 Services"),
        (
            ROW,
            replace(BEAT, since=90.0, written="811"),
            101,
            True,
            False,
            "Behind",
            "11 s: has seen revision 815, carr",
        ),
        (
            {**ROW, "ready": False, "reason": "SyncFailed"},
            replace(BEAT, since=9),
            101,
            True,
            False,
            "SyncFailed",
            "3 S",
        ),
        (None, BEAT, 101, True, True, "Ready", "synced"),  # the node agent writes no status file
        (None, None, 101, False, False, "NotStarted", "not reported"),
    ],
)
def test_where_a_role_stands(
    row: Any, reading: beat.Reading | None, now: float, alive: bool, ready: bool, reason: str, said: str
) -> None:
    found = standing(row, reading, now, alive=alive, restarts=2)
    assert (found.ready, found.reason) == (ready, reason) and said in found.message and found.restarts == 2
    assert BEHIND > HANGS


def test_files_of_a_node(tmp_path: Path) -> None:
    (tmp_path / "status").mkdir()
    (tmp_path / "status" / "proxy.json").write_text(json.dumps({**ROW, "pid": os.getpid()}))
    beat.path_of(tmp_path, "proxy").write_bytes(beat.line(time.monotonic() - 60, os.getpid(), True, "9", "synced"))
    (tmp_path / "status" / "dns.json").write_text(json.dumps({**ROW, "pid": 2**22 + 1}))
    found = standings(tmp_path, ["wiring"], {"proxy": 4})
    assert {role: s.reason for role, s in found.items()} == {
        "wiring": "NotStarted",
        "dns": "NotRunning",
        "proxy": "NoProgress",
    }
    assert (found["proxy"].restarts, found["proxy"].figures, found["proxy"].seen) == (4, {"services": 3}, "9")


def test_a_beat_tells_what_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    path = tmp_path / "b"
    own = beat.Beat(beat.opened(path))

    def tick(revision: str = "") -> beat.Reading:
        now[0] += 2
        own.tick("event", revision)
        found = beat.read(path)
        assert found is not None
        return found

    assert (tick("5").written, tick().since) == ("5", 0)
    own.pending()
    own.taking()
    waits = tick("6")
    own.pending()  # arrives while the first change is carried out
    assert (waits.revision, waits.since) == ("6", 1004.0)
    own.settled()
    after = tick("7")
    assert (after.revision, after.written, after.since) == ("7", "5", 1006.0)
    own.taking()
    own.settled()
    assert (tick().written, tick().since) == ("7", 0)


def test_lag_needs_two_looks() -> None:
    behind = Standing(True, "Ready", "", seen="815")
    one = replace(
        seen(proxy=behind), services=[{"metadata": {"name": "s", "namespace": "d", "resourceVersion": "830"}}]
    )
    assert late(one) == {("node1", "proxy"): 830}
    told = with_lag(one, late(one), 1.2)["node1"].roles["proxy"]
    assert (told.ready, told.reason) == (False, "Behind") and "815 of 830" in told.message
    caught_up = replace(one, reports={"node1": Report({"proxy": replace(behind, seen="831")}, "")})
    assert with_lag(caught_up, late(one), 1.2)["node1"].roles["proxy"].ready
    other = {"service.kubernetes.io/service-proxy-name": "podwire-dns"}
    foreign = {"metadata": {"name": "s", "namespace": "d", "resourceVersion": "830", "labels": other}, "spec": {}}
    assert not late(replace(one, services=[foreign]))
    assert not late(replace(one, reports={"node1": Report({"proxy": behind}, "a Lease", age=9)})), "an old report"


@pytest.mark.parametrize(
    ("found", "problem"),
    [
        (seen(proxy=Standing(True, "Ready", "")), ""),
        (seen(proxy=Standing(True, "Ready", "3 Services; socket hooks: on, for 2 namespaces")), ""),
        (
            seen(proxy=Standing(True, "Ready", "3 Services; socket hooks: off, nftables serves everything: no BPF")),
            "proxy on node1: socket hooks: off, nftables serves everything: no BPF",
        ),
        (seen(proxy=Standing(False, "NoProgress", "4 s")), "proxy on node1: NoProgress: 4 s"),
        (Seen([node(PodwireProxy="False")], [], [], []), "proxy on node1: R: why"),
        (
            Seen([node()], [], [], []),
            "node1: no agent of podwire has reported: no Lease kube-system/podwire-node1",
        ),
        (replace(seen(a=Standing(True, "", "")), nodes=[node(ready="Unknown")]), "node1 is NotReady: Kubelet: hm"),
        (
            replace(seen(a=Standing(True, "", "")), processes=[{"process": "x", "where": "y", "problem": "z"}]),
            "x on y: z",
        ),
        (Seen(None, unreadable={"nodes": "403"}), "nodes may not be read: 403"),
        (replace(seen(a=Standing(True, "", "")), pods=None, unreadable={"pods": "403"}), ""),
    ],
)
def test_all_is_well_or_why_not(found: Seen, problem: str) -> None:
    body = record(found)
    assert body["ok"] is (not problem) and body["problems"] == ([problem] if problem else [])
    assert json.loads(json.dumps(body)) == body
    assert text(body)[0] == (f"! {problem}" if problem else text(body)[0])


@pytest.mark.parametrize(("status", "word"), [("True", "Ready"), ("False", "NotReady"), ("Unknown", "NotReady")])
def test_a_node_is_written_as_kubernetes_writes_it(status: str, word: str) -> None:
    body = record(Seen([node(ready=status), {**node("node2"), "status": {}}], [], [], []))
    assert [row["status"] for row in body["nodes"]] == [word, "Unknown"]


def test_a_service_that_gets_no_address_is_named_with_the_reason() -> None:
    service: Object = {
        "metadata": {"name": "full", "namespace": "d", "uid": "u1"},
        "spec": {"type": "LoadBalancer", "ports": []},
        "status": {"loadBalancer": {}},
    }
    told: Object = {
        "involvedObject": {"kind": "Service", "namespace": "d", "name": "full", "uid": "u1"},
        "reason": "PoolExhausted",
        "message": "no free address in 192.0.2.0/30",
    }
    well = seen(proxy=Standing(True, "Ready", ""))

    def problems(service: Object, *events: Object) -> list[str]:
        return list(record(replace(well, services=[service], events=events))["problems"])

    why = ["Service d/full has no load balancer address: no free address in 192.0.2.0/30"]
    assert problems(service, told) == why
    assert problems(service) == [], "another controller may be at it"
    assert problems(service, {**told, "reason": "Created"}) == []
    assert problems(service, {**told, "involvedObject": {**told["involvedObject"], "uid": "u0"}}) == [], "one before it"
    assert problems({**service, "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}}}, told) == []
    assert problems({**service, "spec": {"type": "ClusterIP", "ports": []}}, told) == []


def test_a_report_that_another_nodes_agent_signed_is_doubted() -> None:
    """Every agent may write every Lease; a pod of another node did."""

    def told(where: str) -> list[str]:
        pod = {"metadata": {"name": "podwire-x", "namespace": "kube-system"}, "spec": {"nodeName": where}, "status": {}}
        report = Report({"a": Standing(True, "Ready", "")}, "Lease podwire-node1", 3.0, (), "podwire-x")
        found = record(replace(seen(), pods=[pod], reports={"node1": report}))["problems"]
        return [line for line in found if "signed" in line]

    assert told("node1") == [] == told("")
    assert told("node2") == ["node1: its report is signed by podwire-x, a pod of node2: another node's agent wrote it"]


def test_the_page_fits_80_columns_and_cuts_nothing() -> None:
    long = "the kernel refuses table podwire: " + "no space left on device " * 8
    service = {
        "metadata": {"name": "a-service-with-a-name-of-some-length", "namespace": "monitoring-system"},
        "spec": {
            "type": "LoadBalancer",
            "clusterIP": "10.96.233.167",
            "ports": [{"port": p, "nodePort": 30000 + p, "protocol": "TCP"} for p in (80, 443, 8080)],
        },
    }
    page = text(record(replace(seen(proxy=Standing(False, "SyncFailed", long)), services=[service])))
    assert max(map(len, page)) <= WIDTH
    assert "".join(page).replace(" ", "").count(long.replace(" ", "")) == 2, "in the reasons and in the section"
    assert "monitoring-system/a-service-with-a-name-of-some-length" in page
    wide = text(
        record(replace(seen(proxy=Standing(False, "SyncFailed", long, age=0.4)), services=[service])), wide=True
    )
    assert any(line.endswith(long.strip()) and "0.4s" in line for line in wide)


def test_what_a_node_tells_does_not_command_the_terminal() -> None:
    page = "\n".join(text(record(seen(proxy=Standing(False, "\x1b[2J", "a\rb\u202ec")))))
    assert "\x1b" not in page and "\r" not in page and "\u202e" not in page and "\\x1b[2J" in page


def test_table_without_rows() -> None:
    assert table(["A", "B"], [], WIDTH) == ["A  B"]


def test_lines_under_the_page_are_folded() -> None:
    long = (
        "  podwire-cni (a call of the plugin takes 20 ms more), podwire-pause (a pod takes 10 MB more): no C compiler"
    )
    assert max(map(len, folded(long))) <= WIDTH
    assert " ".join(" ".join(folded(long)).split()) == " ".join(long.split())
    assert all(line.startswith("    ") for line in folded(long)[1:])
    assert folded("short") == ["short"] and folded("/" * 90) == ["/" * 90]


def test_connections_are_named_after_the_services_of_the_api() -> None:
    service = {
        "metadata": {"namespace": "default", "name": "web"},
        "spec": {
            "clusterIPs": ["10.96.0.20"],
            "clusterIP": "10.96.0.20",
            "type": "NodePort",
            "ports": [{"port": 80, "nodePort": 30080}],
        },
    }
    rows = (
        Tally(Key("10.96.0.20", "TCP", 80), Destination("10.244.0.9", 8080), "", 5),
        Tally(Key("10.96.0.20", "TCP", 80), None, "", 2),
        Tally(Key("192.0.2.1", "TCP", 30080), None, "unserved", 1),
        Tally(Key("10.96.0.99", "TCP", 1), None, "unserved", 1),
    )
    found = connections.rows({"node1": Tallies(rows, 7, {}, 3)}, [service])
    assert [(row["service"], row["to"], row["connections"]) for row in found] == [
        ("10.96.0.99", "left: unserved", 1),
        ("default/web", "left: unserved", 1),
        ("default/web", "10.244.0.9:8080", 5),
        ("default/web", "gone", 2),
        ("not counted: too many", "", 3),
    ]


def test_conditions_of_a_node_that_nobody_renews_are_a_doubt() -> None:
    row = {"type": "PodwireProxy", "status": "True", "reason": "Ready", "lastHeartbeatTime": "2026-01-01T00:00:00Z"}
    made, now = node(), datetime(2026, 1, 1, tzinfo=UTC).timestamp()
    made["status"]["conditions"].append(row)
    assert record(Seen([made], [], [], [], now=now + 300))["ok"]
    problems = record(Seen([made], [], [], [], now=now + 400))["problems"]
    assert problems == ["node1: the last report of its agent in the Node's conditions is 400 s old"]
    row["lastHeartbeatTime"] = "yesterday"
    assert record(Seen([made], [], [], [], now=now + 400))["ok"], "no time to tell it by"
