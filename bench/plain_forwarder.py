"""A minimal DNS forwarder that uses only asyncio. bench_dns.py compares cache misses with this forwarder.

plain_forwarder.py ADDRESS PORT UPSTREAM      UPSTREAM listens on port 53
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

SECONDS = 4.0


class Ask(asyncio.DatagramProtocol):
    """One query with its own socket, and therefore from its own port."""

    def __init__(self, done: asyncio.Future[bytes]) -> None:
        self.done = done

    def datagram_received(self, data: bytes, addr: Any) -> None:
        if not self.done.done():
            self.done.set_result(data)

    def error_received(self, exc: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(exc)


class Serve(asyncio.DatagramProtocol):
    def __init__(self, upstream: str) -> None:
        self.upstream, self.tasks = upstream, set[asyncio.Task[None]]()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        task = asyncio.create_task(self.forward(data, addr))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def forward(self, data: bytes, peer: Any) -> None:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[bytes] = loop.create_future()
        transport, _ = await loop.create_datagram_endpoint(lambda: Ask(done), remote_addr=(self.upstream, 53))
        try:
            transport.sendto(data)
            async with asyncio.timeout(SECONDS):
                self.transport.sendto(await done, peer)
        except (OSError, TimeoutError):
            pass  # the client will query again
        finally:
            transport.close()


async def main() -> None:
    address, port, upstream = sys.argv[1:]
    await asyncio.get_running_loop().create_datagram_endpoint(lambda: Serve(upstream), local_addr=(address, int(port)))
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
