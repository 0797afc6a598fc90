"""The policy role: watches Pods, Namespaces and NetworkPolicies, and keeps the tables `podwire-policy` so."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from podwire_base.kube import meta
from podwire_base.kube.client.config import load
from podwire_base.kube.client.http import ApiClient
from podwire_base.kube.client.informer import Informer
from podwire_base.kube.client.reflector import Event
from podwire_base.role import accept, beat, layout, logs, unixsocket
from podwire_base.role.judging import SOCKET, WAIT, read
from podwire_base.role.run import main, stop_event, until_stopped
from podwire_base.role.status import RoleStatus

from . import apply, convert
from .claims import Claims
from .compiled import Delta
from .compiler import Compiler

log = logs.get("policy")
PODS, NAMESPACES = "/api/v1/pods", "/api/v1/namespaces"
POLICIES = "/apis/networking.k8s.io/v1/networkpolicies"
RETRY = 1.0  # seconds until everything is compared again after a failure


@dataclass(frozen=True)
class PolicyConfig:
    """The settings of the role. kubeconfig None: in-cluster."""

    node_name: str
    kubeconfig: str | None
    run_dir: Path


class Role:
    """The role as it runs. Nothing is written before all three lists are there."""

    def __init__(self, config: PolicyConfig, tables: apply.Tables) -> None:
        self.config, self.tables = config, tables
        self.compiler = Compiler(config.node_name)
        self.status = RoleStatus(config.run_dir, "policy")
        self.pods: Informer | None = None
        self.claims = Claims(config.node_name, self._objects, self._closed)
        self._problems: dict[str, tuple[str, ...]] = {}
        self._wake, self._pods_changed = asyncio.Event(), asyncio.Condition()
        self._full, self._ready, self._commits = True, asyncio.Event(), 0
        self._failed = ""

    def _closed(self, namespace: str) -> bool:
        return any(policy.subject.namespace == namespace for policy in self.compiler.policies.values())

    def _objects(self) -> Mapping[str, meta.Object]:
        return self.pods.objects if self.pods else {}

    # Events

    def _on_pod(self, event: Event) -> None:
        if event.type == "DELETED":
            self.claims.gone(event.key)
        self._judge(event.key)

    def _judge(self, key: str) -> None:
        try:
            pod = self.claims.pod(key)
        except ValueError as err:  # what it was before would be another pod's rights
            log.warn("a Pod cannot be read, nobody's selector has it", pod=key, problem=str(err))
            pod = None
        self.compiler.pod(key, pod)
        self._changed()

    def _on_namespace(self, event: Event) -> None:
        gone = event.type == "DELETED"
        self.compiler.namespace(event.key, None if gone else convert.labels_of(meta.labels(event.object)))
        self._changed()

    def _on_policy(self, event: Event) -> None:
        policy = None if event.type == "DELETED" else convert.policy(event.object)
        for problem in policy.problems if policy else ():
            if problem not in self._problems.get(event.key, ()):
                log.warn("NetworkPolicy is partly unusable", policy=event.key, problem=problem)
        self._problems[event.key] = policy.problems if policy else ()
        self.compiler.policy(event.key, policy)
        self._changed()

    def _changed(self) -> None:
        beat.pending()
        self._wake.set()

    def _on_foreign(self) -> None:
        if sum(watcher.changed() for watcher in self.watchers):
            self._full = True
            self._wake.set()

    # Writing

    def sync(self) -> bool:
        """Works out and writes everything noted. Returns whether that succeeded; if not, all is compared later."""
        beat.taking()
        began, full = time.monotonic(), self._full
        delta: Delta = self.compiler.flush()
        try:
            done = (
                self.tables.full(self.compiler.compiled) if full else self.tables.change(self.compiler.compiled, delta)
            )
        except OSError as err:
            if str(err) != self._failed:
                log.error("sync failed, the rules stay as they were", error=str(err))
            self._full, self._failed = True, str(err)
            self._report()
            return False
        self._full, self._failed = False, ""
        self._commits += bool(done)
        beat.settled()
        if done or full:
            log.info("synced", full=full, operations=done, took_ms=(time.monotonic() - began) * 1000)
        self._report()
        return True

    def _report(self) -> None:
        judged = self.compiler.compiled.addresses
        isolated = {one.pod for one in judged.values() if one.ingress or one.egress}
        policies = len(self.compiler.policies)
        figures: dict[str, Any] = {"policies": policies, "isolated": len(isolated), "commits": self._commits}
        if self._failed:
            self.status.update(ready=False, message=self._failed, reason="SyncFailed", **figures)
            return
        bad = sorted(key for key, problems in self._problems.items() if problems)
        words = f"{policies} NetworkPolicies, {len(isolated)} pods isolated"
        told = f"; partly unusable: {', '.join(bad[:3])}" if bad else ""
        self.status.update(ready=True, message=words + told, **figures)

    async def _loop(self) -> None:
        loop = asyncio.get_running_loop()
        self.watchers = self.tables.watch()
        for watcher in self.watchers:
            loop.add_reader(watcher.fileno(), self._on_foreign)
        while True:
            self._wake.clear()
            if self.sync():
                self._ready.set()
                async with self._pods_changed:
                    self._pods_changed.notify_all()
            else:
                loop.call_later(RETRY, self._wake.set)
            await self._wake.wait()

    # Wiring's questions

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves one connection: one question. A DEL is answered at once, an ADD when the pod is judged."""
        try:
            async with asyncio.timeout(WAIT):
                asked = read(await reader.readline())
                await self._ready.wait()
                if asked.verb == "DEL":
                    if key := self.claims.remove(asked):
                        self._judge(key)
                        self.sync()
                else:
                    await self._add(self.claims.add(asked))
                writer.write(b"ok\n")
                await writer.drain()
        except (ValueError, OSError, TimeoutError) as err:
            log.warn("a pod was not judged before its start; it is isolated until then", error=repr(err))
        finally:
            writer.close()

    async def _add(self, key: str) -> None:
        while not self.claims.settled(key):
            async with self._pods_changed:
                await self._pods_changed.wait()
        self._judge(key)
        while not self.sync():
            await asyncio.sleep(RETRY / 10)

    async def run(self, api: ApiClient) -> None:
        self.status.update(ready=False, message="waiting for the first lists", reason="Starting")
        pods = Informer(api, PODS, on_event=self._on_pod, keep=convert.trimmed)
        self.pods = pods
        rest = Informer(api, NAMESPACES, on_event=self._on_namespace), Informer(api, POLICIES, on_event=self._on_policy)
        async with asyncio.TaskGroup() as group:
            for informer in (pods, *rest):
                group.create_task(informer.run())
            for informer in (pods, *rest):
                await informer.synced.wait()
            group.create_task(self._loop())


async def _main(config: PolicyConfig) -> None:
    stop, tables = stop_event(), apply.Tables()
    role = Role(config, tables)
    server = accept.streams(unixsocket.listen(config.run_dir / SOCKET), role.answer)
    async with contextlib.AsyncExitStack() as stack:
        api = await stack.enter_async_context(ApiClient(load(config.kubeconfig)))
        await until_stopped(stop, role.run(api))
    server.close()  # the path stays: who asks then is refused, and does not take it for a node without the role
    tables.close()


def run(config: PolicyConfig) -> None:
    """Serves until SIGTERM or SIGINT, inside the node's network namespace. The rules stay in the kernel. Raises
    ConfigError, and OSError without nf_tables.
    """
    logs.configure(node=config.node_name)
    layout.check(config.run_dir)
    apply.refuse_newer()
    layout.claim(config.run_dir)
    log.info("starting")
    main("policy", _main(config))
    log.info("stopped, rules stay")
