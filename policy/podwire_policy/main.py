"""The policy role: watches Pods, Namespaces and NetworkPolicies, and keeps the tables `podwire-policy` so."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from http import HTTPStatus
from typing import Any

from podwire_base.kube import meta
from podwire_base.kube.client.config import load
from podwire_base.kube.client.http import ApiClient
from podwire_base.kube.client.informer import Informer
from podwire_base.kube.client.reflector import Event
from podwire_base.kube.errors import ApiError, Refused
from podwire_base.role import accept, beat, logs, process, unixsocket, web
from podwire_base.role import layout as folder
from podwire_base.role.judging import SOCKET, WAIT, read
from podwire_base.role.metrics import CONTENT_TYPE
from podwire_base.role.run import main, stop_event, until_stopped
from podwire_base.role.status import RoleStatus
from podwire_base.role.upkeep import Mendings, Upkeep

from . import apply, bridged, convert, convertcluster, counted, cut
from .claims import Claims
from .compiled import Delta
from .compiler import Compiler
from .config import PolicyConfig
from .counted import Drops
from .cutter import Cutter
from .metrics import Figures, page
from .model import TIERS, Policy
from .tables import layout

log = logs.get("policy")
PODS, NAMESPACES = "/api/v1/pods", "/api/v1/namespaces"
NODES = "/api/v1/nodes"
POLICIES = "/apis/networking.k8s.io/v1/networkpolicies"
CLUSTER_POLICIES = "/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies"
ABSENT = 30.0  # seconds until it is looked again whether the API has ClusterNetworkPolicies
TOLD = 5  # ended flows that one line of the log names
LOOK = 10.0  # seconds between two looks at bridges of another program
RETRY = 1.0  # seconds until everything is compared again after a failure


class Role:
    """The role as it runs. Nothing is written before all three lists are there."""

    def __init__(self, config: PolicyConfig, tables: apply.Tables) -> None:
        self.config, self.tables = config, tables
        self.compiler = Compiler(config.node_name)
        self.status = RoleStatus(config.run_dir, "policy")
        self.pods: Informer | None = None
        self.claims = Claims(config.node_name, self._objects, self._closed)
        self._problems: dict[str, tuple[str, ...]] = {}
        self._looked, self._unreadable = asyncio.Event(), ""  # for ClusterNetworkPolicies
        self._wake, self._pods_changed = asyncio.Event(), asyncio.Condition()
        self._full, self._ready, self._commits = True, asyncio.Event(), 0
        self._failed = ""
        self.mendings = Mendings(log, "policy", config.node_name)
        self.upkeep = Upkeep([tables.counts()], self._mend)
        self.cutter = Cutter(tables.commit, own_node=config.own_node)
        self._passing: list[str] = []  # what passes the tables by
        self._touched: set[str] | None = None  # addresses whose flows are to be judged again; None: all
        self._cut_woken = asyncio.Event()
        self._foreign, self._telling = False, set[asyncio.Task[None]]()
        self.drops = Drops()
        self.tell: Callable[[meta.Object], Awaitable[None]] | None = None  # sends an Event

    def _closed(self, namespace: str) -> bool:
        return self.compiler.closed(namespace)

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

    def _on_node(self, event: Event) -> None:
        try:
            node = None if event.type == "DELETED" else convertcluster.node(event.object)
        except ValueError as err:
            log.warn("a Node cannot be read, it is nobody's peer", node=event.key, problem=str(err))
            node = None
        self.compiler.machine(event.key, node)
        if event.key == self.config.node_name and self.config.foreign and self.config.drop_unknown:
            gone = event.type == "DELETED"
            self._full |= self.tables.close_ranges(() if gone else convertcluster.pod_cidrs(event.object))
        self._changed()

    def _on_policy(self, event: Event) -> None:
        self._note_policy("NetworkPolicy", event.key, None if event.type == "DELETED" else convert.policy(event.object))

    def _on_cluster_policy(self, event: Event) -> None:
        try:
            policy = None if event.type == "DELETED" else convertcluster.policy(event.object)
        except ValueError as err:
            log.warn("ClusterNetworkPolicy is unusable", policy=event.key, problem=str(err))
            self._problems[event.key] = (str(err),)
            self.compiler.policy(event.key, None)
        else:
            self._note_policy("ClusterNetworkPolicy", event.key, policy)
        self._changed()

    def _note_policy(self, kind: str, key: str, policy: Policy | None) -> None:
        for problem in policy.problems if policy else ():
            if problem not in self._problems.get(key, ()):
                log.warn(f"{kind} is partly unusable", policy=key, problem=problem)
        self._problems[key] = policy.problems if policy else ()
        self.compiler.policy(key, policy)
        self._changed()

    def _changed(self) -> None:
        beat.pending()
        self._wake.set()

    async def _mend(self) -> None:
        self._full = self._foreign = True
        self._wake.set()

    # Writing

    def sync(self) -> bool:
        """Works out and writes everything noted. Returns whether that succeeded; if not, all is compared later."""
        beat.taking()
        began, full = time.monotonic(), self._full
        delta: Delta = self.compiler.flush()
        try:
            self._count_last(delta)
            done = (
                self.tables.full(self.compiler.compiled) if full else self.tables.change(self.compiler.compiled, delta)
            )
        except OSError as err:
            if str(err) != self._failed:
                log.error("sync failed, the rules stay as they were", error=str(err))
            self._full, self._failed = True, str(err)
            self._report()
            return False
        self._judge_flows(None if full else cut.touched(self.compiler.compiled, delta))
        if full:
            self.upkeep.settled()
        if self._foreign and full:
            self._foreign = False
            self._tell_mended(done)
        self._full, self._failed = False, ""
        self._commits += bool(done)
        beat.settled()
        if done or full:
            log.info("synced", full=full, operations=done, took_ms=(time.monotonic() - began) * 1000)
        self._report()
        return True

    def _tell_mended(self, done: int) -> None:
        self.mendings.tell([f"rules of policies ({done} operations)"] if done else [])
        for made in self.mendings.events():
            if self.tell is not None:
                task = asyncio.ensure_future(self.tell(made))
                self._telling.add(task)
                task.add_done_callback(self._telling.discard)

    # Flows

    def _judge_flows(self, touched: set[str] | None) -> None:
        """Has the flows of these addresses judged again (None: all)."""
        if self.config.cut_flows:
            self._touched = None if touched is None or self._touched is None else self._touched | touched
            self._cut_woken.set()

    async def _cut(self) -> None:
        """Ends flows that changes forbid, for ever."""
        while True:
            await self._cut_woken.wait()
            self._cut_woken.clear()
            touched, self._touched = self._touched, set()
            try:
                ended = await self.cutter.look(self.compiler.compiled, touched)
            except OSError as err:
                log.error("flows that policies forbid now may go on, the next look is in a second", error=str(err))
                self._touched = None
                await asyncio.sleep(RETRY)
                self._cut_woken.set()
                continue
            if ended:
                told = ", ".join(f"{f.original.source} -> {f.original.destination}" for f in ended[:TOLD])
                log.info("ended flows that policies forbid now", flows=len(ended), some=told)
                self._report()

    # Counters

    def _count_last(self, delta: Delta) -> None:
        """Counts what rules dropped that are deleted now. Raises OSError."""
        cells = {cell for group in delta.groups_went for cell in group.cells()}
        if known := counted.rows(cells):
            chains = {chain for chain, _ in known}
            self.drops.take(self.drops.begin(), self.tables.dropped(chains), known)
            staying = {layout.cell_chain(c) for group in self.compiler.compiled.groups() for c in group.cells()}
            self.drops.forget(chains - staying)

    async def metrics(self) -> web.Answer:
        """Returns the page /metrics, with counters read now."""
        known = counted.rows({cell for group in self.compiler.compiled.groups() for cell in group.cells()})
        number = self.drops.begin()
        chains = {*layout.BASE_CHAINS, *(chain for chain, _ in known)}
        try:
            self.drops.take(number, await asyncio.to_thread(self.tables.dropped, chains), known)
        except OSError as err:
            log.warn("counters cannot be read, /metrics shows the last ones", error=str(err))
        return web.Answer(200, page(self.drops.shown(), self.figures(), process.figures()), CONTENT_TYPE)

    def figures(self) -> Figures:
        policies = self.compiler.policies.values()
        tiers = Counter(policy.tier for policy in policies if not policy.staged)
        return Figures(
            {tier: tiers[tier] for tier in TIERS},
            sum(policy.staged for policy in policies),
            sum(bool(problems) for problems in self._problems.values()),
            self._isolated(),
            self._commits,
            self.cutter.ended,
        )

    def _isolated(self) -> int:
        """Returns how many pods of the node a policy in force isolates."""
        judged = self.compiler.compiled.addresses.values()
        return len({one.pod for one in judged if any(g and g.in_force for g in (one.ingress, one.egress))})

    def _report(self) -> None:
        isolated, policies = self._isolated(), len(self.compiler.policies)
        figures: dict[str, Any] = {
            "policies": policies,
            "isolated": isolated,
            "commits": self._commits,
            "ended": self.cutter.ended,
            **self.mendings.figures(),
        }
        if self._unreadable and not self._failed:
            self.status.update(ready=False, message=self._unreadable, reason="Unreadable", **figures)
            return
        if self._failed:
            self.status.update(ready=False, message=self._failed, reason="SyncFailed", **figures)
            return
        if self._passing:
            words = f"NOT ENFORCED between pods of this node: {'; '.join(self._passing)}"
            self.status.update(ready=False, message=words, reason="NotEnforced", **figures)
            return
        bad = sorted(key for key, problems in self._problems.items() if problems)
        clusters = sum(policy.tier != "namespaces" for policy in self.compiler.policies.values())
        more = f", {clusters} ClusterNetworkPolicies" if clusters else ""
        staged = sum(policy.staged for policy in self.compiler.policies.values())
        more += f", {staged} of these not in force (staged)" if staged else ""
        words = f"{policies - clusters} NetworkPolicies{more}, {isolated} pods isolated"
        told = f"; partly unusable: {', '.join(bad[:3])}" if bad else ""
        self.status.update(ready=True, message=words + told + self.mendings.words(), **figures)

    async def _loop(self) -> None:
        loop = asyncio.get_running_loop()
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
        while not (self.claims.settled(key) and self.compiler.known(key.partition("/")[0])):
            async with self._pods_changed:
                await self._pods_changed.wait()
        self._judge(key)
        while not self.sync():
            await asyncio.sleep(RETRY / 10)

    async def _bridges(self) -> None:
        """Looks whether a bridge of the program that wires the pods carries frames past the tables, for ever."""
        while True:
            judged = sorted(self.compiler.compiled.addresses)
            try:
                found = await asyncio.to_thread(bridged.passing, judged)
            except OSError as err:
                found = [f"bridges cannot be looked at: {err}"]
            if found != self._passing:
                self._passing = found
                for words in found:
                    log.error("policies are NOT ENFORCED between pods of this node", cause=words)
                self._report()
            await asyncio.sleep(LOOK)

    async def _cluster_policies(self, api: ApiClient) -> None:
        """Follows ClusterNetworkPolicies, for ever. Most clusters do not have the kind, or get it later."""
        found = Informer(api, CLUSTER_POLICIES, on_event=self._on_cluster_policy, on_synced=self._looked.set)
        while True:
            try:
                await api.get(CLUSTER_POLICIES, limit="1")
            except Refused as err:
                self._unreadable = "" if err.code == HTTPStatus.NOT_FOUND else f"ClusterNetworkPolicies: {err.message}"
                if self._unreadable:
                    log.warn("ClusterNetworkPolicies cannot be read, they do not count", error=err.message)
                self._looked.set()
                await asyncio.sleep(ABSENT)
            except ApiError:
                await asyncio.sleep(RETRY)
            else:
                self._unreadable = ""
                await found.run()

    async def run(self, api: ApiClient) -> None:
        self.watches = self.tables.watch()
        self.tell = partial(_send, api)
        self.status.update(ready=False, message="waiting for the first lists", reason="Starting")
        pods = Informer(api, PODS, on_event=self._on_pod, keep=convert.trimmed)
        self.pods = pods
        rest = (
            Informer(api, NAMESPACES, on_event=self._on_namespace),
            Informer(api, POLICIES, on_event=self._on_policy),
            Informer(api, NODES, on_event=self._on_node, keep=convertcluster.trimmed_node),
        )
        async with asyncio.TaskGroup() as group:
            for informer in (pods, *rest):
                group.create_task(informer.run())
            group.create_task(self._cluster_policies(api))
            for informer in (pods, *rest):
                await informer.synced.wait()
            await self._looked.wait()
            group.create_task(self._loop())
            group.create_task(self._cut())
            if self.config.foreign:
                group.create_task(self._bridges())
            group.create_task(self.upkeep.run(self.watches))


async def _send(api: ApiClient, event: meta.Object) -> None:
    try:
        await api.create(f"/api/v1/namespaces/{event['metadata']['namespace']}/events", event)
    except (ApiError, OSError) as err:
        log.warn("an Event could not be written", error=str(err))


async def _main(config: PolicyConfig) -> None:
    stop, tables = stop_event(), apply.Tables(own_node=config.own_node)
    role = Role(config, tables)
    server = accept.streams(unixsocket.listen(config.run_dir / SOCKET), role.answer)
    async with contextlib.AsyncExitStack() as stack:
        api = await stack.enter_async_context(ApiClient(load(config.kubeconfig)))
        await web.serve_beside(config.metrics_address, {"/metrics": role.metrics}, stack)
        await until_stopped(stop, role.run(api))
    server.close()  # the path stays: who asks then is refused, and does not take it for a node without the role
    tables.close()


def run(config: PolicyConfig) -> None:
    """Serves until SIGTERM or SIGINT, inside the node's network namespace. The rules stay in the kernel. Raises
    ConfigError, and OSError without nf_tables.
    """
    logs.configure(node=config.node_name)
    folder.check(config.run_dir)
    apply.refuse_newer()
    folder.claim(config.run_dir)
    log.info("starting")
    main("policy", _main(config))
    log.info("stopped, rules stay")
