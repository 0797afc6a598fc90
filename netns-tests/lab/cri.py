"""The part of gRPC that a kubelet needs: unary calls to a CRI socket, over HTTP/2 frames that this module encodes.

Each call uses a new connection. Header fields are plain literals. Trailers are not read, so an answer without a message
counts as an error; the runtime's log has the details. Sources: RFC 9113, RFC 7541 section 6.2.2, the gRPC HTTP/2
protocol, the CRI v1 message numbers.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable
from pathlib import Path

from .patience import patient

Value = str | int | bytes | Iterable["tuple[int, Value]"]
Fields = list[tuple[int, Value]]
TCP, UDP = 0, 1
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY = 0, 1, 3, 4, 6, 7


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def encode(fields: Iterable[tuple[int, Value]]) -> bytes:
    """Return a protobuf message with the fields (number, value). An int becomes a varint, str and bytes become bytes,
    and any other value becomes a nested message.
    """
    out = b""
    for number, value in fields:
        if isinstance(value, int):
            out += _varint(number << 3) + _varint(value)
            continue
        raw = value.encode() if isinstance(value, str) else value if isinstance(value, bytes) else encode(value)
        out += _varint(number << 3 | 2) + _varint(len(raw)) + raw
    return out


def decode(data: bytes) -> dict[int, list[bytes | int]]:
    """Return number -> values for the fields of a message. Nested messages stay bytes."""
    found: dict[int, list[bytes | int]] = {}
    at = 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        tag = number()
        if tag & 7 == 0:
            found.setdefault(tag >> 3, []).append(number())
        elif tag & 7 == 2:
            size = number()
            found.setdefault(tag >> 3, []).append(data[at : at + size])
            at += size
        else:
            at += 8 if tag & 7 == 1 else 4
    return found


def _frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    return struct.pack(">I", len(body))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + body


def _headers(method: str) -> bytes:
    fields = (
        (":method", "POST"),
        (":scheme", "http"),
        (":path", method),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    )
    out = b""
    for name, value in fields:
        # literal without indexing, new name, no Huffman coding; all names and values are shorter than 127 bytes
        out += b"\0" + bytes((len(name),)) + name.encode() + bytes((len(value),)) + value.encode()
    return out


class CallFailed(Exception):
    """The runtime returned an error; its log has the details."""


def call(
    path: Path, method: str, request: Iterable[tuple[int, Value]], timeout: float = 60
) -> dict[int, list[bytes | int]]:
    """Make a unary call of runtime.v1.RuntimeService and return the answer's fields. Raises CallFailed and OSError."""
    message = encode(request)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(patient(timeout))
        sock.connect(str(path))
        sock.sendall(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
            + _frame(_SETTINGS, 0, 0, b"")
            + _frame(_HEADERS, 4, 1, _headers(f"/runtime.v1.RuntimeService/{method}"))
            + _frame(_DATA, 1, 1, b"\0" + struct.pack(">I", len(message)) + message)
        )
        body, stream = b"", sock.makefile("rb")
        while True:
            head = stream.read(9)
            if len(head) < 9:
                raise CallFailed(f"{method}: the connection ended")
            content = stream.read(int.from_bytes(head[:3], "big"))
            kind, flags = head[3], head[4]
            if kind == _SETTINGS and not flags & 1:
                sock.sendall(_frame(_SETTINGS, 1, 0, b""))
            elif kind == _PING and not flags & 1:
                sock.sendall(_frame(_PING, 1, 0, content))
            elif kind in (_RESET, _GOAWAY):
                raise CallFailed(f"{method}: the runtime broke off: {content!r}")
            elif kind == _DATA:
                body += content
            elif kind == _HEADERS and flags & 1:
                break
    if len(body) < 5:
        raise CallFailed(f"{method}: an error; see the runtime's log")
    return decode(body[5:])


def sandbox_config(
    name: str, ports: Iterable[tuple[int, int, int]] = (), annotations: dict[str, str] | None = None
) -> Fields:
    """Return the fields of a PodSandboxConfig. ports: (protocol, containerPort, hostPort)."""
    return [
        (1, [(1, name), (2, f"uid-{name}"), (3, "default")]),
        (2, name),
        *((5, [(1, protocol), (2, container), (3, host)]) for protocol, container, host in ports),
        *((7, [(1, key), (2, value)]) for key, value in (annotations or {}).items()),
        (8, []),
    ]


def run_sandbox(path: Path, config: Fields) -> str:
    """Create a sandbox and return its id."""
    (ident,) = call(path, "RunPodSandbox", [(1, config)])[1]
    assert isinstance(ident, bytes)
    return ident.decode()


def sandbox_ip(path: Path, ident: str) -> str:
    (status,) = call(path, "PodSandboxStatus", [(1, ident)])[1]
    assert isinstance(status, bytes)
    (network,) = decode(status)[5]
    assert isinstance(network, bytes)
    (ip,) = decode(network)[1]
    assert isinstance(ip, bytes)
    return ip.decode()


def stop_sandbox(path: Path, ident: str) -> None:
    """Stop and remove a sandbox."""
    call_empty(path, "StopPodSandbox", ident)
    call_empty(path, "RemovePodSandbox", ident)


def call_empty(path: Path, method: str, ident: str) -> None:
    """Make a call about sandbox `ident` whose answer has no fields."""
    call(path, method, [(1, ident)])
