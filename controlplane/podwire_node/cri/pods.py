"""Pods by CRI: the sandbox and its containers. The runtime keeps them; the files beside them are the same as those of
the netns runtime, so that `podwire logs` and `podwire exec` need no runtime.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from podwire_base.kube.meta import Object, uid
from podwire_base.patience import patient

from .. import shim
from ..launch import Bind, Launch
from ..podspec import Refused
from ..runtime import Container, Process, RuntimeFailed, Sandbox, read, running
from . import plan
from .client import NOT_FOUND, Client, CriFailed
from .images import Images, Tell
from .plan import Place

_END_SECONDS = 10.0  # in which the runtime hears that a container's first process has ended
_EXITED = "CONTAINER_EXITED"


@dataclass(frozen=True, slots=True)
class Engine:
    """One node's runtime. cgroup: of the node's pods. data: the node's directory on disk."""

    client: Client
    images: Images
    cgroup: str
    memory: int
    node_address: str
    data: Path

    def sandbox(self, directory: Path) -> CriSandbox:
        return CriSandbox(directory, self)


def _seconds(stamp: object) -> float:
    """Return the seconds of a time in nanoseconds, which JSON has as text."""
    return int(str(stamp or 0)) / 1e9


class CriSandbox(Sandbox):
    """One pod. `process` is its pause process."""

    kind = "containerd"

    def __init__(self, directory: Path, engine: Engine) -> None:
        super().__init__(directory)
        self.engine = engine

    def place(self) -> Place:
        return Place(str(self.directory), self.engine.cgroup, self.engine.memory)

    @property
    def disk(self) -> Path:
        return self.engine.data / "volumes" / self.directory.name

    def remove(self) -> None:
        shutil.rmtree(self.disk, ignore_errors=True)
        super().remove()

    def container(self, name: str) -> CriContainer:
        return CriContainer(self, name)

    async def begin(self, pod: Object) -> tuple[Process, list[str]]:
        """Make a sandbox with a network. Return its pause process and addresses. Raises Refused and CriFailed."""
        attempt = int(self.facts().get("attempt", -1)) + 1
        config = plan.sandbox_config(pod, self.place(), attempt)
        if attempt:
            await self.end()
        self.describe(attempt=attempt, uid=uid(pod))
        made = str((await self.engine.client.call("RunPodSandbox", {"config": config}))["pod_sandbox_id"])
        self.describe(sandbox=made)
        found = await self.engine.client.call("PodSandboxStatus", {"pod_sandbox_id": made, "verbose": True})
        network = found["status"].get("network") or {}
        addresses = [network.get("ip", ""), *(row["ip"] for row in network.get("additional_ips") or [])]
        pid = int(plan.verbose(found.get("info") or {}).get("pid") or 0)
        if not (started := running(pid)):
            raise RuntimeFailed("the pod's pause process ended at once")
        shim.write(str(self.state), {"pid": pid, "started": started})
        if pod["spec"].get("hostNetwork"):
            addresses = [self.engine.node_address]
        return Process(pid, started), [one for one in addresses if one]

    async def image(self, pod: Object, container: Object, attempt: int, tell: Tell, wake: Callable[[], None]) -> Object:
        """Return CRI's Image for a container. Raises Refused where the node does not have it (yet)."""
        return await self.engine.images.have(pod, container, attempt, tell, wake)

    async def end(self, _pod: Object | None = None) -> None:
        """End every sandbox of the pod with its containers and network. Raises CriFailed; then it is to be repeated."""
        client, own = self.engine.client, {plan.POD_UID: self.directory.name}
        listed = await client.call("ListPodSandbox", {"filter": {"label_selector": own}})
        for row in listed.get("items") or []:
            await client.call("StopPodSandbox", {"pod_sandbox_id": row["id"]})
            await client.call("RemovePodSandbox", {"pod_sandbox_id": row["id"]})
        self.state.unlink(missing_ok=True)


class CriContainer(Container):
    """One container of a pod."""

    def __init__(self, sandbox: CriSandbox, name: str) -> None:
        super().__init__(sandbox, name)
        self.sandbox, self.client = sandbox, sandbox.engine.client

    def _known(self) -> dict[str, Any]:
        return read(self.directory / "state.json") or {}

    def ident(self) -> str:
        return str(self._known().get("id", ""))

    def image_ref(self) -> str:
        return str(self._known().get("image_ref", ""))

    async def look(self) -> None:
        """Ask the runtime how a container ended whose process is gone. Raises CriFailed."""
        known = self._known()
        if not known or self.running() or (self.directory / "exit.json").exists():
            return
        end = time.monotonic() + patient(_END_SECONDS)
        while time.monotonic() < end:
            try:
                status = (await self.client.call("ContainerStatus", {"container_id": known["id"]}))["status"]
            except CriFailed as err:
                if err.code != NOT_FOUND:
                    raise
                return  # somebody removed it
            if status.get("state", "") == _EXITED:
                shim.write(str(self.directory / "exit.json"), _ended(status))
                return
            await asyncio.sleep(0.01)

    async def launch(self, pod: Object, container: Object, launch: Launch, tell: Callable[[str], None]) -> Process:
        """Create and start the container. tell: is called with the reasons of events. Raises Refused: the container is
        not created (CreateContainerError) or did not start (RunContainerError), and CriFailed.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        files = []
        for path, text in launch.files.items():
            source = self.directory / path.strip("/").replace("/", "_")
            source.write_text(text)
            files.append(Bind(str(source), path))
        config = plan.container_config(pod, container, launch, self.sandbox.place(), files)
        if before := self.ident():
            await self.client.call("RemoveContainer", {"container_id": before})
            (self.directory / "state.json").unlink(missing_ok=True)
        (self.directory / "exit.json").unlink(missing_ok=True)
        try:
            above = plan.sandbox_config(pod, self.sandbox.place(), int(self.sandbox.facts().get("attempt", 0)))
            wanted = {"pod_sandbox_id": self.sandbox.id, "config": config, "sandbox_config": above}
            made = str((await self.client.call("CreateContainer", wanted))["container_id"])
        except CriFailed as err:
            raise Refused("CreateContainerError", str(err)) from None
        tell("Created")
        shim.write(
            str(self.directory / "state.json"), {"id": made, "pid": 0, "started": 0, "shim": 0, "shim_started": -1}
        )
        try:
            await self.client.call("StartContainer", {"container_id": made})
        except CriFailed as err:
            failed = {"code": 128, "signal": 0, "finished": time.time(), "reason": "StartError", "message": str(err)}
            shim.write(str(self.directory / "exit.json"), failed)
            raise Refused("RunContainerError", str(err)) from None
        return await self._started(made)

    async def _started(self, made: str) -> Process:
        found = await self.client.call("ContainerStatus", {"container_id": made, "verbose": True})
        status, pid = found["status"], int(plan.verbose(found.get("info") or {}).get("pid") or 0)
        started = running(pid) if pid else 0
        facts = {
            "id": made,
            "pid": pid,
            "started": started,
            "shim": pid,
            "shim_started": started or -1,
            "since": _seconds(status.get("started_at")) or time.time(),
            "image_ref": status.get("image_ref", ""),
        }
        shim.write(str(self.directory / "state.json"), facts)
        return Process(pid, started or -1)

    async def stop(self, grace: float) -> None:
        """Send the image's stop signal, and SIGKILL after `grace` seconds. Return when the container has ended."""
        if not (ident := self.ident()) or not self.running():
            return
        try:
            await self.client.call("StopContainer", {"container_id": ident, "timeout": int(grace)}, grace + 60)
        except CriFailed as err:
            if err.code != NOT_FOUND:
                raise
        await self.look()

    async def execute(self, words: list[str], limit: float = 0.0) -> int:
        """Run a command in the container and return its exit status; 126 if the container does not run."""
        if not (ident := self.ident()) or not words:
            return 126
        asked = {"container_id": ident, "cmd": words, "timeout": int(limit)}
        try:
            return int((await self.client.call("ExecSync", asked, (limit or 3600) + 10)).get("exit_code", 0))
        except CriFailed:
            return 126

    def environment(self) -> dict[str, str]:
        """Return the environment of the container's first process, which has that of its image."""
        process = self.main_process()
        try:
            raw = Path(f"/proc/{process.pid}/environ").read_bytes() if process else b""
        except OSError:
            return {}
        return dict(row.split("=", 1) for row in raw.decode(errors="replace").split("\0") if "=" in row)


def _ended(status: dict[str, Any]) -> dict[str, Any]:
    """Return what exit.json has of a container's end."""
    return {
        "code": int(status.get("exit_code", 0)),
        "signal": 0,
        "finished": _seconds(status.get("finished_at")) or time.time(),
        "reason": status.get("reason", ""),
        "message": status.get("message", ""),
    }
