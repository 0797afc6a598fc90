"""Which start of a container gets an image: pull policies, failures and credentials, with a runtime that is a fake."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from podwire_base.kube.meta import Object
from podwire_node.podspec import Refused

images = pytest.importorskip("podwire_node.cri.images", reason="the extra podwire[cri] is not installed")


class Runtime:
    """Plays the part of CRI's ImageService. has: the node has the image. gives: the registry gives it."""

    def __init__(self, has: bool, gives: bool) -> None:
        self.has, self.gives, self.pulls = has, gives, 0

    async def call(self, method: str, message: Object, seconds: float = 0) -> Object:
        if method == "ImageStatus":
            return {"image": {"id": "sha256:1", "size": "7"}} if self.has else {}
        self.pulls += 1
        if not self.gives:
            raise images.CriFailed("UNKNOWN", "401 Unauthorized")
        self.has = True
        return {}


def outcome(runtime: Runtime, policy: str) -> tuple[str, list[str]]:
    """Starts a container until the pull has ended. Returns the image's id or why it waits, and the Events."""
    pod: Any = {"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": {}}
    container = {"name": "c", "image": "box:1", "imagePullPolicy": policy}
    told: list[str] = []

    async def work() -> str:
        kept, woken = images.Images(runtime, None), asyncio.Event()
        for _ in range(2):
            try:
                have = kept.have(pod, container, 0, lambda *row: told.append(f"{row[1]}: {row[2]}"), woken.set)
                return str((await have)["id"])
            except Refused as err:
                if err.reason != "ContainerCreating":
                    return err.reason
                await woken.wait()
        raise AssertionError(told)

    return asyncio.run(work()), told


@pytest.mark.parametrize(
    ("policy", "has", "gives", "wanted", "pulls"),
    [
        ("Never", False, True, "ErrImageNeverPull", 0),
        ("Never", True, False, "sha256:1", 0),
        ("IfNotPresent", True, False, "sha256:1", 0),
        ("IfNotPresent", False, True, "sha256:1", 1),
        ("IfNotPresent", False, False, "ErrImagePull", 1),
        ("Always", True, True, "sha256:1", 1),
        ("Always", False, False, "ErrImagePull", 1),
        ("Always", True, False, "ErrImagePull", 1),
    ],
)
def test_what_a_pull_policy_allows(policy: str, has: bool, gives: bool, wanted: str, pulls: int) -> None:
    """The last row: an image that another pod pulled with its Secret is not for a pod whose own pull is refused."""
    runtime = Runtime(has, gives)
    found, told = outcome(runtime, policy)
    assert (found, runtime.pulls) == (wanted, pulls)
    assert any("401" in row for row in told) == (wanted == "ErrImagePull")
    assert any(row.startswith("Pulled: Successfully pulled") for row in told) == bool(pulls and gives)
