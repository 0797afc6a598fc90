"""An API server in a separate thread with a separate event loop, and functions to start it, stop it and run work."""

from __future__ import annotations

import asyncio
import ssl
import tempfile
import threading
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, Self

from aiohttp import web

from podwire_base.patience import patient
from podwire_controlplane.server import pki
from podwire_controlplane.server.main import _tls
from podwire_controlplane.store.memory import MemoryStore


class InThread:
    """The server runs inside a `with` block. `_start` sets `store` and `_runner`. At the end of the block, both are
    closed in the server's event loop.
    """

    store: MemoryStore
    _runner: web.AppRunner

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)

    async def _start(self) -> None:
        raise NotImplementedError

    async def _leave(self) -> None:
        """Close what `_start` opened outside `_runner`."""

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run `work` in the server's event loop and return its result."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(patient(20))

    def __enter__(self) -> Self:
        self._thread.start()
        self.do(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        async def stop() -> None:
            await self._leave()
            await self._runner.cleanup()
            rest = asyncio.all_tasks() - {asyncio.current_task()}  # as asyncio.run() does at its end
            for task in rest:
                task.cancel()
            await asyncio.gather(*rest, return_exceptions=True)
            await self.store.close()

        self.do(stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


def tls(authority: pki.Authority, names: Sequence[str], addresses: Sequence[str]) -> ssl.SSLContext:
    """Return the TLS context of a server whose certificate has these names and addresses."""
    pair = authority.server([*names], [*addresses])
    with tempfile.TemporaryDirectory() as folder:
        for own, text in (
            ("server.pem", pair.certificate),
            ("server-key.pem", pair.key),
            ("ca.pem", authority.certificate),
        ):
            pki.write_private(Path(folder) / own, text)
        return _tls(Path(folder))
