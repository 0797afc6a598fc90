"""Decides when the lease of a pod that vanished without a DEL is taken back. Pure.

One source is never enough: another program may have deleted the pod's link, a runtime may have lost its state, and a
file may not be visible to the agent. A lease is taken back when the pod's namespace is gone and the runtime does not
know the sandbox, or, where there is no runtime to ask, the lease is of an earlier boot. Both must be seen twice,
AGAIN to WITHIN seconds apart, and at every look between them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from .types import Attachment

AGAIN, WITHIN = 20.0, 60.0  # seconds


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of one attachment. link: whether the node's end of its veth exists; it vanishes with the pod's
    namespace. namespace: whether the file that the runtime named in CNI_NETNS still is the namespace of the ADD; None:
    the agent never saw that file. runtime: whether the runtime knows the sandbox; None: the runtime gave no answer, or
    there is none. asked: whether there is a runtime's socket. kubernetes: whether CNI_ARGS named a pod. this_boot:
    whether the lease is of this boot.
    """

    link: bool
    namespace: bool | None = None
    runtime: bool | None = None
    asked: bool = False
    kubernetes: bool = True
    this_boot: bool = True


def gone(seen: Evidence) -> str:
    """Returns why the lease belongs to nobody; "" if that is not certain."""
    if seen.link or seen.namespace:
        return ""
    if not seen.asked:
        return "" if seen.this_boot else "its namespace is gone, and it is of an earlier boot"
    # A container that is no sandbox of Kubernetes is unknown to a CRI in any case, so there the file must be gone.
    if seen.runtime is False and (seen.kubernetes or seen.namespace is False):
        return "its namespace is gone, and the runtime does not know its sandbox"
    return ""


@dataclass
class Doubts:
    """The attachments whose leases seem to belong to nobody: owner -> (time of the first look, time of the last)."""

    _seen: dict[Attachment, tuple[float, float]] = field(default_factory=dict)

    def look(self, now: float, found: Mapping[Attachment, Evidence]) -> dict[Attachment, str]:
        """Note one look at all attachments that may be gone. now: a monotonic time in seconds. Returns owner -> reason
        for those whose leases must be taken back now.
        """
        reasons = {owner: why for owner, evidence in found.items() if (why := gone(evidence))}
        before, self._seen = self._seen, {}
        for owner in reasons:
            first, last = before.get(owner, (now, now))
            self._seen[owner] = (first if now - last <= WITHIN else now, now)
        return {owner: why for owner, why in reasons.items() if now - self._seen[owner][0] >= AGAIN}

    def forget(self, owners: Iterable[Attachment]) -> None:
        for owner in owners:
            self._seen.pop(owner, None)
