"""Log lines: characters of a peer's choice, repeats, and what Python itself would write."""

from __future__ import annotations

import io
import json
import shlex
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire_base.role import logs, logtext
from podwire_base.role.logtext import Repeats


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    monkeypatch.setattr(logs._Settings, "repeats", Repeats())
    monkeypatch.setattr(logs._Settings, "stream", stream := io.StringIO())
    return stream


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("web", "web"),
        ("späť", "späť"),
        ("", '""'),
        ("two words", '"two words"'),
        ("a=b", '"a=b"'),
        ("line\nline", '"line\\nline"'),
        ("\x1b[31mred", '"\\u001b[31mred"'),  # a terminal's command, without a blank
        ("a\rb", '"a\\rb"'),
        ("\x9b2J", '"\\u009b2J"'),  # the same command as one character of C1
        ("del\x7f", '"del\\u007f"'),
        ("\u202eright", '"\\u202eright"'),  # reverses the order of the rest of the line
        ("\u2028", '"\\u2028"'),
        ("\ud800", '"\\ud800"'),  # not encodable: the whole line was lost
        (3.14159, "3.142"),
        (["a", "\x7f"], '"[\\"a\\", \\"\\\\u007f\\"]"'),
    ],
)
def test_values(given: object, written: str) -> None:
    assert logtext.value(given) == written


@given(st.text(), st.dictionaries(st.text(min_size=1), st.one_of(st.text(), st.integers(), st.lists(st.text()))))
def test_whatever_a_peer_sends_stays_one_printable_line(event: str, fields: dict[str, Any]) -> None:
    line = logtext.plain("T", "info", "r", event, fields)
    assert line.isprintable()
    assert json.loads(logtext.as_json("T", "info", "r", event, fields))["event"] == fields.get("event", event)
    assert "\x7f" not in logtext.as_json("T", "info", "r", event, fields)
    words = json.loads(f"[{line.split(' ', 3)[3]}]") if not fields and line.endswith('"') else None
    assert words in (None, [event])


def lines(repeats: Repeats, times: int, each: float, level: str = "warn", **fields: Any) -> list[int]:
    """Returns the number of held lines of each line that is written."""
    found = [repeats.allow(level, "dns", "query failed", fields, 100 + i * each) for i in range(times)]
    return [held for held in found if held is not None]


def test_the_same_line_is_written_a_few_times_and_then_counted() -> None:
    written = lines(Repeats(), 50_000, 0.001, peer="10.0.0.1")
    assert written[:5] == [0] * 5
    assert len(written) == 5 + 4  # one in ten seconds of 50
    assert sum(written) + len(written) in range(40_000, 50_001)


@pytest.mark.parametrize(("level", "most"), [("error", 205), ("warn", 205), ("info", 10_000), ("debug", 10_000)])
def test_a_peer_that_varies_its_fields_is_bounded_too(level: str, most: int) -> None:
    """A log of queries (info) stays whole."""
    repeats = Repeats()
    written = [repeats.allow(level, "dns", "query", {"port": i}, 100 + i * 1e-4) for i in range(10_000)]
    assert sum(one is not None for one in written) in range(most - 5, most + 1)
    assert len(repeats._same) <= logtext.REMEMBERED


def test_times_do_not_make_a_warning_new_but_a_query_differs() -> None:
    repeats = Repeats()
    slow = [repeats.allow("error", "proxy", "sync failed", {"took_ms": i / 7}, 100) for i in range(100)]
    assert sum(one is not None for one in slow) == 5
    asked = [repeats.allow("info", "dns", "query", {"name": "a.", "took_ms": i / 7}, 100) for i in range(100)]
    assert all(one == 0 for one in asked)


def test_different_objects_at_a_start_are_all_named() -> None:
    repeats = Repeats()
    assert all(repeats.allow("warn", "proxy", "unusable", {"service": str(i)}, 100) == 0 for i in range(150))


def test_the_end_of_a_flood_is_told() -> None:
    repeats = Repeats()
    lines(repeats, 1000, 0.001, peer="10.0.0.1")
    assert repeats.overdue(101.5) == []
    assert repeats.overdue(112) == [("warn", "dns", "query failed", 995)]
    assert repeats.overdue(200) == []
    assert lines(repeats, 1, 0, peer="10.0.0.1") in ([0], []), "and what was told is not told again"


def test_repeats_of_a_real_log(said: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("podwire_base.role.logs.time.monotonic", lambda: now)
    log = logs.get("accept")
    for _ in range(1000):
        log.error("too many", listener="x")
    assert len(said.getvalue().splitlines()) == 5
    now += 11
    log.info("other")
    *_, told, other = said.getvalue().splitlines()
    assert told.endswith('error accept "too many" repeated=995')
    assert other.endswith("info accept other")


PROGRAM = """
import asyncio, gc, logging, sys, threading, warnings
from podwire_base.role.run import main

class Wrong:
    def __del__(self):
        raise KeyError("in a finalizer")

async def work():
    logging.getLogger("asyncio").warning("Unknown child process pid %d, will report returncode 255", 4711)
    warnings.warn("old\\nthing")
    loop = asyncio.get_running_loop()
    loop.call_soon(lambda: 1 / 0)
    full = {"message": "socket.accept() out of system resource", "exception": OSError(24, "x")}
    for _ in range(100):
        loop.call_exception_handler(full)
    Wrong()
    thread = threading.Thread(target=lambda: [][1], name="t1")
    thread.start()
    thread.join()
    task = asyncio.ensure_future(asyncio.sleep(0, 1))
    loop.create_task(fails())
    await asyncio.sleep(0.01)
    gc.collect()
    raise ValueError("the end")

async def fails():
    raise LookupError("nobody waits")

main("some", work())
"""


def test_what_python_writes_becomes_lines() -> None:
    one = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert one.returncode == 1
    found = one.stderr.splitlines()
    for line in found:
        stamp, level, _role, *rest = shlex.split(line.replace("\\n", " "))
        assert stamp[:2] == "20" and level in ("info", "warn", "error") and rest, line
        assert all("=" in word for word in rest[1:]), line
    text = "\n".join(found)
    for expected in (
        'warn asyncio "Unknown child process pid %d, will report returncode 255" text="Unknown child process pid 4711',
        "py.warnings",
        "ZeroDivisionError",
        "in a finalizer",
        "IndexError",
        "nobody waits",
        "uncaught exception",
        "the end",
    ):
        assert expected in text, (expected, text)
    assert sum("out of system resource" in line for line in found) <= 7
