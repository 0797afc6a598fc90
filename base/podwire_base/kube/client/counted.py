"""An ApiClient that counts its requests, as client-go does for rest_client_requests_total. I/O."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...role.metrics import Histogram
from .aio import aiohttp
from .config import ClientConfig
from .http import ApiClient

# the buckets of Kubernetes' components (component-base, metrics/prometheus/restclient)
BOUNDS = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0)


@dataclass(slots=True)
class Calls:
    """requests: (method, code, host) -> count; the code of a request without an answer is "<error>". took: (method,
    host) -> seconds until the answer began.
    """

    bounds: Sequence[float] = BOUNDS
    requests: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    took: dict[tuple[str, str], Histogram] = field(default_factory=dict)

    def count(self, method: str, code: str, host: str, seconds: float) -> None:
        self.requests[method, code, host] += 1
        histogram = self.took.get((method, host))
        if histogram is None:
            histogram = self.took[method, host] = Histogram(self.bounds)
        histogram.observe(seconds)


class CountedClient(ApiClient):
    def __init__(self, config: ClientConfig, bounds: Sequence[float] = BOUNDS) -> None:
        super().__init__(config)
        self.counted = Calls(bounds)

    @property
    def _host(self) -> str:
        return self.server.partition("://")[2]

    @contextlib.asynccontextmanager
    async def _ask(
        self, method: str, path: str, headers: dict[str, str], timeout: aiohttp.ClientTimeout, **more: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        host, began, code = self._host, time.monotonic(), "<error>"
        try:
            async with super()._ask(method, path, headers, timeout, **more) as answer:
                code = str(answer.status)
                self.counted.count(method, code, host, time.monotonic() - began)
                yield answer
        finally:
            if code == "<error>":
                self.counted.count(method, code, host, time.monotonic() - began)
