"""Ports for servers of tests. A port that the kernel chooses and that the test closes again can be anybody's before the
server binds it: a client's in another process of the tests, for a moment.
"""

from __future__ import annotations

import errno
import os
import random
import socket
from pathlib import Path

_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST = 10000
_held: list[socket.socket] = []  # until the process ends
_draw = random.Random(os.getpid())


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port of `host` that is free for UDP and for TCP, in the network namespace of the calling thread.

    The kernel gives it to no client, and `free_port` gives it to no other call, in this process and in all others: a
    name in the namespace of abstract sockets, which is that of the network, stands for it. Raises OSError.
    """
    below = int(_RANGE.read_text().split()[0])
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for port in _draw.sample(range(_LOWEST, below), below - _LOWEST):
        held = socket.socket(socket.AF_UNIX)
        try:
            held.bind(f"\0podwire-test-port-{port}")
            with socket.socket(family, socket.SOCK_DGRAM) as udp, socket.socket(family) as tcp:
                udp.bind((host, port))
                tcp.setsockopt(
                    socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
                )  # a connection that has just ended is no server
                tcp.bind((host, port))
        except OSError as err:
            held.close()
            if err.errno != errno.EADDRINUSE:
                raise
        else:
            _held.append(held)
            return port
    raise OSError(errno.EADDRINUSE, f"no free port of {host} in {_LOWEST}-{below}")
