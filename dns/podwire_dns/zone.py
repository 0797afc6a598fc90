"""The zone in a server's memory: a feeder's messages fill the zone, and answer.py reads it. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from . import names, places, wire
from .answertable import AnswerTable, TableAnswers, TableNames, TablePlaces
from .feed import Delta, Hello
from .pack import A_IN, AAAA_IN, CNAME_IN, PTR_IN, SRV_IN
from .wire import COUNTS, NOERROR, NXDOMAIN


@dataclass(slots=True)
class ZoneData:
    """The zone that a feeder sent. zones: apexes in wire form, the cluster domain first. synced: the zone is complete.

    names: names that exist without an answer. places: the endpoints of places.py. memory: the table that holds the
    names, the answers and the endpoints; None: this object holds them.
    """

    zones: tuple[bytes, ...]
    ttl: int = 5
    pods: bool = True
    synced: bool = False
    serial: int = 0
    answers: dict[bytes, bytes] | TableAnswers = field(default_factory=dict[bytes, bytes])
    names: set[bytes] | TableNames = field(default_factory=set[bytes])
    places: dict[bytes, bytes] | TablePlaces = field(default_factory=dict[bytes, bytes])
    memory: AnswerTable | None = None
    apexes: frozenset[bytes] = field(init=False)
    pod_apex: bytes = field(init=False)
    _soas: dict[tuple[int, bytes], bytes] = field(default_factory=dict)
    _negatives: dict[int, tuple[tuple[int, bytes], tuple[int, bytes]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.apexes, self.pod_apex = frozenset(self.zones), b"\x03pod" + self.zones[0]

    def exists(self, name: bytes) -> bool:
        """Whether a name of the zones exists, with data or without."""
        answers = self.answers
        return (
            name in self.names
            or name + A_IN in answers
            or name + AAAA_IN in answers
            or name + CNAME_IN in answers
            or name + SRV_IN in answers
            or name + PTR_IN in answers
            or self.endpoint(name) is not None
        )

    def endpoint(self, name: bytes) -> bytes | None:
        """Returns the packed address of an endpoint of a Service with ClusterIP, by its name a-b-c-d.svc.ns.svc.zone.

        Returns None if no such endpoint exists.
        """
        label = name[1 : 1 + name[0]]
        if b"-" not in label:
            return None
        address = names.undashed(label.decode("ascii", "replace"))
        packed = None if address is None else names.packed(address)
        if packed is None or names.dashed_label(packed) != label:
            return None
        value = self.places.get(packed)
        return packed if value is not None and name[1 + name[0] :] in places.unpacked(value) else None

    def pointers(self, name: bytes) -> list[bytes]:
        """Returns the names of the endpoints at a reverse name; empty if no Service with ClusterIP has the address."""
        address = names.unreversed(name)
        value = None if address is None else self.places.get(address)
        if address is None or value is None:
            return []
        return [places.endpoint_name(address, base) for base in places.unpacked(value)]

    @classmethod
    def begin(cls, hello: Hello, memory: AnswerTable | None = None) -> ZoneData:
        if memory is None:
            return cls(hello.zones, hello.ttl, hello.pods)
        return cls(
            hello.zones,
            hello.ttl,
            hello.pods,
            answers=TableAnswers(memory),
            names=TableNames(memory),
            places=TablePlaces(memory),
            memory=memory,
        )

    def apply(self, delta: Delta) -> None:
        """Applies a delta: first the new names and answers, then the removals.

        A reader between two steps must never see a Service disappear.
        """
        self.names.update(delta.names)
        self.answers.update(delta.answers)
        self.places.update({address: value for address, value in delta.places.items() if value})
        for address in [address for address, value in delta.places.items() if not value]:
            self.places.pop(address, None)
        for key in delta.gone:
            self.answers.pop(key, None)
        self.names.difference_update(delta.lost)
        self.serial = delta.serial
        self._soas, self._negatives = {}, {}
        if self.memory is not None:
            self.memory.negative(self.negative(len(self.zones[0]))[0][1])

    def negative(self, length: int) -> tuple[tuple[int, bytes], tuple[int, bytes]]:
        """Returns the (rcode, value) of NODATA and of NXDOMAIN for a name of `length` bytes in the cluster zone."""
        known = self._negatives.get(length)
        if known is None:
            cluster = self.zones[0]
            value = COUNTS.pack(0, 1, 0) + self.soa(b"\0" * (length - len(cluster)) + cluster, cluster)
            known = self._negatives[length] = (NOERROR, value), (NXDOMAIN, value)
        return known

    def apex_of(self, name: bytes) -> bytes | None:
        """Returns the zone that contains `name` (lower-case wire form); None if no zone does."""
        at = 0
        while name[at]:
            if name[at:] in self.apexes:
                return name[at:]
            at += 1 + name[at]
        return None

    def soa(self, name: bytes, apex: bytes) -> bytes:
        """Returns the SOA record of a zone for an answer about `name`. Names in the record point into the question."""
        offset = 12 + len(name) - len(apex)
        known = self._soas.get((offset, apex))
        if known is None:
            pointer, cluster = (0xC000 | offset).to_bytes(2), self.zones[0]
            short = pointer if apex == cluster else cluster
            known = self._soas[offset, apex] = wire.soa(
                pointer, b"\x02ns\x03dns" + short, b"\x0ahostmaster" + short, self.serial & 0xFFFFFFFF, self.ttl
            )
        return known
