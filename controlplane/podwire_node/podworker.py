"""The life of one pod on this node: sandbox, CNI, containers, restarts, deletion. Each pod has one task."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from podwire_base.kube.client.http import ApiClient
from podwire_base.kube.errors import ApiError
from podwire_base.kube.meta import Object, deleting, key, name, namespace, uid
from podwire_base.role import logs

from . import environment, podspec, probes, termination, volumefiles, volumes
from .apiaccess import ApiAccess
from .cni_runtime import CniFailed, CniRuntime
from .environment import Room
from .launch import Bind, Launch
from .netnspods import NetnsSandbox
from .podspec import NodeDns, Refused
from .podstatus import ContainerState, backoff, pod_status, restart_wanted, terminated, was
from .projected import MISSING
from .runtime import Container, Process, RuntimeFailed

if TYPE_CHECKING:
    from .cri.pods import CriSandbox, Engine

log = logs.get("node")
_SANDBOX_RETRY_FIRST, _SANDBOX_RETRY_LAST = 0.1, 10.0
_IMAGE_REASONS = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName")  # the node's images tell of these


@dataclass(frozen=True, slots=True)
class PodHost:
    """The node's settings and the callbacks that a worker uses."""

    run_dir: Path
    node_address: str
    dns: NodeDns
    cni: CniRuntime
    pause_command: list[str]
    report: Callable[[Object, Object], Awaitable[None]]  # (pod, status)
    gone: Callable[[Object], Awaitable[None]]
    event: Callable[..., None]  # (pod, type, reason, message, container or "")
    api: ApiClient | None = None  # for the projected volumes of pods
    server: dict[str, str] = dataclasses.field(default_factory=dict)  # variables that tell where the API server is
    engine: Engine | None = None  # the cri runtime; None: netns
    room: Room = dataclasses.field(default_factory=lambda: Room(1, 1 << 30))
    host_files: Path = Path("/nonexistent")  # the root of the node's own files, for hostPath

    def sandbox(self, directory: Path) -> NetnsSandbox | CriSandbox:
        if self.engine:
            return self.engine.sandbox(directory)
        return NetnsSandbox(directory, self.cni, self.pause_command, self.node_address)


class PodWorker:
    """Call `update(pod)` with each version of the pod's object. `run()` returns when the pod is deleted."""

    def __init__(self, pod: Object, host: PodHost) -> None:
        self.pod, self.host = pod, host
        self.sandbox = host.sandbox(host.run_dir / "pods" / uid(pod))
        self.addresses: list[str] = []
        self.access = ApiAccess(host.api, self.sandbox.directory, known=host.server) if host.api else None
        self.problem = ""
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._probes: dict[str, list[asyncio.Task[None]]] = {}
        self._sent: Object = {}
        self._news = asyncio.Event()
        spec = pod["spec"]
        self.init = [
            ContainerState(c["name"], c["image"], waiting="PodInitializing", scheme=self.sandbox.kind)
            for c in spec.get("initContainers") or []
        ]
        self.states = [ContainerState(c["name"], c["image"], scheme=self.sandbox.kind) for c in spec["containers"]]
        self._due: dict[str, float] = {}

    # ---- events

    def update(self, pod: Object) -> None:
        if self.access and any(
            pod["metadata"].get(part) != self.pod["metadata"].get(part) for part in ("labels", "annotations")
        ):
            self.access.changed.set()  # files of the downward API have them
        self.pod = pod
        self._wake.set()

    def _background(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _wake_when_ended(self, process: Process) -> None:
        await process.ended()
        self._wake.set()

    def _wake_at(self, when: float) -> None:
        asyncio.get_running_loop().call_later(max(0.0, when - time.time()), self._wake.set)

    # ---- the loop

    async def run(self) -> None:
        self._background(self._reporter())
        if self.access:
            self._background(self.access.keep(lambda: self.pod, self._field))
        try:
            await self._live()
            await self._teardown()
            await self.host.gone(self.pod)
        finally:
            for task in [*self._tasks, *(t for group in self._probes.values() for t in group)]:
                task.cancel()

    async def _live(self) -> None:
        delay = _SANDBOX_RETRY_FIRST
        while not deleting(self.pod):
            self._wake.clear()
            try:
                pause = await self._ensure_sandbox()
                delay, self.problem = _SANDBOX_RETRY_FIRST, ""
                await self._sync_containers(pause)
            except (CniFailed, RuntimeFailed, Refused, OSError) as err:
                if str(err) != self.problem:
                    self.problem = str(err)
                    log.warn("pod cannot start", pod=key(self.pod), error=self.problem)
                    self.host.event(self.pod, "Warning", "FailedCreatePodSandBox", self.problem)
                self._wake_at(time.time() + delay)
                delay = min(delay * 2, _SANDBOX_RETRY_LAST)
            self._report()
            await self._wake.wait()

    # ---- sandbox

    async def _ensure_sandbox(self) -> Process:
        """Return the pause process of the sandbox. If the pause process is missing, stop the containers and make a new
        sandbox with a new network.
        """
        pause, facts = self.sandbox.process(), self.sandbox.facts()
        if pause and facts.get("addresses"):
            if not self.addresses:  # a restarted node agent finds its pod unchanged
                self.addresses = facts["addresses"]
                self._background(self._wake_when_ended(pause))
            return pause
        if self.sandbox.id:
            await self._stop_containers(0)
            await self.sandbox.end(self.pod)
        self.addresses = []
        self.sandbox.describe(
            name=name(self.pod),
            namespace=namespace(self.pod),
            uid=uid(self.pod),
            addresses=[],
            containers=[c["name"] for c in self.pod["spec"]["containers"]],
        )
        pause, found = await self.sandbox.begin(self.pod)
        self.sandbox.describe(addresses=found, pid=pause.pid)
        self.addresses = found
        self._background(self._wake_when_ended(pause))
        log.info("sandbox started", pod=key(self.pod), pause=pause.pid, addresses=found)
        return pause

    # ---- containers

    async def _sync_containers(self, pause: Process) -> None:
        spec = self.pod["spec"]
        for state, container in zip(self.init, spec.get("initContainers") or [], strict=True):
            if not await self._sync_init(pause, state, container):
                return
        for state, container in zip(self.states, spec["containers"], strict=True):
            await self._sync_one(pause, state, container, spec.get("restartPolicy", "Always"))

    async def _sync_init(self, pause: Process, state: ContainerState, container: Object) -> bool:
        """Run one init container; return True when it has succeeded. Init containers run one after the other."""
        if state.exit_code == 0 and not state.running:
            return True
        policy = "OnFailure" if self.pod["spec"].get("restartPolicy", "Always") == "Always" else "Never"
        await self._sync_one(pause, state, container, policy)
        return state.exit_code == 0 and not state.running

    def _observe(self, state: ContainerState, box: Container, container: Object) -> None:
        """Update the container's state from the runtime's files."""
        watcher = box.running()
        if watcher and not state.running:  # found by a restarted node agent
            state.running_since = state.last_started = box.since()
            state.restarts, state.waiting, state.id = box.restarts(), "", box.ident()
            state.image_id = box.image_ref()
            self._began(state, container, watcher, known=True)
        elif not watcher and (state.running or (state.waiting and box.exit() and state.exit_code is None)):
            ended = box.exit() or {"code": 137, "signal": 9, "finished": time.time()}
            state.exit_code, state.exit_signal, state.finished = ended["code"], ended["signal"], ended["finished"]
            state.last_started = state.running_since or box.since()
            state.running_since, state.ready, state.waiting = 0.0, False, ""
            state.restarts, state.exit_reason = box.restarts(), str(ended.get("reason") or "")
            state.exit_message = termination.message(box.directory, container, ended)
            state.previous = terminated(state)
            for task in self._probes.pop(state.name, []):
                task.cancel()
            log.info("container ended", pod=key(self.pod), container=state.name, exit=state.exit_code)
            if state.exit_code and not deleting(self.pod):
                word = box.last_words()
                self.host.event(
                    self.pod,
                    "Warning",
                    "BackOff" if state.restarts else "Failed",
                    f"container {state.name} ended with status {state.exit_code}" + (f": {word}" if word else ""),
                )

    async def _sync_one(self, pause: Process, state: ContainerState, container: Object, policy: str) -> None:
        box = self.sandbox.container(state.name)
        await box.look()
        self._observe(state, box, container)
        if state.running or (state.exit_code is not None and not restart_wanted(policy, state.exit_code)):
            return
        now = time.time()
        if state.exit_code is not None and state.name not in self._due:
            steady = state.finished - state.last_started > 600
            self._due[state.name] = now + (0 if steady else backoff(state.restarts))
        if now < self._due.get(state.name, 0):
            state.waiting, state.message = "CrashLoopBackOff", f"back-off {self._due[state.name] - now:.1f} s"
            self._wake_at(self._due[state.name])
            return
        await self._start(state, container, box)

    def _field(self, path: str) -> str:
        return podspec.field_ref(self.pod, path, ",".join(self.addresses), self.host.node_address)

    async def _volumes(self, container: Object, env: dict[str, str]) -> tuple[Bind, ...]:
        """Write the volumes that a container mounts and return them. Raises Refused, ApiError and OSError."""
        directory = self.sandbox.directory
        places = volumes.Places(
            str(self.sandbox.disk), str(directory / "memory"), str(directory / "volumes"), str(self.host.host_files)
        )
        found = volumes.mounts(self.pod, container, places, env)
        written = {mount.volume for mount in found if mount.kind in volumes.OF_API}
        if self.access and written:
            await self.access.prepare(
                self.pod,
                sorted(written),
                self._field,
                lambda ref: environment.resource(self.pod, container, ref, self.host.room),
            )
        group = (self.pod["spec"].get("securityContext") or {}).get("fsGroup")
        return volumefiles.make(found, group)

    async def _environment(self, container: Object) -> dict[str, str]:
        """Return the container's variables. Raises Refused and ApiError."""
        links, found = dict[str, str](), {}
        if self.access:
            links = dict(await self.access.server())
            if self.pod["spec"].get("enableServiceLinks") is not False:
                links |= environment.service_links(await self.access.services(namespace(self.pod)))
            found = await self.access.objects(self.pod, environment.needs(container))
        return environment.environment(self.pod, container, links, found, self._field, self.host.room)

    async def _prepared(self, state: ContainerState, container: Object, box: Container, attempt: int) -> Launch:
        """Return what the container is started with. Raises Refused, ApiError and OSError."""
        image = await self.sandbox.image(
            self.pod,
            container,
            attempt,
            lambda kind, reason, text: self.host.event(self.pod, kind, reason, text, state.name),
            self._wake.set,
        )
        env = await self._environment(container)
        binds = await self._volumes(container, env)
        message = termination.file(box.directory, container)
        files = {
            "/etc/hosts": podspec.hosts(self.pod, self.addresses, self.host.dns.domain),
            "/etc/resolv.conf": podspec.resolv_conf(self.pod, self.host.dns),
            "/etc/hostname": podspec.hostname(self.pod) + "\n",
        }
        return Launch(env, files, (*binds, message), (), attempt, image)

    async def _start(self, state: ContainerState, container: Object, box: Container) -> None:
        again = state.exit_code is not None
        attempt = state.restarts + again

        def created(reason: str) -> None:
            self.host.event(self.pod, "Normal", reason, f"Created container: {state.name}", state.name)

        try:
            launch = await self._prepared(state, container, box, attempt)
            self._due.pop(state.name, None)
            box.set_restarts(attempt)
            watcher = await box.launch(self.pod, container, launch, created)
        except (Refused, ApiError) as err:
            self._not_started(state, err)
            if box.exit() and isinstance(err, Refused) and err.reason == "RunContainerError":
                state.waiting, state.restarts, state.running_since = "", attempt, time.time()
                self._observe(state, box, container)
                self._wake.set()
            return
        state.restarts = attempt
        state.running_since = state.last_started = box.since()
        state.waiting = state.message = ""
        state.id, state.image_id = box.ident(), box.image_ref()
        self._began(state, container, watcher)
        if (container.get("lifecycle") or {}).get("postStart"):
            self._background(self._post_start(state, container))
        log.info("container started", pod=key(self.pod), container=state.name, restarts=state.restarts)
        self.host.event(self.pod, "Normal", "Started", f"Started container {state.name}", state.name)

    def _not_started(self, state: ContainerState, err: Refused | ApiError) -> None:
        """Tell why a container waits, and try again later."""
        reason, again = (err.reason, err.again) if isinstance(err, Refused) else (MISSING, 1.0)
        message = str(err)
        if message != state.message and message and reason not in _IMAGE_REASONS:
            if reason == MISSING:
                self.host.event(self.pod, "Warning", MISSING, message)
            else:
                never = reason == "ErrImageNeverPull"
                told = (reason, message) if never else ("Failed", f"Error: {message}")
                self.host.event(self.pod, "Warning", *told, state.name)
        state.waiting, state.message = "ContainerCreating" if reason == MISSING else reason, message
        self._wake_at(time.time() + again)

    def _began(self, state: ContainerState, container: Object, watcher: Process, known: bool = False) -> None:
        """Start the probes of a running container. known: a former node agent started it, and its status says how far
        it was. The other probes start when the startup probe has succeeded.
        """
        self._background(self._wake_when_ended(watcher))
        startup, readiness = container.get("startupProbe"), container.get("readinessProbe")
        state.started = startup is None or (known and was("started", self.pod, state))
        state.ready = state.started and (readiness is None or (known and was("ready", self.pod, state)))
        self._probes[state.name] = []
        if state.started:
            self._probe(state, container)
            return

        def on_startup(healthy: bool, problem: str) -> None:
            if not healthy:
                self._unhealthy(state, "Startup", problem)
            elif not state.started:
                state.started = True
                state.ready = readiness is None
                self._probe(state, container)
                self._wake.set()

        self._watch(state, container, "startupProbe", on_startup)

    def _watch(
        self, state: ContainerState, container: Object, field: str, changed: Callable[[bool, str], None]
    ) -> None:
        async def run(words: list[str], limit: float) -> int:
            return await self.sandbox.container(state.name).execute(words, limit)

        work = probes.watch(container[field], container, self.addresses[0], run, changed, once=field == "startupProbe")
        self._probes[state.name].append(self._background(work))

    def _unhealthy(self, state: ContainerState, which: str, problem: str) -> None:
        told = f"{which} probe failed: container {state.name}: {problem}"
        self.host.event(self.pod, "Warning", "Unhealthy", told)
        if which != "Readiness":
            why = f"Container {state.name} failed {which.lower()} probe, will be restarted"
            self.host.event(self.pod, "Normal", "Killing", why)
            self._background(self.sandbox.container(state.name).stop(0))

    def _probe(self, state: ContainerState, container: Object) -> None:
        def on_ready(healthy: bool, problem: str) -> None:
            state.ready = healthy
            if not healthy:
                self._unhealthy(state, "Readiness", problem)
            self._wake.set()

        def on_live(healthy: bool, problem: str) -> None:
            if not healthy:
                self._unhealthy(state, "Liveness", problem)

        for field, changed in (("readinessProbe", on_ready), ("livenessProbe", on_live)):
            if container.get(field):
                self._watch(state, container, field, changed)

    async def _post_start(self, state: ContainerState, container: Object) -> None:
        """Run the postStart handler. The container ends if it fails (core/v1 Lifecycle)."""
        box = self.sandbox.container(state.name)
        action = container["lifecycle"]["postStart"]
        if problem := await probes.act(action, container, self.addresses[0], box.execute):
            told = f"PostStartHook failed: container {state.name}: {problem}"
            self.host.event(self.pod, "Warning", "FailedPostStartHook", told)
            await box.stop(0)

    async def _stop_containers(self, grace: float) -> None:
        specs = [*(self.pod["spec"].get("initContainers") or []), *self.pod["spec"]["containers"]]
        await asyncio.gather(*(self._stop_one(spec, grace) for spec in specs))
        for state, container in zip(self.states, self.pod["spec"]["containers"], strict=True):
            box = self.sandbox.container(state.name)
            await box.look()
            self._observe(state, box, container)

    async def _stop_one(self, container: Object, grace: float) -> None:
        """Run the preStop handler, then send SIGTERM; both share the grace period (core/v1 Lifecycle)."""
        box, begin = self.sandbox.container(container["name"]), time.monotonic()
        action = (container.get("lifecycle") or {}).get("preStop") if grace > 0 and box.running() else None
        if box.running():
            self.host.event(self.pod, "Normal", "Killing", f"Stopping container {container['name']}", container["name"])
        if action:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace):
                    await probes.act(
                        action,
                        container,
                        self.addresses[0] if self.addresses else "",
                        box.execute,
                    )
        await box.stop(max(0.0, grace - (time.monotonic() - begin)))

    # ---- the end

    async def _teardown(self) -> None:
        grace = float(self.pod["metadata"].get("deletionGracePeriodSeconds") or 0)
        self._report()
        stop_early = asyncio.create_task(self._hurry())
        await self._stop_containers(grace)
        stop_early.cancel()
        delay = _SANDBOX_RETRY_FIRST
        while True:
            try:
                await self.sandbox.end(self.pod)
                break
            except (CniFailed, RuntimeFailed, OSError) as err:
                log.warn("pod's network cannot be removed yet", pod=key(self.pod), error=str(err))
                await asyncio.sleep(delay)
                delay = min(delay * 2, _SANDBOX_RETRY_LAST)
        self.sandbox.remove()
        log.info("pod removed", pod=key(self.pod))

    async def _hurry(self) -> None:
        """Kill the containers at once if a second deletion sets the grace period to 0."""
        while True:
            self._wake.clear()
            await self._wake.wait()
            if self.pod["metadata"].get("deletionGracePeriodSeconds") == 0:
                await self._stop_containers(0)
                return

    async def _reporter(self) -> None:
        """Send the newest status. This is a separate task, because containers must restart while the API server is
        down.
        """
        while True:
            await self._news.wait()
            self._news.clear()
            await self.host.report(self.pod, self._sent)

    def _report(self) -> None:
        status = pod_status(
            self.pod, self.init, self.states, self.addresses, self.host.node_address, self.problem, time.time()
        )
        if deleting(self.pod):
            for row in status["conditions"]:
                if row["type"] in ("Ready", "ContainersReady") and row["status"] == "True" and not status.get("podIP"):
                    row["status"] = "False"
        if status != self._sent:
            self._sent = status
            self._news.set()
