"""Writes the projected volumes of a pod on the node, and renews their tokens: so a process in a pod reaches the API by
/var/run/secrets/kubernetes.io/serviceaccount, as in every cluster.

A volume is a directory of the node that is bound into the containers. Its files change at once for a reader: they are
links through `..data`, which is replaced by a rename, as the kubelet does.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from podwire_base.kube.client.http import ApiClient
from podwire_base.kube.errors import ApiError, Refused
from podwire_base.kube.meta import Object, key, name, namespace, uid
from podwire_base.kube.registry import of
from podwire_base.role import logs

from . import projected
from .podspec import Refused as NotRun
from .podspec import server_variables
from .projected import Held, Need, Token

log = logs.get("node")
RETRY_SECONDS = 10.0
REFRESH_SECONDS = 60.0  # between two looks at the ConfigMaps and Secrets of a volume, as the kubelet
_DATA = "..data"


def write(directory: Path, files: dict[str, tuple[bytes, int]]) -> bool:
    """Make a directory hold exactly these files: path -> (content, mode). Return whether it changed. Raises OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    present = directory / _DATA
    if present.exists() and _same(present, files):
        return False
    fresh = directory / f"..{time.time_ns()}"
    for path, (content, mode) in files.items():
        target = fresh / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
        target.chmod(mode)
    fresh.mkdir(exist_ok=True)
    fresh.chmod(0o755)
    before = directory / present.readlink() if present.is_symlink() else None
    link = directory / "..data_tmp"
    link.unlink(missing_ok=True)
    link.symlink_to(fresh.name)
    link.rename(present)
    wanted = {path.partition("/")[0] for path in files}
    for own in wanted:
        if not (directory / own).is_symlink():
            (directory / own).symlink_to(f"{_DATA}/{own}")
    for entry in directory.iterdir():
        if not entry.name.startswith("..") and entry.name not in wanted:
            entry.unlink()
    if before is not None:
        shutil.rmtree(before, ignore_errors=True)
    return True


def _same(present: Path, files: dict[str, tuple[bytes, int]]) -> bool:
    found = {str(path.relative_to(present)) for path in present.rglob("*") if path.is_file()}
    return found == files.keys() and all((present / path).read_bytes() == raw for path, (raw, _) in files.items())


class ApiAccess:
    """The projected volumes of one pod. directory: of the pod's files on the node. field: returns the value of a field
    of the pod. known: what `server` has found, shared by all pods of a node.
    """

    def __init__(
        self,
        api: ApiClient,
        directory: Path,
        clock: Callable[[], float] = time.time,
        known: dict[str, str] | None = None,
    ) -> None:
        self.api, self.directory, self.clock = api, directory / "volumes", clock
        self.known = {} if known is None else known
        self._tokens: dict[Token, tuple[str, float]] = {}  # text, when it is renewed

    async def prepare(self, pod: Object, container: Object, field: Callable[[str], str]) -> list[list[str]]:
        """Write the volumes that a container mounts, and return them as binds: [directory, path, mode]. Raises
        podspec.Refused, ApiError and OSError.
        """
        binds = []
        for volume, path in projected.mounts(pod, container):
            await self._write(pod, volume, field)
            binds.append([str(self.directory / volume), path, "ro"])
        return binds

    async def server(self) -> dict[str, str]:
        """Return the variables that tell a container where the API server is. Raises ApiError."""
        if not self.known:
            self.known.update(server_variables(await self.api.get(of("Service").path("default", "kubernetes"))))
        return self.known

    async def keep(self, pod: Callable[[], Object], field: Callable[[str], str]) -> None:
        """Write the volumes again whenever something in them changes, and before a token ends. Runs forever."""
        while True:
            await asyncio.sleep(self._wait())
            for volume in [entry.name for entry in self.directory.iterdir()] if self.directory.is_dir() else ():
                try:
                    await self._write(pod(), volume, field)
                except (ApiError, OSError, NotRun, LookupError) as err:
                    log.warn("a volume is not renewed", pod=key(pod()), volume=volume, error=str(err))

    def _wait(self) -> float:
        due = min((at for _, at in self._tokens.values()), default=float("inf")) - self.clock()
        return min(max(due, RETRY_SECONDS), REFRESH_SECONDS)

    async def _write(self, pod: Object, volume: str, field: Callable[[str], str]) -> None:
        found: dict[Need, Any] = {}
        for need in projected.needs(pod, volume):
            if isinstance(need, Token):
                found[need] = await self._token(pod, need)
            elif (obj := await self._object(pod, need)) is not None:
                found[need] = obj
        write(self.directory / volume, projected.files(pod, volume, found, field))

    async def _object(self, pod: Object, need: Held) -> Object | None:
        try:
            return await self.api.get(of(need.kind).path(namespace(pod), need.name))
        except Refused as err:
            if err.code != 404:
                raise
            return None

    async def _token(self, pod: Object, need: Token) -> str:
        text, until = self._tokens.get(need, ("", 0.0))
        if self.clock() < until:
            return text
        account = pod["spec"].get("serviceAccountName") or "default"
        bound = {"apiVersion": "v1", "kind": "Pod", "name": name(pod), "uid": uid(pod)}
        spec = {"expirationSeconds": need.seconds, "boundObjectRef": bound}
        if need.audience:
            spec["audiences"] = [need.audience]
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        made = await self.api.create(f"{of('ServiceAccount').path(namespace(pod), account)}/token", body)
        text = str(made["status"]["token"])
        self._tokens[need] = text, self.clock() + need.seconds * projected.RENEWED
        return text
