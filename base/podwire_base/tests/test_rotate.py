"""Log files that are replaced when they are large. Processes of their own, since stdout and stderr are replaced."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from podwire_base.role import rotate

PROGRAM = """
import os, sys, time
from pathlib import Path
from podwire_base.role import logs

path, lines, processes = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
logs.to_file(path)
log = logs.get("r")
pids = []
for number in range(processes):
    pid = os.fork()
    if not pid:
        for i in range(lines):
            log.info("line", process=number, number=i)
        os._exit(0)
    pids.append(pid)
for pid in pids:
    os.waitpid(pid, 0)
"""


def run(path: Path, lines: int, processes: int, limit: int) -> None:
    environment = {**os.environ, rotate.VARIABLE: str(limit)}
    subprocess.run([sys.executable, "-c", PROGRAM, str(path), str(lines), str(processes)], check=True, env=environment)


def numbers(path: Path) -> list[tuple[str, str]]:
    lines = path.read_text().splitlines() if path.exists() else []
    return [(words[-2], words[-1]) for words in map(str.split, lines)]


def test_no_line_is_lost_between_the_two_files(tmp_path: Path) -> None:
    path = tmp_path / "log" / "proxy.log"
    run(path, 500, 1, 32_768)  # 500 lines of 60 bytes do not fill two files
    assert numbers(rotate.old(path)) + numbers(path) == [("process=0", f"number={i}") for i in range(500)]


def test_two_files_are_all_there_ever_is(tmp_path: Path) -> None:
    path = tmp_path / "proxy.log"
    run(path, 5000, 1, 8192)
    assert numbers(path)[-1:] == [("process=0", "number=4999")]
    assert path.stat().st_size < 8192 * 1.3 and rotate.old(path).stat().st_size < 8192 * 1.3
    assert sorted(tmp_path.iterdir()) == [path, rotate.old(path)]


def test_processes_that_share_a_file_follow_each_other(tmp_path: Path) -> None:
    path = tmp_path / "node1.log"
    run(path, 300, 4, 64_000)  # 1,200 lines: one replacement
    found = numbers(rotate.old(path)) + numbers(path)
    assert len(found) == 1200 and set(found) == {(f"process={p}", f"number={i}") for p in range(4) for i in range(300)}
    assert path.stat().st_size < 64_000 * 1.3


@pytest.mark.parametrize("given", ["", "many", "-5", "1" * 30, "\u0661"])
def test_a_limit_that_is_none_is_the_default(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(rotate.VARIABLE, given)
    assert rotate.limit() == rotate.LIMIT


def test_a_file_that_nobody_replaces_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(rotate.VARIABLE, "4096")
    path = tmp_path / "raw.log"
    with path.open("a") as writer:  # a program without the logger
        writer.write("x" * 8000)
        writer.flush()
        assert not rotate.cut(path)
        writer.write("y" * 200)
        writer.flush()
        assert rotate.cut(path)
        assert rotate.old(path).stat().st_size == 8200
        writer.write("z")
        writer.flush()
    assert path.read_text() == "z"
    assert not rotate.cut(tmp_path / "none")
