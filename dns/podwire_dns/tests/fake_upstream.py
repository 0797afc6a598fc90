"""An upstream on 127.0.0.1 whose answers a test makes, over UDP and TCP at one port."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import dns.flags
import dns.message
import dns.rcode
import dns.rrset

from podwire_base.testing.ports import free_port
from podwire_dns.cache import CacheKey
from podwire_dns.names import to_wire

Reply = Callable[[dns.message.Message], "dns.message.Message | bytes | None"]


def question(name: str, rtype: bytes = b"\0\1") -> CacheKey:
    return to_wire(name) + rtype + b"\0\1", False, False


def answer(query: dns.message.Message, *records: str, rcode: int = 0, edns: bool = True) -> dns.message.Message:
    """An answer with records "TTL TYPE DATA" for the name of the query."""
    made = dns.message.make_response(query, recursion_available=True)
    made.use_edns(0 if edns and query.edns >= 0 else -1, payload=1232)
    made.set_rcode(dns.rcode.Rcode(rcode))
    for record in records:
        ttl, rtype, data = record.split(" ", 2)
        made.answer.append(dns.rrset.from_text(query.question[0].name, int(ttl), "IN", rtype, data))
    return made


class Upstream(asyncio.DatagramProtocol):
    """asked: every query, in order; over: "udp" or "tcp" of each."""

    transport: asyncio.DatagramTransport

    def __init__(self, reply: Reply) -> None:
        self.reply, self.port = reply, free_port()
        self.asked: list[dns.message.Message] = []
        self.over: list[str] = []

    @property
    def address(self) -> str:
        return f"127.0.0.1#{self.port}"

    @property
    def opts(self) -> list[bool]:
        """Whether each query had OPT."""
        return [query.edns >= 0 for query in self.asked]

    def _answer(self, data: bytes, over: str) -> bytes | None:
        query = dns.message.from_wire(data)
        self.asked.append(query)
        self.over.append(over)
        made = self.reply(query)
        return made.to_wire(max_size=65535) if isinstance(made, dns.message.Message) else made

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        made = self._answer(data, "udp")
        if made is not None:
            self.transport.sendto(made, addr)

    async def stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                made = self._answer(await reader.readexactly(int.from_bytes(await reader.readexactly(2))), "tcp")
                if made is not None:
                    writer.write(len(made).to_bytes(2) + made)
        writer.close()


@contextlib.asynccontextmanager
async def upstream(reply: Reply) -> AsyncIterator[Upstream]:
    made = Upstream(reply)
    loop = asyncio.get_running_loop()
    made.transport, _ = await loop.create_datagram_endpoint(lambda: made, ("127.0.0.1", made.port))
    server = await asyncio.start_server(made.stream, "127.0.0.1", made.port)
    try:
        yield made
    finally:
        made.transport.close()
        server.close()
