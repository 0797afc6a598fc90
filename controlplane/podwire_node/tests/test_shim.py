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

from podwire_base.patience import patient
from podwire_node import shim


def copied(path: Path, data: bytes) -> None:
    reader, writer = os.pipe()
    os.write(writer, data)
    os.close(writer)
    shim.copy_log(reader, str(path))
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
