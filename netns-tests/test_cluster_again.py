"""`podwire up` of a cluster that lost its process, of one that cannot start, and two at once."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.cluster import cluster, last_words
from lab.patience import patient
from podwire.cluster import lifecycle
from podwire.cluster.config import ClusterConfig
from podwire.cluster.teardown import abandon, supervisor
from podwire.demo.lab import DemoLab, wait_for

ECHO = (
    "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec:\n  replicas: 3\n"
    "  selector: {matchLabels: {app: MyApp}}\n  template:\n    metadata: {labels: {app: MyApp}}\n"
    "    spec:\n      terminationGracePeriodSeconds: 1\n"
    "      containers: [{name: c, image: podwire.io/echo, args: [--http, '9376']}]\n---\n"
    "apiVersion: v1\nkind: Service\nmetadata: {name: web}\n"
    "spec: {selector: {app: MyApp}, ports: [{port: 80, targetPort: 9376}]}\n"
)


def podwire(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "podwire.main", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=patient(120),
    )


@pytest.fixture(scope="module")
def lab() -> Iterator[DemoLab]:
    with cluster(2, name="again") as made:
        made.run_tool("apply", "-f", "-", stdin=ECHO)
        made.wait_pods("MyApp", 3)
        answers(made)
        yield made


def lose_the_process(lab: DemoLab) -> None:
    pid = supervisor(lab.config)
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: supervisor(lab.config) != pid, 10)


def up_again(lab: DemoLab) -> str:
    done = podwire("up", "--name", lab.config.name, "--api-port", str(lab.config.api_port))
    assert done.returncode == 0, done.stderr + last_words(lab.config)
    assert "is up again" in done.stdout
    return " ".join(done.stderr.split())


def answers(lab: DemoLab) -> None:
    address = lab.cluster_ip("web")
    wait_for(lambda: all(a.ok for a in lab.many(lab.node_netns("node1"), address, 80, 10)), 15)


def test_certificates_addresses_and_running_pods_stay(lab: DemoLab) -> None:
    def seen() -> list[tuple[str, str, str, int]]:
        found = []
        for pod in lab.pods("MyApp"):
            main = pod.main_process("c")
            found.append((pod.name, pod.address, pod.node, main.pid if main else 0))
        return found

    before, address = seen(), lab.cluster_ip("web")
    files = {
        path: path.read_bytes() for path in lab.config.run_dir.rglob("*") if path.suffix in (".pem", ".kubeconfig")
    }
    files[lab.config.kubeconfig] = lab.config.kubeconfig.read_bytes()
    assert len(files) >= 5
    lose_the_process(lab)
    assert all(a.ok for a in lab.many(lab.node_netns("node1"), address, 80, 10)), "the kernel's part goes on"
    up_again(lab)
    assert {path: path.read_bytes() for path in files} == files
    assert wait_for(lambda: len(seen()) == 3 and seen(), 15) == before
    answers(lab)
    lab.run_tool("apply", "-f", "-", stdin=ECHO.replace("replicas: 3", "replicas: 4"))
    lab.wait_pods("MyApp", 4)
    lab.run_tool("apply", "-f", "-", stdin=ECHO)
    lab.wait_pods("MyApp", 3)


def test_a_cluster_that_runs_is_left_alone(lab: DemoLab) -> None:
    pid = supervisor(lab.config)
    done = podwire("up", "--name", lab.config.name)
    assert done.returncode == 1 and "is up already" in done.stderr
    assert supervisor(lab.config) == pid


def test_a_node_whose_namespace_is_gone_is_made_again(lab: DemoLab) -> None:
    lose_the_process(lab)
    subprocess.run(["ip", "netns", "del", lab.config.namespace("node2")], check=True)
    up_again(lab)
    lab.wait_pods("MyApp", 3)
    answers(lab)
    for pod in lab.pods("MyApp"):
        wait_for(lambda pod=pod: lab.tcp(lab.node_netns("node1"), pod.address, 9376).ok, 20)  # type: ignore[misc]
    asked = ("dig", "+short", "+tries=1", "+time=1", "kubernetes.default.svc.cluster.local", "@10.96.0.10")
    wait_for(lambda: "10.96.0.1" in lab.in_netns(lab.node_netns("node2"), *asked), 20)  # in the new namespace


def test_a_taken_port_is_named_at_once_and_nothing_is_lost(lab: DemoLab) -> None:
    lose_the_process(lab)
    abandon(lab.config)
    began = time.monotonic()
    with socket.create_server(("127.0.0.1", lab.config.api_port)):
        done = podwire("up", "--name", lab.config.name)
    assert done.returncode == 1 and f"port {lab.config.api_port} of 127.0.0.1 is taken" in " ".join(done.stderr.split())
    assert time.monotonic() - began < patient(10)
    up_again(lab)
    answers(lab)


def test_a_role_that_cannot_start_ends_the_wait_with_its_error(lab: DemoLab) -> None:
    lose_the_process(lab)
    file = lab.config.run_dir / "api" / "tokens.json"
    good = file.read_text()
    file.write_text("{")
    try:
        began = time.monotonic()
        done = podwire("up", "--name", lab.config.name)
        assert time.monotonic() - began < patient(20)
        told = " ".join(done.stderr.split())
        assert done.returncode == 1 and "apiserver ends again and again: Expecting property name" in told
        assert f"logs: {lab.config.run_dir}/log" in told and (lab.config.run_dir / "log" / "apiserver.log").exists()
    finally:
        file.write_text(good)
    up_again(lab)
    answers(lab)


def test_a_damaged_store_is_named_and_kept_aside(lab: DemoLab) -> None:
    lose_the_process(lab)
    abandon(lab.config)
    store = lab.config.run_dir / "api" / "store.db"
    with store.open("r+b") as file:
        file.seek(0)
        file.write(os.urandom(200))
    damaged = store.read_bytes()
    told = up_again(lab)
    kept = store.with_name("store.db.damaged-1")
    assert f"the store {store} is damaged (file is not a database); it is kept as {kept}" in told
    assert kept.read_bytes() == damaged
    lab.run_tool("apply", "-f", "-", stdin=ECHO)
    lab.wait_pods("MyApp", 3)
    answers(lab)


# ---- starts


@contextlib.contextmanager
def removed(*names: str) -> Iterator[None]:
    try:
        yield
    finally:
        for name in names:
            podwire("down", "--name", name)


def test_two_at_once() -> None:
    """Two of one name: the second one says so at once. Two of one port: each gets its own."""
    first, second = f"twin{os.getpid()}", f"other{os.getpid()}"
    with removed(first, second):
        words = ["up", "--nodes", "1", "--api-port", "16443", "--name"]
        argv = [sys.executable, "-m", "podwire.main", *words]
        ups = [
            subprocess.Popen([*argv, name], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for name in (first, first, second)
        ]
        told = [one.communicate(timeout=patient(120)) for one in ups]
        assert sorted(one.returncode for one in ups[:2]) == [0, 1], told
        refused = next(err for one, (_, err) in zip(ups, told, strict=True) if one.returncode)
        assert "is being started by another `podwire up`" in " ".join(refused.split())
        assert ups[2].returncode == 0, told
        found = [json.loads((ClusterConfig(name=n).record).read_text())["api_port"] for n in (first, second)]
        assert len(set(found)) == 2 and 16443 in found


def test_the_logs_of_a_failed_start_are_kept_and_named(tmp_path: Path) -> None:
    """On a full disk: the reason is told at once, nothing runs on, and `down` removes the logs."""
    name = f"full{os.getpid()}"
    script = f"""set -e
mount --make-rprivate /
mount -t tmpfs -o size=120k none /run
mkdir -p /run/podwire
set +e
timeout 60 {sys.executable} -m podwire.main up --nodes 1 --api-port 17443 --name {name}
echo status $?
ls /run/podwire/{name}.failed
{sys.executable} -m podwire.main down --name {name}
echo status $?
find /run -type f
"""
    began = time.monotonic()
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, check=False, timeout=patient(120)
    )
    told = " ".join((done.stdout + done.stderr).split())
    assert "No space left on device" in told or "database or disk is full" in told, told
    assert f"logs: /run/podwire/{name}.failed" in told, told
    assert done.stdout.split().count("cluster") == 1 + 1 and "status 1" in told and told.count("status 0") == 1, told
    assert not supervisor(ClusterConfig(name=name))
    assert time.monotonic() - began < patient(60)


def test_the_port_is_held_from_the_first_moment() -> None:
    held = lifecycle.hold_port(0)
    with held:
        number = held.getsockname()[1]
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", number), 1)
        with pytest.raises(OSError, match="in use"):
            socket.create_server(("127.0.0.1", number))
        with lifecycle.hold_port(number) as other:
            assert other.getsockname()[1] != number
