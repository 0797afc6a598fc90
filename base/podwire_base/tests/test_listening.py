"""Which addresses and ports processes listen on, from this machine's own kernel."""

from __future__ import annotations

import contextlib
import socket

import pytest

from podwire_base.kernel.listening import Listener, listeners

TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM


@pytest.mark.parametrize(
    ("family", "kind", "address", "only_v6", "expected"),
    [
        (socket.AF_INET, TCP, "127.0.0.1", None, ("TCP", "127.0.0.1", "4")),
        (socket.AF_INET, UDP, "0.0.0.0", None, ("UDP", "", "4")),
        (socket.AF_INET6, TCP, "::", 0, ("TCP", "", "46")),
        (socket.AF_INET6, TCP, "::", 1, ("TCP", "", "6")),
        (socket.AF_INET6, UDP, "::", 0, ("UDP", "", "46")),
        (socket.AF_INET6, TCP, "::ffff:127.0.0.1", 0, ("TCP", "127.0.0.1", "46")),
    ],
)
def test_a_listener_is_found(
    family: int, kind: int, address: str, only_v6: int | None, expected: tuple[str, ...]
) -> None:
    with contextlib.closing(socket.socket(family, kind)) as sock:
        if only_v6 is not None:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only_v6)
        sock.bind((address, 0))
        if kind == TCP:
            assert not [one for one in listeners() if one.port == sock.getsockname()[1] and one.protocol == "TCP"]
            sock.listen()
        port = sock.getsockname()[1]
        protocol, ip, families = expected
        assert Listener(protocol, ip, port, families) in listeners()


@pytest.mark.parametrize(
    ("listener", "hears"),
    [
        (Listener("TCP", "", 80, "46"), {("TCP", "192.0.2.1", 80), ("TCP", "fd00::1", 80)}),
        (Listener("TCP", "", 80, "6"), {("TCP", "fd00::1", 80)}),
        (Listener("TCP", "192.0.2.1", 80, "46"), {("TCP", "192.0.2.1", 80)}),
        (Listener("UDP", "", 80, "4"), {("UDP", "192.0.2.1", 80)}),
    ],
)
def test_what_a_listener_hears(listener: Listener, hears: set[tuple[str, str, int]]) -> None:
    asked = {(p, ip, n) for p in ("TCP", "UDP") for ip in ("192.0.2.1", "192.0.2.2", "fd00::1") for n in (80, 81)}
    asked -= {(p, "192.0.2.2", n) for p in ("TCP", "UDP") for n in (80, 81)}
    assert {one for one in asked if listener.hears(*one)} == hears
