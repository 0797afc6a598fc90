"""podwire-echo says what it should."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from pathlib import Path

import pytest

from lab.netns import Lab
from lab.patience import patient

ROOT = Path(__file__).resolve().parents[1]


def _echo() -> str:
    path = ROOT / "controlplane/podwire_node/native/bin/podwire-echo"
    assert path.exists(), "install podwire again: its native programs are compiled then"
    return str(path)


def test_echo_answers_http_tcp_and_udp_with_the_peers_address(lab: Lab) -> None:
    server, client = lab.netns("server"), lab.netns("client")
    lab.wire(server, "eth0", client, "eth0", "10.9.0.1/24", "10.9.0.2/24")
    process = server.popen([_echo(), "--http", "80", "--tcp", "7", "--udp", "7"])

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
def test_echo_names_a_wrong_argument(words: list[str]) -> None:
    done = subprocess.run([_echo(), *words], capture_output=True, text=True, timeout=patient(5), check=False)
    assert done.returncode == 2
    assert words[0] in done.stderr
