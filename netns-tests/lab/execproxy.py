"""Makes a stock cluster of an embedded one, as far as `podwire check` sees: a server before the API server with the
subresource exec (v5.channel.k8s.io) and the admission of PodSecurity "restricted".
"""

from __future__ import annotations

import asyncio
import json
import ssl
import subprocess
import threading
from pathlib import Path
from typing import Any, Self

import aiohttp
import yaml
from aiohttp import web
from yarl import URL

from podwire.commands.pods import find_pod
from podwire.demo.lab import DemoLab
from podwire_base.kube.client import config as client_config
from podwire_node.podspec import PATH
from podwire_node.runtime import Container, enter_command


class ExecProxy:
    """kubeconfig: leads to the proxy. ran: commands. refused: pods that it did not let in."""

    def __init__(self, lab: DemoLab, folder: Path) -> None:
        self.lab, self.kubeconfig = lab, folder / "stock.kubeconfig"
        self.ran = self.refused = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def __enter__(self) -> Self:
        self._thread.start()
        port = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)
        name = {"name": "stock"}
        text: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "stock",
            "clusters": [{**name, "cluster": {"server": f"http://127.0.0.1:{port}"}}],
            "users": [{**name, "user": {}}],
            "contexts": [{**name, "context": {"cluster": "stock", "user": "stock"}}],
        }
        self.kubeconfig.write_text(yaml.safe_dump(text))
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start(self) -> int:
        behind = client_config.load(str(self.lab.config.kubeconfig))
        self._server, self._ssl = behind.server, behind.ssl
        self._session = aiohttp.ClientSession(auto_decompress=False)
        app = web.Application(client_max_size=16 << 20)
        app.router.add_get("/api/v1/namespaces/{space}/pods/{pod}/exec", self._exec)
        app.router.add_route("*", "/{rest:.*}", self._pass_on)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        return int(self._runner.addresses[0][1])

    async def _stop(self) -> None:
        await self._runner.cleanup()
        await self._session.close()

    async def _pass_on(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        if request.method == "POST" and request.path.endswith("/pods") and (why := _forbidden(json.loads(body))):
            self.refused += 1
            status = {"kind": "Status", "status": "Failure", "reason": "Forbidden", "message": why, "code": 403}
            return web.json_response(status, status=403)
        url = URL(self._server + request.rel_url.raw_path_qs, encoded=True)
        headers = {k: v for k, v in request.headers.items() if k.lower() not in ("host", "content-length")}
        secure = self._ssl if isinstance(self._ssl, ssl.SSLContext) else True
        async with self._session.request(request.method, url, data=body, headers=headers, ssl=secure) as answer:
            return web.Response(
                status=answer.status, body=await answer.read(), headers={"Content-Type": answer.headers["Content-Type"]}
            )

    async def _exec(self, request: web.Request) -> web.StreamResponse:
        stream = web.WebSocketResponse(protocols=("v5.channel.k8s.io",))
        await stream.prepare(request)
        found = find_pod(self.lab.config.name, request.match_info["space"], request.match_info["pod"])
        process = Container(found, request.query["container"]).main_process()
        assert process is not None
        env = dict(
            pair.split("=", 1)
            for pair in Path(f"/proc/{process.pid}/environ").read_text().split("\0")
            if pair.startswith("PODWIRE_PROBE")
        )
        command = [*enter_command(process.pid), *request.query.getall("command")]
        done = await asyncio.to_thread(
            subprocess.run, command, capture_output=True, env={"PATH": PATH, **env}, timeout=60, check=False
        )
        self.ran += 1
        for channel, data in ((1, done.stdout), (2, done.stderr)):
            for at in range(0, len(data), 1000):
                await stream.send_bytes(bytes((channel,)) + data[at : at + 1000])
        causes = {"details": {"causes": [{"reason": "ExitCode", "message": str(done.returncode)}]}}
        status = {"status": "Success"} if done.returncode == 0 else {"status": "Failure", **causes}
        await stream.send_bytes(b"\3" + json.dumps(status).encode())
        await stream.close()
        return stream


def _forbidden(pod: dict[str, Any]) -> str:
    spec = pod["spec"]
    ports = [port for container in spec["containers"] for port in container.get("ports") or []]
    if spec.get("hostNetwork"):
        return 'pods "x" is forbidden: violates PodSecurity "restricted:latest": host namespaces (hostNetwork=true)'
    if any(port.get("hostPort") for port in ports):
        return 'pods "x" is forbidden: violates PodSecurity "restricted:latest": hostPort'
    if not all((c.get("securityContext") or {}).get("runAsNonRoot") for c in spec["containers"]):
        return 'pods "x" is forbidden: violates PodSecurity "restricted:latest": runAsNonRoot != true'
    return ""
