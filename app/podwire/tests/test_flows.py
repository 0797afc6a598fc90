"""`podwire flows`: options, forms, several nodes, one of which is silent; names that nobody can trust."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from podwire.commands import flows as command
from podwire.flows import asking, choosing, show
from podwire.flows.asking import Node
from podwire.main import cli
from podwire_observe.config import SOCKET
from podwire_observe.fold import Fold
from podwire_observe.record import End, Ends, Flow, Service
from podwire_observe.serve import Server, listen

AT = 1_790_000_000.0
WEB, DB = End("pod", "shop", "web-1", "n1"), End("pod", "shop", "db-0", "n2")
SQL = Service("shop", "db", "sql")


TO_DB = Ends(WEB, DB, SQL)


def flow(at: float, *, verdict: str = "forwarded", reason: str = "", ends: Ends = TO_DB, **more: Any) -> Flow:
    given: dict[str, Any] = {"packets": 5, "bytes": 1500, "back_packets": 4, "back_bytes": 20_000_000}
    port = more.pop("source_port", 40000)
    return Flow(
        0, "", AT + at, AT + at, "tcp", "10.244.0.2", port, "10.96.0.10", 5432, "10.244.1.3", 5432, ends,
        verdict, reason, **{**given, **more},
    )  # fmt: skip


def fold_of(node: str, *flows: Flow) -> Fold:
    fold = Fold(node, lambda _seen, _when: None, AT - 100)
    for one in flows:
        one.node = node
        fold.drop(one, one.changed)
    return fold


@pytest.fixture
def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Fold]]:
    """Two nodes that answer, in a thread of their own."""
    folds = {
        "n1": fold_of("n1", flow(1), flow(3, verdict="refused", reason="no-endpoints", source_port=40001)),
        "n2": fold_of("n2", flow(2, ends=Ends(DB, End("outside", "", "192.0.2.1")), source_port=40002)),
    }
    ready, stop = threading.Event(), threading.Event()

    async def serving() -> None:
        servers = []
        for name, fold in folds.items():
            (tmp_path / name).mkdir()
            servers.append(listen(Server(fold, "always"), tmp_path / name / SOCKET))
        ready.set()
        while not stop.is_set():
            await asyncio.sleep(0.01)
        for server in servers:
            server.close()

    thread = threading.Thread(target=lambda: asyncio.run(serving()))
    thread.start()
    try:
        assert ready.wait(10)
        found = [asking.node_at(name, tmp_path / name) for name in folds]
        monkeypatch.setattr(command, "_nodes", lambda *_: found)
        monkeypatch.setattr(command, "_read", lambda *_, **__: [])
        yield folds
    finally:
        stop.set()
        thread.join()


def run(*words: str) -> Result:
    return CliRunner().invoke(cli, ["flows", *words], env={"COLUMNS": "250"})


def test_the_connections_of_all_nodes_by_time(nodes: dict[str, Fold]) -> None:
    done = run()
    assert done.exit_code == 0
    assert [line.split(" ", 1)[1] for line in done.stdout.splitlines()] == [
        "shop/web-1 -> shop/db:sql -> shop/db-0 tcp forwarded  1.5 kB out, 20.0 MB back",
        "shop/db-0 -> 192.0.2.1:5432 tcp forwarded  1.5 kB out, 20.0 MB back",
        "shop/web-1 -> shop/db:sql -> shop/db-0 tcp refused (no-endpoints)  1.5 kB out, 20.0 MB back",
    ]
    assert len(run("--last", "1").stdout.splitlines()) == 1
    assert "refused" in run("--last", "1").stdout


@pytest.mark.parametrize(
    ("words", "count"),
    [
        (("--verdict", "refused"), 1),
        (("--not", "--verdict", "refused"), 2),
        (("--not", "--verdict=refused", "--from-pod", "shop/web"), 1),
        (("--to-service", "db"), 2),
        (("--not", "-n", "shop"), 0),
        (("-n", "shop"), 3),
        (("-A", "--ip", "10.244.1.0/24"), 3),
        (("--not", "--to-ip", "10.96.0.0/16"), 0),
        (("--reason", "no-endpoints", "--reason", "policy"), 1),
        (("--node-name", "n2", "--to-port", "5432"), 3),
        (("--since", "2026-01-01T00:00:00Z"), 3),
        (("--until", "2026-01-01T00:00:00Z"), 0),
    ],
)
def test_filters(nodes: dict[str, Fold], words: tuple[str, ...], count: int) -> None:
    done = run(*words)
    assert (done.exit_code, len(done.stdout.splitlines())) == (0, count), done.output


def test_forms(nodes: dict[str, Fold]) -> None:
    found = [json.loads(line) for line in run("-o", "json").stdout.splitlines()]
    assert [one["node"] for one in found] == ["n1", "n2", "n1"]
    assert found[0]["started"].endswith("Z")
    assert (found[0]["service"], found[1]["service"]) == ({"namespace": "shop", "name": "db", "port": "sql"}, None)
    assert list(yaml.safe_load_all(run("-o", "yaml").stdout)) == found
    lines = run("-o", "wide").stdout.splitlines()
    assert lines[0].split() == list(show.WIDE)
    at = lines[0].index("NODE")
    assert [line[at : at + 2] for line in lines[1:]] == ["n1", "n2", "n1"], "a table"


def test_sums(nodes: dict[str, Fold]) -> None:
    nodes["n2"].drop(flow(5, ends=Ends(WEB, DB, SQL)), AT + 5)
    (first, second) = (
        json.loads(line)
        for line in run("--by", "service", "-o", "json", "--since", "2026-01-01T00:00:00Z").stdout.splitlines()
    )
    assert (first["target"], first["opened"], first["failed"]) == ("shop/db:sql", 3, {"refused (no-endpoints)": 1})
    assert (second["target"], second["opened"], second["failed"]) == ("192.0.2.1", 1, {})
    table = run("--by", "namespace", "--since", "2026-01-01T00:00:00Z", "--top", "1").stdout.splitlines()
    assert [line.split() for line in table][1][:4] == ["shop", "shop", "3", "1"]


def test_a_silent_node_is_one_line_and_the_exit_status(
    nodes: dict[str, Fold], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        command, "_nodes", lambda *_: [Node("n1", tmp_path / "n1" / SOCKET), Node("n3", tmp_path / "n3" / SOCKET)]
    )
    done = run()
    assert (done.exit_code, len(done.stdout.splitlines())) == (1, 2)
    assert done.stderr == "node n3 is silent: the role observe does not run there\n"


def test_losses_are_told(nodes: dict[str, Fold]) -> None:
    nodes["n1"].lose(412, AT + 900)
    nodes["n2"].hide(7, AT + 900)
    done = run("--since", "2026-01-01T00:00:00Z", "--until", "2027-01-01T00:00:00Z")
    assert done.stderr.splitlines() == [
        "n1: 412 events lost; polls show what was open then",
        "n2: 7 refused or dropped packets more were counted, not logged",
    ]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("-A", "-n", "shop"), "-A and -n contradict each other"),
        (("--by", "pair", "-f"), "--by: sums do not go with -f"),
        (("--by", "pair", "--ip", "10.0.0.1"), "--ip: sums do not have it"),
        (("--by", "pair", "--not", "--port", "80"), "--port: sums do not have it"),
        (("--top", "3"), "--top: goes with --by"),
        (("--since", "yesterday"), "--since: 'yesterday' is neither a time ago"),
        (("--verdict", "lost"), "--verdict: 'lost' is none of open"),
        (("--from-ip", "10.0.0.300"), "--from-ip: '10.0.0.300' is neither"),
        (("--workload", "web"), "--workload: 'web' has no pods"),
        (("-l", "app in"), "--label: "),
    ],
)
def test_options_that_cannot_be(nodes: dict[str, Fold], words: tuple[str, ...], why: str) -> None:
    done = run(*words)
    assert done.exit_code == 1
    assert why in " ".join(done.output.split())


@pytest.mark.parametrize(
    ("words", "why"), [(("--not",), "no filter follows"), (("--not", "--last", "3"), "--last is no filter")]
)
def test_not_stands_before_a_filter(words: tuple[str, ...], why: str) -> None:
    done = run(*words)
    assert done.exit_code == 2
    assert why in done.output


def test_names_from_the_network_cannot_command_a_terminal() -> None:
    evil = End("pod", "shop", "\x1b[2Jgone\n\u202e", "n1")
    one = flow(0, ends=Ends(evil, evil, Service("shop", "\x1b]0;title\x07", "\r80")))
    told = [show.compact(one), *show.wide(one), *show.sum_cells(show.summed([{**row(one)}], "pair")[0], "pair")]
    assert all(text.isprintable() for text in told)
    assert "\\x1b[2Jgone\\n\\u202e" in told[0]
    assert show.as_json(one).isprintable()


def row(one: Flow) -> dict[str, Any]:
    counts = dict.fromkeys(show.COUNTS, 1)
    return {
        "source": one.ends.source._asdict(),
        "target": one.ends.target._asdict(),
        "service": one.ends.service._asdict(),
        "verdict": one.verdict,
        "reason": one.reason,
        **counts,
    }


def test_what_is_not_known_is_no_zero() -> None:
    one = flow(0, bytes=None, back_bytes=None)
    assert show.wide(one)[-3:] == ["-", "-", "-"]
    assert "out" not in show.compact(one)
    assert "at least 1.5 kB" in show.compact(flow(0, at_least=True, duration=0.004))
    assert [show.size(n) for n in (0, 999, 1000, 123_456, 10**13)] == ["0 B", "999 B", "1.0 kB", "123 kB", "10.0 TB"]


def pod(name: str, ip: str, *, created: str = "2026-01-01T00:00:00Z", owner: str = "", **labels: str) -> dict[str, Any]:
    refs = [{"kind": "ReplicaSet", "name": owner, "controller": True}] if owner else []
    metadata = {
        "namespace": "shop",
        "name": name,
        "labels": labels,
        "creationTimestamp": created,
        "ownerReferences": refs,
    }
    return {"metadata": metadata, "spec": {"nodeName": "n1"}, "status": {"podIPs": [{"ip": ip}]}}


PODS = [
    pod("web-1", "10.244.0.2", owner="web-5d4", **{"app": "web", "pod-template-hash": "5d4"}),
    pod("db-0", "10.244.1.3", app="db"),
]


def test_pods_by_label_and_workload() -> None:
    assert choosing.pods_with("app=web", PODS, "--label") == ("shop/web-1",)
    for text, found in {
        "web": ("shop/web-1",),
        "deploy/web": ("shop/web-1",),
        "shop/web": ("shop/web-1",),
        "shop/Deployment/web": ("shop/web-1",),
        "ds/web": (),
        "bank/web": (),
        "db-0": ("shop/db-0",),
    }.items():
        assert choosing.pods_of_workload(text, PODS) == found, text


def test_pods_behind_a_service() -> None:
    one = {
        "metadata": {"namespace": "shop", "name": "x", "labels": {"kubernetes.io/service-name": "web"}},
        "endpoints": [{"targetRef": {"kind": "Pod", "name": "web-1"}}, {}],
    }
    assert choosing.pods_of_service("shop/web", [one]) == choosing.pods_of_service("we", [one]) == ("shop/web-1",)
    assert choosing.pods_of_service("bank/web", [one]) == ()


def test_the_reader_names_what_the_node_could_not() -> None:
    unknown = Ends(End(), End(), Service())
    later = choosing.Later(PODS)
    assert later.name(flow(0, ends=unknown)).ends[:2] == (
        End("pod", "shop", "web-1", "n1"),
        End("pod", "shop", "db-0", "n1"),
    )
    younger = choosing.Later([pod("other", "10.244.0.2", created="2029-01-01T00:00:00Z")])
    assert younger.name(flow(0, ends=unknown)).ends.source == End(), "it got the address later"


def test_moments() -> None:
    assert choosing.moment("--since", "1h30m", 10_000.0) == 4600.0
    assert (
        choosing.moment("--since", "1970-01-01T00:01:00Z", 0.0)
        == choosing.moment("--since", "1970-01-01T00:01:00", 0.0)
        == 60.0
    )
