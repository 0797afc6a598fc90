"""Any order of writes, watches, lost connections and restarts of the server: what each watcher makes of its events
equals a list. A watch may be refused with 410 only where its version is older than the history.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from podwire_base.kube.meta import Object, name
from podwire_base.testing.builders import version

from ..store.sqlite import SqliteStore
from ..testing.servers import Server

LONG = bool(os.environ.get("PODWIRE_LONG"))
MAPS = "/api/v1/namespaces/default/configmaps"
NAMES = st.sampled_from([f"c{n}" for n in range(4)])
COLORS = st.sampled_from(("red", "blue"))
SELECTORS = ("", "color=red", "color!=red")
MERGE = {"Content-Type": "application/merge-patch+json"}
HISTORY = 12  # changes: so few that some watches come too late
END = "k8s.io/initial-events-end"
SEEN: Counter[str] = Counter()  # what happened in all examples: a run in which no watch expires shows nothing


@dataclass
class Watcher:
    """believed: name -> resourceVersion, as the events tell it. version: from which a new connection goes on, "" if
    the watcher has to begin anew. initial: ask for the first state by events and not by a list (KEP-3157).
    """

    selector: str
    initial: bool
    believed: dict[str, str] = field(default_factory=dict)
    version: str = ""
    link: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    stream: http.client.HTTPResponse | None = None

    def close(self) -> None:
        self.link.close()
        self.stream = None

    def query(self) -> str:
        return f"labelSelector={self.selector.replace('!', '%21').replace('=', '%3D')}"


class Watchers(RuleBasedStateMachine):
    """A server over a file, and watchers over connections of their own."""

    @initialize()
    def begin(self) -> None:
        self.closing = contextlib.ExitStack()
        folder = Path(self.closing.enter_context(tempfile.TemporaryDirectory()))
        self.path, self.watchers = folder / "s.db", list[Watcher]()
        self.server = Server(self._store).__enter__()
        self.count = 0
        for selector, initial in (("", True), ("color=red", False)):
            self.watch(selector, initial)

    def _store(self) -> SqliteStore:
        return SqliteStore(self.path, history=HISTORY)

    def teardown(self) -> None:
        if hasattr(self, "closing"):
            try:
                self._judge()
            finally:
                for watcher in self.watchers:
                    watcher.close()
                self.server.__exit__()
                self.closing.close()

    # ---- what happens

    @rule(own=NAMES, color=COLORS)
    def write(self, own: str, color: str) -> None:
        self.put(own, color)

    def put(self, own: str, color: str) -> None:
        labels = {"color": color}
        self.count += 1
        body = {"metadata": {"name": own, "labels": labels}, "data": {"count": str(self.count)}}
        if self.server.ask("POST", MAPS, body)[0] == 409:
            self.server.good("PATCH", f"{MAPS}/{own}", body, headers=MERGE)

    @rule(own=NAMES, color=COLORS, lost=st.booleans())
    def put_often(self, own: str, color: str, lost: bool) -> None:
        """More changes than the history has. lost: the first watcher is away meanwhile, and comes back."""
        if lost:
            self.cut(0)
        for _ in range(HISTORY + 2):
            self.put(own, color)
        self.resume(0)

    @rule(own=NAMES)
    def delete(self, own: str) -> None:
        assert self.server.ask("DELETE", f"{MAPS}/{own}")[0] in (200, 404)

    @rule(selector=st.sampled_from(SELECTORS), initial=st.booleans())
    def follow(self, selector: str, initial: bool) -> None:
        self.watch(selector, initial)

    def watch(self, selector: str, initial: bool) -> None:
        if len(self.watchers) < 4:
            self.watchers.append(Watcher(selector, initial))
            self._connect(self.watchers[-1])

    @rule(which=st.integers(0, 3))
    def lose(self, which: int) -> None:
        """A connection is lost; the watcher comes back later."""
        self.cut(which)

    def cut(self, which: int) -> None:
        if which < len(self.watchers):
            self.watchers[which].close()

    @rule(which=st.integers(0, 3))
    def come_back(self, which: int) -> None:
        self.resume(which)

    def resume(self, which: int) -> None:
        if which < len(self.watchers) and self.watchers[which].stream is None:
            self._connect(self.watchers[which])

    @rule()
    def restart(self) -> None:
        for watcher in self.watchers:
            watcher.close()
        SEEN["restarts"] += 1
        port = self.server.port
        self.server.__exit__()
        self.server = Server(self._store, port).__enter__()

    @rule()
    def judge(self) -> None:
        self._judge()

    # ---- how a watcher behaves, as client-go's reflector does

    def _connect(self, watcher: Watcher) -> None:
        extra = f"&resourceVersion={watcher.version}"
        if not watcher.version and watcher.initial:
            watcher.believed = {}
            extra = "&sendInitialEvents=true&resourceVersionMatch=NotOlderThan"
        elif not watcher.version:
            found = self.server.good("GET", f"{MAPS}?{watcher.query()}")
            watcher.believed = {name(o): version(o) for o in found["items"]}
            watcher.version = found["metadata"]["resourceVersion"]
            extra = f"&resourceVersion={watcher.version}"
        path = f"{MAPS}?watch=1&allowWatchBookmarks=true&{watcher.query()}{extra}"
        answer = watcher.link.enter_context(self.server.open("GET", path))
        assert answer.status == 200, answer.read()
        SEEN["initial" if "sendInitialEvents" in extra else "connected"] += 1
        watcher.stream = answer
        if "sendInitialEvents" in extra:
            while not self._read(watcher).get("annotations", {}).get(END):
                pass

    def _read(self, watcher: Watcher) -> Object:
        """Take one event. Return the metadata of its object; that of an error is empty."""
        assert watcher.stream is not None
        line = watcher.stream.readline()
        assert line, "the stream ended"
        event: dict[str, Any] = json.loads(line)
        if event["type"] == "ERROR":
            self._expired(watcher, event["object"])
            return {}
        metadata: Object = event["object"]["metadata"]
        watcher.version = metadata["resourceVersion"]
        if event["type"] == "ADDED":
            assert metadata["name"] not in watcher.believed, "told twice"
        if event["type"] == "MODIFIED":
            assert metadata["name"] in watcher.believed, "changed before it came"
        if event["type"] in ("ADDED", "MODIFIED"):
            watcher.believed[metadata["name"]] = metadata["resourceVersion"]
        elif event["type"] == "DELETED":
            assert watcher.believed.pop(metadata["name"], None), "gone before it came"
        return metadata

    def _expired(self, watcher: Watcher, status: Object) -> None:
        """410 is right only where changes after the watcher's version are no longer in the history."""
        assert (status["code"], status["reason"]) == (410, "Expired"), status
        last = self.server.do(self.server.store.revision())
        assert int(watcher.version) < last - HISTORY + 1, (watcher.version, last)
        SEEN["expired"] += 1
        watcher.version = ""
        watcher.close()

    def _judge(self) -> None:
        """Every watcher reads until it has seen all that was written before; then it believes what a list says."""
        for watcher in self.watchers:
            if watcher.stream is None:
                self._connect(watcher)
        marks = []
        for color in ("red", "blue"):  # one of them is for each selector
            made = self.server.good("POST", MAPS, {"metadata": {"generateName": "mark-", "labels": {"color": color}}})
            marks.append(made["metadata"])
        for watcher in self.watchers:
            wanted = next(m for m in reversed(marks) if self._selects(watcher, m["labels"]["color"]))
            while watcher.believed.get(wanted["name"]) != wanted["resourceVersion"]:
                if not self._read(watcher):
                    self._connect(watcher)
        for watcher in self.watchers:
            found = self.server.good("GET", f"{MAPS}?{watcher.query()}")
            assert watcher.believed == {name(o): version(o) for o in found["items"]}
        for mark in marks:
            self.server.good("DELETE", f"{MAPS}/{mark['name']}")

    def _selects(self, watcher: Watcher, color: str) -> bool:
        return {"": True, "color=red": color == "red", "color!=red": color != "red"}[watcher.selector]


def test_what_watchers_believe_is_what_a_list_says() -> None:
    run_state_machine_as_test(
        Watchers,
        settings=settings(
            max_examples=60 if LONG else 3,
            stateful_step_count=50 if LONG else 30,
            deadline=None,
            derandomize=not LONG,
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert min(SEEN[what] for what in ("expired", "connected", "initial", "restarts")) > 0, SEEN
