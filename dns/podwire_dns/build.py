"""Turns changes of cluster objects into deltas of packed answers. The cost of a change is proportional to its Service.

`service`, `slice` and `namespace` record changes; `flush` processes all recorded changes together. A burst of changes
to one Service therefore packs that Service once. Every answer belongs to one object, except reverse pointers: an
address that is an endpoint of several Services has one pointer per Service. A name exists (NODATA, not NXDOMAIN) if it
owns an answer or is in `names`. The set `names` has the empty non-terminals (RFC 8020) between a name with an answer
and the apex of its zone, and the names of namespaces.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from podwire_base import progress
from podwire_base.kube import meta
from podwire_base.kube.shape import misshapen

from . import names, schema
from .feed import Delta
from .pack import DATA_KINDS, PTR_IN, Packer, pointer_targets, question
from .places import Places, endpoint_name, packed
from .rtypes import PTR
from .schema import Records

Object = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Problem:
    """An object with a part that could not become records. kind: Service, EndpointSlice, Namespace or Pod."""

    kind: str
    key: str
    error: str


class _Owned(NamedTuple):
    """The current records of an object in the zone."""

    answers: tuple[bytes, ...] = ()
    pointers: tuple[bytes, ...] = ()
    bare: tuple[bytes, ...] = ()
    base: bytes = b""
    places: tuple[bytes, bytes] = (b"", b"")  # IPv4 and IPv6 addresses, joined: an object for each would be large


NOTHING = _Owned()
ENDPOINTS = " endpoints"  # ends the name of a source of names that are otherwise made on demand
NO_RECORDS = Records()


@dataclass(slots=True)
class Builder:
    """Holds the answers of the zone and computes the delta of each change.

    problems: grows until the caller empties the list; an unchanged problem is reported once. answers: question key ->
    value. names: wire names that exist without data. services: the Services as schema.pack_service packs them.
    """

    config: schema.Schema
    answers: dict[bytes, bytes] = field(default_factory=dict)
    names: set[bytes] = field(default_factory=set)
    problems: list[Problem] = field(default_factory=list)
    bugs: list[tuple[str, Exception]] = field(default_factory=list)  # errors in this code: (Service, exception)
    services: dict[str, bytes] = field(default_factory=dict)
    _pack: Packer = field(init=False)
    _origins: frozenset[bytes] = field(init=False)
    _owned: dict[str, _Owned] = field(default_factory=dict)
    _pointer_owner: dict[bytes, str] = field(default_factory=dict)
    _shared: dict[bytes, dict[str, tuple[bytes, ...]]] = field(default_factory=dict)  # pointers with several owners
    _holds: dict[bytes, int] = field(default_factory=dict)  # name without data -> number of reasons for its existence
    _before: dict[bytes, bytes | None] = field(default_factory=dict)
    _touched: set[bytes] = field(default_factory=set)
    _slices: dict[str, dict[str, bytes]] = field(default_factory=dict)
    _slice_owner: dict[str, str] = field(default_factory=dict)
    _places: Places = field(default_factory=Places)
    _moved: set[bytes] = field(default_factory=set)  # addresses whose Services changed
    _pods: dict[str, tuple[bytes, ...]] = field(default_factory=dict)
    _pod_holders: dict[bytes, set[str]] = field(default_factory=dict)
    _dirty: set[str] = field(default_factory=set)
    _filling: bool = False
    _loading: list[tuple[bytes, frozenset[bytes]]] = field(default_factory=list)
    _told: dict[tuple[str, str], str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._pack = Packer(self.config.ttl)
        self._origins = frozenset(names.to_wire(origin) for origin in self.config.origins)
        self._replace("schema", schema.schema_records(self.config))

    def slices_of(self, key: str) -> list[bytes]:
        """Returns the EndpointSlices of the Service "namespace/name", as schema.parse_slice packs them."""
        return list(self._slices.get(key, {}).values())

    def told(self, kind: str, key: str) -> str:
        """Returns the current problem of an object; "" if the object has no problem."""
        return self._told.get((kind, key), "")

    def exists(self, name: str) -> bool:
        wire = names.to_wire(name)
        return wire in self.names or any(wire + kind in self.answers for kind in DATA_KINDS)

    def sources(self, name: str, rtype: int | None = None) -> list[str]:
        """Returns the objects that own an answer at `name`; `rtype` selects one record type.

        The function is slow. `podwire dns query` calls it to explain an answer.
        """
        wire = names.to_wire(name)
        mine = {key for key in self.answers if key[:-4] == wire} if rtype is None else {question(name, rtype)}
        found = {source for source, owned in self._owned.items() if mine.intersection(owned.answers)}
        found |= {
            source
            for key in mine & self._pointer_owner.keys()
            for source in self._shared.get(key, (self._pointer_owner[key],))
        }
        found = {source.removesuffix(ENDPOINTS) for source in found}
        for address in self._endpoints_at(wire):
            found |= {self._source_of(base) for base in self._places.at(address)}
        return sorted(source if source == "schema" else f"Service {source}" for source in found)

    def _endpoints_at(self, wire: bytes) -> list[bytes]:
        """Returns the addresses of the endpoint with this name or reverse name; empty for every other name."""
        address = names.unreversed(wire)
        if address is None and b"-" in (label := wire[1 : 1 + wire[0]]):
            text = names.undashed(label.decode("ascii", "replace"))
            address = None if text is None else names.packed(text)
            if address is None or wire not in [endpoint_name(address, base) for base in self._places.at(address)]:
                return []
        return [] if address is None else [address]

    def service(self, obj: Object, *, deleted: bool = False) -> None:
        key = meta.key(obj)
        packed = None if deleted else schema.pack_service(obj)
        if packed == self.services.get(key):
            return
        if packed is None:
            del self.services[key]
        else:
            self.services[key] = packed
        self._dirty.add(key)

    def slice(self, obj: Object, *, deleted: bool = False) -> None:
        key = meta.key(obj)
        try:
            owner = "" if deleted else schema.service_of_slice(obj)
        except Exception:
            if not (why := misshapen(obj, schema.SLICE_SHAPE)):
                raise
            self._tell("EndpointSlice", key, why)
            return
        before = self._slice_owner.pop(key, "")
        if before and before != owner:
            pieces = self._slices[before]
            pieces.pop(key, None)
            if not pieces:
                del self._slices[before]
            self._dirty.add(before)
        if owner:
            known = self._slices.setdefault(owner, {})
            self._slice_owner[key] = owner
            try:
                piece, errors = schema.parse_slice(obj)
            except Exception:
                if not (why := misshapen(obj, schema.SLICE_SHAPE)):
                    raise
                piece, errors = known.get(key, schema.EMPTY_SLICE), [why]
            self._tell("EndpointSlice", key, "; ".join(errors))
            if known.get(key) != piece:  # most writes change only fields without DNS data: zones, node names, hints
                known[key] = piece
                self._dirty.add(owner)
        else:
            self._tell("EndpointSlice", key, "")

    def namespace(self, obj: Object, *, deleted: bool = False) -> None:
        key = meta.name(obj)
        try:
            bare = () if deleted else schema.namespace_names(self.config, key)
            self._replace(f"Namespace {key}", Records(bare={names.to_wire(name) for name in bare}))
            self._tell("Namespace", key, "")
        except names.BadName as err:
            self._tell("Namespace", key, str(err))

    def pod(self, obj: Object, *, deleted: bool = False) -> None:
        """Records a change of a pod. The feeder calls it only with verify_pods: a pod name then needs an existing pod.

        Several pods may share an address (hostNetwork).
        """
        key = meta.key(obj)
        fresh: dict[bytes, bytes] = {}
        try:
            fresh = {} if deleted else schema.pod_answers(self.config.zone, self._pack, obj)
            self._tell("Pod", key, "")
        except ValueError as err:
            self._tell("Pod", key, str(err))
        except Exception:
            if not (why := misshapen(obj, schema.POD_SHAPE)):
                raise
            self._tell("Pod", key, why)
        old = self._pods.pop(key, ())
        for name, value in fresh.items():
            holders = self._pod_holders.setdefault(name, set())
            holders.add(key)
            if self.answers.get(name) != value:
                self._before.setdefault(name, self.answers.get(name))
                self.answers[name] = value
        for name in old:
            if name not in fresh:
                self._pod_holders[name].discard(key)
                if not self._pod_holders[name]:
                    del self._pod_holders[name]
                    self._before.setdefault(name, self.answers.pop(name))
        if fresh:
            self._pods[key] = tuple(fresh)

    def _tell(self, kind: str, key: str, error: str) -> None:
        if not error:
            self._told.pop((kind, key), None)
        elif self._told.get((kind, key)) != error:
            self._told[kind, key] = error
            self.problems.append(Problem(kind, key, error))

    def _records(self, key: str) -> Records:
        service = self.services.get(key)
        if service is None:
            self._tell("Service", key, "")
            return NO_RECORDS
        try:
            found = schema.service_records(
                self.config.zone, self._pack, schema.unpack_service(service), self.slices_of(key)
            )
            self._tell("Service", key, "")
            return found
        except ValueError as err:
            self._tell("Service", key, str(err))
        except Exception as err:
            if why := misshapen(schema.unpack_service(service), schema.SERVICE_SHAPE):
                self._tell("Service", key, why)
            else:  # the server still answers for the other Services
                self.bugs.append((key, err))
        return NO_RECORDS

    def _replace(self, source: str, records: Records) -> None:
        """Replaces all records of the source with `records`."""
        old = self._owned.pop(source, NOTHING)
        answers, before = self.answers, self._before
        for key, value in () if self._filling and old is NOTHING else records.answers.items():
            known = answers.get(key)
            if known != value:
                if key not in before:
                    before[key] = known
                answers[key] = value
        for key in old.answers:
            if key not in records.answers:
                before.setdefault(key, answers.pop(key))
        if self._filling:
            answers.update(records.answers)
        self._point_all(source, records.pointers)
        for key in old.pointers:
            if key not in records.pointers:
                self._unpoint(source, key)
        bare = (*records.bare, records.parent) if records.parent else tuple(records.bare)
        for name in bare:
            self._hold(name)
        for name in old.bare:
            self._drop(name)
        self._place(source, old, records)
        if records.answers or records.pointers or bare:
            four = b"".join(each for each in records.places if len(each) == 4)
            six = b"".join(each for each in records.places if len(each) == 16)
            self._owned[source] = _Owned(
                tuple(records.answers), tuple(records.pointers), bare, records.base, (four, six)
            )

    # Reverse pointers

    def _point_all(self, source: str, pointers: Mapping[bytes, tuple[bytes, ...]]) -> None:
        """Calls `_point` for each address. The loop inlines the common case, because a start has 100,000 addresses.

        The common case is an address without a pointer whose parent name exists already.
        """
        owners, holds, named = self._pointer_owner, self._holds, self._pack.named
        answers, before = self.answers, None if self._filling else self._before
        for key, targets in pointers.items():
            above = key[1 + key[0] : -4]
            if key in owners or len(targets) > 1 or above not in holds or before is not None:
                self._point(source, key, targets)
                continue
            owners[key] = source
            holds[above] += 1
            if before is not None:
                before.setdefault(key, None)
            answers[key] = named(PTR, targets[0])

    def _point(self, source: str, key: bytes, targets: tuple[bytes, ...]) -> None:
        owner = self._pointer_owner.get(key)
        if owner is None:
            self._pointer_owner[key] = source
            self._hold_parents(key)
        elif owner != source or key in self._shared:
            shared = self._shared.setdefault(key, {owner: tuple(pointer_targets(self.answers[key]))})
            shared[source] = targets
            targets = tuple(target for found in shared.values() for target in found)
        value = self._pack.named(PTR, targets[0]) if len(targets) == 1 else self._pack.pointers(targets)
        known = self.answers.get(key)
        if known != value:
            if key not in self._before:
                self._before[key] = known
            self.answers[key] = value
        if owner is None and not self._filling:
            self._render_places(key)

    def _unpoint(self, source: str, key: bytes) -> None:
        shared = self._shared.get(key)
        self._before.setdefault(key, self.answers[key])
        if shared is None:
            del self.answers[key], self._pointer_owner[key]
            self._drop_parents(key)
            return
        del shared[source]
        self._pointer_owner[key] = next(iter(shared))
        if len(shared) == 1:
            del self._shared[key]
        self.answers[key] = self._pack.pointers(target for found in shared.values() for target in found)
        if not source.endswith(ENDPOINTS) and all(each.endswith(ENDPOINTS) for each in shared):
            for each in list(shared):  # no rendered name is left: all others are made on demand
                self._unpoint(each, key)

    # Endpoints of Services with ClusterIP

    def _place(self, source: str, old: _Owned, records: Records) -> None:
        """Replaces the endpoints whose names are made on demand.

        An address that also has a rendered reverse name needs all its names in that answer.
        """
        before = {
            joined[at : at + size]
            for joined, size in zip(old.places, (4, 16), strict=True)
            for at in range(0, len(joined), size)
        }
        gone = before if old.base != records.base else before - records.places
        fresh = records.places if old.base != records.base else records.places - before
        self._places.remove(old.base, gone)
        if self._filling:
            self._loading.append((records.base, fresh))
        else:
            self._places.add(records.base, fresh)
        for address in gone:
            key = names.reverse_wire(address) + PTR_IN
            self._moved.add(address)
            self._drop_parents(key)
            if source + ENDPOINTS in self._shared.get(key, ()):
                self._unpoint(source + ENDPOINTS, key)
        for address in fresh:
            key = names.reverse_wire(address) + PTR_IN
            self._moved.add(address)
            self._hold_parents(key)
            if key in self._pointer_owner and not self._filling:
                self._point(source + ENDPOINTS, key, (endpoint_name(address, records.base),))

    def _render_places(self, key: bytes) -> None:
        """Adds the names that are made on demand to a rendered reverse name."""
        address = names.unreversed(key[: -len(PTR_IN)])
        if address is None:
            return
        for base in self._places.at(address):
            self._point(self._source_of(base) + ENDPOINTS, key, (endpoint_name(address, base),))

    def _source_of(self, base: bytes) -> str:
        name, namespace = names.from_wire(base).split(".")[:2]
        return f"{namespace}/{name}"

    def placed(self) -> Iterator[tuple[bytes, bytes]]:
        """Yields (address, Services as in places.py) for each endpoint of a Service with ClusterIP."""
        for address in self._places.addresses():
            yield address, packed(self._places.at(address))

    def _above(self, key: bytes) -> list[bytes]:
        """Returns the names between a reverse name and its apex; empty if no zone of this server has the name."""
        found: list[bytes] = []
        for name in names.parents_wire(key[: -len(PTR_IN)]):
            if name in self._origins:
                return found
            found.append(name)
        return []

    def _hold_parents(self, key: bytes) -> None:
        holds = self._holds
        first = key[1 + key[0] : -len(PTR_IN)]
        if first in holds:
            holds[first] += 1
            return
        for name in self._above(key):
            if self._hold(name):
                return

    def _drop_parents(self, key: bytes) -> None:
        for name in self._above(key):
            if self._drop(name):
                return

    # Names without data

    def _hold(self, name: bytes) -> bool:
        """Adds one reason for a name to exist. Returns True if the name existed before."""
        count = self._holds.get(name, 0)
        self._holds[name] = count + 1
        if not count:
            self._touched.add(name)
        return bool(count)

    def _drop(self, name: bytes) -> bool:
        """Removes one reason for a name to exist. Returns True if the name still exists."""
        count = self._holds[name] - 1
        if count:
            self._holds[name] = count
            return True
        del self._holds[name]
        self._touched.add(name)
        return False

    def fill(self) -> None:
        """Processes all recorded changes without a delta: at a start no server has an older zone."""
        self._filling = True
        for key in progress.every(self._dirty):
            self._replace(key, self._records(key))
        self._filling = False
        self._places.load(self._loading)
        self._loading = []
        for address in self._places.addresses():
            reverse = names.reverse_wire(address) + PTR_IN
            if reverse in self._pointer_owner:
                self._render_places(reverse)
        self._dirty, self._before, self._moved = set(), {}, set()
        self._settle_names()

    def flush(self, serial: int) -> Delta:
        """Processes all recorded changes. Returns the delta for the servers, which is empty if no answer changed."""
        dirty, self._dirty = self._dirty, set()
        for key in dirty:
            self._replace(key, self._records(key))
        before, self._before = self._before, {}
        answers, gone = {}, []
        for question_key, old in before.items():
            now = self.answers.get(question_key)
            if now is None:
                if old is not None:
                    gone.append(question_key)
            elif now != old:
                answers[question_key] = now
        moved, self._moved = self._moved, set()
        places = {address: packed(self._places.at(address)) for address in moved}
        return Delta(serial, answers, tuple(gone), *self._settle_names(), places)

    def _settle_names(self) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
        """Returns the names that appeared and the names that disappeared since the last call."""
        touched, self._touched = self._touched, set()
        fresh = tuple(name for name in touched if name in self._holds and name not in self.names)
        lost = tuple(name for name in touched if name not in self._holds and name in self.names)
        self.names.update(fresh)
        self.names.difference_update(lost)
        return fresh, lost
