"""The cri runtime of one node agent: its containerd, and the engine of its pods."""

from __future__ import annotations

import asyncio
from pathlib import Path

from podwire_base.kube.client.http import ApiClient
from podwire_base.role import logs

from ..runtime import RuntimeFailed
from .daemon import Containerd, may_lower_oom_scores, snapshotter
from .daemonconfig import CriConfig, Daemon
from .images import Images
from .pods import Engine

log = logs.get("node")


class CriRuntime:
    """served: containerd has answered once. serves: it runs."""

    def __init__(
        self, config: CriConfig, api: ApiClient, run_dir: Path, cni_bin: Path, address: str, memory: int
    ) -> None:
        config.data.mkdir(parents=True, exist_ok=True)
        daemon = Daemon(config.data, run_dir, run_dir, cni_bin, snapshotter(config.data), not may_lower_oom_scores())
        self.containerd = Containerd(daemon, config.pause)
        client = self.containerd.client
        self.engine = Engine(client, Images(client, api), config.cgroup, memory, address, config.data)
        self.served = asyncio.Event()

    @property
    def serves(self) -> bool:
        return self.served.is_set() and self.containerd.process() is not None

    @property
    def version(self) -> str:
        """The node's containerRuntimeVersion."""
        return f"containerd://{self.containerd.version or 'unknown'}"

    async def run(self) -> None:
        await self.containerd.keep(self.served.set)

    async def forget(self, directory: Path) -> None:
        """Remove a pod that is no more, by its directory."""
        sandbox = self.engine.sandbox(directory)
        while True:
            try:
                await sandbox.end()
                break
            except RuntimeFailed as err:
                log.warn("a pod that is gone cannot be removed yet", pod=directory.name, error=str(err))
                await asyncio.sleep(1)
        sandbox.remove()
