"""The program in the pods of `podwire check`: it answers requests, and sends those that it is told to.

One file of the standard library, because any image with Python must do: the pod has this source in an environment
variable.

    serve PORT [HOST_PORT ...]   answer TCP, UDP and (where the kernel has it) SCTP on each port until the end
    ask                          read requests as JSON from standard input, write a list of answers

A request is a line of JSON on a stream, or a datagram: {"reply": N} asks for an answer of at least N bytes. The answer
is {"host": pod name, "peer": the client's address as the server sees it, "size": bytes received}.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import selectors
import socket
import struct
import sys
import time
from collections.abc import Iterator
from typing import Any

SCTP = 132
IP_MTU_DISCOVER, IP_PMTUDISC_DO, IP_MTU = 10, 2, 14
IPV6_MTU_DISCOVER, IPV6_MTU = 23, 24
LARGEST = 65000


# ---- the server


def answer(peer: Any, size: int, reply: int = 0) -> bytes:
    told = {"host": os.environ.get("PODWIRE_PROBE_NAME") or socket.gethostname(), "peer": bare(peer[0]), "size": size}
    text = json.dumps(told).encode()
    return text + b" " * (min(reply, LARGEST) - len(text) - 1) + b"\n"


def bare(address: str) -> str:
    return address[7:] if address.startswith("::ffff:") else address


def wanted(data: bytes) -> int:
    with contextlib.suppress(ValueError, AttributeError, TypeError):
        return int(json.loads(data).get("reply", 0))
    return 0


def listening(kind: socket.SocketKind, protocol: int, port: int) -> socket.socket:
    both = socket.socket(socket.AF_INET6, kind, protocol)
    with contextlib.suppress(OSError):
        both.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    both.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    both.setblocking(False)
    both.bind(("::", port))
    if kind == socket.SOCK_STREAM:
        both.listen(64)
    return both


def serve(ports: list[int]) -> None:
    ready = selectors.DefaultSelector()
    for port in ports:
        for kind, protocol in ((socket.SOCK_STREAM, 0), (socket.SOCK_DGRAM, 0), (socket.SOCK_STREAM, SCTP)):
            try:
                made = listening(kind, protocol, port)
            except OSError as err:
                if protocol != SCTP:
                    print(f"port {port}: {err}", file=sys.stderr, flush=True)
                continue
            ready.register(made, selectors.EVENT_READ, accept if kind == socket.SOCK_STREAM else datagram)
    while True:
        for key, _ in ready.select():
            with contextlib.suppress(OSError):
                key.data(ready, key.fileobj)


def accept(ready: selectors.BaseSelector, server: socket.socket) -> None:
    sock, _ = server.accept()
    sock.setblocking(False)
    ready.register(sock, selectors.EVENT_READ, stream)


def stream(ready: selectors.BaseSelector, sock: socket.socket) -> None:
    try:
        data = sock.recv(4096)
        if data:
            sock.sendall(answer(sock.getpeername(), len(data), wanted(data)))
    finally:
        ready.unregister(sock)
        sock.close()


def datagram(_ready: selectors.BaseSelector, server: socket.socket) -> None:
    data, peer = server.recvfrom(65535)
    server.sendto(answer(peer, len(data), wanted(data)), peer)


# ---- the client


def failed(err: Exception) -> dict[str, Any]:
    name = errno.errorcode.get(err.errno or 0, "") if isinstance(err, OSError) else ""
    if isinstance(err, TimeoutError):
        name = "timeout"
    return {"error": name or type(err).__name__, "text": str(err)}


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def exchange(sock: socket.socket, request: Any, line: bytes) -> dict[str, Any]:
    sock.settimeout(request.get("timeout", 3))
    begin = time.monotonic()
    sock.connect((request["to"], request["port"]))
    sock.sendall(line)
    data = b""
    while not data.endswith(b"\n"):
        part = sock.recv(65535)
        if not part:
            break
        data += part
    return {**json.loads(data), "bytes": len(data), "seconds": round(time.monotonic() - begin, 4)}


def connect(request: Any, kind: socket.SocketKind = socket.SOCK_STREAM, protocol: int = 0) -> Any:
    found = []
    line = json.dumps({"reply": request.get("reply", 0)}).encode()
    line = line + b" " * (request.get("size", 0) - len(line))
    for _ in range(request.get("count", 1)):
        try:
            with socket.socket(family_of(request["to"]), kind, protocol) as sock:
                found.append(exchange(sock, request, line))
        except (OSError, ValueError) as err:
            found.append(failed(err))
    return found


def path_mtu(request: Any) -> dict[str, Any]:
    """Send whole packets that nobody may cut, from the interface's size down, until one is answered."""
    six = ":" in request["to"]
    headers = 48 if six else 28
    with socket.socket(family_of(request["to"]), socket.SOCK_DGRAM) as sock:
        sock.settimeout(request.get("timeout", 1))
        level = socket.IPPROTO_IPV6 if six else socket.IPPROTO_IP
        sock.setsockopt(level, IPV6_MTU_DISCOVER if six else IP_MTU_DISCOVER, IP_PMTUDISC_DO)
        sock.connect((request["to"], request["port"]))
        told = first = sock.getsockopt(level, IPV6_MTU if six else IP_MTU)
        lost: list[int] = []
        size = first
        while size >= 1200:
            try:
                sock.send(b"{}" + b" " * (size - headers - 2))
                sock.recv(2048)
                return {"mtu": first, "passes": size, "lost": lost, "told": told}
            except TimeoutError:
                lost.append(size)
                size -= 50 if len(lost) > 1 else 0  # the first may have been lost by chance
            except OSError as err:
                if err.errno != errno.EMSGSIZE:
                    return failed(err)
                told = sock.getsockopt(level, IPV6_MTU if six else IP_MTU)
                size = min(told, size - 1)
    return {"mtu": first, "passes": 0, "lost": lost, "told": told}


def resolve(request: Any) -> dict[str, Any]:
    """As a program resolves a name: /etc/resolv.conf and its search path."""
    try:
        found = socket.getaddrinfo(request["name"], None, type=socket.SOCK_STREAM)
        return {"addresses": sorted({row[4][0] for row in found})}
    except OSError as err:
        return {"error": type(err).__name__, "text": str(err)}


def resolvers() -> list[str]:
    with open("/etc/resolv.conf") as file:
        rows = [line.split() for line in file]
    return [words[1] for words in rows if len(words) > 1 and words[0] == "nameserver"]


def query(request: Any) -> dict[str, Any]:
    """Ask the resolver of the pod for a record. Types: A 1, PTR 12, SRV 33."""
    name = b"".join(bytes((len(part),)) + part.encode() for part in request["name"].rstrip(".").split(".")) + b"\0"
    number = os.urandom(2)
    asked = number + struct.pack("!HHHHH", 0x0100, 1, 0, 0, 0) + name + struct.pack("!HH", request["type"], 1)
    server = resolvers()[0]
    try:
        with socket.socket(family_of(server), socket.SOCK_DGRAM) as sock:
            sock.settimeout(request.get("timeout", 3))
            sock.connect((server, 53))
            sock.send(asked)
            data = sock.recv(4096)
    except OSError as err:
        return failed(err)
    return {"rcode": data[3] & 15, "answers": list(records(data))}


def text_of(data: bytes, at: int) -> tuple[str, int]:
    """A name in a message, and where it ends."""
    parts, end, seen = [], 0, 0
    while data[at] and seen < 64:
        seen += 1
        if data[at] >= 192:
            end = end or at + 2
            at = struct.unpack_from("!H", data, at)[0] & 0x3FFF
            continue
        parts.append(data[at + 1 : at + 1 + data[at]].decode(errors="replace"))
        at += 1 + data[at]
    return ".".join(parts), end or at + 1


def records(data: bytes) -> Iterator[str]:
    questions, answers = struct.unpack_from("!HH", data, 4)
    at = 12
    for _ in range(questions):
        at = text_of(data, at)[1] + 4
    for _ in range(answers):
        at = text_of(data, at)[1]
        kind, _, _, length = struct.unpack_from("!HHIH", data, at)
        at += 10
        if kind in (1, 28):
            yield socket.inet_ntop(socket.AF_INET if kind == 1 else socket.AF_INET6, data[at : at + length])
        elif kind in (5, 12):
            yield text_of(data, at)[0]
        elif kind == 33:
            port = struct.unpack_from("!H", data, at + 4)[0]
            yield f"{text_of(data, at + 6)[0]}:{port}"
        at += length


def search(_request: Any) -> dict[str, Any]:
    with open("/etc/resolv.conf") as file:
        rows = [line.split() for line in file]
    return {"search": [word for words in rows if words[:1] == ["search"] for word in words[1:]]}


def touch(request: Any) -> dict[str, Any]:
    """Open a connection to anything and close it."""
    try:
        with socket.create_connection((request["to"], request["port"]), request.get("timeout", 3)):
            return {}
    except OSError as err:
        return failed(err)


def sctp(request: Any) -> Any:
    return connect(request, socket.SOCK_STREAM, SCTP)


def udp(request: Any) -> Any:
    return connect(request, socket.SOCK_DGRAM)


DO = {
    "tcp": connect,
    "udp": udp,
    "sctp": sctp,
    "mtu": path_mtu,
    "resolve": resolve,
    "query": query,
    "search": search,
    "touch": touch,
}


def main(words: list[str]) -> None:
    if words[0] == "serve":
        serve([int(word) for word in words[1:]])
    found = [DO[request["do"]](request) for request in json.loads(sys.stdin.read() if len(words) < 2 else words[1])]
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
