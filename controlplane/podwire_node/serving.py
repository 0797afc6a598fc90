"""What the node agent serves to the API server of the same machine, at a unix socket: the logs of containers.

The path is the kubelet's: /containerLogs/NAMESPACE/POD/CONTAINER, with the fields of PodLogOptions and the pod's uid as
its query.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

from podwire_base.kube.client.aio import web
from podwire_base.role import unixsocket

from . import logfiles
from .runtime import Container, Sandbox

_POLL_SECONDS = 0.1


class _Reader:
    """Reads what is new in a container's log, also after the log was replaced by an empty one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rest = ""
        self._held: dict[str, str] = {}
        self._file = path.open(errors="replace")

    def new(self) -> list[logfiles.Line]:
        """Return the lines since the last call. Raises OSError."""
        text = self._file.read()
        now = self.path.stat()
        if now.st_ino != os.fstat(self._file.fileno()).st_ino:
            text += self._file.read()
            self.close()
            self._file = self.path.open(errors="replace")
            text += self._file.read()
        *records, self._rest = (self._rest + text).split("\n")
        return list(logfiles.joined(records, self._held))

    def close(self) -> None:
        self._file.close()


async def _parts(box: Container, asked: logfiles.Wanted, run: logfiles.Run) -> AsyncIterator[bytes]:
    """Yield what is asked for; with follow, until the run has ended."""
    reader = _Reader(box.log)
    try:
        first = True
        while True:
            ended = not asked.follow or box.running() is None or box.run().begin != run.begin
            lines = await asyncio.to_thread(reader.new)
            rows = logfiles.chosen(lines, asked if first else _rest(asked), run)
            if data := b"".join(logfiles.shown(line, asked) for line in rows):
                yield data
            if ended:
                return
            first = False
            await asyncio.sleep(_POLL_SECONDS)
    finally:
        reader.close()


def _rest(asked: logfiles.Wanted) -> logfiles.Wanted:
    """Return what is asked of lines that come later: all of them."""
    return logfiles.Wanted(timestamps=asked.timestamps, stream=asked.stream)


class Serving:
    """run_dir: of the node."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir

    async def logs(self, request: web.Request) -> web.StreamResponse:
        part, query = request.match_info, dict(request.query)
        box = Container(Sandbox(self.run_dir / "pods" / Path(query.get("uid", "")).name), part["container"])
        asked, about = logfiles.wanted(query, time.time()), f'container "{box.name}" in pod "{part["pod"]}"'
        run = box.run(previous=asked.previous)
        if asked.previous and run.begin < 0:
            return web.Response(status=400, text=f"previous terminated {about} not found")
        if not box.log.exists():
            return web.Response(status=400, text=f"{about} is waiting to start: ContainerCreating")
        answer = web.StreamResponse(headers={"Content-Type": "text/plain"})
        await answer.prepare(request)
        left = asked.limit
        async for data in _parts(box, asked, run):
            await answer.write(data if left is None else data[:left])
            if left is not None and (left := left - len(data)) <= 0:
                break
        await answer.write_eof()
        return answer

    async def run(self) -> None:
        """Serve until cancelled."""
        app = web.Application()
        app.add_routes([web.get("/containerLogs/{namespace}/{pod}/{container}", self.logs)])
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
        await runner.setup()
        try:
            await web.SockSite(runner, unixsocket.listen(self.run_dir / unixsocket.KUBELET)).start()
            await asyncio.Event().wait()
        finally:
            await runner.cleanup()
