"""Sidecars: init containers that are restarted always, which run beside the others (KEP-753). Pure.

They start in their order among the init containers; the next one waits until a sidecar has started. They do not keep a
pod from its end: they stop after the pod's own containers, the last one first.
"""

from __future__ import annotations

from collections.abc import Sequence

from podwire_base.kube.meta import Object

from .podstatus import ContainerState, failed, restart_wanted


def is_sidecar(container: Object) -> bool:
    """Whether an init container is a sidecar."""
    return container.get("restartPolicy") == "Always"


def over(policy: str, init: Sequence[ContainerState], states: Sequence[ContainerState]) -> bool:
    """Whether the pod's own containers have ended for good, or will never start. policy: the pod's restartPolicy."""
    if policy == "Never" and failed(init):
        return True
    return bool(states) and all(
        not one.running and one.exit_code is not None and not restart_wanted(policy, one.exit_code) for one in states
    )


def stop_order(spec: Object) -> list[list[Object]]:
    """Return the containers in the order in which they stop: those of one group at the same time."""
    init = spec.get("initContainers") or []
    first = [*(row for row in init if not is_sidecar(row)), *spec["containers"]]
    return [first, *([row] for row in reversed(init) if is_sidecar(row))]
