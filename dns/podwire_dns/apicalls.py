"""The feeder's connection to the API server, with the figures that CoreDNS shows of its own. I/O."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

from podwire_base.kube.client.config import ClientConfig
from podwire_base.kube.client.http import ApiClient
from podwire_base.role.metrics import Histogram

from .feed import ApiCalls
from .metrics import API_BOUNDS


class CountedClient(ApiClient):
    """An ApiClient that counts its requests, with the labels of client-go: the code of a request without an answer is
    "<error>".
    """

    def __init__(self, config: ClientConfig) -> None:
        super().__init__(config)
        self._requests: Counter[tuple[str, str, str]] = Counter()
        self._took: dict[tuple[str, str], Histogram] = {}

    @contextlib.asynccontextmanager
    async def _ask(
        self, method: str, path: str, headers: dict[str, str], timeout: aiohttp.ClientTimeout, **more: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        host, began, code = self.server.partition("://")[2], time.monotonic(), "<error>"
        try:
            async with super()._ask(method, path, headers, timeout, **more) as answer:
                code = str(answer.status)
                self._count(method, code, host, began)
                yield answer
        finally:
            if code == "<error>":
                self._count(method, code, host, began)

    def _count(self, method: str, code: str, host: str, began: float) -> None:
        self._requests[method, code, host] += 1
        histogram = self._took.get((method, host))
        if histogram is None:
            histogram = self._took[method, host] = Histogram(API_BOUNDS)
        histogram.observe(time.monotonic() - began)

    def calls(self) -> ApiCalls:
        """Returns the figures since the start."""
        return ApiCalls(
            tuple((*key, count) for key, count in sorted(self._requests.items())),
            tuple((*key, tuple(each.counts), each.total) for key, each in sorted(self._took.items())),
        )
