"""A benchmark that is ended ends what it started: its servers, namespaces and clusters."""

from __future__ import annotations

import ast
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from podwire_base.patience import patient

BENCH = Path(__file__).resolve().parents[3] / "bench"


def _children(pid: int) -> list[int]:
    """The processes that `pid` has started and that still run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:  # it ended meanwhile
            continue
        if int(parent) == pid and state != "Z":
            found.append(int(stat.parent.name))
    return found


def _until(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + patient(30)
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.01)


def _program(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


@contextmanager
def _running(*command: str, child: bytes) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A program of bench/, and the process id of what it has started once that runs `child`."""
    process = subprocess.Popen([sys.executable, *command], stderr=subprocess.DEVNULL, cwd=BENCH)
    try:
        _until(lambda: any(_program(pid).startswith(child) for pid in _children(process.pid)), "the child runs")
        yield process, _children(process.pid)[0]
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_undoes_once(number: int, tmp_path: Path) -> None:
    """The second signal, which comes during the undoing, does not cut it short."""
    ready, done = tmp_path / "ready", tmp_path / "done"
    code = (
        "import os, subprocess; from pathlib import Path; from ending import undone_by_signals\n"
        "with undone_by_signals():\n"
        "    child = subprocess.Popen(['sleep', '600'])\n"
        f"    try: Path({str(ready)!r}).touch(); child.wait()\n"
        "    finally:\n"
        f"        os.kill(os.getpid(), {int(number)}); child.kill(); child.wait(); Path({str(done)!r}).touch()\n"
    )
    with _running("-c", code, child=b"sleep") as (process, child):
        _until(ready.exists, "it waits")
        process.send_signal(number)
        assert process.wait(patient(30)) == 128 + number
        assert done.exists() and not Path(f"/proc/{child}").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_api_server_ends_with_its_benchmark(number: int) -> None:
    with _running("bench_api.py", "--runs", "1", child=sys.executable.encode()) as (process, server):
        process.send_signal(number)
        process.wait(patient(60))
        _until(lambda: not Path(f"/proc/{server}").exists(), "the server ends")


def test_every_program_that_starts_something_undoes_it() -> None:
    found = {}
    for path in BENCH.glob("*.py"):
        tree = ast.parse(path.read_text())
        named = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        if "__name__" in named and named & {"subprocess", "Lab", "NetNS"}:
            found[path.name] = "undone_by_signals" in named
    assert len(found) > 5 and all(found.values()), found
