"""The probes of a pod's containers while they run, and what a failure leads to: an Event, and the container's end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from podwire_base.kube.meta import Object

from . import probes
from .podstatus import ContainerState, was
from .runtime import Sandbox

Spawn = Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]


class Health:
    """spawn: starts a task of the pod. wake: tells that a state has changed. tell: (Normal or Warning, reason, message)
    of an Event. address: returns the pod's.
    """

    def __init__(
        self,
        sandbox: Sandbox,
        spawn: Spawn,
        wake: Callable[[], None],
        tell: Callable[[str, str, str], None],
        address: Callable[[], str],
    ) -> None:
        self.sandbox, self.spawn, self.wake, self.tell, self.address = sandbox, spawn, wake, tell, address
        self._tasks: dict[str, list[asyncio.Task[None]]] = {}

    def forget(self, name: str) -> None:
        """End the probes of a container that has ended."""
        for task in self._tasks.pop(name, []):
            task.cancel()

    def end(self) -> None:
        for name in tuple(self._tasks):
            self.forget(name)

    def began(self, pod: Object, state: ContainerState, container: Object, *, known: bool = False) -> None:
        """Start the probes of a running container. known: a former node agent started it, and its status says how far
        it was. The other probes start when the startup probe has succeeded.
        """
        startup, readiness = container.get("startupProbe"), container.get("readinessProbe")
        state.started = startup is None or (known and was("started", pod, state))
        state.ready = state.started and (readiness is None or (known and was("ready", pod, state)))
        self._tasks[state.name] = []
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
                self.wake()

        self._watch(state, container, "startupProbe", on_startup)

    def _watch(
        self, state: ContainerState, container: Object, field: str, changed: Callable[[bool, str], None]
    ) -> None:
        async def run(words: list[str], limit: float) -> int:
            return await self.sandbox.container(state.name).execute(words, limit)

        work = probes.watch(container[field], container, self.address(), run, changed, once=field == "startupProbe")
        self._tasks[state.name].append(self.spawn(work))

    def _unhealthy(self, state: ContainerState, which: str, problem: str) -> None:
        self.tell("Warning", "Unhealthy", f"{which} probe failed: container {state.name}: {problem}")
        if which != "Readiness":
            self.tell("Normal", "Killing", f"Container {state.name} failed {which.lower()} probe, will be restarted")
            self.spawn(self.sandbox.container(state.name).stop(0))

    def _probe(self, state: ContainerState, container: Object) -> None:
        def on_ready(healthy: bool, problem: str) -> None:
            state.ready = healthy
            if not healthy:
                self._unhealthy(state, "Readiness", problem)
            self.wake()

        def on_live(healthy: bool, problem: str) -> None:
            if not healthy:
                self._unhealthy(state, "Liveness", problem)

        for field, changed in (("readinessProbe", on_ready), ("livenessProbe", on_live)):
            if container.get(field):
                self._watch(state, container, field, changed)

    async def post_start(self, state: ContainerState, container: Object) -> None:
        """Run the postStart handler. The container ends if it fails (core/v1 Lifecycle)."""
        box = self.sandbox.container(state.name)
        action = container["lifecycle"]["postStart"]
        if problem := await probes.act(action, container, self.address(), box.execute):
            told = f"PostStartHook failed: container {state.name}: {problem}"
            self.tell("Warning", "FailedPostStartHook", told)
            await box.stop(0)
