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
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from podwire_base.kube.client.http import ApiClient
from podwire_base.kube.errors import ApiError, Refused
from podwire_base.kube.meta import Object, key, name, namespace, uid
from podwire_base.kube.registry import of
from podwire_base.role import logs
from podwire_base.role.waits import until_set

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


def _group(pod: Object) -> int | None:
    found = (pod["spec"].get("securityContext") or {}).get("fsGroup")
    return None if found is None else int(found)


def give(directory: Path, group: int) -> None:
    """Let a group (fsGroup) read a volume: it is the owner of everything in it. Raises OSError."""
    for path in (directory, *directory.rglob("*")):
        if not path.is_symlink():
            os.chown(path, -1, group)
            path.chmod(path.stat().st_mode | (0o2550 if path.is_dir() else 0o440))


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
        self.changed = asyncio.Event()  # the pod has other labels or annotations
        self._objects: dict[Held, Object] = {}
        self._services: list[Object] = []
        self._resource: Callable[[Object], str] = lambda _: ""

    async def prepare(
        self,
        pod: Object,
        volumes: Iterable[str],
        field: Callable[[str], str],
        resource: Callable[[Object], str] = lambda _: "",
    ) -> None:
        """Write volumes of the pod. What was written stays if the API server does not answer. Raises podspec.Refused,
        ApiError and OSError.
        """
        self._resource = resource
        for volume in volumes:
            try:
                await self._write(pod, volume, field)
            except ApiError as err:
                if isinstance(err, Refused) or not (self.directory / volume / _DATA).exists():
                    raise

    async def objects(self, pod: Object, needs: Iterable[Held]) -> dict[Held, Object]:
        """Return the ConfigMaps and Secrets that exist; those of the last time if the API server does not answer.
        Raises ApiError.
        """
        for need in needs:
            try:
                found = await self._object(pod, need)
            except ApiError as err:
                if isinstance(err, Refused) or need not in self._objects:
                    raise
                continue
            if found is None:
                self._objects.pop(need, None)
            else:
                self._objects[need] = found
        return dict(self._objects)

    async def services(self, space: str) -> list[Object]:
        """Return a namespace's Services, the older first; those of the last time if the API server does not answer."""
        try:
            found = (await self.api.get(of("Service").path(space)))["items"]
            self._services = sorted(found, key=lambda one: str(one["metadata"].get("creationTimestamp")))
        except ApiError:
            pass  # a container starts without links rather than not at all
        return self._services

    async def server(self) -> dict[str, str]:
        """Return the variables that tell a container where the API server is. Raises ApiError."""
        if not self.known:
            self.known.update(server_variables(await self.api.get(of("Service").path("default", "kubernetes"))))
        return self.known

    async def keep(self, pod: Callable[[], Object], field: Callable[[str], str]) -> None:
        """Write the volumes again whenever something in them changes, and before a token ends. Runs forever."""
        while True:
            await until_set(self.changed, self._wait())
            self.changed.clear()
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
        made = projected.files(pod, volume, found, field, self._resource)
        if write(self.directory / volume, made) and (group := _group(pod)) is not None:
            give(self.directory / volume, group)

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
