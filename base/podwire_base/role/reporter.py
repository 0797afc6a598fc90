"""The role `status`: publishes where the roles of this node stand in a Lease, so that one command shows all nodes.

It is a role of its own, because it must tell the truth of a role that hangs. It writes when a role's state or words
change, at most every two seconds, and otherwise every ten seconds with the present figures. Where the credentials may
not write the Lease, as those of a kubelet, the conditions of the Node tell it.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..kube import nodeconditions, statuslease
from ..kube.client import config as client_config
from ..kube.client.http import ApiClient
from ..kube.errors import ApiError, Refused
from ..kube.patch import STRATEGIC_PATCH
from . import beat, logs
from .run import main, stop_event, until_stopped
from .standing import Standing
from .status import standings
from .supervisor import read_state

log = logs.get("status")
ROLE = "status"
LOOK, LEAST = 0.5, 2.0  # seconds between two looks, and between two writes
_NUMBERS = re.compile(r"\d+")


@dataclass(frozen=True)
class ReporterConfig:
    """holder: who publishes, such as the name of the agent's pod."""

    node_name: str
    kubeconfig: str | None
    run_dir: Path
    holder: str = ""

    @property
    def agents(self) -> tuple[Path, ...]:
        """The run directories of the agents of this node: our own, and that of a second container (deploy/)."""
        return (self.run_dir, self.run_dir / "services")


def words(roles: Mapping[str, Standing]) -> dict[str, tuple[bool, str, str]]:
    """Return what makes a report news: all but the numbers in messages."""
    return {role: (s.ready, s.reason, _NUMBERS.sub("#", s.message)) for role, s in roles.items()}


class Reporter:
    def __init__(self, api: ApiClient, config: ReporterConfig) -> None:
        self.api, self.config = api, config
        self._version, self._told = "", False
        self.by_node = False  # the Node's conditions tell it, not the Lease

    @property
    def every(self) -> float:
        """Seconds between two writes without news."""
        return nodeconditions.EVERY if self.by_node else statuslease.EVERY

    def look(self) -> dict[str, Standing]:
        found: dict[str, Standing] = {}
        for folder in self.config.agents:
            state = read_state(folder / "agent.json")
            restarts = {role: row["restarts"] for role, row in state.items()}
            # a second container has process ids of its own, so there the beat alone tells
            found |= standings(folder, state, restarts, here=folder == self.config.run_dir)
        return {role: stands for role, stands in found.items() if role != ROLE}

    async def write(self, roles: Mapping[str, Standing]) -> None:
        """Write the Lease, also over one that somebody else wrote. Raises ApiError."""
        own = statuslease.name_of(self.config.node_name)
        path = f"{statuslease.PATH}/{own}"
        for _ in range(3):
            try:
                if not self._version:
                    self._version = (await self.api.get(path))["metadata"]["resourceVersion"]
                body = statuslease.lease(self.config.node_name, self.config.holder, roles, time.time(), self._version)
                self._version = (await self.api.update(path, body))["metadata"]["resourceVersion"]
                return
            except Refused as err:
                self._version = ""
                if err.code == 404:
                    made = statuslease.lease(self.config.node_name, self.config.holder, roles, time.time())
                    self._version = (await self.api.create(statuslease.PATH, made))["metadata"]["resourceVersion"]
                    return
                if err.code != 409:
                    raise

    async def write_node(self, roles: Mapping[str, Standing]) -> None:
        """Write the conditions of the Node. Raises ApiError."""
        path = f"/api/v1/nodes/{self.config.node_name}"
        body = nodeconditions.patch(await self.api.get(path), roles, time.time())
        await self.api.patch(f"{path}/status", body, STRATEGIC_PATCH)

    async def publish(self, roles: Mapping[str, Standing]) -> None:
        """Write the Lease, or where it is refused the conditions of the Node. Raises ApiError."""
        if self.by_node:
            await self.write_node(roles)
            return
        try:
            await self.write(roles)
        except Refused as refused:
            if refused.code != 403:
                raise
            try:
                await self.write_node(roles)
            except ApiError:
                raise refused from None  # the usual right is the one that is missing
            self.by_node = True
            log.info(
                "the Node's conditions tell the status, not a Lease",
                node=self.config.node_name,
                refused=refused.message,
            )

    async def run(self) -> None:
        sent, last = 0.0, dict[str, tuple[bool, str, str]]()
        while True:
            roles = self.look()
            news, now = words(roles), time.monotonic()
            if roles and now - sent >= (LEAST if news != last else self.every):
                sent = now
                try:
                    await self.publish(roles)
                    last = news
                    beat.tell(True, "status published")
                    self._told = False
                except ApiError as err:
                    if not self._told:
                        log.warn("the status Lease is not written", node=self.config.node_name, error=err.message)
                    self._told = True
                    beat.tell(True, f"status not published: {err.message}")  # the others do their work without it
            await asyncio.sleep(LOOK)


async def _main(config: ReporterConfig) -> None:
    async with ApiClient(client_config.load(config.kubeconfig)) as api:
        await until_stopped(stop_event(), Reporter(api, config).run())


def run(config: ReporterConfig) -> None:
    """Run until SIGTERM. Raises ConfigError for an unusable kubeconfig."""
    main(ROLE, _main(config))
