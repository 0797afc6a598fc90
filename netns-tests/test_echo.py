"""podwire-echo gives the right answers: the compiled one and its Python replacement."""

from __future__ import annotations

import json
import socket
import subprocess
import time

import pytest

from lab.netns import Lab
from lab.patience import patient
from podwire_base.native import reason
from podwire_node import runtime


@pytest.fixture(params=["compiled", "python"])
def echo(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    if request.param == "python":
        monkeypatch.setattr(runtime, "echo_binary", lambda: None)
    elif runtime.echo_binary() is None:
        why = reason(runtime.NATIVE, "podwire-echo")
        assert why, "install podwire again: its native programs are compiled then"
        pytest.skip(f"podwire-echo is not compiled: {why}")
    return runtime.echo_command()


def test_echo_answers_http_tcp_and_udp_with_the_peers_address(lab: Lab, echo: list[str]) -> None:
    server, client = lab.netns("server"), lab.netns("client")
    lab.wire(server, "eth0", client, "eth0", "10.9.0.1/24", "10.9.0.2/24")
    process = server.popen([*echo, "--http", "80", "--tcp", "7", "--udp", "7"])

    def ask(kind: int, port: int, data: bytes) -> bytes:
        for _ in range(1000):
            with socket.socket(socket.AF_INET, kind) as sock:
                sock.settimeout(patient(2))
                try:
                    sock.connect(("10.9.0.1", port))
                    sock.sendall(data)
                    return sock.recv(4096)
                except ConnectionRefusedError:
                    time.sleep(0.02)  # it is starting
        raise AssertionError("podwire-echo does not listen")

    try:
        body = client.call(lambda: ask(socket.SOCK_STREAM, 80, b"GET / HTTP/1.1\r\n\r\n")).split(b"\r\n\r\n")[1]
        line = client.call(lambda: ask(socket.SOCK_STREAM, 7, b"")).split(b"\n")[0]
        datagram, payload = client.call(lambda: ask(socket.SOCK_DGRAM, 7, b"hello")).split(b"\n")
        for answer in (body, line, datagram):
            found = json.loads(answer)
            assert (found["peer"], found["host"]) == ("10.9.0.2", socket.gethostname())
        assert payload == b"hello"
    finally:
        process.terminate()
        assert process.wait(patient(5)) == 0


@pytest.mark.parametrize("words", [["--http", "0"], ["--sctp", "1"], ["--http"], ["x"]])
def test_echo_names_a_wrong_argument(words: list[str], echo: list[str]) -> None:
    done = subprocess.run([*echo, *words], capture_output=True, text=True, timeout=patient(5), check=False)
    assert done.returncode == 2
    assert words[0] in done.stderr
