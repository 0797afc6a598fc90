"""The sandbox of the netns runtime with its network: the node agent calls the CNI plugins, as a container runtime."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from podwire_base.kube.meta import Object, name, namespace, uid

from . import podspec
from .cni_runtime import Attachment, CniFailed, CniRuntime, addresses
from .podspec import Refused
from .runtime import Process, Sandbox

Tell = Callable[[str, str, str], None]  # (Normal or Warning, reason, message)


class NetnsSandbox(Sandbox):
    def __init__(self, directory: Path, cni: CniRuntime, pause_command: list[str], node_address: str) -> None:
        super().__init__(directory)
        self.cni, self.pause_command, self.node_address = cni, pause_command, node_address

    def _attachment(self, pod: Object, netns: str) -> Attachment:
        """Return the attachment for DEL, without capabilities. The plugins' cache has the arguments of ADD; the pod's
        annotations may have changed since ADD.
        """
        return Attachment(self.id, netns, namespace(pod), name(pod), uid(pod))

    def _asking(self, pod: Object, netns: str) -> Attachment:
        """Return the attachment for ADD, with capabilities. Raises CniFailed if the pod's request is invalid."""
        try:
            asked = {"portMappings": podspec.host_ports(pod), "bandwidth": podspec.bandwidth(pod)}
        except Refused as err:
            raise CniFailed(7, str(err)) from None
        return dataclasses.replace(
            self._attachment(pod, netns),
            capabilities={capability: value for capability, value in asked.items() if value},
        )

    async def image(self, _pod: Object, container: Object, _attempt: int, tell: Tell, _wake: object) -> Object:
        """Return what is known of the image: nothing. Raises Refused for an image that is not there."""
        podspec.entrypoint(str(container["image"]), [])
        tell("Normal", "Pulled", f'Container image "{container["image"]}" already present on machine')
        return {}

    async def begin(self, pod: Object) -> tuple[Process, list[str]]:
        """Start the pause process and wire it. Return it with the pod's addresses. Raises RuntimeFailed, CniFailed."""
        own_net = not pod["spec"].get("hostNetwork")
        pause = await self.start(podspec.hostname(pod), self.pause_command, share_net=not own_net)
        if not own_net:
            return pause, [self.node_address]
        try:
            return pause, addresses(await self.cni.add(self._asking(pod, f"/proc/{pause.pid}/ns/net")))
        except BaseException:
            await self.stop()
            raise

    async def end(self, pod: Object) -> None:
        """Remove the pod's network and end its pause process. Raises CniFailed; then it is to be repeated."""
        pause = self.process()
        if self.id and not pod["spec"].get("hostNetwork"):
            await self.cni.delete(self._attachment(pod, f"/proc/{pause.pid}/ns/net" if pause else ""))
        await self.stop()
