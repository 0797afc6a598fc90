"""Logs of containers: what PodLogOptions choose, and the node agent's socket."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire_base.role import unixsocket
from podwire_node import logfiles, shim
from podwire_node.logfiles import Line, Run, Wanted
from podwire_node.runtime import Container, Sandbox
from podwire_node.serving import Serving

RECORDS = [
    "2027-01-15T08:00:00.000000001Z stdout F one",
    "2027-01-15T08:00:01.5Z stderr P tw",
    "2027-01-15T08:00:01.6Z stdout F three",
    "2027-01-15T08:00:01.7Z stderr F o",
    "2027-01-15T08:00:02Z stdout F ",
]
T0 = 1_800_000_000.0
NOW = Run(0.0)


def text(asked: Wanted, run: Run = NOW) -> str:
    rows = logfiles.chosen(logfiles.joined(RECORDS, {}), asked, run)
    return b"".join(logfiles.shown(row, asked) for row in rows).decode()


@pytest.mark.parametrize(
    ("query", "shown"),
    [
        ({}, "one\nthree\ntwo\n\n"),
        ({"tailLines": "2"}, "two\n\n"),
        ({"tailLines": "0"}, ""),
        ({"stream": "Stderr"}, "two\n"),
        ({"sinceTime": "2027-01-15T08:00:01Z"}, "three\ntwo\n\n"),
        ({"sinceSeconds": "8"}, "\n"),
        ({"timestamps": "true", "tailLines": "1"}, "2027-01-15T08:00:02Z \n"),
    ],
)
def test_what_is_asked_for(query: dict[str, str], shown: str) -> None:
    assert text(logfiles.wanted(query, T0 + 10)) == shown


def test_runs_are_told_apart_by_their_times() -> None:
    assert text(Wanted(), Run(T0 + 1.55)) == "three\ntwo\n\n"
    assert text(Wanted(), Run(T0 - 5, T0 + 1)) == "one\n"


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["stdout", "stderr"]),
            st.text(st.characters(codec="ascii", exclude_characters="\n\r\v\f\x1c\x1d\x1e")),
        )
    )
)
def test_lines_come_back_however_they_were_cut(lines: list[tuple[str, str]]) -> None:
    records = []
    for stream, line in lines:
        *parts, last = [line[at : at + 3] for at in range(0, len(line), 3)] or [""]
        records += [f"t {stream} P {part}" for part in parts] + [f"t {stream} F {last}"]
    assert [(line.stream, line.text) for line in logfiles.joined(records, {})] == lines


def test_no_record_has_no_stream() -> None:
    assert list(logfiles.joined(["what is this\n"], {})) == [Line("", "", "this")]


# ---- the socket


async def _asked(run_dir: Path, query: dict[str, str], during: Any = None) -> tuple[int, str]:
    (run_dir / unixsocket.KUBELET).unlink(missing_ok=True)  # of the call before
    serving = asyncio.create_task(Serving(run_dir).run())
    while not (run_dir / unixsocket.KUBELET).exists():
        await asyncio.sleep(0.005)
    connector = aiohttp.UnixConnector(str(run_dir / unixsocket.KUBELET))
    try:
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.get("http://node/containerLogs/default/p/c", params={"uid": "u1", **query}) as told,
        ):
            task = asyncio.create_task(told.text())
            if during:
                await during()
            return told.status, await task
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


def _box(run_dir: Path) -> Container:
    box = Container(Sandbox(run_dir / "pods" / "u1"), "c")
    box.directory.mkdir(parents=True)
    return box


def test_a_log_by_the_socket(tmp_path: Path) -> None:
    box = _box(tmp_path)
    assert asyncio.run(_asked(tmp_path, {})) == (400, 'container "c" in pod "p" is waiting to start: ContainerCreating')
    box.log.write_text("\n".join(RECORDS) + "\n")
    assert asyncio.run(_asked(tmp_path, {})) == (200, "one\nthree\ntwo\n\n")
    assert asyncio.run(_asked(tmp_path, {"limitBytes": "6"})) == (200, "one\nth")
    words = 'previous terminated container "c" in pod "p" not found'
    assert asyncio.run(_asked(tmp_path, {"previous": "true"})) == (400, words)
    made = {"count": 1, "began": T0 + 1.55, "before": T0}
    (box.directory / "restarts.json").write_text(json.dumps(made))
    assert asyncio.run(_asked(tmp_path, {"previous": "true"})) == (200, "one\n")
    assert asyncio.run(_asked(tmp_path, {})) == (200, "three\ntwo\n\n")


def test_a_followed_log_ends_with_its_container(tmp_path: Path) -> None:
    box = _box(tmp_path)
    box.log.write_text(RECORDS[0] + "\n")
    state = box.directory / "state.json"
    own = {"pid": os.getpid(), "shim": os.getpid(), "shim_started": shim.started(os.getpid())}
    state.write_text(json.dumps(own))

    async def during() -> None:
        box.log.rename(box.log.with_name("log.1"))  # rotated
        box.log.write_text(RECORDS[2] + "\n")
        await asyncio.sleep(0.3)
        with box.log.open("a") as file:
            file.write(RECORDS[4] + "\n")
        state.unlink()

    assert asyncio.run(_asked(tmp_path, {"follow": "true", "tailLines": "5"}, during)) == (200, "one\nthree\n\n")
