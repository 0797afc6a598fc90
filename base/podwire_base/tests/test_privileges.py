"""A process that gives its privileges up. In processes of its own, since nothing brings them back."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import ctypes, os, socket, sys
from pathlib import Path
from podwire_base.role import privileges

kept = socket.socket()
kept.bind(("127.0.0.1", 0))
secret = Path(sys.argv[1])
privileges.drop(64123, 64124)
print(Path("/proc/self/status").read_text())
kept.listen()
kept.getsockname()
for what, attempt in {
    "read": secret.read_text,
    "root": lambda: os.setuid(0),
    "groups": lambda: os.setgroups([0]),
    "port": lambda: socket.socket().bind(("127.0.0.1", 1)),
    "raw": lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1),
    "kill": lambda: os.kill(os.getppid(), 0),
}.items():
    try:
        attempt()
    except PermissionError:
        print("refused:", what)
print("setuid program:", os.spawnl(os.P_WAIT, sys.argv[2], sys.argv[2], "-u"))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has privileges to give up")
def test_nothing_is_left_and_nothing_comes_back(tmp_path: Path) -> None:
    tmp_path.joinpath("secret").write_text("s")
    tmp_path.joinpath("secret").chmod(0o600)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "secret"), "/usr/bin/id"],
        capture_output=True,
        text=True,
        check=True,
    )
    rows = dict(line.partition(":")[::2] for line in done.stdout.splitlines() if ":" in line)
    assert rows["Uid"].split() == ["64123"] * 4 and rows["Gid"].split() == ["64124"] * 4
    assert rows["Groups"].split() == []
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(rows[name], 16) == 0, name
    assert rows["NoNewPrivs"].strip() == "1"
    refused = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("refused")]
    assert [what for what in refused if what != "port"] == ["read", "root", "groups", "raw", "kill"]
    assert "port" in refused or int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) < 2
