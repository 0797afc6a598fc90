"""One call of grpc.health.v1.Health/Check, for gRPC probes (core/v1 GRPCAction), over HTTP/2 frames that this module
encodes: a probe needs no more of gRPC. Sources: RFC 9113, RFC 7541 section 6.2.2, the gRPC health checking protocol.
"""

from __future__ import annotations

import asyncio
import struct

_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY, _WINDOW = 0, 1, 3, 4, 6, 7, 8
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_STATES = {0: "UNKNOWN", 1: "SERVING", 2: "NOT_SERVING", 3: "SERVICE_UNKNOWN"}
_LIMIT = 1 << 16  # bytes of an answer; it has two


def frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    return struct.pack(">I", len(body))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + body


def request(service: str) -> bytes:
    """Return the frames of the call. Header fields are literals without Huffman coding."""
    fields = (
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", b"/grpc.health.v1.Health/Check"),
        (b":authority", b"localhost"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
    )
    block = b"".join(b"\0" + bytes((len(key),)) + key + bytes((len(value),)) + value for key, value in fields)
    name = service.encode()
    if len(name) > 255:
        raise ValueError("service: the name has more than 255 bytes")
    length = bytes((len(name),)) if len(name) < 128 else bytes((len(name) & 0x7F | 0x80, len(name) >> 7))
    message = b"\x0a" + length + name if name else b""
    data = b"\0" + struct.pack(">I", len(message)) + message
    return _PREFACE + frame(_SETTINGS, 0, 0, b"") + frame(_HEADERS, 4, 1, block) + frame(_DATA, 1, 1, data)


def verdict(body: bytes) -> str:
    """Return "" if a HealthCheckResponse in gRPC's framing says SERVING, else what it says."""
    if len(body) < 5:
        return "the server knows no such service, or has no health service"
    message = body[5:]
    state = message[1] if len(message) > 1 and message[0] == 8 else 0  # field 1, a varint; a missing one is 0
    return "" if state == 1 else f"service unhealthy (responded with {_STATES.get(state, str(state))!r})"


async def check(address: str, port: int, service: str) -> str:
    """Return "" if the service at address:port is healthy, else why not. Raises OSError and ValueError."""
    reader, writer = await asyncio.open_connection(address, port)
    body = b""
    try:
        writer.write(request(service))
        while True:
            head = await reader.readexactly(9)
            content = await reader.readexactly(int.from_bytes(head[:3], "big"))
            kind, flags, stream = head[3], head[4], int.from_bytes(head[5:9], "big") & 0x7FFFFFFF
            if kind in (_SETTINGS, _PING) and not flags & 1:
                writer.write(frame(kind, 1, 0, b"" if kind == _SETTINGS else content))
            elif kind in (_RESET, _GOAWAY):
                return "the server broke off the call"
            elif kind == _DATA and stream == 1:
                padding = content[0] if flags & 8 else 0
                body += content[1 : len(content) - padding] if flags & 8 else content
            if len(body) > _LIMIT:
                return "the answer is no answer of a health service"
            if stream == 1 and kind in (_DATA, _HEADERS) and flags & 1:
                return verdict(body)
    except asyncio.IncompleteReadError:
        return "the server closed the connection: it speaks no gRPC"
    finally:
        writer.close()
