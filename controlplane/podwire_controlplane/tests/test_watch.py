"""Watches: over TLS as clients see them, and the translation of store changes for one client."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator

import pytest

from podwire_base.kube import codec
from podwire_base.kube.meta import Object, name
from podwire_base.kube.registry import of
from podwire_base.testing.builders import pod, run, version
from podwire_controlplane.server import handlers, watch
from podwire_controlplane.server.selection import selection
from podwire_controlplane.store.base import StoredChange
from podwire_controlplane.store.memory import MemoryStore

from ..testing.servers import Server

PODS = "/api/v1/namespaces/default/pods"
MERGE = {"Content-Type": "application/merge-patch+json"}


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as own:
        yield own


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """End watches soon, for any timeoutSeconds."""
    monkeypatch.setattr(handlers, "MAX_WATCH", 0.3)


def seen(frames: list[Object]) -> list[tuple[str, str]]:
    return [(f["type"], name(f["object"])) for f in frames]


def churn(server: Server) -> str:
    """Create p1, change its labels, create p2, delete p1. Return the resourceVersion before these changes."""
    start = str(server.do(server.store.revision()))
    server.good("POST", PODS, pod("p1", labels={"app": "a"}))
    server.good("PATCH", PODS + "/p1", {"metadata": {"labels": {"app": "b"}}}, headers=MERGE)
    server.good("POST", PODS, pod("p2", labels={"app": "a"}))
    server.good("DELETE", PODS + "/p1")
    return start


def test_watch_from_a_version_tells_everything_since(server: Server) -> None:
    start = churn(server)
    frames = server.frames(PODS + f"?watch=1&timeoutSeconds=1&resourceVersion={start}")
    assert seen(frames) == [("ADDED", "p1"), ("MODIFIED", "p1"), ("ADDED", "p2"), ("DELETED", "p1")]
    versions = [int(version(f["object"])) for f in frames]
    assert versions == list(range(int(start) + 1, int(start) + 5))
    later = server.frames(PODS + f"?watch=true&timeoutSeconds=1&resourceVersion={versions[1]}")
    assert later == frames[2:]


def test_objects_come_into_a_selector_and_leave_it(server: Server) -> None:
    start = churn(server)
    base = PODS + f"?watch=1&timeoutSeconds=1&resourceVersion={start}"
    assert seen(server.frames(base + "&labelSelector=app%3Da")) == [("ADDED", "p1"), ("DELETED", "p1"), ("ADDED", "p2")]
    assert seen(server.frames(base + "&labelSelector=app%3Db")) == [("ADDED", "p1"), ("DELETED", "p1")]
    assert seen(server.frames(base + "&fieldSelector=metadata.name%3Dp2")) == [("ADDED", "p2")]


def test_watch_without_a_version_begins_with_the_present(server: Server) -> None:
    churn(server)
    for query in ("", "&resourceVersion=0"):
        assert seen(server.frames(PODS + "?watch=1&timeoutSeconds=1" + query)) == [("ADDED", "p2")]


def test_watch_list(server: Server) -> None:
    churn(server)
    now = str(server.do(server.store.revision()))
    frames = server.frames(
        PODS + "?watch=1&timeoutSeconds=1&sendInitialEvents=true&allowWatchBookmarks=true"
        "&resourceVersionMatch=NotOlderThan"
    )
    assert seen(frames)[:2] == [("ADDED", "p2"), ("BOOKMARK", "")] and {f["type"] for f in frames[2:]} <= {"BOOKMARK"}
    end = frames[1]["object"]
    assert end["metadata"] == {"resourceVersion": now, "annotations": {"k8s.io/initial-events-end": "true"}}
    assert end["kind"] == "Pod" and end["apiVersion"] == "v1"


def test_live_events_arrive_at_once(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handlers, "MAX_WATCH", 20)
    with server.open("GET", PODS + "?watch=1&timeoutSeconds=20") as answer:
        server.good("POST", PODS, pod("p1"))
        assert json.loads(answer.readline())["object"]["metadata"]["name"] == "p1"


def test_bookmarks(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "BOOKMARK_EVERY", 0.1)
    server.good("POST", "/api/v1/namespaces", {"metadata": {"name": "elsewhere"}})
    now = str(server.do(server.store.revision()))
    frames = server.frames(PODS + f"?watch=1&timeoutSeconds=1&allowWatchBookmarks=true&resourceVersion={now}")
    assert frames and {f["type"] for f in frames} == {"BOOKMARK"} and version(frames[0]["object"]) == now
    assert server.frames(PODS + f"?watch=1&timeoutSeconds=1&resourceVersion={now}") == []


def test_a_watch_has_a_bookmark_shortly_before_its_end(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The version rises elsewhere. The client's next watch then starts behind all of that."""
    assert watch.next_bookmark(100.0, 1000.0) == 130.0
    assert watch.next_bookmark(980.0, 1000.0) == 998.0
    assert watch.next_bookmark(998.0, 1000.0) == 1000.0
    monkeypatch.setattr(watch, "BEFORE_THE_END", 0.3)
    monkeypatch.setattr(handlers, "MAX_WATCH", 20)
    now = server.do(server.store.revision())
    with server.open(
        "GET", PODS + f"?watch=1&timeoutSeconds=1&allowWatchBookmarks=true&resourceVersion={now}"
    ) as answer:
        server.good("POST", "/api/v1/namespaces", {"metadata": {"name": "elsewhere"}})
        (frame,) = [json.loads(line) for line in answer.read().splitlines()]
    assert frame["type"] == "BOOKMARK" and int(version(frame["object"])) > now


def test_versions_that_cannot_be_served() -> None:
    with Server(lambda: MemoryStore(history=2)) as server:
        churn(server)
        (frame,) = server.frames(PODS + "?watch=1&resourceVersion=1")
        assert frame["type"] == "ERROR" and frame["object"]["code"] == 410 and frame["object"]["reason"] == "Expired"
        page = server.good("GET", PODS + "?limit=1")
        assert "continue" not in page["metadata"]
        for n in range(3):
            server.good("POST", PODS, pod(f"x{n}"))
        token = server.good("GET", PODS + "?limit=1")["metadata"]["continue"]
        for n in range(3):
            server.good("DELETE", PODS + f"/x{n}")
        assert server.ask("GET", PODS + f"?limit=1&continue={token}")[1]["reason"] == "Expired"
        assert server.frames(PODS + "?watch=1&resourceVersion=5000&timeoutSeconds=1") == [], "silent, as upstream"


def test_tables_in_a_watch(server: Server) -> None:
    start = churn(server)
    frames = server.frames(
        PODS + f"?watch=1&timeoutSeconds=1&resourceVersion={start}",
        headers={"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io"},
    )
    assert [f["object"]["kind"] for f in frames] == ["Table"] * 4
    assert [f["object"]["columnDefinitions"] is not None for f in frames] == [True, False, False, False]
    assert frames[0]["object"]["rows"][0]["cells"][0] == "p1"


def test_many_watchers_see_the_same_under_concurrent_writes(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several writers and watchers at once: every watcher gets each write once, in order."""
    monkeypatch.setattr(handlers, "MAX_WATCH", 60)
    path = PODS + "?watch=1&timeoutSeconds=60&resourceVersion=" + str(server.do(server.store.revision()))
    found: list[list[Object]] = []

    def follow() -> None:
        with server.open("GET", path) as answer:
            found.append([json.loads(answer.readline()) for _ in range(3 * 12)])

    watchers = [threading.Thread(target=follow) for _ in range(3)]

    def write(writer: int) -> None:
        for n in range(8):
            server.good("POST", PODS, pod(f"w{writer}-{n}"))
            if n % 2:
                server.good("DELETE", PODS + f"/w{writer}-{n}")

    writers = [threading.Thread(target=write, args=(w,)) for w in range(3)]
    for thread in (*watchers, *writers):
        thread.start()
    for thread in (*watchers, *writers):
        thread.join()
    listed = server.good("GET", PODS)["items"]
    assert len(found) == 3 and found[0] == found[1] == found[2]
    versions = [int(version(f["object"])) for f in found[0]]
    assert versions == sorted(set(versions))
    left: dict[str, Object] = {}
    for frame in found[0]:
        if frame["type"] == "DELETED":
            left.pop(name(frame["object"]))
        else:
            left[name(frame["object"])] = frame["object"]
    own = [{k: v for k, v in obj.items() if k not in ("kind", "apiVersion")} for obj in left.values()]
    assert sorted(own, key=name) == listed


def _change(before: Object | None, after: Object | None) -> StoredChange:
    store = MemoryStore()

    async def body() -> StoredChange:
        if before is not None:
            await store.put("/k", codec.encode(before))
        if after is not None:
            await store.put("/k", codec.encode(after))
        else:
            await store.delete("/k")
        return (await store.since("/", 0))[-1]

    return run(body())


A, B = pod(labels={"app": "a"}), pod(labels={"app": "b"})


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (None, A, "ADDED"),
        (A, A, "MODIFIED"),
        (A, B, "DELETED"),
        (B, A, "ADDED"),
        (A, None, "DELETED"),
        (B, B, None),
        (None, B, None),
        (B, None, None),
    ],
)
def test_translation_table(before: Object | None, after: Object | None, expected: str | None) -> None:
    change = _change(before, after)
    event = watch.translate(selection(of("Pod"), "app=a", ""), change)
    assert (event[0] if event else None) == expected
    if event:
        assert version(codec.decode(event[1])) == str(change.revision)


def test_a_client_that_is_too_slow_is_told_to_list(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handlers, "MAX_WATCH", 20)
    monkeypatch.setattr(watch, "_QUEUE", 3)
    monkeypatch.setattr(watch, "_HIGH", -1)  # every connection counts as full

    async def burst() -> None:
        for n in range(10):  # the watch's coroutine does not run meanwhile
            await server.store.put(of("Pod").key("default", f"p{n}"), codec.encode(pod(f"p{n}")))

    with server.open("GET", PODS + "?watch=1&timeoutSeconds=20") as answer:
        server.good("POST", PODS, pod("first"))
        assert json.loads(answer.readline())["object"]["metadata"]["name"] == "first"
        server.do(burst())
        frames = [json.loads(line) for line in answer.read().splitlines()]
    assert seen(frames)[:-1] == [("ADDED", f"p{n}") for n in range(len(frames) - 1)] and len(frames) < 10
    assert frames[-1]["type"] == "ERROR" and frames[-1]["object"]["code"] == 410
