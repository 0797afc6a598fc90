"""The test server of pods, compiled and in Python, without free file descriptors."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from podwire_base.patience import patient
from podwire_node.runtime import ECHO_STANDIN, echo_binary

KINDS = {"compiled": [str(echo_binary())], "python": [sys.executable, "-IS", str(ECHO_STANDIN)]}


def seconds_of(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("kind", KINDS)
def test_more_connections_than_descriptors(kind: str) -> None:
    if kind == "compiled" and echo_binary() is None:
        pytest.skip("podwire-echo is not compiled")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(["sh", "-c", 'ulimit -n 20; exec "$@"', "sh", *KINDS[kind], "--tcp", str(port)])
    try:
        end = time.monotonic() + patient(20)
        while time.monotonic() < end:
            with contextlib.suppress(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port)).close()
                break
            time.sleep(0.01)
        many = [socket.create_connection(("127.0.0.1", port)) for _ in range(40)]
        before = seconds_of(server.pid)
        time.sleep(0.4)
        assert seconds_of(server.pid) - before < 0.2, "it does not spin"
        assert server.poll() is None
        for one in many:
            one.close()
        with socket.create_connection(("127.0.0.1", port), timeout=patient(20)) as last:
            assert last.recv(100)
    finally:
        server.kill()
        server.wait()
