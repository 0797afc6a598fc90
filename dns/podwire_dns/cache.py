"""Caches answers of upstreams for their TTL. The cache never has names of the cluster."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field, replace

from .rtypes import SOA
from .shares import SHARE, Quotas
from .wire import COUNTS, NOERROR, NXDOMAIN, records

NEGATIVE_CAP, POSITIVE_CAP = 30.0, 3600.0
CAPACITY = 10_000
POPULAR, PREFETCH_SHARE = 3, 0.1  # prefetch after so many requests, in the last tenth of the lifetime
ZONE_SHARE = 16  # of one zone's NXDOMAIN answers the cache keeps at most this part of its capacity
FAILURE_SECONDS, FAILURES = 5.0, 2000  # failures are kept (RFC 9520 section 3.2: 1 s to 5 minutes), at most so many
MAX_VALUE = 8192  # bytes of one answer; together with the capacity, it bounds the memory


@dataclass(frozen=True, slots=True)
class Upstreamed:
    """An upstream's answer. value: as in wire.py, without OPT. ad: the upstream set AD (DNSSEC). edns: it had OPT."""

    rcode: int
    value: bytes
    ad: bool = False
    edns: bool = field(default=False, compare=False)


Ttls = tuple[tuple[int, int], ...]


@dataclass(slots=True)
class _Entry:
    answer: Upstreamed
    stored: float
    expires: float
    ttls: Ttls  # offset in the value, original TTL
    groups: tuple[bytes, ...] = ()  # the client that asked first, and the zone of an NXDOMAIN answer
    hits: int = 0


# question key, DO, CD; and the zone of a block, if a rule of this block made the question (see rewriting.Rewritten)
CacheKey = tuple[bytes, bool, bool] | tuple[bytes, bool, bool, bytes]


@dataclass(slots=True)
class Cache:
    """Holds at most `capacity` answers and evicts the oldest answer first. Times are monotonic seconds.

    A full cache evicts the oldest answer of the client that fills it, if that client has more than its share. The
    NXDOMAIN answers of one zone have a share in any case: names that a flood of queries makes up would otherwise
    replace the names of all others.

    keep_stale: seconds for which `stale` returns an expired answer. due: with `prefetch`, popular answers that expire
    soon; the code that fetches such an answer again removes it from `due`. Readers and the single writer may be
    different threads: each step is one dict operation.
    """

    capacity: int = CAPACITY
    keep_stale: float = 0.0
    prefetch: bool = False
    entries: OrderedDict[CacheKey, _Entry] = field(default_factory=OrderedDict[CacheKey, _Entry])
    due: set[CacheKey] = field(default_factory=set)
    failures: OrderedDict[CacheKey, tuple[float, Upstreamed]] = field(
        default_factory=OrderedDict[CacheKey, tuple[float, Upstreamed]]
    )  # question -> (end, failure); only the event loop uses it
    hits: int = 0
    denials: int = 0
    misses: int = 0
    evicted: int = 0
    stale_hits: int = 0
    prefetched: int = 0
    _quotas: Quotas[CacheKey] = field(default_factory=Quotas[CacheKey])
    _expired: deque[tuple[CacheKey, tuple[bytes, ...]]] = field(
        default_factory=deque[tuple[CacheKey, tuple[bytes, ...]]]
    )

    def resize(self, capacity: int, keep_stale: float, prefetch: bool) -> None:
        self.capacity, self.keep_stale, self.prefetch = capacity, keep_stale, prefetch

    def inherited(self) -> Cache:
        """Returns this cache for a forked process: its answers, and counts of its own."""
        return replace(self, hits=0, denials=0, misses=0, evicted=0, stale_hits=0, prefetched=0)

    def clear(self) -> None:
        self.entries.clear()
        self.due.clear()
        self.failures.clear()
        self._expired.clear()
        self._quotas.clear()

    def put(
        self,
        key: CacheKey,
        answer: Upstreamed,
        now: float,
        positive_cap: float = POSITIVE_CAP,
        negative_cap: float = NEGATIVE_CAP,
        source: bytes = b"",
    ) -> Upstreamed:
        """Caches NOERROR and NXDOMAIN answers that have a TTL above 0 (RFC 2308 for negative answers).

        positive_cap, negative_cap: the maximum lifetime of an answer in seconds; 0: do not cache. source: the client
        that asked, as in shares.py. Returns the answer for the client, in which no TTL exceeds the cap.
        """
        self.failures.pop(key, None)
        life, ttls, cap = _life(answer, positive_cap, negative_cap)
        if cap > 0 and any(ttl > cap for _, ttl in ttls):
            answer, ttls = _capped(answer, ttls, int(cap))
        if life <= 0 or len(answer.value) > MAX_VALUE:
            return answer
        groups: tuple[bytes, ...] = (b"client" + source,)
        if answer.rcode == NXDOMAIN:
            groups += (b"zone" + _zone(key[0], answer.value),)
        self._make_room(key, groups)
        self.entries[key] = _Entry(answer, now, now + life, ttls, groups)
        self._quotas.add(key, groups)
        return answer

    def _make_room(self, key: CacheKey, groups: tuple[bytes, ...]) -> None:
        """Evicts for a new answer: of the same key, of the same zone, and of a full cache. Only the writer calls it."""
        while self._expired:
            self._quotas.forget(*self._expired.popleft())
        if key in self.entries:
            self._evict(key, groups)
        for zone in groups[1:]:
            oldest = self._quotas.oldest_above(zone, self.capacity // ZONE_SHARE)
            if oldest is not None:
                self.evicted += self._evict(oldest, (zone,))
        while len(self.entries) >= self.capacity:
            oldest = self._quotas.oldest_above(groups[0], self.capacity // SHARE)
            try:
                self.evicted += self._evict(next(iter(self.entries)) if oldest is None else oldest, groups)
            except (StopIteration, RuntimeError):  # a reader removed an expired answer between the two steps
                continue

    def _evict(self, key: CacheKey, groups: tuple[bytes, ...]) -> bool:
        """Removes an answer, and its key from the quotas. groups: those of a key that a reader removed already."""
        entry = self.entries.pop(key, None)
        self._quotas.forget(key, groups if entry is None else entry.groups)
        return entry is not None

    def get(self, key: CacheKey, now: float) -> Upstreamed | None:
        """Returns the answer with its remaining TTLs; None if the cache has no valid answer."""
        entry = self.entries.get(key)
        if entry is None or now >= entry.expires:
            if entry is not None and now >= entry.expires + self.keep_stale and self.entries.pop(key, None) is entry:
                self._expired.append((key, entry.groups))
            self.misses += 1
            return None
        self.hits += 1
        self.denials += entry.answer.rcode != NOERROR
        entry.hits += 1
        if (
            self.prefetch
            and entry.hits >= POPULAR
            and entry.expires - now < (entry.expires - entry.stored) * PREFETCH_SHARE
        ):
            self.due.add(key)
        age = int(now - entry.stored)
        if not age:
            return entry.answer
        value = bytearray(entry.answer.value)
        for at, ttl in entry.ttls:
            value[at : at + 4] = max(0, ttl - age).to_bytes(4)
        return Upstreamed(entry.answer.rcode, bytes(value), entry.answer.ad)

    def fail(self, key: CacheKey, failure: Upstreamed, now: float, seconds: float) -> None:
        """Keeps a failure (RFC 9520): until its end, `failed` returns it, and nobody asks the upstreams again."""
        self.failures.pop(key, None)
        if seconds > 0:
            if len(self.failures) >= FAILURES:
                self.failures.popitem(last=False)
            self.failures[key] = now + seconds, failure

    def failed(self, key: CacheKey, now: float) -> Upstreamed | None:
        """Returns a failure that is kept; None for other questions."""
        kept = self.failures.get(key)
        if kept is None or now >= kept[0]:
            self.failures.pop(key, None)
            return None
        self.hits += 1
        self.denials += 1
        return kept[1]

    def stale(self, key: CacheKey, now: float) -> Upstreamed | None:
        """Returns an answer that expired less than `keep_stale` seconds ago, with TTLs of 0 (RFC 8767); else None."""
        entry = self.entries.get(key)
        if entry is None or not self.keep_stale or now >= entry.expires + self.keep_stale:
            return None
        self.stale_hits += 1
        value = bytearray(entry.answer.value)
        for at, _ttl in entry.ttls:
            value[at : at + 4] = b"\0\0\0\0"
        return Upstreamed(entry.answer.rcode, bytes(value), entry.answer.ad)


def _capped(answer: Upstreamed, ttls: Ttls, cap: int) -> tuple[Upstreamed, Ttls]:
    value = bytearray(answer.value)
    for at, ttl in ttls:
        value[at : at + 4] = min(ttl, cap).to_bytes(4)
    return Upstreamed(answer.rcode, bytes(value), answer.ad), tuple((at, min(ttl, cap)) for at, ttl in ttls)


def _life(answer: Upstreamed, positive_cap: float, negative_cap: float) -> tuple[float, Ttls, float]:
    """Returns the lifetime of an answer, the offsets of its TTLs, and the cap of its TTLs."""
    if answer.rcode not in (NOERROR, NXDOMAIN):
        return 0, (), 0
    an, ns, ar = COUNTS.unpack_from(answer.value)
    found = list(records(answer.value, 6, an + ns + ar))
    ttls = tuple((record.ttl_at, record.ttl) for record in found)
    if answer.rcode == NOERROR and an:
        return min([positive_cap, *(record.ttl for record in found)]), ttls, positive_cap
    for record in found[: an + ns]:
        if record.rtype == SOA and record.end - record.data_at >= 20:
            minimum = int.from_bytes(answer.value[record.end - 4 : record.end])
            return min(negative_cap, record.ttl, minimum), ttls, negative_cap
    return 0, ttls, negative_cap  # without SOA a negative answer has no lifetime


def _zone(question: bytes, value: bytes) -> bytes:
    """Returns the zone that an NXDOMAIN answer is about (the owner of its SOA), in lower-case wire form.

    The owner is a pointer into the question in nearly every answer. For other answers, the function returns the last
    two labels of the question.
    """
    an, ns, _ = COUNTS.unpack_from(value)
    for record in records(value, 6, an + ns):
        at = int.from_bytes(value[record.start : record.start + 2]) - 0xC000 - 12
        if record.rtype == SOA and 0 <= at < len(question) - 4:
            return question[at:-4]
    labels, at = [0], 0
    while at < len(question) and question[at]:
        labels.append(at)
        at += 1 + question[at]
    return question[labels[-2] : -4] if len(labels) > 2 else question[:-4]
