"""The HTTP client of every agent: JSON over HTTPS to any Kubernetes API server. One connection pool a process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Any, Self

import aiohttp
import msgspec
from yarl import URL

from ..api.meta import Object
from .config import ClientConfig

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode
MERGE_PATCH = "application/merge-patch+json"


class ApiError(Exception):
    """The server answered with an error. `code` is the HTTP status, `reason` the Status reason (NotFound, Conflict ...).

    code 0: no answer at all (connection refused, reset, timed out); reason is then "Unreachable".
    """

    def __init__(self, code: int, reason: str, message: str, body: Object | None = None) -> None:
        super().__init__(message)
        self.code, self.reason, self.message, self.body = code, reason, message, body or {}


def _error(code: int, raw: bytes) -> ApiError:
    try:
        body = _decode(raw)
        return ApiError(code, str(body.get("reason", "")), str(body.get("message", "")), body)
    except (msgspec.DecodeError, AttributeError):
        return ApiError(code, "", raw[:500].decode(errors="replace"))


class ApiClient:
    """`async with ApiClient(load(kubeconfig)) as api: await api.get("/api/v1/nodes/n1")`"""

    def __init__(self, config: ClientConfig) -> None:
        self.config = config
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        headers = {"Authorization": f"Bearer {self.config.token}"} if self.config.token else {}
        connector = aiohttp.TCPConnector(ssl=self.config.ssl if self.config.ssl else True, limit=0)
        self._session = aiohttp.ClientSession(connector=connector, headers=headers)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, err: BaseException | None,
                        trace: TracebackType | None) -> None:
        if self._session:
            await self._session.close()

    @property
    def session(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("ApiClient is used outside `async with`")
        return self._session

    def _url(self, path: str) -> URL:
        """The path as it is quoted already: a name such as ".." must not be resolved away."""
        return URL(self.config.server + path, encoded=True)

    async def request(self, method: str, path: str, body: Any = None, *, params: Mapping[str, str] | None = None,
                      content_type: str = "application/json", accept: str = "application/json", timeout: float = 30) -> Any:
        """One request; returns the decoded JSON (text where the answer is no JSON). Raises ApiError."""
        data = None if body is None else body if isinstance(body, bytes) else _encode(body)
        try:
            async with self.session.request(
                    method, self._url(path), data=data, params=params, timeout=aiohttp.ClientTimeout(total=timeout),
                    headers={"Content-Type": content_type, "Accept": accept}) as answer:
                raw = await answer.read()
                if answer.status >= 400:
                    raise _error(answer.status, raw)
                return _decode(raw) if "json" in answer.content_type else raw.decode()
        except (aiohttp.ClientError, TimeoutError, OSError) as err:
            raise ApiError(0, "Unreachable", f"{method} {self.config.server}{path}: {err or type(err).__name__}") from err

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

    async def watch(self, path: str, params: Mapping[str, str]) -> AsyncIterator[Object]:
        """Watch events ({"type", "object"}) until the server ends the stream. Raises ApiError.

        A stream with neither events nor its end for 60 s past its own timeoutSeconds counts as dead (a half-open TCP
        connection must not freeze a node's view of the cluster).
        """
        limit = float(params.get("timeoutSeconds", "300")) + 60
        try:
            async with self.session.get(
                    self._url(path), params={**params, "watch": "true"}, headers={"Accept": "application/json"},
                    timeout=aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=limit)) as answer:
                if answer.status >= 400:
                    raise _error(answer.status, await answer.read())
                rest = b""
                async for chunk in answer.content.iter_any():
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in lines:
                        if line.strip():
                            yield _decode(line)
        except (aiohttp.ClientError, TimeoutError, OSError, msgspec.DecodeError) as err:
            raise ApiError(0, "Unreachable", f"watch {path}: {err or type(err).__name__}") from err
