"""An upstream resolver outside the cluster, made with dnslib. A test can make the resolver fail in several ways."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Mapping

from dnslib import RCODE, RR, DNSError, DNSRecord

from .netns import NetNS

WORLD = {
    "www.example.com.": "60 A 198.51.100.7",
    "six.example.com.": "60 AAAA 2001:db8::7",
    **{f"n{i}.example.com.": f"60 A 198.51.100.{i}" for i in range(1, 200)},
}


class Upstream:
    """mode: "good", "silent", "servfail", "no edns" (FORMERR for OPT), "truncate" (over UDP only), "slow" (`delay`
    seconds) or "flap" (no answer to every second query). Four more modes send a forged answer before the right answer:
    "lie" (an answer to another question), "wrong id", "wrong source" and "not an answer".
    """

    def __init__(self, ns: NetNS, address: str, world: Mapping[str, str] = WORLD) -> None:
        self.ns, self.address, self.world, self.mode = ns, address, world, "good"
        self.asked: list[str] = []
        self.delay, self.udp_queries = 0.3, 0

        def bind(kind: socket.SocketKind) -> socket.socket:
            sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(socket.getaddrinfo(address, 53, type=kind, flags=socket.AI_NUMERICHOST)[0][4])
            if kind == socket.SOCK_STREAM:
                sock.listen(16)
            return sock

        self.udp, self.tcp = ns.call(lambda: bind(socket.SOCK_DGRAM)), ns.call(lambda: bind(socket.SOCK_STREAM))

    def __enter__(self) -> Upstream:
        for work in (self._serve_udp, self._serve_tcp):
            threading.Thread(target=work, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for sock in (self.udp, self.tcp):
            try:
                sock.shutdown(socket.SHUT_RDWR)  # wakes the thread
            except OSError:
                pass  # shutdown() of an unconnected socket raises an error but wakes the thread
            sock.close()

    def answer(self, query: DNSRecord) -> DNSRecord:
        name = str(query.q.qname).lower()
        self.asked.append(name)
        reply = query.reply(aa=0, ra=1)
        if self.mode == "no edns" and query.ar:
            reply.header.rcode = RCODE.FORMERR
        elif self.mode == "servfail":
            reply.header.rcode = RCODE.SERVFAIL
        elif name not in self.world:
            reply.header.rcode = RCODE.NXDOMAIN
            reply.add_auth(*RR.fromZone("example.com. 30 IN SOA ns.example.com. me.example.com. 1 2 3 4 30"))
        else:
            reply.add_answer(*(rr for rr in RR.fromZone(f"{name} {self.world[name]}") if rr.rtype == query.q.qtype))
        return reply

    def _serve_udp(self) -> None:
        while True:
            try:
                data, peer = self.udp.recvfrom(4096)
            except OSError:
                return
            if not data:
                return
            self.udp_queries += 1
            if self.mode == "silent" or (self.mode == "flap" and self.udp_queries % 2):
                continue
            try:
                query = DNSRecord.parse(data)
            except DNSError:
                continue  # a forwarded name that does not exist
            reply = self.answer(query)
            if self.mode == "truncate":
                reply.header.tc, reply.rr = 1, []
            if self.mode in ("lie", "wrong id", "wrong source", "not an answer"):
                self._forge(query, peer)
            if self.mode == "slow":
                threading.Timer(self.delay, self._send, (bytes(reply.pack()), peer)).start()
            else:
                self._send(bytes(reply.pack()), peer)

    def _send(self, data: bytes, peer: tuple[str, int]) -> None:
        with contextlib.suppress(OSError):  # the socket was closed meanwhile
            self.udp.sendto(data, peer)

    def _forge(self, query: DNSRecord, peer: tuple[str, int]) -> None:
        """Send the answer of an attacker who cannot see the whole query."""
        asked = DNSRecord.question("evil.example.com.") if self.mode == "lie" else query
        forged = asked.reply()
        forged.header.id = query.header.id ^ (self.mode == "wrong id")
        forged.add_answer(*RR.fromZone(f"{asked.q.qname} 60 A 203.0.113.66"))
        if self.mode == "not an answer":
            forged.header.qr = 0
        if self.mode == "wrong source":
            self.ns.call(lambda: self._from_elsewhere(bytes(forged.pack()), peer))
        else:
            self._send(bytes(forged.pack()), peer)

    def _from_elsewhere(self, data: bytes, peer: tuple[str, int]) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind((self.address, 5353))
            sock.sendto(data, peer)

    def _serve_tcp(self) -> None:
        while True:
            try:
                conn, _ = self.tcp.accept()
            except OSError:
                return
            with conn, conn.makefile("rb") as stream:
                data = stream.read(int.from_bytes(stream.read(2)))
                if data:
                    reply = bytes(self.answer(DNSRecord.parse(data)).pack())
                    conn.sendall(len(reply).to_bytes(2) + reply)
