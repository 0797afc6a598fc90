"""The rows of the table that need only probes (`podwire check` makes the same), on the demo's cluster."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

from podwire_base.kube.client import config as client_config
from podwire_base.kube.client.http import ApiClient

from ..check.runner import one, world
from ..check.table import Check
from ..check.world import World, local_options
from ..cluster.config import ClusterConfig
from .lab import OUTSIDE_HOST
from .rows import Row


class Probing:
    """Makes the probes at the first row, and keeps them for the next ones."""

    def __init__(self, config: ClusterConfig) -> None:
        self.config = config
        self._runner: asyncio.Runner | None = None
        self._stack = contextlib.AsyncExitStack()
        self._world: World | None = None
        self.left_out: dict[str, str] = {}  # name of a check -> why it cannot be made here

    async def _made(self) -> World:
        if self._world is None:
            api = await self._stack.enter_async_context(ApiClient(client_config.load(str(self.config.kubeconfig))))
            options = local_options(self.config.name)
            options.outside = OUTSIDE_HOST, 9376
            self._world = await self._stack.enter_async_context(world(api, options))
        return self._world

    def rows(self, check: Check) -> Iterator[Row]:
        """Make a row. A row that is left out is none, and `left_out` has the reason."""
        if self._runner is None:
            self._runner = asyncio.Runner()

        async def work() -> Row | None:
            found = await one(check, await self._made())
            if found.state == "left out":
                self.left_out[check.name] = found.detail
                return None
            return Row(check.part, check.name, "probe pods", found.back, found.state == "ok", found.detail)

        row = self._runner.run(work())
        if row is not None:
            yield row

    def close(self) -> None:
        """Remove the probes."""
        if self._runner is not None:
            with contextlib.suppress(Exception):  # the cluster may be down already, and is taken down next
                self._runner.run(self._stack.aclose())
            self._runner.close()
