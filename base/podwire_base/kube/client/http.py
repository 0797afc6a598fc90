"""The HTTP client of every agent: JSON over HTTPS to any Kubernetes API server. Each client has one connection pool.

An API may have several server addresses: if an address does not answer, the client uses the next address. The client
reads credentials again when their files change, and at once when the server answers 401.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from types import TracebackType
from typing import Any, Self

import msgspec
from yarl import URL

from ...role import logs
from ..errors import BadAnswer, ConfigError, Refused, Unreachable
from ..meta import Object
from .aio import aiohttp
from .config import ClientConfig, stamps

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode
log = logs.get("client")
MERGE_PATCH = "application/merge-patch+json"
CONNECT_SECONDS = 10.0
CONNECT_SECONDS_OF_SEVERAL = 3.0
LOOK_SECONDS = 10.0  # seconds between two checks of the credential files
DEAD_SECONDS = 30  # without an acknowledgement, a connection counts as dead before its watch times out
_AWAY = (502, 503, 504)  # statuses after which the client tries the next address


def _seconds(headers: Mapping[str, str], body: Mapping[str, Any]) -> float:
    """Returns the seconds of Retry-After, or of details.retryAfterSeconds in the Status; 0 if there is neither. Dates
    in Retry-After are ignored, because no API server sends them.
    """
    given = headers.get("Retry-After", "")
    if given.isdecimal():
        return float(given)
    wanted = (body.get("details") or {}).get("retryAfterSeconds")
    return float(wanted) if isinstance(wanted, int) else 0.0


def _error(code: int, raw: bytes, headers: Mapping[str, str]) -> Refused:
    try:
        body = _decode(raw)
        return Refused(code, str(body.get("reason", "")), str(body.get("message", "")), body, _seconds(headers, body))
    except (msgspec.DecodeError, AttributeError):
        return Refused(code, "", raw[:500].decode(errors="replace"), None, _seconds(headers, {}))


def _why(err: BaseException) -> str:
    """Returns a readable text of the error. aiohttp's text would contain the repr of the TLS settings."""
    if isinstance(err, aiohttp.ClientConnectorError) and not isinstance(err, aiohttp.ClientSSLError):
        number = err.os_error.errno or 0
        return f"cannot connect to {err.host}:{err.port}: {os.strerror(number) if number > 0 else err.strerror}"
    return str(err) or type(err).__name__


def _socket(address: tuple[Any, ...]) -> socket.socket:
    """Returns a socket whose half-open connection ends after DEAD_SECONDS, idle or not. (A connection is half-open if,
    for example, the server's machine lost its power.)
    """
    family, kind, protocol, _, _ = address
    sock = socket.socket(family, kind, protocol)
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        (socket.TCP_KEEPIDLE, DEAD_SECONDS // 2),
        (socket.TCP_KEEPINTVL, 5),
        (socket.TCP_KEEPCNT, 3),
        (socket.TCP_USER_TIMEOUT, DEAD_SECONDS * 1000),
    ):
        sock.setsockopt(socket.IPPROTO_TCP, option, value)
    return sock


class ApiClient:
    """`async with ApiClient(load(kubeconfig)) as api: await api.get("/api/v1/nodes/n1")`"""

    def __init__(self, config: ClientConfig) -> None:
        self.config = config
        self._session: aiohttp.ClientSession | None = None
        self._at = 0  # index of the address in use
        self._stamps = stamps(config.files)
        self._looked = 0.0
        self._hoping: set[asyncio.Future[None]] = set()  # requests that failed and wait before their retry

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, socket_factory=_socket))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session:
            await self._session.close()

    @property
    def session(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("ApiClient is used outside `async with`")
        return self._session

    @property
    def server(self) -> str:
        """Returns the address in use."""
        return self.config.servers[self._at % len(self.config.servers)]

    def _leave(self, server: str) -> None:
        """Switch from this address to the next, unless another request has already switched."""
        if len(self.config.servers) > 1 and server == self.server:
            self._at = (self._at + 1) % len(self.config.servers)
            log.warn("API server does not answer, trying the next", server=server, next=self.server)

    async def pause(self, least: float, most: float) -> None:
        """Wait `most` seconds, or only `least` seconds if the server answers another request meanwhile. If the server
        answers one request, it can answer all. With separate back-offs, a part of the process would have old data until
        the longest back-off ends.
        """
        await asyncio.sleep(least)
        hope = asyncio.get_running_loop().create_future()
        self._hoping.add(hope)
        try:
            await asyncio.wait((hope,), timeout=most - least)
        finally:
            self._hoping.discard(hope)

    def _heard(self) -> None:
        for hope in self._hoping:
            if not hope.done():
                hope.set_result(None)

    def _look(self, *, now: bool = False) -> bool:
        """Read the credentials again if their files changed. Returns whether they were read."""
        time = asyncio.get_running_loop().time()
        if self.config.again is None or (not now and time - self._looked < LOOK_SECONDS):
            return False
        self._looked = time
        fresh = stamps(self.config.files)
        if fresh == self._stamps:
            return False
        try:
            self.config = self.config.again()
        except ConfigError as err:  # the file is incomplete or invalid; the old credentials may still work
            log.warn("credentials changed and cannot be read, the old ones stay", error=str(err))
            return False
        self._stamps = stamps(self.config.files)
        log.info("credentials read again", files=len(self.config.files))
        return True

    @contextlib.asynccontextmanager
    async def _ask(
        self, method: str, path: str, headers: dict[str, str], timeout: aiohttp.ClientTimeout, **more: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send one request to the first address that accepts a connection, and yield the response. The path stays
        quoted, because a name such as ".." must not be resolved.
        """
        self._look()
        for last in (*(False for _ in self.config.others), True):
            server, secure = self.server, self.config.ssl
            if self.config.token:
                headers = {**headers, "Authorization": f"Bearer {self.config.token}"}
            try:
                answer = await self.session.request(
                    method,
                    URL(server + path, encoded=True),
                    headers=headers,
                    timeout=timeout,
                    ssl=secure or True,
                    server_hostname=self.config.server_name or None,
                    **more,
                )
            except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
                self._leave(server)  # nothing was sent, so any request can be repeated at another address
                if last:
                    raise
                continue
            except (aiohttp.ClientError, TimeoutError, OSError):
                self._leave(server)
                raise
            if answer.status in _AWAY:
                self._leave(server)
            else:
                self._heard()
            async with answer:
                yield answer
            return

    def _connect_seconds(self) -> float:
        return CONNECT_SECONDS_OF_SEVERAL if self.config.others else CONNECT_SECONDS

    async def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        params: Mapping[str, str] | None = None,
        content_type: str = "application/json",
        accept: str = "application/json",
        timeout: float = 30,
    ) -> Any:
        """Send one request. Returns the decoded JSON, or the text if the answer is not JSON. Raises ApiError."""
        data = None if body is None else body if isinstance(body, bytes) else _encode(body)
        limit = aiohttp.ClientTimeout(
            total=timeout * len(self.config.servers), sock_connect=self._connect_seconds(), sock_read=timeout
        )
        headers = {"Content-Type": content_type, "Accept": accept}
        try:
            for again in (True, False):
                async with self._ask(method, path, headers, limit, data=data, params=params) as answer:
                    raw = await answer.read()
                    if answer.status == 401 and again and self._look(now=True):
                        continue
                    if answer.status >= 400:
                        raise _error(answer.status, raw, answer.headers)
                    return _decode(raw) if "json" in answer.content_type else raw.decode()
        except (aiohttp.ClientError, TimeoutError, OSError) as err:
            raise Unreachable(f"{method} {self.server}{path}: {_why(err)}") from err
        except (msgspec.DecodeError, UnicodeDecodeError) as err:
            raise BadAnswer(f"{method} {self.server}{path}: the answer cannot be read: {err}") from err

    async def download(self, path: str) -> bytes:
        """Returns a document as it is. Raises ApiError."""
        limit = aiohttp.ClientTimeout(total=None, sock_connect=self._connect_seconds(), sock_read=60)
        try:
            async with self._ask("GET", path, {"Accept": "*/*"}, limit) as answer:
                raw = await answer.read()
                if answer.status >= 400:
                    raise _error(answer.status, raw, answer.headers)
                return raw
        except (aiohttp.ClientError, TimeoutError, OSError) as err:
            raise Unreachable(f"GET {self.server}{path}: {_why(err)}") from err

    async def get(self, path: str, **params: str) -> Object:
        answer: Object = await self.request("GET", path, params=params)
        return answer

    async def create(self, path: str, obj: Object) -> Object:
        answer: Object = await self.request("POST", path, obj)
        return answer

    async def update(self, path: str, obj: Object) -> Object:
        answer: Object = await self.request("PUT", path, obj)
        return answer

    async def patch(self, path: str, body: Any, content_type: str = MERGE_PATCH) -> Object:
        answer: Object = await self.request("PATCH", path, body, content_type=content_type)
        return answer

    async def delete(self, path: str, body: Object | None = None) -> Object:
        answer: Object = await self.request("DELETE", path, body)
        return answer

    async def watch(
        self, path: str, params: Mapping[str, str], opened: Callable[[], None] = lambda: None
    ) -> AsyncGenerator[Object, None]:
        """Yields watch events ({"type", "object"}) until the server ends the stream. opened: called when the stream is
        open. Raises ApiError.

        A stream without events that has not ended 60 s after its timeoutSeconds counts as dead. Otherwise a half-open
        TCP connection would leave the copy out of date.
        """
        limit = aiohttp.ClientTimeout(
            total=None, sock_connect=self._connect_seconds(), sock_read=float(params.get("timeoutSeconds", "300")) + 60
        )
        try:
            async with self._ask(
                "GET", path, {"Accept": "application/json"}, limit, params={**params, "watch": "true"}
            ) as answer:
                if answer.status >= 400:
                    if answer.status == 401:
                        self._look(now=True)
                    raise _error(answer.status, await answer.read(), answer.headers)
                opened()
                rest: list[bytes] = []  # the parts of an incomplete line; an object may take many chunks
                async for chunk in answer.content.iter_any():
                    head, newline, tail = chunk.partition(b"\n")
                    if not newline:
                        rest.append(chunk)
                        continue
                    *lines, last = tail.split(b"\n")
                    for line in (b"".join((*rest, head)), *lines):
                        if line.strip():
                            yield _decode(line)
                    rest = [last]
        except (aiohttp.ClientError, TimeoutError, OSError) as err:
            raise Unreachable(f"watch {path}: {_why(err)}") from err
        except msgspec.DecodeError as err:
            raise BadAnswer(f"watch {path}: a line cannot be read: {err}") from err
