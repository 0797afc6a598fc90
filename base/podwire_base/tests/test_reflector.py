"""The list+watch state machine, with every order of answers that a server may give."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire_base.kube.client.reflector import Event, Phase, Reflector, is_frame
from podwire_base.kube.meta import Object, key
from podwire_base.testing.following import replay


def obj(own: str, revision: int, **more: Any) -> Object:
    return {"metadata": {"name": own, "namespace": "d", "resourceVersion": str(revision), "uid": f"u-{own}", **more}}


def frame(kind: str, own: str, revision: int) -> Object:
    return {"type": kind, "object": obj(own, revision)}


def test_first_list_then_differences_only() -> None:
    reflector = Reflector()
    first = list(reflector.listed([obj("a", 1), obj("b", 2), obj("c", 3)], "3"))
    assert [(e.type, e.key) for e in first] == [("ADDED", "d/a"), ("ADDED", "d/b"), ("ADDED", "d/c")]
    assert reflector.state is Phase.WATCH and reflector.version == "3"
    held = reflector.objects
    again = list(reflector.listed([obj("a", 1), obj("b", 5), obj("x", 4)], "5"))
    assert [(e.type, e.key) for e in again] == [("DELETED", "d/c"), ("MODIFIED", "d/b"), ("ADDED", "d/x")]
    assert reflector.objects is held, "other code holds the dict as its live view"


def test_repeats_and_bookmarks_are_silent() -> None:
    reflector = Reflector()
    list(reflector.listed([obj("a", 4)], "4"))
    assert reflector.watched(frame("MODIFIED", "a", 4)) is None and reflector.watched(frame("MODIFIED", "a", 3)) is None
    assert reflector.watched({"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "9"}}}) is None
    assert reflector.version == "9" and reflector.watched(frame("DELETED", "zz", 10)) is None
    assert reflector.watched({"type": "STRANGE", "object": obj("q", 11)}) is None
    assert list(reflector.objects) == ["d/a"]


def test_only_the_bookmark_that_says_so_ends_the_initial_events() -> None:
    """A server may send its usual bookmarks meanwhile: they do not mark the end of the initial events."""
    reflector = Reflector()
    reflector.arriving()
    assert reflector.initial(frame("ADDED", "a", 4)) is None
    assert reflector.initial({"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "7"}}}) is None
    assert reflector.initial(frame("ADDED", "b", 5)) is None and reflector.state is Phase.LIST
    done = reflector.initial(
        {
            "type": "BOOKMARK",
            "object": {"metadata": {"resourceVersion": "9", "annotations": {"k8s.io/initial-events-end": "true"}}},
        }
    )
    assert [e.key for e in done or ()] == ["d/a", "d/b"] and (reflector.state, reflector.version) == (Phase.WATCH, "9")


@pytest.mark.parametrize(
    ("code", "state"),
    [
        (410, Phase.LIST),
        (400, Phase.LIST),
        (403, Phase.LIST),
        (429, Phase.WATCH),
        (500, Phase.WATCH),
        (503, Phase.WATCH),
        (0, Phase.WATCH),
    ],
)
def test_which_errors_make_it_list_again(code: int, state: Phase) -> None:
    for how in ("answer", "frame"):
        reflector = Reflector()
        list(reflector.listed([obj("a", 1)], "1"))
        if how == "answer":
            reflector.failed(code)
        else:
            assert reflector.watched({"type": "ERROR", "object": {"kind": "Status", "code": code}}) is None
        assert reflector.state is state and list(reflector.objects) == ["d/a"], "the last known state stays"


def test_versions_that_are_no_numbers_only_tell_other() -> None:
    reflector = Reflector()
    list(reflector.listed([{"metadata": {"name": "a", "resourceVersion": "x9"}}], "x9"))
    assert (
        reflector.watched({"type": "MODIFIED", "object": {"metadata": {"name": "a", "resourceVersion": "x9"}}}) is None
    )
    event = reflector.watched({"type": "MODIFIED", "object": {"metadata": {"name": "a", "resourceVersion": "x10"}}})
    assert event and event.type == "MODIFIED" and reflector.version == "x10"
    gone = reflector.watched({"type": "DELETED", "object": {"metadata": {"name": "a", "resourceVersion": "b"}}})
    assert gone and gone.type == "DELETED"


def test_own_writes_are_ahead_and_never_behind_the_watch() -> None:
    reflector = Reflector()
    list(reflector.listed([], "1"))
    event = reflector.wrote(obj("a", 5))
    assert event and event.type == "ADDED" and reflector.version == "1", "the watch has not come that far"
    assert reflector.watched(frame("ADDED", "a", 4)) is None and reflector.wrote(obj("a", 5)) is None
    assert reflector.watched(frame("DELETED", "a", 3)) is None, "the deletion of an earlier object of this name"
    assert "d/a" in reflector.objects
    gone = reflector.watched(frame("DELETED", "a", 6))
    assert gone and gone.type == "DELETED"
    assert reflector.wrote(obj("a", 5)) is None and not reflector.objects, "an answer that comes after the deletion"


def test_own_deletions_are_events() -> None:
    reflector = Reflector()
    list(reflector.listed([obj("a", 1)], "1"))
    assert reflector.deleted("d/a", "u-other") is None and "d/a" in reflector.objects
    event = reflector.deleted("d/a", "u-a")
    assert event and event.type == "DELETED" and not reflector.objects
    assert reflector.deleted("d/a", "u-a") is None and reflector.watched(frame("DELETED", "a", 2)) is None


_OPS = st.lists(st.tuples(st.sampled_from(["put", "put", "delete"]), st.sampled_from("abc")), max_size=20)
_READS = st.lists(st.sampled_from(["frame", "frame", "frame", "list", "again", "own", "error"]), max_size=40)


@given(_OPS, _READS)
def test_any_order_ends_with_the_servers_state(ops: list[tuple[str, str]], reads: list[str]) -> None:
    """The server is written to; the client lists, reads frames, reconnects, and sees its own writes early."""
    log: list[Object] = []
    state: dict[str, Object] = {}
    history: list[dict[str, Object]] = [{}]
    for kind, own in ops:
        revision = len(log) + 1
        if kind == "delete" and own not in state:
            continue
        log.append(frame("DELETED" if kind == "delete" else "MODIFIED" if own in state else "ADDED", own, revision))
        state = {**state, own: log[-1]["object"]}
        if kind == "delete":
            del state[own]
        history.append(state)
    reflector, believed, at = Reflector(), dict[str, Object](), 0
    replay(list(reflector.listed([], "0")), believed)
    for step in reads:
        events: list[Event | None] = []
        if step == "list":  # a list is of some revision not older than ours
            at = max(at, min(len(log), at + 2))
            events = list(reflector.listed(history[at].values(), str(at)))
        elif step == "frame" and at < len(log):
            events = [reflector.watched(log[at])]
            at += 1
        elif (
            step == "again" and at
        ):  # the stream is opened at the revision that is held: nothing is repeated or left out
            at = int(reflector.version)
        elif step == "own" and at < len(log) and log[at]["type"] != "DELETED":
            events = [reflector.wrote(log[at]["object"])]
        elif step == "error":
            reflector.failed(503)
        replay([e for e in events if e], believed)
        assert believed == reflector.objects
    while at < len(log):
        event = reflector.watched(log[at])
        at += 1
        replay([event] if event else [], believed)
    assert reflector.objects == {key(o): o for o in state.values()} == believed


@pytest.mark.parametrize(
    ("frame", "good"),
    [
        ({"type": "ADDED", "object": {"metadata": {"name": "a"}}}, True),
        ({"type": "BOOKMARK", "object": {}}, True),
        ({"type": "ERROR", "object": {"code": 410}}, True),
        ([], False),
        (None, False),
        ({"type": "ADDED"}, False),
        ({"type": "ADDED", "object": {}}, False),
        ({"type": "DELETED", "object": {"metadata": None}}, False),
        ({"type": "MODIFIED", "object": {"metadata": {"name": 7}}}, False),
        ({"type": "BOOKMARK", "object": {"metadata": "x"}}, False),
    ],
)
def test_frames_that_can_be_used(frame: object, good: bool) -> None:
    assert is_frame(frame) == good


@pytest.mark.parametrize("way", ["initial events", "watch", "own write"])
def test_what_is_cut_off_an_object_is_gone_when_it_arrives(way: str) -> None:
    def cut(found: Object) -> Object:
        return {"metadata": found["metadata"], "short": len(found["long"])}

    reflector, whole = Reflector(cut=cut), {**obj("a", 4), "long": "x" * 9}
    if way == "initial events":
        reflector.arriving()
        reflector.initial({"type": "ADDED", "object": whole})
        end = {"resourceVersion": "9", "annotations": {"k8s.io/initial-events-end": "true"}}
        (event,) = reflector.initial({"type": "BOOKMARK", "object": {"metadata": end}}) or ()
    elif way == "watch":
        (event,) = filter(None, [reflector.watched({"type": "ADDED", "object": whole})])
    else:
        (event,) = filter(None, [reflector.wrote(whole)])
    assert event.object == reflector.objects["d/a"] == {**obj("a", 4), "short": 9}
