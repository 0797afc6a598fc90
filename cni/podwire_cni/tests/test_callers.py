"""Any input at the agent's socket, in any pieces: both implementations of a caller read it the same."""

from __future__ import annotations

import gc
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from podwire_base.native import Library
from podwire_cni import listener as listener_module
from podwire_cni.callers import BrokeOff, Caller, take
from podwire_cni.commands import Plugin
from podwire_cni.native import attach
from podwire_cni.native.attach import AttachLibrary

WAYS = [
    pytest.param(None, id="python"),
    pytest.param(
        attach.load(),
        id="library",
        marks=pytest.mark.skipif(attach.library().left_out, reason=attach.library().problem),
    ),
]


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(str(tmp_path / "s"))
        sock.listen()
        yield sock


def request(env: dict[str, str], stdin: bytes, flags: int = 1, error: int = 0) -> bytes:
    text = b"".join(f"{key}={value}".encode() + b"\0" for key, value in env.items())
    return struct.pack("=4s4I", b"PWC1", flags, error, len(text), len(stdin)) + text + stdin


def call(listener: socket.socket, parts: list[bytes], fds: list[int]) -> socket.socket:
    """A caller that sends `parts` one after another, its descriptors with the first."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(listener.getsockname())

    def say() -> None:
        socket.send_fds(sock, [parts[0]], fds) if fds else sock.sendall(parts[0])
        for part in parts[1:]:
            time.sleep(0.01)
            sock.sendall(part)

    threading.Thread(target=say, daemon=True).start()
    return sock


def descriptors() -> int:
    gc.collect()  # otherwise descriptors of earlier tests may be closed between two counts
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def closed(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return True
    return False


ENV = {"CNI_COMMAND": "ADD", "CNI_NETNS": "/x=y", "EMPTY": ""}


@pytest.mark.parametrize("library", WAYS)
@pytest.mark.parametrize("size", [0, 10, 16_000, 16_384, 200_000])
@pytest.mark.parametrize("cut", [1, 19, 20, 21, 5_000, 1 << 20])
def test_a_request_in_pieces(listener: socket.socket, library: AttachLibrary | None, size: int, cut: int) -> None:
    data = request(ENV, b"x" * size, error=2)
    parts = [part for part in (data[:cut], data[cut:]) if part]
    fds = [os.open("/proc/self/ns/net", os.O_RDONLY), os.open("/proc/self/ns/uts", os.O_RDONLY)]
    with call(listener, parts, fds) as sock:
        caller: Caller = take(listener, library)
        asked = caller.request
        assert (asked.env, asked.stdin, asked.flags, asked.error) == (ENV, b"x" * size, 1, 2)
        own, other = (os.fstat(fd) for fd in fds)
        assert caller.node == (own.st_dev, own.st_ino) and caller.pod_id == (other.st_dev, other.st_ino)
        assert caller.pod is not None and caller.pod not in fds and not caller.pod_is_netns, "a UTS namespace"
        assert not caller.gone()
        caller.answer(b"done" * 5)
        assert sock.recv(100) == b"done" * 5 and sock.recv(1) == b"", "answered, and closed"
        assert closed(caller.pod)
    for fd in fds:
        os.close(fd)


@pytest.mark.parametrize("library", WAYS)
def test_callers_without_namespaces_and_with_too_many(listener: socket.socket, library: AttachLibrary | None) -> None:
    with call(listener, [request(ENV, b"{}", flags=0)], []):
        caller = take(listener, library)
        assert (caller.node, caller.pod, caller.pod_id, caller.pod_is_netns) == (None, None, None, False)
        caller.close()
    before = descriptors()
    net = os.open("/proc/self/ns/net", os.O_RDONLY)
    with call(listener, [request(ENV, b"{}")], [net] * 4):
        caller = take(listener, library)
        assert caller.pod_is_netns and caller.pod_id == caller.node
        caller.close()
    os.close(net)
    assert descriptors() == before


@pytest.mark.parametrize("library", WAYS)
@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"PW",
        b"HTTP/1.1 200 OK and more than a head\r\n",
        request(ENV, b"{}")[:-1],
        struct.pack("=4s4I", b"PWC1", 0, 0, 1 << 31, 1 << 31) + b"x",
    ],
    ids=["nothing", "a piece", "another protocol", "all but a byte", "too much"],
)
def test_callers_that_say_nothing_sensible(listener: socket.socket, library: AttachLibrary | None, said: bytes) -> None:
    before = descriptors()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(listener.getsockname())
    sock.sendall(said)
    sock.close()
    with pytest.raises(BrokeOff, match=r"\w"):
        take(listener, library)
    assert descriptors() == before


@pytest.mark.parametrize("library", WAYS)
def test_a_caller_that_goes_is_noticed(listener: socket.socket, library: AttachLibrary | None) -> None:
    sock = call(listener, [request(ENV, b"{}")], [])
    caller = take(listener, library)
    assert not caller.gone()
    sock.close()
    assert caller.gone()
    with pytest.raises(OSError, match=r"\w"):
        for _ in range(2):
            caller.answer(b"x" * (1 << 20))


@pytest.mark.parametrize("library", WAYS)
def test_a_listener_that_ends_lets_its_workers_go(listener: socket.socket, library: AttachLibrary | None) -> None:
    ended = threading.Event()

    def work() -> None:
        with pytest.raises(OSError, match="Invalid argument"):
            take(listener, library)
        ended.set()

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(0.05)
    listener.shutdown(socket.SHUT_RDWR)
    thread.join(10)
    assert ended.is_set()


@pytest.mark.parametrize("problem", ["_attach is stale; install podwire again", ""])
def test_an_agent_without_the_library_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: str) -> None:
    said = list[object]()
    monkeypatch.setattr(attach, "library", lambda: Library(None, problem))
    monkeypatch.setattr(listener_module.log, "warn", lambda text, **more: said.append(more["reason"]))
    node = os.open("/proc/self/ns/net", os.O_RDONLY)
    agent = listener_module.Listener(tmp_path / "cni.sock", Plugin.__new__(Plugin), node)
    agent.close()
    os.close(node)
    assert said == ([problem] if problem else [])
