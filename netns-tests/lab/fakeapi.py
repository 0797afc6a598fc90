"""The list and watch of an API server, small: enough to feed a role's informers in a namespace without a control plane."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aiohttp import web

from podwire_controlplane.api import meta

from .netns import NetNS

PATHS = {"Service": "/api/v1/services", "EndpointSlice": "/apis/discovery.k8s.io/v1/endpointslices", "Node": "/api/v1/nodes"}


class FakeApi:
    """`put` and `delete` may be called from any thread; every watcher hears of them in order."""

    def __init__(self) -> None:
        self.version = 1
        self.log: list[tuple[int, str, str, meta.Object]] = []  # version, path, type, object
        self.objects: dict[tuple[str, str], meta.Object] = {}
        self.loop = asyncio.new_event_loop()
        self._news = asyncio.Condition()

    def put(self, *objects: meta.Object) -> None:
        asyncio.run_coroutine_threadsafe(self._put(objects), self.loop).result()

    def delete(self, obj: meta.Object) -> None:
        asyncio.run_coroutine_threadsafe(self._delete(obj), self.loop).result()

    async def _record(self, kind: str, path: str, obj: meta.Object) -> None:
        self.version += 1
        obj["metadata"]["resourceVersion"] = str(self.version)
        self.log.append((self.version, path, kind, obj))
        async with self._news:
            self._news.notify_all()

    async def _put(self, objects: tuple[meta.Object, ...]) -> None:
        for obj in objects:
            copy, path = json.loads(json.dumps(obj)), PATHS[obj["kind"]]
            known = (path, meta.key(obj)) in self.objects
            self.objects[path, meta.key(obj)] = copy
            await self._record("MODIFIED" if known else "ADDED", path, copy)

    async def _delete(self, obj: meta.Object) -> None:
        path = PATHS[obj["kind"]]
        await self._record("DELETED", path, dict(self.objects.pop((path, meta.key(obj)))))

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if "watch" in request.query:
            return await self._watch(request)
        items = [obj for (path, _), obj in self.objects.items() if path == request.path]
        return web.json_response({"items": items, "metadata": {"resourceVersion": str(self.version)}})

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        seen = int(request.query["resourceVersion"])
        answer = web.StreamResponse(headers={"Content-Type": "application/json"})
        await answer.prepare(request)
        while True:
            for version, path, kind, obj in self.log:
                if version > seen and path == request.path:
                    await answer.write(json.dumps({"type": kind, "object": obj}).encode() + b"\n")
            seen = self.version
            async with self._news:
                while self.version == seen:
                    await self._news.wait()


@contextmanager
def serve(ns: NetNS, directory: Path) -> Iterator[tuple[FakeApi, Path]]:
    """An API server on a loopback port inside `ns`; gives it and a kubeconfig."""
    api = FakeApi()

    def bind() -> socket.socket:
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
        return sock

    sock = ns.call(bind)
    app = web.Application()
    app.router.add_get("/{path:.*}", api.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)

    async def start() -> None:
        await runner.setup()
        await web.SockSite(runner, sock).start()

    async def halt() -> None:
        await runner.cleanup()
        watches = asyncio.all_tasks() - {asyncio.current_task()}
        for task in watches:
            task.cancel()
        await asyncio.gather(*watches, return_exceptions=True)

    thread = threading.Thread(target=api.loop.run_forever, daemon=True)
    thread.start()
    asyncio.run_coroutine_threadsafe(start(), api.loop).result()
    kubeconfig = directory / "kubeconfig"
    kubeconfig.write_text(json.dumps({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{sock.getsockname()[1]}"}}],
        "users": [{"name": "u", "user": {}}]}))
    try:
        yield api, kubeconfig
    finally:
        asyncio.run_coroutine_threadsafe(halt(), api.loop).result()
        api.loop.call_soon_threadsafe(api.loop.stop)
        thread.join()
        api.loop.close()
