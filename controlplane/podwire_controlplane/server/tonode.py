"""The way from the API server to the node agents of the same machine: a unix socket in each node's run directory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from yarl import URL

from podwire_base.kube import errors
from podwire_base.kube.client.aio import aiohttp, web
from podwire_base.role import unixsocket

from .streams import Reach


class ToNode:
    """directory: of the nodes of this machine, a folder each. None: this API server reaches no node."""

    def __init__(self, directory: Path | None) -> None:
        self.directory = directory

    async def log(
        self, http: web.Request, to: Reach, query: Mapping[str, str], begun: Callable[[], None]
    ) -> web.StreamResponse:
        """Answer with a container's log. begun: is called when the log is followed, which can last for hours. Raises
        StatusError.
        """
        sock = self.directory / Path(to.node).name / unixsocket.KUBELET if self.directory else None
        if sock is None or not sock.exists():
            raise to.away()
        path = URL.build(
            scheme="http",
            host="node",
            path=f"/containerLogs/{to.namespace}/{to.pod}/{to.container}",
            query={**query, "uid": to.uid},
        )
        limits = aiohttp.ClientTimeout(total=None, sock_connect=5)
        connector = aiohttp.UnixConnector(str(sock))
        try:
            async with aiohttp.ClientSession(connector=connector, timeout=limits) as session, session.get(path) as told:
                if told.status != 200:
                    raise errors.bad_request(await told.text())
                if query.get("follow") in ("true", "1"):
                    begun()
                answer = web.StreamResponse(headers={"Content-Type": "text/plain"})
                await answer.prepare(http)
                async for data in told.content.iter_any():
                    await answer.write(data)
                await answer.write_eof()
                return answer
        except aiohttp.ClientConnectionError:
            raise to.away() from None
