"""Watches the packets that the kernel drops on nodes of this machine, and asks the nodes' rules why. I/O."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections.abc import Generator, Sequence

from podwire_base.kernel.dropped import Dropped
from podwire_base.kernel.netns import call_in
from podwire_base.role import podspaces
from podwire_proxy.ebpf import places
from podwire_proxy.ebpf.dropping import Tracer

from ..explain.observe import facts
from ..explain.onnode import Place
from ..explain.packets import Asked
from ..explain.walk import walk
from .fold import Fold, Names, Row

AT_ONCE, REST = 2000, 0.05  # packets, then so many seconds until the next: 40,000 a second at most
AGAIN = 1.0  # seconds between two looks at the nodes' pods
OLD = 5.0  # seconds for which what a node's rules say is believed
ASKED = 20  # rows of one interval whose rule is asked for
BY_RULE = ("NETFILTER_DROP", "NETFILTER_INGRESS", "NETFILTER_EGRESS", "NOT_SPECIFIED")


class Spaces:
    """The network namespaces of nodes and their pods. Each has the number that a packet tells."""

    def __init__(self, nodes: Sequence[Place]) -> None:
        self._nodes = nodes
        self._files: dict[str, tuple[int, int, int]] = {}
        self._known: dict[tuple[str, int], int] = {}  # (path, inode) -> number
        self.of: dict[int, tuple[Place, str]] = {}  # number -> (its node, path)
        self.pods: dict[str, str] = {}  # address -> pod
        self._links: dict[int, dict[int, str]] = {}

    def look(self) -> bool:
        """Reads what pod wiring tells of the pods. Returns whether a namespace came or went."""
        found: dict[int, tuple[Place, str]] = {}
        pods: dict[str, str] = {}
        for node in self._nodes:
            spaces = self._spaces(node)
            pods |= {ip: space.pod for space in spaces if space.pod for ip in space.ips}
            for path in (node.path, *(space.path for space in spaces)):
                with contextlib.suppress(OSError):
                    found[self._number(path)] = node, path
        changed = found.keys() != self.of.keys()
        self.of, self.pods = found, pods
        return changed

    @staticmethod
    def _spaces(node: Place) -> tuple[podspaces.PodSpace, ...]:
        if node.run_dir is None:
            return ()
        try:
            return podspaces.decode(podspaces.path(node.run_dir).read_text())
        except (OSError, UnicodeDecodeError):
            return ()

    def _number(self, path: str) -> int:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            key = path, os.fstat(fd).st_ino
            if key not in self._known:
                self._known[key] = places.cookie(fd)
            return self._known[key]
        finally:
            os.close(fd)

    def link(self, space: int, index: int) -> str:
        """Returns the name of a link by its number, "" if it is gone."""
        if not index or space not in self.of:
            return ""
        if index not in self._links.get(space, {}):
            with contextlib.suppress(OSError):
                self._links[space] = dict(call_in(self.of[space][1], socket.if_nameindex))
        return self._links.get(space, {}).get(index, "")


class Rules:
    """What the rules of nodes say of a packet, remembered for a while."""

    def __init__(self) -> None:
        self._told: dict[tuple[str, str, str, str, int], tuple[float, str, str]] = {}
        self._asked = 0

    def interval(self) -> None:
        self._asked = 0
        now = time.monotonic()
        self._told = {key: told for key, told in self._told.items() if told[0] + OLD > now}

    def explain(self, row: Row, node: Place) -> None:
        """Notes in the row which rule of the node decides, if one does."""
        packet = row.first.packet
        if row.first.reason not in BY_RULE or packet.named not in ("TCP", "UDP", "SCTP"):
            return
        key = node.path, packet.src, packet.dst, packet.named, packet.dport
        if key not in self._told:
            if self._asked >= ASKED:
                return
            self._asked += 1
            self._told[key] = time.monotonic(), *_why(node, Asked(packet.src, packet.dst, packet.named, packet.dport))
        row.rule, row.cause = self._told[key][1:]


def _why(node: Place, asked: Asked) -> tuple[str, str]:
    try:
        ways = walk(facts(node.path, node.name, node.run_dir), asked).ways
    except (OSError, ValueError, NotImplementedError):
        return "", ""
    refused = next((way for way in ways if way.verdict in ("drop", "reject")), None)
    return (refused.reason, refused.cause) if refused else ("", "")


def watch(
    nodes: Sequence[Place], names: Names, seconds: float | None, every: float
) -> Generator[tuple[list[Row], int, int]]:
    """Yields every `every` seconds: the rows, the number of packets that had no room in them, and of those that the
    kernel could not tell. Ends after `seconds`; None: never. Raises OSError.
    """
    spaces, rules, fold = Spaces(nodes), Rules(), Fold()
    spaces.look()
    names.pods = {**names.pods, **spaces.pods}
    tracer = Tracer(spaces.of)
    with contextlib.closing(tracer):
        poll = select.poll()
        poll.register(tracer.fileno(), select.POLLIN)
        yield [], 0, 0  # it sees packets from now on
        now = time.monotonic()
        end, due, look = None if seconds is None else now + seconds, now + every, now + AGAIN
        while True:
            now = time.monotonic()
            stop = min(due, look, end or due)
            poll.poll(max(0.0, stop - now) * 1000)
            found = tracer.read(AT_ONCE)
            for one in found:
                _add(fold, spaces, one)
            now = time.monotonic()
            if now >= look:
                look = now + AGAIN
                if spaces.look():
                    tracer.follow(spaces.of)
                names.pods = {**names.pods, **spaces.pods}
            over = end is not None and now >= end
            if now >= due or over:
                due = now + every
                rows, others = fold.take()
                rules.interval()
                for row in rows:
                    rules.explain(row, spaces.of[row.first.space][0])
                yield rows, others, tracer.lost()
            if over:
                return
            if len(found) == AT_ONCE:
                time.sleep(REST)


def _add(fold: Fold, spaces: Spaces, one: Dropped) -> None:
    if (place := spaces.of.get(one.space)) is not None:
        fold.add(place[0].name, one._replace(interface=spaces.link(one.space, one.ifindex)))
