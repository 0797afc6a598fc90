"""How one container of a pod stops: its preStop handler, then the image's stop signal, then SIGKILL."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

from podwire_base.kube.meta import Object

from . import probes
from .runtime import Container


async def stop(box: Container, container: Object, grace: float, address: str, tell: Callable[[str], None]) -> None:
    """Stop a container; handler and signal share the grace period of `grace` seconds (core/v1 Lifecycle). tell: is
    called with the message of the event Killing.
    """
    begin = time.monotonic()
    if not box.running():
        await box.stop(0)
        return
    tell(f"Stopping container {container['name']}")
    action = (container.get("lifecycle") or {}).get("preStop") if grace > 0 else None
    if action:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await probes.act(action, container, address, box.execute)
    await box.stop(max(0.0, grace - (time.monotonic() - begin)))
