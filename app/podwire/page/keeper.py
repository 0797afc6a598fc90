"""Asks the nodes and the API server for the page, with the rights of who called `podwire ui`. I/O."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from podwire_base.kube.client.config import ClientConfig
from podwire_base.kube.client.http import ApiClient
from podwire_base.kube.client.informer import Informer
from podwire_base.kube.errors import ApiError
from podwire_base.kube.meta import Object
from podwire_base.role.logtext import printable
from podwire_observe.query import Query
from podwire_observe.sums import SLOT_SECONDS

from ..flows import asking
from ..flows.asking import Node
from . import link, words
from .view import KEPT, MINUTE, Heard, Objects, Sample, Told, View

EVERY = 2.0  # seconds between two snapshots
FIRST_LISTS = 3.0  # seconds that the first snapshot waits for the API server
EXPLAINING = 30.0
KINDS = {
    "services": "/api/v1/services",
    "slices": "/apis/discovery.k8s.io/v1/endpointslices",
    "pods": "/api/v1/pods",
    "nodes": "/api/v1/nodes",
}


class Keeper:
    """nodes: returns the nodes to ask now. api: None without an API server. where: the options of `podwire explain`
    that choose the cluster. shown: those that the page's command lines show.
    """

    def __init__(
        self,
        nodes: Callable[[], Sequence[Node]],
        api: ClientConfig | None,
        where: tuple[str, ...] = (),
        shown: tuple[str, ...] = (),
    ) -> None:
        self.nodes, self.api, self.where, self.shown = nodes, api, where, shown
        self.view = View()
        self.objects = Objects(missing="" if api else "no kubeconfig is there")
        self._watched = asyncio.Event()
        self._explaining = asyncio.Lock()
        self._send: Callable[[dict[str, Any]], None] = lambda _line: None
        self._informers: list[Informer] = []

    async def run(self, sock: socket.socket) -> None:
        """Serves the other process until it ends."""
        async with contextlib.AsyncExitStack() as stack:
            works: list[Awaitable[Any]] = [self._snapshots()]
            if self.api is not None:
                api = await stack.enter_async_context(ApiClient(self.api))
                self._follow(api)
                works += [self._judging(api), *(one.run() for one in self._informers)]
            tasks = [asyncio.ensure_future(work) for work in works]
            serving = asyncio.ensure_future(link.serve(sock, self._answer, self._take))
            try:
                await asyncio.wait({serving, *tasks}, return_when=asyncio.FIRST_COMPLETED)
                for task in (serving, *tasks):
                    if task.done():
                        task.result()
            finally:
                for task in (serving, *tasks):
                    task.cancel()
                await asyncio.gather(serving, *tasks, return_exceptions=True)

    def _take(self, send: Callable[[dict[str, Any]], None]) -> None:
        self._send = send

    # The API's objects

    def _follow(self, api: ApiClient) -> None:
        for kind, path in KINDS.items():
            informer = Informer(api, path, keep=_trimmed)
            self._informers.append(informer)
            setattr(self.objects, kind, informer.objects)

    async def _judging(self, api: ApiClient) -> None:
        """Notes now and then whether the API server answers. The informers go on by themselves."""
        while True:
            try:
                async with asyncio.timeout(EVERY * 2):
                    await api.get("/version")
                self.objects.missing = ""
            except (ApiError, TimeoutError, OSError) as err:
                self.objects.missing = getattr(err, "message", "") or "no answer"
            for kind, informer in zip(KINDS, self._informers, strict=True):
                setattr(self.objects, kind, informer.objects)
            await asyncio.sleep(EVERY * 2)

    # Snapshots

    async def _read(self, since: float, until: float) -> tuple[list[Told], list[Heard]]:
        told: list[Told] = []
        heard: dict[str, Heard] = {}
        nodes = list(self.nodes())
        async for one in asking.ask(nodes, Query("slots", since=since, until=until)):
            if one.silent:
                heard[one.node] = Heard(one.node, one.silent)
            elif "head" in one.line:
                heard[one.node] = Heard(one.node, "", one.line["head"])
            elif "row" in one.line:
                told.append(Told(one.node, one.line["slot"], one.line["row"]))
        return told, list(heard.values())

    async def _minute(self, until: float) -> dict[str, Any]:
        first = (until // SLOT_SECONDS - MINUTE // SLOT_SECONDS + 1) * SLOT_SECONDS
        told, heard = await self._read(first, until)
        return self.view.snapshot(told, heard, self.objects, until)

    async def _snapshots(self) -> None:
        await self._watched.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_LISTS):
                for informer in self._informers:
                    await informer.synced.wait()
        told, _ = await self._read(time.time() - KEPT, time.time())
        self.view.remember(told, self.objects)
        while True:
            await self._watched.wait()
            self._send({"snapshot": await self._minute(time.time())})
            await asyncio.sleep(EVERY)

    # Questions

    async def _answer(self, what: str, value: Any) -> dict[str, Any]:
        if what == "watch":
            (self._watched.set if value else self._watched.clear)()
            return {}
        if what == "at":
            return await self._minute(time.time() - float(value))
        if what == "explain":
            found = self.view.samples.get(str(value))
            return await self._explain(found[1]) if found else {"unknown": True}
        return {"unknown": True}

    async def _explain(self, sample: Sample) -> dict[str, Any]:
        """Returns what `podwire explain` says of a pair: {"lines": [...], "commands": [...]}."""
        flow = await self._latest(sample)
        asked = words.explaining(sample, flow)
        told = ["Nobody knows which packet to explain: the connection is no longer remembered."]
        if asked:
            async with self._explaining:  # one at a time: each asks all nodes on the way
                told = await explained(*self.where, *asked)
        return {"lines": told, "commands": words.commands(sample, asked, self.shown)}

    async def _latest(self, sample: Sample) -> dict[str, Any] | None:
        nodes = [node for node in self.nodes() if node.name == sample.node]
        found = None
        async for one in asking.ask(nodes, words.question(sample)):
            if "flow" in one.line:
                found = dict(one.line["flow"])
        return found


async def explained(*given: str) -> list[str]:
    """Runs `podwire explain` and returns its lines, or why it failed."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "podwire.main", "explain", *given,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(EXPLAINING):
            out, err = await child.communicate()
    except TimeoutError:
        return [f"podwire explain did not answer within {EXPLAINING:.0f} s"]
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    text = out.decode(errors="replace") or err.decode(errors="replace")
    return [printable(line) for line in text.splitlines()]


def _trimmed(obj: Object) -> Object:
    """Returns what the page needs of an object."""
    metadata = obj.get("metadata") or {}
    kept: Object = {
        "metadata": {
            key: metadata[key]
            for key in ("name", "namespace", "uid", "resourceVersion", "labels", "ownerReferences")
            if key in metadata
        }
    }
    if "endpoints" in obj:
        kept["endpoints"] = obj["endpoints"]
    if conditions := (obj.get("status") or {}).get("conditions"):
        kept["status"] = {"conditions": conditions}
    return kept
