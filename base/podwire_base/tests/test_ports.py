"""Ports that tests take for their servers."""

from __future__ import annotations

import random
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from podwire_base.testing import ports

OTHER = """
import random
from podwire_base.testing import ports
ports._draw = random.Random(1)
print(*(ports.free_port() for _ in range(20)), flush=True)
input()
"""


def test_no_two_calls_get_the_same_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes try the ports in the same order, and a server has one of them."""
    below = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    with subprocess.Popen(
        [sys.executable, "-c", OTHER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as one:
        assert one.stdout is not None
        theirs = {int(word) for word in one.stdout.readline().split()}
        monkeypatch.setattr(ports, "_draw", random.Random(1))
        mine = [ports.free_port()]
        monkeypatch.setattr(ports, "_draw", random.Random(2))
        served = ports.free_port()
        ports._held.pop().close()  # this port is no longer named, but a server has it
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
            server.bind(("127.0.0.1", served))
            monkeypatch.setattr(ports, "_draw", random.Random(2))
            mine += [ports.free_port() for _ in range(20)]
        one.communicate("\n")
    assert len(theirs) == 20 and len({*mine}) == 21 and not {*mine} & {*theirs, served}
    assert max({*mine} | theirs) < below, "the kernel gives them to no client"
