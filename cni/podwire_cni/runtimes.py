"""Asks the container runtime of the node which pod sandboxes it knows: one unary gRPC call over its CRI socket.

The module encodes the HTTP/2 frames itself, because this one call does not justify a gRPC library in every agent. It
does not decode header fields: an answer with a complete message and an orderly end of the stream is a success, because
a gRPC error has no message. Sources: RFC 9113, RFC 7541 (section 6.2.2), the gRPC HTTP/2 protocol, CRI v1
(ListPodSandbox).
"""

from __future__ import annotations

import socket
import stat
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

# containerd, CRI-O, k3s and RKE2, cri-dockerd, MicroK8s
SOCKETS = tuple(
    map(
        Path,
        (
            "/run/containerd/containerd.sock",
            "/run/crio/crio.sock",
            "/run/k3s/containerd/containerd.sock",
            "/run/cri-dockerd.sock",
            "/var/snap/microk8s/common/run/containerd.sock",
        ),
    )
)
SECONDS = 5.0
MOST = 32 << 20  # bytes of an answer
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY, _WINDOW = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _ACK = 1, 1


class NoAnswer(Exception):
    """The runtime gave no list: it does not serve CRI, or broke off."""


def present(sockets: Sequence[Path]) -> list[Path]:
    """Returns those of the paths that are sockets."""
    return [path for path in sockets if _is_socket(path)]


def _is_socket(path: Path) -> bool:
    try:
        return stat.S_ISSOCK(path.stat().st_mode)
    except OSError:
        return False


def sandboxes(path: Path, seconds: float = SECONDS) -> frozenset[str]:
    """Returns the ids of all pod sandboxes, ready or not, that the runtime at this socket knows. Raises NoAnswer or
    OSError.
    """
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(seconds)
        sock.connect(str(path))
        window = struct.pack(">HI", 4, 0x7FFFFFFF)  # SETTINGS_INITIAL_WINDOW_SIZE: the answer needs no updates
        sock.sendall(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
            + _frame(_SETTINGS, 0, 0, window)
            + _frame(_WINDOW, 0, 0, struct.pack(">I", MOST))
            + _frame(_HEADERS, 4, 1, _headers("/runtime.v1.RuntimeService/ListPodSandbox"))
            + _frame(_DATA, _END_STREAM, 1, bytes(5))  # an empty message: no filter
        )
        return frozenset(ids(_message(sock)))


def _frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    return struct.pack(">I", len(body))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + body


def _headers(method: str) -> bytes:
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": method,
        ":authority": "localhost",
        "content-type": "application/grpc",
        "te": "trailers",
    }
    # literals without indexing, new names, no Huffman coding; all are shorter than 127 bytes
    return b"".join(
        b"\0" + bytes((len(name),)) + name.encode() + bytes((len(value),)) + value.encode()
        for name, value in fields.items()
    )


def _message(sock: socket.socket) -> bytes:
    """Returns the message of the answer."""
    body = b""
    with sock.makefile("rb") as stream:
        while True:
            head = stream.read(9)
            size = int.from_bytes(head[:3], "big")
            if len(head) < 9 or len(body) + size > MOST:
                raise NoAnswer("the runtime's answer breaks off, or is too long")
            content, kind, flags = stream.read(size), head[3], head[4]
            if kind == _SETTINGS and not flags & _ACK:
                sock.sendall(_frame(_SETTINGS, _ACK, 0, b""))
            elif kind == _PING and not flags & _ACK:
                sock.sendall(_frame(_PING, _ACK, 0, content))
            elif kind in (_RESET, _GOAWAY):
                raise NoAnswer(f"the runtime broke off: {content!r}")
            elif kind == _DATA:
                body += content
            elif kind == _HEADERS and flags & _END_STREAM:
                break
    # one byte says whether the message is compressed, four its length
    if len(body) < 5 or body[0] or struct.unpack_from(">I", body, 1)[0] != len(body) - 5:
        raise NoAnswer("the runtime answers with an error; does it serve CRI v1?")
    return body[5:]


def ids(message: bytes) -> Iterator[str]:
    """Yields the ids of a ListPodSandboxResponse: field 1 has the sandboxes, and field 1 of a sandbox its id."""
    for number, sandbox in _fields(message):
        if number == 1:
            yield from (value.decode(errors="replace") for key, value in _fields(sandbox) if key == 1)


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yields (number, content) of the fields of a protobuf message that have a length. Skips all others."""
    at = 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            if at >= len(data) or shift > 63:
                raise NoAnswer("the runtime's answer is no protobuf message")
            byte, at = data[at], at + 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        tag = number()
        match tag & 7:
            case 0:
                number()
            case 1:
                at += 8
            case 5:
                at += 4
            case 2:
                size = number()
                if at + size > len(data):
                    raise NoAnswer("the runtime's answer is no protobuf message")
                yield tag >> 3, data[at : at + size]
                at += size
            case _:
                raise NoAnswer("the runtime's answer is no protobuf message")
