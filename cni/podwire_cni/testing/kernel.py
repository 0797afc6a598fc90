"""A fake Kernel for tests. It records links, neighbours and the steps of each pod, and fails on request."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator, Sequence

from ..errors import CNIError, ErrorCode
from ..nodetable import PodRules
from ..ops import AddNeighbour, CreateVeth, DeleteLink, DeleteNeighbour, JoinBridge, Op, SetUp, undo
from ..plan import LinkSeen, Seen
from ..prepared import PodPlan
from ..types import BRIDGE, Attachment, IPAddress


class FakeKernel:
    """`fail_at`: the position of the step that the next `apply` refuses. As in kernel.Kernel, the earlier steps are
    done and then undone.
    """

    def __init__(self) -> None:
        self.veths: dict[str, tuple[int, int]] = {}
        self.neighbours: dict[IPAddress, str] = {}
        self.fail_at: int | None = None
        self.applied: list[tuple[Op, ...]] = []
        self.set_down = set[str]()
        self.namespaces: dict[str, bool] = {}  # what a lease records -> whether it exists

    def apply(self, ops: Sequence[Op], pod_fd: int | None = None) -> None:
        done: list[Op] = []
        for i, op in enumerate(ops):
            if i == self.fail_at:
                self.fail_at = None
                self.remove(undo(tuple(done)))
                raise CNIError(ErrorCode.IO_FAILURE, f"refused: {op}")
            self._one(op)
            done.append(op)
        self.applied.append(tuple(ops))

    def attach_pod(self, pod: PodPlan, pod_fd: int) -> None:
        self.apply(pod.plan.ops, pod_fd)

    def _one(self, op: Op) -> None:
        if isinstance(op, CreateVeth):
            if op.host in self.veths:
                raise CNIError(ErrorCode.INVALID_ENVIRONMENT, f"{op.host} exists")
            self.veths[op.host] = (len(self.veths) + 10, 0)
        elif isinstance(op, SetUp):
            self.set_down.discard(op.link)
        elif isinstance(op, JoinBridge):
            self.veths[op.link] = (self.veths[op.link][0], 1)
        elif isinstance(op, AddNeighbour) and op.place == "node":
            self.neighbours[op.address] = op.mac

    def remove(self, ops: Sequence[Op], meanwhile: Callable[[], None] | None = None) -> None:
        for op in ops:
            if isinstance(op, DeleteLink):
                self.veths.pop(op.link, None)
            elif isinstance(op, DeleteNeighbour):
                self.neighbours.pop(op.address, None)
        if meanwhile:
            meanwhile()

    def links(self) -> dict[str, tuple[int, int]]:
        return {BRIDGE: (1, 0), **self.veths}

    def down(self) -> set[str]:
        return self.set_down

    def lives(self, recorded: str) -> bool | None:
        return self.namespaces.get(recorded)

    @contextlib.contextmanager
    def namespace(self, recorded: str) -> Iterator[int]:
        if not self.lives(recorded):
            raise OSError(errno.ENOENT, "no such namespace", recorded)
        yield 9

    def unmarked(self) -> frozenset[str]:
        return frozenset()

    def holder(self, address: IPAddress) -> str:
        return self.neighbours.get(address, "")

    def observe(self, eth: str, host: str, pod_fd: int) -> Seen:
        """Returns a state that is sufficient to distinguish an attached pod from a pod that is not attached."""
        if host not in self.veths:
            return Seen(None, None)
        link = LinkSeen("", True, 1500, BRIDGE if self.veths[host][1] else "")
        return Seen(link, link)


class FakeFirewall:
    """A fake Firewall: the node's tables as a dict. `refuse`: the next `attach` fails."""

    def __init__(self) -> None:
        self.pods: dict[Attachment, PodRules] = {}
        self.refuse = False

    def attach(self, owner: Attachment, pod: PodRules) -> None:
        if self.refuse:
            self.refuse = False
            raise OSError(28, "refused")
        self.pods[owner] = pod

    def detach(self, owner: Attachment, pod: PodRules) -> None:
        self.pods.pop(owner, None)

    def missing(self, pod: PodRules) -> list[str]:
        return [] if pod in self.pods.values() else [f"lacks {pod}"]
