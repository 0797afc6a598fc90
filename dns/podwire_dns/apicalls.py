"""The feeder's connection to the API server, with the figures that CoreDNS shows of its own. I/O."""

from __future__ import annotations

from podwire_base.kube.client.config import ClientConfig
from podwire_base.kube.client.counted import CountedClient as Counted

from .feed import ApiCalls
from .metrics import API_BOUNDS


class CountedClient(Counted):
    """An ApiClient that counts its requests, with CoreDNS's buckets."""

    def __init__(self, config: ClientConfig) -> None:
        super().__init__(config, API_BOUNDS)

    def calls(self) -> ApiCalls:
        """Returns the figures since the start."""
        return ApiCalls(
            tuple((*key, count) for key, count in sorted(self.counted.requests.items())),
            tuple((*key, tuple(each.counts), each.total) for key, each in sorted(self.counted.took.items())),
        )
