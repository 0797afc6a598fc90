"""The API server's sockets: connections that do not get to an authenticated request are bounded."""

from __future__ import annotations

import contextlib
import io
import socket
import ssl
import time
from collections.abc import Iterator

import pytest

from podwire_base.patience import patient
from podwire_base.role import accept, logs, logtext
from podwire_base.testing.descriptors import free_descriptors
from podwire_controlplane.server import listening

from ..testing.servers import AUTHORITY, Server

PODS = "/api/v1/namespaces/default/pods"


@pytest.fixture
def open_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(listening, "PER_PEER", 5)
    with Server() as server:
        yield server


def silent(server: Server, number: int, source: str = "127.0.0.2") -> list[socket.socket]:
    made = [socket.create_connection(("127.0.0.1", server.port), source_address=(source, 0)) for _ in range(number)]
    for one in made:
        one.settimeout(patient(8))
    return made


def closed(sock: socket.socket) -> bool:
    try:
        return sock.recv(1000) == b""
    except (ConnectionResetError, ssl.SSLEOFError):
        return True


def trusting() -> ssl.SSLContext:
    return ssl.create_default_context(cadata=AUTHORITY.certificate)


@pytest.mark.parametrize("said", [b"", b"\x16\x03\x01", b"GET / HTTP/1.1\r\n"], ids=["silent", "half", "no TLS"])
def test_handshakes_of_one_peer_do_not_hold_up_another(open_server: Server, said: bytes) -> None:
    many = silent(open_server, 30)
    with contextlib.suppress(OSError):  # the server has closed it already
        for one in many:
            one.sendall(said)
    began = time.monotonic()
    assert all(closed(one) for one in many[:25])
    assert time.monotonic() - began < patient(listening.HANDSHAKE_SECONDS - 4), "the limit of number, not of time"
    assert open_server.good("GET", PODS)["kind"] == "PodList"
    for one in many:
        one.close()


def test_a_peer_that_floods_is_still_served_itself(open_server: Server) -> None:
    many = silent(open_server, 30, "127.0.0.1")
    assert open_server.good("GET", PODS)["kind"] == "PodList"
    for one in many:
        one.close()


def test_a_slow_handshake_ends(monkeypatch: pytest.MonkeyPatch, open_server: Server) -> None:
    monkeypatch.setattr(listening, "HANDSHAKE_SECONDS", 0.2)
    (one,) = silent(open_server, 1)
    one.sendall(b"\x16")
    assert closed(one)
    one.close()


@pytest.mark.parametrize("request_line", [b"", b"GET / HT", b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"])
def test_a_connection_without_a_user_ends_and_a_watch_goes_on(
    monkeypatch: pytest.MonkeyPatch, open_server: Server, request_line: bytes
) -> None:
    monkeypatch.setattr(listening, "FIRST_SECONDS", 0.3)
    with (
        open_server.open("GET", f"{PODS}?watch=true") as watch,
        socket.create_connection(("127.0.0.1", open_server.port), patient(8)) as raw,
        trusting().wrap_socket(raw, server_hostname="127.0.0.1") as talk,
    ):
        talk.sendall(request_line)
        while talk.recv(1000):
            pass
        time.sleep(0.4)
        open_server.good(
            "POST", PODS, {"metadata": {"name": "a"}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
        )
        assert b'"ADDED"' in watch.readline()


def test_connections_without_a_user_are_bounded_in_number(open_server: Server) -> None:
    made = list[ssl.SSLSocket]()
    for _ in range(12):
        (one,) = silent(open_server, 1)
        made.append(trusting().wrap_socket(one, server_hostname="127.0.0.1"))
    assert all(closed(one) for one in made[:7])
    made[-1].settimeout(0.05)
    with pytest.raises(TimeoutError):
        closed(made[-1])
    for each in made:
        each.close()


def test_without_free_descriptors_it_says_so_and_serves_again(
    monkeypatch: pytest.MonkeyPatch, open_server: Server
) -> None:
    monkeypatch.setattr(accept, "AGAIN", 0.02)
    monkeypatch.setattr(logs._Settings, "repeats", logtext.Repeats())
    monkeypatch.setattr(logs._Settings, "stream", said := io.StringIO())
    made = [socket.socket() for _ in range(20)]
    with free_descriptors(2):
        for one in made:
            one.connect(("127.0.0.1", open_server.port))
        time.sleep(0.3)
    for one in made:
        one.close()
    assert open_server.good("GET", PODS)["kind"] == "PodList"
    lines = said.getvalue().splitlines()
    assert 1 <= len(lines) <= 6 and all("no connection can be accepted" in line for line in lines)
