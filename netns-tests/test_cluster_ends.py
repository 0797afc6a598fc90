"""The end of an embedded cluster: nothing of it is left behind, however it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lab.cluster import EXAMPLES, cluster, machine
from podwire.cluster.config import BASE, ClusterConfig
from podwire.cluster.lifecycle import UpFailed, up
from podwire.demo.lab import wait_for


def _leftovers(config: ClusterConfig) -> list[str]:
    marker = f"PODWIRE_CLUSTER={config.run_dir}".encode()
    found = [str(p) for p in (config.run_dir, *Path("/run/netns").glob(f"{config.name}-*")) if p.exists()]
    for entry in Path("/proc").iterdir():
        try:
            ours = entry.name.isdigit() and int(entry.name) != os.getpid()
            if ours and marker in (entry / "environ").read_bytes().split(b"\0"):
                found.append((entry / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


def _defunct() -> set[str]:
    """Ended processes of ours that no parent has waited for."""
    found = set()
    for entry in Path("/proc").iterdir():
        try:
            if (
                entry.name.isdigit()
                and (entry / "stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
                and "podwire" in (entry / "comm").read_text()
            ):
                found.add(entry.name)
        except OSError:
            continue
    return found


@pytest.mark.alone  # the namespaces, mounts and processes of others come and go
@pytest.mark.parametrize("how", ["down", "kill the starter", "kill the supervisor"])
def test_nothing_is_left_behind(how: str) -> None:
    before, defunct = machine(), _defunct()
    script = (
        "import sys, time; from lab.cluster import cluster\n"
        "with cluster(1, name='left') as lab:\n"
        "    lab.run_tool('apply', '-f', sys.argv[1]); lab.wait_pods('client', 3)\n"
        "    print(lab.config.name, lab.supervised(None, 'apiserver'), flush=True)\n"
        "    sys.stdin.readline()\n"
    )
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    starter = subprocess.Popen(
        [sys.executable, "-c", script, str(EXAMPLES / "01-pods.yaml")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert starter.stdin is not None
    assert starter.stdout is not None
    name = starter.stdout.readline().split()[0]
    config = ClusterConfig(name=name, nodes=1)
    try:
        if how == "down":
            starter.stdin.write("\n")
            starter.stdin.flush()
        elif how == "kill the starter":
            starter.kill()
        else:
            os.kill(json.loads((config.run_dir / "supervisor.json").read_text())["pid"], signal.SIGKILL)
            subprocess.run(
                [sys.executable, "-m", "podwire.main", "down", "--name", name], check=True, capture_output=True
            )
        wait_for(lambda: not _leftovers(config), 20)
        starter.kill()
        assert machine() == before
        if how != "kill the supervisor":  # then PID 1 must reap its orphans
            wait_for(lambda: _defunct() <= defunct, 20)  # PID 1 may take a moment to reap its own
    finally:
        starter.kill()
        starter.wait()
        subprocess.run([sys.executable, "-m", "podwire.main", "down", "--name", name], check=False, capture_output=True)


def test_a_second_cluster_of_the_same_name_is_refused_and_nothing_changes() -> None:
    with cluster(1, name="twice") as lab, pytest.raises(UpFailed, match="podwire down"):
        up(lab.config)
    assert not (BASE / lab.config.name).exists()
