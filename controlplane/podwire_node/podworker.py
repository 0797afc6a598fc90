"""The life of one pod on this node: sandbox, CNI, containers, restarts, deletion. Each pod has one task."""

from __future__ import annotations

import asyncio
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

from . import environment, podspec, podstop, sidecars, termination, volumefiles, volumes
from .apiaccess import ApiAccess
from .cni_runtime import CniFailed, CniRuntime
from .environment import Room
from .launch import Bind, Launch
from .netnspods import NetnsSandbox
from .podhealth import Health
from .podspec import NodeDns, Refused
from .podstatus import ContainerState, backoff, pod_status, restart_wanted, terminated
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
        self.health = Health(
            self.sandbox,
            self._background,
            self._wake.set,
            lambda kind, reason, message: host.event(self.pod, kind, reason, message),
            lambda: self.addresses[0] if self.addresses else "",
        )
        self._sent: Object = {}
        self._news = asyncio.Event()
        spec = pod["spec"]
        self.init = [
            ContainerState(
                c["name"],
                c["image"],
                waiting="PodInitializing",
                scheme=self.sandbox.kind,
                sidecar=sidecars.is_sidecar(c),
            )
            for c in spec.get("initContainers") or []
        ]
        self.states = [ContainerState(c["name"], c["image"], scheme=self.sandbox.kind) for c in spec["containers"]]
        self._due: dict[str, float] = {}
        self._initialized = False
        self._closing: asyncio.Task[None] | None = None  # ends the sidecars of a pod whose own containers have ended

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
            self.health.end()
            for task in tuple(self._tasks):
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
        policy = spec.get("restartPolicy", "Always")
        await self._look()
        if sidecars.over(policy, self.init, self.states):
            self._close()
            return
        for state, container in zip(self.init, spec.get("initContainers") or [], strict=True):
            if not await self._sync_init(pause, state, container) and not self._begun():
                return
        self._initialized = True
        for state, container in zip(self.states, spec["containers"], strict=True):
            await self._sync_one(pause, state, container, policy)
        if sidecars.over(policy, self.init, self.states):
            self._close()

    def _begun(self) -> bool:
        """Whether the pod's own containers have been reached, which a former node agent may have done."""
        return self._initialized or any(one.running or one.exit_code is not None for one in self.states)

    async def _sync_init(self, pause: Process, state: ContainerState, container: Object) -> bool:
        """Run one init container; return True when the next one may start: it has succeeded, or as a sidecar started.
        Init containers start one after the other.
        """
        if state.sidecar:
            await self._sync_one(pause, state, container, "Always")
            return state.running and state.started
        if state.exit_code == 0 and not state.running:
            return True
        policy = "OnFailure" if self.pod["spec"].get("restartPolicy", "Always") == "Always" else "Never"
        await self._sync_one(pause, state, container, policy)
        return state.exit_code == 0 and not state.running

    async def _look(self) -> None:
        """Update the state of all containers."""
        spec = self.pod["spec"]
        rows = [*(spec.get("initContainers") or []), *spec["containers"]]
        for state, container in zip([*self.init, *self.states], rows, strict=True):
            await self._see(state, self.sandbox.container(state.name), container)

    def _close(self) -> None:
        """End the sidecars, if the pod has any: its own containers have ended for good."""
        if self._closing is None and any(state.sidecar for state in self.init):
            grace = self.pod["spec"].get("terminationGracePeriodSeconds")
            self._closing = self._background(self._stop_containers(30.0 if grace is None else float(grace)))

    async def _see(self, state: ContainerState, box: Container, container: Object) -> None:
        """Update the container's state. A runtime is asked how a container ended once it was seen that it has: one that
        ends between the two questions is seen to run, and its end wakes the worker.
        """
        watcher = box.running()
        if watcher is None:
            await box.look()
        self._observe(state, box, container, watcher)

    def _observe(self, state: ContainerState, box: Container, container: Object, watcher: Process | None) -> None:
        """Update the container's state from the runtime's files. watcher: None if it does not run."""
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
            self.health.forget(state.name)
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
        await self._see(state, box, container)
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
                self._observe(state, box, container, None)
                self._wake.set()
            return
        state.restarts = attempt
        state.running_since = state.last_started = box.since()
        state.waiting = state.message = ""
        state.id, state.image_id = box.ident(), box.image_ref()
        self._began(state, container, watcher)
        if (container.get("lifecycle") or {}).get("postStart"):
            self._background(self.health.post_start(state, container))
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

    def _began(self, state: ContainerState, container: Object, watcher: Process, *, known: bool = False) -> None:
        """Watch a running container. known: a former node agent started it."""
        self._background(self._wake_when_ended(watcher))
        self.health.began(self.pod, state, container, known=known)

    async def _stop_containers(self, grace: float) -> None:
        """Stop all containers within the grace period: the pod's own ones at once, then its sidecars."""
        spec, begin = self.pod["spec"], time.monotonic()
        for group in sidecars.stop_order(spec):
            left = max(0.0, grace - (time.monotonic() - begin))
            await asyncio.gather(*(self._stop_one(row, left) for row in group))
        await self._look()
        self._wake.set()

    async def _stop_one(self, container: Object, grace: float) -> None:
        def tell(message: str) -> None:
            self.host.event(self.pod, "Normal", "Killing", message, container["name"])

        address = self.addresses[0] if self.addresses else ""
        await podstop.stop(self.sandbox.container(container["name"]), container, grace, address, tell)

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
