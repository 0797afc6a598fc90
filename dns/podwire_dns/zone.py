"""RRsets, and the Zone that holds those of all objects and knows what a change touched.

Every RRset comes from a *source* (a Service, a Namespace, the schema itself). Two sources may own the same name and type
(PTR of an address that is an endpoint of two Services): their data is then merged. A name exists (answers NODATA, not
NXDOMAIN) if it owns an RRset or lies between such a name and its zone's apex (an empty non-terminal, RFC 8020).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from . import names

A, NS, CNAME, SOA, PTR, TXT, AAAA, SRV = 1, 2, 5, 6, 12, 16, 28, 33
ADDRESS_TYPES = (A, AAAA)
TYPE_NAMES = {A: "A", NS: "NS", CNAME: "CNAME", SOA: "SOA", PTR: "PTR", TXT: "TXT", AAAA: "AAAA", SRV: "SRV"}


class Srv(NamedTuple):
    """RFC 2782. target: a text name."""

    priority: int
    weight: int
    port: int
    target: str


Rdata = str | Srv
Key = tuple[str, int]


@dataclass(frozen=True, slots=True)
class RRset:
    """name: text form. rtype: a type number. rdata: addresses, names or a TXT string as str, SRV as Srv; sorted, unique."""

    name: str
    rtype: int
    ttl: int
    rdata: tuple[Rdata, ...]

    @property
    def key(self) -> Key:
        return self.name, self.rtype


@dataclass(slots=True)
class Zone:
    """origins: apexes (text) of all zones served. `dirty_sets` and `dirty_names` grow until `settle` is called."""

    origins: frozenset[str]
    dirty_sets: set[Key] = field(default_factory=set)
    dirty_names: set[str] = field(default_factory=set)
    _sources: dict[str, dict[Key, RRset]] = field(default_factory=dict)
    _bare: dict[str, tuple[str, ...]] = field(default_factory=dict)
    _sets: dict[Key, dict[str, RRset]] = field(default_factory=dict)
    _refs: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for origin in self.origins:
            self._refs[origin] = 1
            self.dirty_names.add(origin)

    def replace(self, source: str, rrsets: Iterable[RRset], bare_names: Iterable[str] = ()) -> None:
        """The source owns exactly `rrsets` from now on, and `bare_names` exist without data. Empty: the source is gone."""
        fresh = {rrset.key: rrset for rrset in rrsets}
        old = self._sources.pop(source, {})
        if fresh:
            self._sources[source] = fresh
        addresses_changed = False
        for key, rrset in old.items():
            if key not in fresh:
                self._remove(source, key)
                addresses_changed |= rrset.rtype in ADDRESS_TYPES
        for key, rrset in fresh.items():
            if old.get(key) != rrset:
                self._put(source, key, rrset, new=key not in old)
                addresses_changed |= rrset.rtype in ADDRESS_TYPES
        if addresses_changed:  # SRV answers carry their targets' addresses in the additional section
            self.dirty_sets.update(key for key in fresh if key[1] == SRV)
        bare = tuple(sorted(set(bare_names)))
        before = self._bare.pop(source, ())
        if bare:
            self._bare[source] = bare
        for name in bare:
            self._ref(name, 1)
        for name in before:
            self._ref(name, -1)

    def _put(self, source: str, key: Key, rrset: RRset, *, new: bool) -> None:
        self._sets.setdefault(key, {})[source] = rrset
        self.dirty_sets.add(key)
        if new:
            self._ref(key[0], 1)

    def _remove(self, source: str, key: Key) -> None:
        owners = self._sets[key]
        del owners[source]
        if not owners:
            del self._sets[key]
        self.dirty_sets.add(key)
        self._ref(key[0], -1)

    def _ref(self, name: str, step: int) -> None:
        """Count one user more or less of a name; a name that begins or ceases to exist counts once in its parent."""
        apex = names.within(name, self.origins)
        if apex is None:
            return
        for above in names.parents(name):
            count = self._refs.get(above, 0) + step
            if count:
                self._refs[above] = count
            else:
                del self._refs[above]
            if count != (1 if step > 0 else 0):
                return
            self.dirty_names.add(above)
            if above == apex:
                return

    def get(self, name: str, rtype: int) -> RRset | None:
        """The merged RRset; its TTL is the smallest of its parts (RFC 2181 5.2 wants one TTL)."""
        owners = self._sets.get((name, rtype))
        if not owners:
            return None
        if len(owners) == 1:
            return next(iter(owners.values()))
        parts = list(owners.values())
        data = {item for part in parts for item in part.rdata}
        return RRset(name, rtype, min(part.ttl for part in parts), tuple(sorted(data, key=str)))

    def exists(self, name: str) -> bool:
        return name in self._refs

    def keys(self) -> Iterable[Key]:
        return self._sets.keys()

    def names(self) -> Iterable[str]:
        return self._refs.keys()

    def sources(self) -> Iterable[str]:
        return self._sources.keys()

    def sources_of(self, name: str) -> list[str]:
        """Which sources own data at `name`, for the question "where does this answer come from"."""
        return sorted({source for (owner, _), owners in self._sets.items() if owner == name for source in owners})

    def settle(self) -> tuple[set[Key], set[str]]:
        """What may have changed since the last call: RRset keys and names."""
        sets, touched = self.dirty_sets, self.dirty_names
        self.dirty_sets, self.dirty_names = set(), set()
        return sets, touched
