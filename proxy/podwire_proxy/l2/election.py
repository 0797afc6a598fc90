"""Elects the node that answers for a load balancer's address. Pure: `now` is seconds of any monotonic clock.

There is no leader, no lock and no write to the API. Every node broadcasts a small beat on the nodes' own link. From the
beats that it receives, each node computes the same answer: the highest hash of address and node among the nodes that
can serve the address. The end of a node therefore moves only the addresses of that node. A node counts as alive if its
beats arrive on the link that the clients use.

A node can serve an address if its beats arrive, its first lists are complete, and it is not cut off from the API: its
view of Services would become stale. An API server that is away for all nodes moves nothing. A node counts as cut off
only while another node has talked with the API server for a second without a break. Only owners and a few witnesses
send requests for this, so the load does not grow with the cluster.

    beat every 0.25 s; a node unheard for 1 s is gone; a starting node listens for 1.2 s before it answers for anything.

A node that was paused ignores missed beats until it has listened for a full interval.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import msgspec

BEAT, DEAD, LISTEN = 0.25, 1.0, 1.2
STILL = 2 * BEAT  # between two calls of an Election: a longer gap means that the node was paused
PROBE = 0.25  # seconds between two requests to the API server
STALE, FRESH, STEADY = 1.1, 0.7, 1.0  # ages of API contact: lost, recent, unbroken for this long
WITNESSES = 3
UNKNOWN = -1.0


class Beat(msgspec.Struct, frozen=True):
    """cluster: uid of namespace kube-system, since clusters may share a link. ready: may be given addresses. age:
    seconds since the API server last answered; steady: duration of the unbroken contact; UNKNOWN without requests.
    """

    cluster: str
    node: str
    ready: bool
    age: float = UNKNOWN
    steady: float = UNKNOWN


_decode = msgspec.json.Decoder(Beat).decode


def encode(beat: Beat) -> bytes:
    return msgspec.json.encode(beat)


def decode(body: bytes) -> Beat | None:
    """Parses a beat. Returns None if the body is not a beat."""
    try:
        return _decode(body)
    except msgspec.MsgspecError:
        return None


@dataclass(slots=True)
class Contact:
    """This node's contact with the API server."""

    since: float | None = None  # the first success of an unbroken series
    last: float | None = None

    def worked(self, now: float) -> None:
        self.since = now if self.since is None else self.since
        self.last = now

    def failed(self) -> None:
        self.since = None

    def wanted(self, now: float, needed: bool) -> bool:
        """Whether to send a request to the API server. After a loss of contact it continues until contact is steady
        again: a node that stopped when it lost its addresses would look fit for them at once.
        """
        if not needed and (self.last is None or (self.since is not None and now - self.since >= STEADY)):
            self.since = self.last = None
            return False
        self.last = now if self.last is None else self.last
        return True

    def told(self, now: float) -> tuple[float, float]:
        """Returns (age, steady) for a beat."""
        return (UNKNOWN if self.last is None else now - self.last, UNKNOWN if self.since is None else now - self.since)


@dataclass(slots=True)
class SeenBeat:
    beat: Beat
    at: float


def rank(ip: str, node: str) -> bytes:
    return hashlib.sha256(f"{ip} {node}".encode()).digest()


@dataclass(slots=True)
class Election:
    """The election of one node. `hear` takes each beat, `tell` builds a beat, `owners` returns the elected nodes."""

    cluster: str
    node: str
    started: float
    synced: bool = False  # the first lists of this node are complete
    leaving: bool = False
    contact: Contact = field(default_factory=Contact)
    heard: dict[str, SeenBeat] = field(default_factory=dict)
    _awake: float | None = None  # the time of the last call
    # The arguments and the result of the last `owners`.
    _last: tuple[Mapping[str, frozenset[str] | None], frozenset[str], dict[str, str]] | None = None

    def hear(self, beat: Beat, now: float) -> bool:
        """Returns whether the beat may change an owner: its node is new, or its state changed."""
        self._wake(now)
        if beat.cluster != self.cluster or beat.node == self.node:
            return False
        known = self.heard.get(beat.node)
        self.heard[beat.node] = SeenBeat(beat, now)
        return known is None or known.beat.ready != beat.ready or now - known.at > DEAD

    def _wake(self, now: float) -> None:
        """Corrects for a pause of this node: a pause is neither silence of other nodes nor time of listening."""
        still = 0.0 if self._awake is None else now - self._awake - STILL
        if still > 0:
            if not self.ready(self._awake or 0.0):
                self.started += still
            for one in self.heard.values():
                one.at += still
            if self.contact.last is not None:
                self.contact.last += still
        self._awake = now

    def ready(self, now: float) -> bool:
        return self.synced and not self.leaving and now - self.started >= LISTEN

    def tell(self, now: float) -> Beat:
        age, steady = self.contact.told(now)
        return Beat(self.cluster, self.node, self.ready(now), age, steady)

    def alive(self, now: float) -> dict[str, Beat]:
        """Returns all nodes whose beats arrive, including this node, with their current API contact."""
        self._wake(now)
        found = {self.node: self.tell(now)}
        for name, one in list(self.heard.items()):
            if now - one.at > DEAD:
                del self.heard[name]
                continue
            passed, beat = now - one.at, one.beat
            age = beat.age if beat.age == UNKNOWN else beat.age + passed
            found[name] = Beat(beat.cluster, beat.node, beat.ready, age, beat.steady)
        return found

    def candidates(self, now: float) -> frozenset[str]:
        """Returns the nodes that may own addresses."""
        ready = {name: beat for name, beat in self.alive(now).items() if beat.ready}
        if any(0 <= beat.age <= FRESH and beat.steady >= STEADY for beat in ready.values()):
            return frozenset(name for name, beat in ready.items() if beat.age <= STALE)
        return frozenset(ready)

    def witness(self, now: float) -> bool:
        """Whether this node is one of the few that send requests to the API server even without an address."""
        return self.node in sorted(self.alive(now), key=lambda name: rank("witness", name))[:WITNESSES]

    def owners(
        self, addresses: Mapping[str, frozenset[str] | None], usable: Iterable[str], now: float
    ) -> dict[str, str]:
        """address -> node. addresses: with the nodes that can serve each, None for all. usable: nodes that are ready
        according to the API; if the beats of none of them arrive, any node whose beats arrive is used.
        """
        heard = self.candidates(now)
        nodes = heard & frozenset(usable) or heard
        if self._last is not None and self._last[1] == nodes and self._last[0] == addresses:
            return dict(self._last[2])  # each beat calls this method: reuse the hashes while the input is unchanged
        out: dict[str, str] = {}
        for ip, only in addresses.items():
            able = nodes if only is None else nodes & only
            if able:
                out[ip] = max(able, key=lambda name: rank(ip, name))
        self._last = dict(addresses), nodes, out
        return dict(out)
