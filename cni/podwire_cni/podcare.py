"""The agent's look at pods whose link vanished without a DEL: takes leases of nobody back, attaches living pods again,
and tells of those that it cannot attach.

A pod is attached again only where that makes true what the runtime was told at its ADD: the same interface, MAC,
addresses and routes. The agent knows that for pods of its own conflist that asked for nothing more. For every other
pod an Event says that it must be replaced.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from podwire_base.kube.events import event
from podwire_base.kube.meta import Object
from podwire_base.role import logs

from . import runtimes
from .commands import Plugin
from .ipam.allocator import Lease
from .plan import host_veth
from .types import Attachment

log = logs.get("wiring")
SHOWN = 3  # pods in the status; the log has all
LOST, RESTORED = "NetworkInterfaceLost", "NetworkInterfaceRestored"


class PodCare:
    """`look` is not thread-safe. note: what the status says. events: the Events that were not sent yet."""

    def __init__(self, plugin: Plugin, node_name: str, sockets: Sequence[Path]) -> None:
        self.plugin, self.node_name, self.sockets = plugin, node_name, sockets
        self.note = ""
        self.events: list[Object] = []
        self._before = frozenset[Attachment]()  # without a link at the last look
        self._told = set[Attachment]()
        self._again = list[str]()

    @property
    def pending(self) -> bool:
        """Whether pods lack their link, so that another look follows."""
        return bool(self._before)

    def look(self) -> list[str]:
        """Look once at all pods. Returns a line for each that got its link again. Raises OSError."""
        self._again = []
        vanished = self.plugin.vanished()
        known = self._known() if vanished else None
        for line in self.plugin.take_back(vanished, known, time.monotonic(), asked=bool(self._present())):
            log.warn("lease taken back", lease=line)
        lost = [lease for lease in vanished if self._lives(lease, known) and not self._mended(lease)]
        self._told &= {lease.owner for lease in vanished}
        self._before = frozenset(lease.owner for lease in vanished)
        names = [lease.pod or str(lease.owner) for lease in lost]
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        self.note = f"pods without their interface: {', '.join(names[:SHOWN])}{more}" if names else ""
        return self._again

    def _present(self) -> list[Path]:
        return runtimes.present(self.sockets)

    def _known(self) -> frozenset[str] | None:
        """Returns the sandboxes of all runtimes; None if one of them gave no answer, or there is none."""
        found, present = frozenset[str](), self._present()
        for path in present:
            try:
                found |= runtimes.sandboxes(path)
            except (OSError, runtimes.NoAnswer) as err:
                log.warn("no list of sandboxes", runtime=str(path), error=str(err))
                return None
        return found if present else None

    def _lives(self, lease: Lease, known: frozenset[str] | None) -> bool:
        """Whether the pod may live: its namespace does, or nobody knows and the runtime still has the sandbox. A link
        that is missing for the first time may belong to a DEL that is at work.
        """
        alive = self.plugin.kernel.lives(lease.netns)
        if alive is None:
            alive = (known is None or lease.owner.container_id in known) and lease.owner in self._before
        return alive

    def _mended(self, lease: Lease) -> bool:
        """Attach the pod again. Returns whether it has its link. Log and Event tell of it, once a loss."""
        veth, owner = host_veth(lease.owner), lease.owner
        why = self.plugin.attach_again(lease)
        if why is None:
            return True  # a DEL ended it, or it has its link
        if not why:
            log.warn("interface made again", pod=lease.pod, container=owner.container_id, link=veth)
            text = f"another program deleted its interface {owner.ifname} ({veth} on the node); it was made again"
            self._event(lease, RESTORED, text)
            self._again.append(f"{veth} of {lease.pod or owner}")
            return True
        if owner not in self._told:
            self._told.add(owner)
            log.warn("interface is gone", pod=lease.pod, container=owner.container_id, link=veth, not_mended=why)
            text = f"its interface {owner.ifname} is gone ({veth} on the node): {why}; delete the pod to replace it"
            self._event(lease, LOST, text)
        return False

    def _event(self, lease: Lease, reason: str, text: str) -> None:
        if lease.pod:
            self.events.append(pod_event(self.node_name, lease, reason, text, time.time()))


def pod_event(node: str, lease: Lease, reason: str, text: str, now: float) -> Object:
    """Returns a Warning Event about the pod of this lease. now: Unix time."""
    namespace, _, name = lease.pod.partition("/")
    about = {"kind": "Pod", "namespace": namespace, "name": name, **({"uid": lease.pod_uid} if lease.pod_uid else {})}
    return event(about, reason, f"node {node}: {text}", now, component="podwire-wiring", host=node)
