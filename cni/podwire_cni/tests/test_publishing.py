"""Each call that changes the pods is followed by what the Service proxy reads, without a sync of the agent."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from podwire_base.kernel.inotify import FileWatch
from podwire_base.role import podspaces
from podwire_cni.callers import HEAD, POD_NETNS
from podwire_cni.listener import ANSWER, Listener
from podwire_cni.publishing import Publisher

from .test_verbs import Host

NETNS = f"/proc/{os.getpid()}/ns/net"
PATIENCE = 30  # seconds, on a busy machine
CONF = json.dumps({"cniVersion": "1.1.0", "name": "podwire", "type": "podwire-cni"}).encode()


@pytest.fixture
def run_dir(tmp_path: Path) -> Iterator[Path]:
    """An agent's directory; the agent listens and publishes, and its sync never runs."""
    host = Host()
    with contextlib.ExitStack() as stack:
        node = os.open("/proc/self/ns/net", os.O_RDONLY)
        stack.callback(os.close, node)
        publisher = Publisher(tmp_path, host.plugin)
        publisher.start()
        stack.callback(publisher.close)
        listener = Listener(tmp_path / "cni.sock", host.plugin, node, changed=publisher.changed)
        stack.callback(listener.close)
        yield tmp_path


def call(run_dir: Path, verb: str, container: str) -> None:
    """Call as the plugin binary does. The pod's namespace is this process's own, which the override permits."""
    env = {"CNI_COMMAND": verb, "CNI_CONTAINERID": container, "CNI_IFNAME": "eth0", "CNI_NETNS_OVERRIDE": "true"}
    words = b"\0".join(f"{k}={v}".encode() for k, v in {**env, "CNI_NETNS": NETNS}.items())
    node = os.open("/proc/self/ns/net", os.O_RDONLY)
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(PATIENCE)
            sock.connect(str(run_dir / "cni.sock"))
            head = HEAD.pack(b"PWC1", POD_NETNS, 0, len(words), len(CONF))
            socket.send_fds(sock, [head + words + CONF], [node, node])
            answer = sock.recv(65536)
    finally:
        os.close(node)
    assert ANSWER.unpack_from(answer)[0] == 0, answer


def paths(run_dir: Path) -> set[str]:
    file = podspaces.path(run_dir)
    return {space.path for space in podspaces.decode(file.read_text())} if file.exists() else set()


def test_pods_are_published_after_each_call(run_dir: Path) -> None:
    watch = FileWatch(run_dir, [podspaces.path(run_dir).name])
    with contextlib.closing(watch):
        for verb, container, wanted in (
            ("ADD", "c1", {NETNS}),
            ("DEL", "c1", set[str]()),
            ("ADD", "c2", {NETNS}),
        ):
            call(run_dir, verb, container)
            while paths(run_dir) != wanted:
                assert select.select([watch.fileno()], [], [], PATIENCE)[0], f"{verb} {container}: not published"
                watch.changed()


def test_the_last_change_is_written_before_the_end(tmp_path: Path) -> None:
    publisher = Publisher(tmp_path, Host().plugin)
    publisher.start()
    publisher.changed()
    publisher.close()
    assert podspaces.path(tmp_path).exists()


def test_a_bug_does_not_end_the_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host()
    publisher, fails = Publisher(tmp_path, host.plugin), [True]
    spaces = host.plugin.pod_spaces

    def sometimes() -> object:
        if fails.pop() if fails else False:
            raise RuntimeError("a bug")
        return spaces()

    monkeypatch.setattr(host.plugin, "pod_spaces", sometimes)
    watch = FileWatch(tmp_path, [podspaces.path(tmp_path).name])
    with contextlib.closing(watch):
        publisher.start()
        publisher.changed()
        while fails:
            select.select([], [], [], 0.01)
        publisher.changed()
        assert select.select([watch.fileno()], [], [], PATIENCE)[0]
        publisher.close()
