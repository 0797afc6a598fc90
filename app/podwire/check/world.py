"""The probes of `podwire check`: it makes them on a cluster, tells them what to send, and removes everything again."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import os
import re
import secrets
import socket
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from podwire_base.kube.client import execute
from podwire_base.kube.client.http import ApiClient
from podwire_base.kube.conditions import is_true
from podwire_base.kube.errors import ApiError, Refused
from podwire_base.kube.meta import Object, name
from podwire_base.patience import patient
from podwire_node.podspec import PATH
from podwire_node.runtime import Container, enter_command

from ..commands.common import Failed
from ..commands.pods import find_pod
from . import objects, probe

NODES = 5  # of a large cluster; a matrix of more would not end in three minutes
READY_SECONDS = 60.0
REQUESTS = 3000  # bytes of requests in one call: they are part of a URL
Say = Callable[[str], None]
Request = dict[str, Any]
Answer = Any


class CannotCheck(Exception):
    """The probes cannot be made. The message says what to do."""


@dataclass(frozen=True, slots=True)
class Probe:
    """node_ip: the InternalIP of its node. host: it is in the node's own network."""

    name: str
    node: str
    ip: str
    node_ip: str
    host: bool = False


@dataclass
class Options:
    """image: "" for podwire's own. outside: (host, port) of a server outside the cluster. local: the name of the
    cluster if it is on this machine.
    """

    image: str = ""
    python: str = "python3"
    outside: tuple[str, int] | None = None
    local: str = ""


@dataclass
class World:
    api: ApiClient
    options: Options
    say: Say = lambda _: None
    space: str = field(default_factory=lambda: f"podwire-check-{secrets.token_hex(3)}")
    probes: list[Probe] = field(default_factory=list)
    hosts: dict[str, Probe] = field(default_factory=dict)  # node -> its probe in the node's own network
    host_port: Probe | None = None
    services: dict[str, Object] = field(default_factory=dict)
    domain: str = "cluster.local"
    left_out: dict[str, str] = field(default_factory=dict)  # "host-network", "host-port" -> why there is none
    _renewing: asyncio.Task[None] | None = None

    # ---- asking

    async def ask(self, source: Probe, requests: list[Request]) -> list[Answer]:
        """Let a probe send, and return an answer for each request. Raises ApiError, CannotCheck."""
        found: list[Answer] = []
        for part in _parts(requests):
            found += await self._call(source, part)
        return found

    async def _call(self, source: Probe, requests: list[Request]) -> list[Answer]:
        seconds = 10 + sum(r.get("timeout", 3) * r.get("count", 1) for r in requests)
        command = [self.options.python, "-c", objects.START, "ask", json.dumps(requests)]
        if self.options.local:
            done = await asyncio.to_thread(self._local, source, command, seconds)
        else:
            pod = f"/api/v1/namespaces/{self.space}/pods/{source.name}"
            done = await execute.run(self.api, pod, "probe", command, patient(seconds))
        if done.status:
            raise CannotCheck(f"the probe {source.name} failed: {done.errors.decode(errors='replace').strip()[-300:]}")
        answers: list[Answer] = json.loads(done.out)
        return answers

    def _local(self, source: Probe, command: list[str], seconds: float) -> execute.Done:
        process = Container(find_pod(self.options.local, self.space, source.name), "probe").main_process()
        if process is None:
            raise CannotCheck(f"the probe {source.name} does not run any more")
        env = {"PATH": PATH, "PODWIRE_PROBE": inspect.getsource(probe), "PODWIRE_PROBE_NAME": source.name}
        found = subprocess.run(
            [*enter_command(process.pid), *command], capture_output=True, timeout=patient(seconds), env=env, check=False
        )
        return execute.Done(found.returncode, found.stdout, found.stderr)

    # ---- making

    async def begin(self) -> None:
        """Create the probes and Services, and wait for them. Raises CannotCheck, ApiError."""
        await self.remove_abandoned()
        nodes = [n for n in (await self.api.get("/api/v1/nodes"))["items"] if is_true(n, "Ready")][:NODES]
        if not nodes:
            raise CannotCheck("no node is Ready: `podwire status`")
        await self.api.create("/api/v1/namespaces", objects.namespace(self.space, _me(), time.time()))
        self._renewing = asyncio.ensure_future(self._renew())
        self.say(f"namespace {self.space}: probes on {len(nodes)} nodes")
        await self._service_account()
        names = [name(n) for n in nodes]
        wanted = [self._pod(f"probe-{n}", node) for n, node in enumerate(names)]
        wanted.append(self._pod(f"probe-{len(names)}", names[0]))  # a second one on the first node
        for pod in wanted:
            await self._create("pods", pod)
        extra = [
            *(("host-network", self._pod(f"host-{n}", node, host=True)) for n, node in enumerate(names)),
            ("host-port", self._pod("host-port", names[0], host_port=objects.HOST_PORT)),
        ]
        made = [pod for what, pod in extra if await self._if_allowed(what, pod)]
        for service in objects.services(self.space, self.domain, "probe-0"):
            if name(service) != "external-name":
                self.services[name(service)] = await self._create("services", service)
        await self._wait(wanted, made, {name(n): _internal_ip(n) for n in nodes})
        (answer,) = await self.ask(self.probes[0], [{"do": "search"}])
        self.domain = next((d.partition(".svc.")[2] for d in answer["search"] if ".svc." in d), self.domain)
        for service in objects.services(self.space, self.domain, "probe-0"):
            if name(service) == "external-name":
                self.services[name(service)] = await self._create("services", service)
        path = f"/apis/discovery.k8s.io/v1/namespaces/{self.space}/endpointslices"
        await self.api.create(path, objects.slice_by_hand(self.probes[-2].ip))

    def _pod(self, own: str, node: str, *, host: bool = False, host_port: int = 0) -> Object:
        source = inspect.getsource(probe)
        plain = bool(self.options.local) or host
        return objects.probe(
            own, node, self.options.image, self.options.python, source, host=host, host_port=host_port, plain=plain
        )

    async def _create(self, plural: str, obj: Object) -> Object:
        return await self.api.create(f"/api/v1/namespaces/{self.space}/{plural}", obj)

    async def _if_allowed(self, what: str, pod: Object) -> bool:
        try:
            await self._create("pods", pod)
        except Refused as err:
            if err.code != 403:
                raise
            self.left_out[what] = f"the cluster forbids it: {err.message}"
            return False
        return True

    async def _service_account(self) -> None:
        """Wait for the namespace's ServiceAccount, without which a stock API server refuses pods."""
        end = time.monotonic() + 10
        while time.monotonic() < end and not self.options.local:
            with contextlib.suppress(Refused):
                await self.api.get(f"/api/v1/namespaces/{self.space}/serviceaccounts/default")
                return
            await asyncio.sleep(0.2)

    async def _wait(self, wanted: list[Object], extra: list[Object], node_ips: dict[str, str]) -> None:
        begin, end, said = time.monotonic(), time.monotonic() + patient(READY_SECONDS), ""
        while True:
            pods = {name(p): p for p in (await self.api.get(f"/api/v1/namespaces/{self.space}/pods"))["items"]}
            late = [p for p in (*wanted, *extra) if not objects.is_ready(pods.get(name(p), {}))]
            # Probes that need rights may never start; the others must not wait for them longer than this.
            if not late or (not {*map(name, late)} & {*map(name, wanted)} and time.monotonic() - begin > patient(20)):
                break
            why = objects.why_not_ready(pods.get(name(late[0]), late[0]))
            if time.monotonic() > end:
                raise CannotCheck(
                    f"{len(late)} of {len(wanted) + len(extra)} probes are not ready after "
                    f"{patient(READY_SECONDS):.0f} s; {why}. {self._last_words(late[0])}The image must have python3 "
                    "and be on every node: --image"
                )
            reason = re.sub(r"back-off [\d.]+ s", "", why).strip()  # it counts down
            if reason != said:
                said = reason
                self.say(f"waiting: {reason}")
            await asyncio.sleep(0.2)
        for pod in (*wanted, *extra):
            found = pods.get(name(pod), {})
            node = pod["spec"]["nodeName"]
            made = Probe(name(pod), node, (found.get("status") or {}).get("podIP", ""), node_ips[node], pod in extra)
            if pod in wanted:
                self.probes.append(made)
            elif not objects.is_ready(found):
                what = "host-network" if pod["spec"].get("hostNetwork") else "host-port"
                self.left_out[what] = objects.why_not_ready(found or pod)
            elif pod["spec"].get("hostNetwork"):
                self.hosts[node] = made
            else:
                self.host_port = made

    def _last_words(self, pod: Object) -> str:
        """Return the last line of a probe's log, of a cluster on this machine."""
        try:
            log = Container(find_pod(self.options.local, self.space, name(pod)), "probe").log
            return f"Its log ends with {log.read_text().splitlines()[-1].split(' ', 3)[-1]!r}. "
        except (OSError, IndexError, Failed):
            return ""

    # ---- removing

    async def end(self) -> None:
        """Remove everything, and wait until it is gone."""
        if self._renewing is not None:
            self._renewing.cancel()
        await remove(self.api, self.space)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(objects.LIFE / 4)
            note = {"metadata": {"annotations": {objects.EXPIRES: objects.expiry(time.time())}}}
            with contextlib.suppress(ApiError):
                await self.api.patch(f"/api/v1/namespaces/{self.space}", note)

    async def remove_abandoned(self) -> None:
        """Remove the namespaces of runs that were killed."""
        found = (await self.api.get("/api/v1/namespaces", labelSelector=f"{objects.LABEL}=true"))["items"]
        owners = {(space["metadata"].get("annotations") or {}).get(objects.OWNER, "") for space in found}
        running = {owner for owner in owners if _runs(owner)}
        here = f"{socket.gethostname()}/"
        for space in found:
            owner = (space["metadata"].get("annotations") or {}).get(objects.OWNER, "")
            dead_here = owner.startswith(here) and owner not in running
            if dead_here or objects.is_abandoned(space, time.time(), running):
                self.say(f"removing {name(space)}, which an earlier run left")
                await remove(self.api, name(space))


async def remove(api: ApiClient, space: str, seconds: float = 60) -> None:
    """Delete a namespace, its pods first so that no grace period is waited for, and wait until it is gone."""
    path = f"/api/v1/namespaces/{space}"
    end = time.monotonic() + patient(seconds)
    while time.monotonic() < end:
        try:
            await api.delete(path)
            while time.monotonic() < end:
                await api.get(path)
                await asyncio.sleep(0.2)
        except Refused as err:
            if err.code == 404:
                return
            if err.code != 409:
                raise
            await asyncio.sleep(0.5)
    raise CannotCheck(f"namespace {space} is not gone after {seconds:.0f} s: `podwire delete namespace {space}`")


def _parts(requests: Iterable[Request]) -> list[list[Request]]:
    parts: list[list[Request]] = []
    size = REQUESTS
    for request in requests:
        length = len(json.dumps(request)) + 2
        if size + length > REQUESTS:
            parts.append([])
            size = 0
        parts[-1].append(request)
        size += length
    return parts


def _me() -> str:
    return f"{socket.gethostname()}/{os.getpid()}"


def _runs(owner: str) -> bool:
    host, _, pid = owner.rpartition("/")
    return host == socket.gethostname() and pid.isdecimal() and Path(f"/proc/{pid}").exists()


def _internal_ip(node: Object) -> str:
    addresses = (node.get("status") or {}).get("addresses") or []
    return next((str(a["address"]) for a in addresses if a["type"] == "InternalIP"), "")


def local_options(cluster: str) -> Options:
    """Return the options for a cluster on this machine: its pods see this machine's files, and so its python3."""
    return Options("podwire.io/host", local=cluster)
