"""`ps` and `top` tell a cluster's processes apart, and `podwire down` still finds all of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lab.patience import patient
from podwire.cluster.config import MARKER, ClusterConfig
from podwire.cluster.lifecycle import down, up
from podwire_base.role.supervisor import read_state
from podwire_base.testing.ports import free_port

NODE = "node" + "1".zfill(48)  # with "system:node:" before it, the 64 characters of a certificate's common name
# Imported by every Python of the cluster at its start: the embedded cluster has no names of this length by itself, and
# a link has at most 15 characters.
LONG_NAMES = f"""
from podwire.cluster import network
from podwire.cluster.config import ClusterConfig

ClusterConfig.node_names = lambda self: [{NODE!r}]
join = network._join
network._join = lambda config, namespace, port, *rest, **more: join(config, namespace, port[-15:], *rest, **more)
"""
ROLES = {"wiring", "proxy", "dns-feeder", "dns", "lb", "node", "observe", "policy"}


def marked(config: ClusterConfig) -> dict[int, str]:
    """Processes with the cluster's marker in their environment, and their arguments."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and f"{MARKER}={config.run_dir}".encode() in (entry / "environ").read_bytes().split(
                b"\0"
            ):
                found[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
    return found


def shown() -> dict[int, tuple[str, str]]:
    """pid -> (short name, arguments), as `ps` has them."""
    listed = subprocess.run(["ps", "-eww", "-o", "pid=,comm=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()]
    return {int(row[0]): (row[1], row[2].rstrip()) for row in rows if len(row) == 3}


def test_ps_shows_role_and_node_and_down_finds_every_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text(LONG_NAMES)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setattr(ClusterConfig, "node_names", lambda self: [NODE])
    config = ClusterConfig(name=f"titles{os.getpid()}", nodes=1, api_port=free_port())
    try:
        process = up(config).process
        rows = shown()
        machine = read_state(config.run_dir / "supervisor.json")
        roles = read_state(config.node_dir(NODE) / "agent.json")
        assert set(roles) == ROLES
        wanted = {process.pid: ("cluster", config.name), machine[NODE]["pid"]: ("agent", NODE)}
        wanted |= {machine[name]["pid"]: (name, config.name) for name in ("apiserver", "controllers")}
        wanted |= {state["pid"]: (name, NODE) for name, state in roles.items()}
        for pid, (role, of) in wanted.items():
            comm, args = rows[pid]
            assert comm == f"podwire-{role}"[:15]
            assert args.startswith(f"podwire {role} {of[:5]}"), "the role, and what has room of the name"
            assert f"podwire {role} {of}".startswith(args)
        assert set(wanted) <= set(marked(config)), "by its environment each belongs to the cluster"
        subprocess.run(
            [sys.executable, "-m", "podwire.main", "down", "--name", config.name], check=True, capture_output=True
        )
        process.wait(patient(10))
        assert marked(config) == {}
        assert not config.run_dir.exists()
    finally:
        down(config)
