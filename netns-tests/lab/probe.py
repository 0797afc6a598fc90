"""Probes: traffic from one namespace to another, and the result. TCP, UDP, ICMP, and SCTP if the kernel has it.

    with serve(server, "198.51.100.2", 80):
        assert tcp(client, "198.51.100.2", 80).peer[0] == "192.0.2.2"      # the source that the server saw
        assert ping(client, "198.51.100.2", size=2000, df=True).result == "too big"

`result` is "ok", "refused" (a reset or port unreachable), "timeout", "too big" (the path's MTU is in `mtu`), or the
name of an errno.
"""

from __future__ import annotations

import contextlib
import errno
import selectors
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from podwire_base.kernel.frames import checksum

from .netns import Inside
from .patience import patient

SCTP = 132
Protocol = Literal["tcp", "udp", "sctp"]
KINDS: dict[Protocol, tuple[socket.SocketKind, int]] = {
    "tcp": (socket.SOCK_STREAM, 0),
    "udp": (socket.SOCK_DGRAM, 0),
    "sctp": (socket.SOCK_STREAM, SCTP),
}
IP_MTU_DISCOVER, IP_PMTUDISC_DO, IP_PMTUDISC_DONT, IPV6_MTU_DISCOVER = 10, 2, 0, 23
IP_MTU, IPV6_MTU = 14, 24


@dataclass(frozen=True, slots=True)
class Reply:
    """server: the (address, port) that answered. peer: the client's (address, port) as the server saw it. mtu: the MTU
    of the path, 0 if unknown.
    """

    result: str
    server: tuple[str, int] = ("", 0)
    peer: tuple[str, int] = ("", 0)
    mtu: int = 0


def family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def sctp_here() -> bool:
    """Whether this kernel has SCTP sockets."""
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, SCTP).close()
    except OSError:
        return False
    return True


@contextlib.contextmanager
def serve(ns: Inside, address: str, port: int) -> Iterator[None]:
    """Run TCP and UDP servers, and an SCTP server if the kernel has SCTP. They answer with the destination address and
    the client's address.
    """
    protocols: tuple[Protocol, ...] = ("tcp", "udp", "sctp") if sctp_here() else ("tcp", "udp")
    selector, (wake, stop) = selectors.DefaultSelector(), socket.socketpair()

    def listen() -> None:
        for protocol in protocols:
            kind, number = KINDS[protocol]
            sock = socket.socket(family(address), kind, number)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((address, port))
            if kind == socket.SOCK_STREAM:
                sock.listen(128)
            selector.register(sock, selectors.EVENT_READ)

    def work() -> None:
        while True:
            for key, _ in selector.select():
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                if sock is stop:
                    return
                with contextlib.suppress(OSError):
                    answer(sock, address, port)

    ns.call(listen)
    selector.register(stop, selectors.EVENT_READ)
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        wake.send(b"x")
        thread.join()
        for key in list(selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]  # only sockets are registered
        selector.close()
        wake.close()


def answer(sock: socket.socket, address: str, port: int) -> None:
    """Answer one waiting connection or datagram with the destination address and the client's address."""
    if sock.type == socket.SOCK_STREAM:
        conn, peer = sock.accept()
        with conn:
            conn.send(f"{address} {port} {peer[0]} {peer[1]}".encode())
    else:
        _, peer = sock.recvfrom(65536)
        sock.sendto(f"{address} {port} {peer[0]} {peer[1]}".encode(), peer)


def tcp(ns: Inside, dst: str, port: int, *, src: str = "", sport: int = 0, timeout: float = 2) -> Reply:
    return _ask("tcp", ns, dst, port, src, sport, timeout)


def udp(
    ns: Inside, dst: str, port: int, *, src: str = "", sport: int = 0, timeout: float = 2, data: bytes = b"?"
) -> Reply:
    return _ask("udp", ns, dst, port, src, sport, timeout, data)


def sctp(ns: Inside, dst: str, port: int, *, src: str = "", sport: int = 0, timeout: float = 2) -> Reply:
    """Send a request over SCTP. The result is EPROTONOSUPPORT if the kernel has no SCTP."""
    return _ask("sctp", ns, dst, port, src, sport, timeout)


def _ask(
    protocol: Protocol, ns: Inside, dst: str, port: int, src: str, sport: int, timeout: float, data: bytes = b"?"
) -> Reply:
    kind, number = KINDS[protocol]

    def work() -> Reply:
        with socket.socket(family(dst), kind, number) as sock:
            sock.settimeout(patient(timeout))
            if src or sport:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind((src, sport))
            sock.connect((dst, port))
            if protocol == "udp":
                sock.send(data)
            address, at, peer, peer_port = sock.recv(200).decode().split()
        return Reply("ok", (address, int(at)), (peer, int(peer_port)))

    return _told(ns, work)


def _told(ns: Inside, work: object) -> Reply:
    try:
        found: Reply = ns.call(work)  # type: ignore[arg-type]  # a function of no arguments
    except ConnectionRefusedError:
        return Reply("refused")
    except TimeoutError:
        return Reply("timeout")
    except OSError as err:
        return Reply(errno.errorcode.get(err.errno or 0, str(err)))
    return found


def ping(ns: Inside, dst: str, *, size: int = 56, df: bool = False, timeout: float = 2) -> Reply:
    """Send an ICMP echo request with `size` bytes of data. df: neither the sender nor a router may fragment it."""
    v6 = ":" in dst

    def work() -> Reply:
        proto = socket.getprotobyname("ipv6-icmp") if v6 else socket.IPPROTO_ICMP
        level, option, known = (
            (socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, IPV6_MTU) if v6 else (0, IP_MTU_DISCOVER, IP_MTU)
        )
        with socket.socket(family(dst), socket.SOCK_RAW, proto) as sock:
            sock.settimeout(patient(timeout))
            sock.setsockopt(level, option, IP_PMTUDISC_DO if df else IP_PMTUDISC_DONT)
            sock.connect((dst, 0))
            kind, answer = (128, 129) if v6 else (8, 0)
            message = struct.pack("!BBHHH", kind, 0, 0, 0x7077, 1) + bytes(size)
            if not v6:
                message = message[:2] + checksum(message) + message[4:]
            try:
                sock.send(message)
                while True:
                    data = sock.recv(65600)
                    body = data if v6 else data[(data[0] & 15) * 4 :]
                    if body[0] == answer and len(body) == len(message):
                        return Reply("ok", (dst, 0))
            except OSError as err:
                if err.errno == errno.EMSGSIZE:
                    return Reply("too big", mtu=sock.getsockopt(level, known))
                raise

    return _told(ns, work)
