"""The shim's log of a container, and what a pod does not inherit from the node agent."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire_base.patience import patient
from podwire_node import shim


def copied(path: Path, data: bytes) -> None:
    reader, writer = os.pipe()
    os.write(writer, data)
    os.close(writer)
    shim.copy_log({reader: "stdout"}, str(path))
    os.close(reader)


def test_the_log_of_a_container_that_restarts_stays_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each run counted from nothing: a container that restarts often filled the disk."""
    monkeypatch.setattr(shim, "LOG_LIMIT", 2000)
    path = tmp_path / "log"
    for run in range(50):
        copied(path, b"run %d\n" % run * 5)
    assert path.stat().st_size < 2300
    assert (tmp_path / "log.1").stat().st_size < 2300
    assert path.read_text().splitlines()[-1].endswith("run 49") or path.read_text() == ""


def test_each_stream_has_its_name_and_long_lines_are_parts(tmp_path: Path) -> None:
    """stderr was logged as stdout, and a long line became several whole ones."""
    pipes = {name: os.pipe() for name in ("stdout", "stderr")}
    long = b"x" * (2 * shim.LINE + 5)
    for name, text in (("stdout", b"one\n" + long + b"\n\n"), ("stderr", b"no end")):
        os.set_blocking(pipes[name][1], False)
        assert os.write(pipes[name][1], text) == len(text)
        os.close(pipes[name][1])
    shim.copy_log({out: name for name, (out, _) in pipes.items()}, str(tmp_path / "log"))
    rows = [line.split(" ", 3)[1:] for line in (tmp_path / "log").read_text().split("\n")[:-1]]
    assert [row for row in rows if row[0] == "stderr"] == [["stderr", "F", "no end"]]
    out = [(tag, text) for stream, tag, text in rows if stream == "stdout"]
    assert [tag for tag, _ in out] == ["F", "P", "P", "F", "F"]
    assert out[0][1] == "one" and "".join(text for _, text in out[1:4]).encode() == long and out[4][1] == ""


@given(st.lists(st.binary(max_size=60), max_size=8), st.integers(1, 9))
def test_records_hold_every_byte_in_order(chunks: list[bytes], line: int) -> None:
    before, shim.LINE = shim.LINE, line
    try:
        held, found = b"", []
        for chunk in chunks:
            held, more = shim.records(held, chunk, False)
            found += more
        found += shim.records(held, b"", True)[1]
    finally:
        shim.LINE = before
    whole = b"".join(chunks)
    said = b"".join(text + (b"\n" if tag == b"F" else b"") for tag, text in found)
    assert said == whole + (b"" if whole.endswith(b"\n") or not whole else b"\n")
    assert all(len(text) <= line and b"\n" not in text for _, text in found)


AGENT = """
import os, resource, sys
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
open("/proc/self/oom_score_adj", "w").write("500")
os.execv(sys.executable, [sys.executable, "-ISE", *sys.argv[1:]])
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for the namespaces of a sandbox")
def test_a_pod_inherits_neither_limits_nor_oom_score_nor_signals(tmp_path: Path) -> None:
    spec = {
        "kind": "sandbox",
        "hostname": "h",
        "share_net": True,
        "command": ["/bin/sleep", "60"],
        "state": str(tmp_path / "state.json"),
    }
    (tmp_path / "spec").write_text(json.dumps(spec))
    pause = subprocess.Popen([sys.executable, "-c", AGENT, shim.__file__, str(tmp_path / "spec")])
    try:
        end, proc = time.monotonic() + patient(20), Path(f"/proc/{pause.pid}")
        while proc.joinpath("comm").read_text() != "sleep\n" and time.monotonic() < end:
            time.sleep(0.01)
        (files,) = (row for row in proc.joinpath("limits").read_text().splitlines() if row.startswith("Max open files"))
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert files.split()[3] == str(shim.FILES[0])
        assert files.split()[4] in (str(shim.FILES[1]), str(min(shim.FILES[1], hard)))  # without CAP_SYS_RESOURCE
        assert proc.joinpath("oom_score_adj").read_text() == "0\n"
        status = dict(row.split(":", 1) for row in proc.joinpath("status").read_text().splitlines())
        of_libc = 0b11 << 31  # 32 and 33: glibc keeps them for itself, and no program can set them through it
        assert int(status["SigIgn"], 16) & ~of_libc == int(status["SigBlk"], 16) == 0
    finally:
        pause.kill()
        pause.wait()
