"""A node's images: what a pull policy asks for, one pull of a name at a time, and back-off after a failure.

Source: Kubernetes' documentation "Images"; the reasons and messages of waiting containers and Events are the kubelet's.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from podwire_base.kube.client.http import ApiClient
from podwire_base.kube.errors import ApiError
from podwire_base.kube.errors import Refused as ApiRefused
from podwire_base.kube.meta import Object, namespace, uid
from podwire_base.kube.registry import of

from ..podspec import Refused
from . import plan
from .client import Client, CriFailed

BACKOFF_FIRST, BACKOFF_LAST = 10.0, 300.0
_PULL_SECONDS = 3600.0
Tell = Callable[[str, str, str], None]  # (Normal or Warning, reason, message)


@dataclass(slots=True)
class Pull:
    """The pull of one image for one pod. until: when it may be tried again after a failure."""

    task: asyncio.Task[Object] | None = None
    began: float = 0.0
    failures: int = 0
    until: float = 0.0
    error: str = ""
    told: bool = False
    done: set[tuple[str, int]] = field(default_factory=set)  # (container, attempt) for which Always was obeyed


class Images:
    """api: for the Secrets of pulls."""

    def __init__(self, client: Client, api: ApiClient) -> None:
        self.client, self.api = client, api
        self._pulls: dict[tuple[str, str], Pull] = {}  # of a pod's uid and an image
        self._running: dict[tuple[str, str], asyncio.Task[Object]] = {}

    def forget(self, pod: Object) -> None:
        for key in [key for key in self._pulls if key[0] == uid(pod)]:
            del self._pulls[key]

    async def local(self, whole: str) -> Object:
        """Return CRI's Image, {} where the node does not have it. Raises CriFailed."""
        return dict((await self.client.call("ImageStatus", {"image": {"image": whole}})).get("image") or {})

    async def have(self, pod: Object, container: Object, attempt: int, tell: Tell, wake: Callable[[], None]) -> Object:
        """Return CRI's Image for a start of a container. Raises Refused: the node does not have it, or not yet; `wake`
        is called when that changes.
        """
        image = str(container["image"])
        try:
            whole, policy = plan.full_name(image), plan.pull_policy(container)
        except Refused as err:
            tell("Warning", "InspectFailed", str(err))
            raise
        found = await self.local(whole)
        if policy == "Never" and not found:
            raise Refused("ErrImageNeverPull", f'Container image "{image}" is not present with pull policy of Never')
        pull = self._pulls.setdefault((uid(pod), image), Pull())
        start = (str(container["name"]), attempt)
        if pull.task is not None and pull.task.done():
            return self._ended(image, pull, start, tell)
        if found and (policy != "Always" or start in pull.done):
            if start not in pull.done:
                tell("Normal", "Pulled", f'Container image "{image}" already present on machine')
            return found
        if pull.task is None:
            await self._begin(pod, image, whole, pull, tell, wake)
        raise Refused("ContainerCreating", "")

    async def _begin(
        self, pod: Object, image: str, whole: str, pull: Pull, tell: Tell, wake: Callable[[], None]
    ) -> None:
        """Begin a pull, or raise Refused before its time has come."""
        if (wait := pull.until - time.monotonic()) > 0:
            if not pull.told:
                tell("Normal", "BackOff", f'Back-off pulling image "{image}"')
                tell("Warning", "Failed", "Error: ImagePullBackOff")
                pull.told = True
            raise Refused("ImagePullBackOff", f'Back-off pulling image "{image}": ErrImagePull: {pull.error}', wait)
        tell("Normal", "Pulling", f'Pulling image "{image}"')
        auths = plan.auths(image, await self._secrets(pod, tell))
        pull.began = time.monotonic()
        shared = whole, json.dumps(auths, sort_keys=True)  # nobody gets an image by the credentials of others
        if (task := self._running.get(shared)) is None:
            task = self._running[shared] = asyncio.create_task(self._pull(whole, auths))
            task.add_done_callback(lambda _: self._running.pop(shared, None))
        pull.task = task
        task.add_done_callback(lambda _: wake())

    def _ended(self, image: str, pull: Pull, start: tuple[str, int], tell: Tell) -> Object:
        """Return the image of a pull that ended. Raises Refused after a failure, with Always also where the node has
        the image: only the registry knows whether this pod's credentials may have it.
        """
        task, pull.task = pull.task, None
        assert task is not None
        seconds = time.monotonic() - pull.began
        error = task.exception()
        if error is None:
            made = task.result()
            size = f" Image size: {made['size']} bytes." if made.get("size") else ""
            tell("Normal", "Pulled", f'Successfully pulled image "{image}" in {seconds:.3f}s.{size}')
            pull.done.add(start)
            pull.failures, pull.until, pull.told = 0, 0.0, False
            return made
        pull.error = str(error)
        pull.until = time.monotonic() + min(BACKOFF_FIRST * 2**pull.failures, BACKOFF_LAST)
        pull.failures, pull.told = pull.failures + 1, False
        tell("Warning", "Failed", f'Failed to pull image "{image}": {pull.error}')
        tell("Warning", "Failed", "Error: ErrImagePull")
        raise Refused("ErrImagePull", pull.error, 1.0)

    async def _pull(self, whole: str, auths: list[Object]) -> Object:
        """Pull an image with each of the credentials until one succeeds. Raises CriFailed."""
        last: CriFailed | None = None
        for auth in auths or [{}]:
            try:
                await self.client.call("PullImage", {"image": {"image": whole}, "auth": auth}, _PULL_SECONDS)
                return await self.local(whole)
            except CriFailed as err:
                last = err
        assert last is not None
        raise last

    async def _secrets(self, pod: Object, tell: Tell) -> list[Object]:
        """Return the decoded pull Secrets of a pod."""
        found, missing = list[Object](), list[str]()
        for row in pod["spec"].get("imagePullSecrets") or []:
            try:
                secret = await self.api.get(of("Secret").path(namespace(pod), str(row.get("name"))))
                found.append(_config(secret))
            except (ApiError, ValueError) as err:
                if not isinstance(err, (ApiRefused, ValueError)):
                    raise
                missing.append(str(row.get("name")))
        if missing:
            names = ", ".join(missing)
            tell(
                "Warning",
                "FailedToRetrieveImagePullSecret",
                f"Unable to retrieve some image pull secrets ({names}); attempting to pull the image may not succeed.",
            )
        return found


def _config(secret: Object) -> Object:
    """Return the JSON of a pull Secret. Raises ValueError."""
    data: dict[str, Any] = secret.get("data") or {}
    raw = data.get(".dockerconfigjson") or data.get(".dockercfg") or ""
    try:
        found = json.loads(base64.b64decode(raw))
    except binascii.Error as err:
        raise ValueError(str(err)) from None
    if not isinstance(found, dict):
        raise ValueError("no JSON object")
    return found
