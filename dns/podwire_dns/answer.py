"""Query bytes -> response bytes, or the question that an upstream must answer first.

A query is a hit if its lower-case question is a key of the zone; the value of that key is the records of the answer. A
hit needs only a new head (id, RD, CD, EDNS) and a random first address. Every other query takes the slow path: names
without a record (NODATA and NXDOMAIN with SOA, RFC 2308), aliases, pods, errors, and names outside the zone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from . import names, wire
from .aliases import FOLLOWED, MAX_ALIASES, Alias, Back, Frame, cname, unwind
from .cache import Cache, CacheKey, Upstreamed
from .pack import A_IN, AAAA_IN, CNAME_IN, SRV_IN, Packer
from .patterns import BadRule
from .rewriting import Rewritten
from .rtypes import AAAA, CNAME, NS, PTR, SOA, SRV, TXT, A
from .rules import Rules
from .templates import Local
from .wire import AA, AD, CD, COUNTS, EMPTY, IN, NOERROR, NXDOMAIN, RA, RD, REFUSED, SERVFAIL, Malformed, Query
from .zone import ZoneData

META_TYPES = range(249, 256)  # TKEY, TSIG, IXFR, AXFR, MAILB, MAILA, ANY: transfers and amplifiers
MX, HTTPS = 15, 65
USUAL = frozenset(number.to_bytes(2) + b"\0\x01" for number in (A, NS, CNAME, PTR, MX, TXT, AAAA, SRV, HTTPS))
PLAIN = b"\0\x01\0\0\0\0"  # one question, no answer, no authority


@dataclass(frozen=True, slots=True)
class Pending:
    """A query that waits for an upstream.

    ask: the question key to forward. frames: the steps from the query's question to this one. home: as in Rewritten.
    """

    query: Query
    limit: int
    ask: bytes
    frames: tuple[Frame, ...] = ()
    home: bytes = b""

    @property
    def dnssec_ok(self) -> bool:
        return self.query.edns is not None and self.query.edns.dnssec_ok

    @property
    def checking_disabled(self) -> bool:
        return bool(self.query.flags & CD)

    @property
    def cache_key(self) -> CacheKey:
        key = self.ask, self.dnssec_ok, self.checking_disabled
        return (*key, self.home) if self.home else key


@dataclass(slots=True)
class Answerer:
    """Answers queries. Call `handle` for every message; on Pending, call `finish` with the upstream's answer or None.

    recursion: whether upstreams exist. autopath: complete search paths in the server. loop_probe: a name that only this
    server's loop probe queries; `looped`: the probe came back. rand: returns a number in [0, n). clock: monotonic
    seconds, for the cache. rules: the rules of a Corefile; None without rules. shuffle: start each address set at a
    random address.
    """

    data: ZoneData
    cache: Cache
    clock: Callable[[], float]
    rand: Callable[[int], int]
    recursion: bool = False
    autopath: bool = False
    loop_probe: bytes = b""
    looped: bool = False
    rules: Rules | None = None
    shuffle: bool = True
    counts: dict[str, int] = field(default_factory=lambda: {"hit": 0, "slow": 0, "forward": 0, "error": 0})

    def handle(self, data: bytes, *, udp: bool) -> bytes | Pending | None:
        """Returns the response, or Pending if an upstream must answer first.

        Returns None if the message is itself a response or is not a DNS message: a reply would cause loops and
        reflections.
        """
        if len(data) < 12 or data[2] & 0x80:
            return None
        hit = self._hit(data, udp)
        if hit is not None:
            return hit
        try:
            query = wire.parse_query(data) if not data[2] & 0x78 else None
        except Malformed:
            return self._error(wire.header_only(data, wire.FORMERR))
        if query is None:
            return self._error(wire.header_only(data, wire.NOTIMP))
        return self._slow(query, query.udp_limit() if udp else wire.TCP_SIZE)

    def _hit(self, data: bytes, udp: bool) -> bytes | None:
        """Returns the pre-rendered answer to a plain query; None if the message needs parsing or has no such answer."""
        if data[2] & 0x7E or data[4:10] != PLAIN:
            return None
        limit, tail = wire.UDP_MINIMUM, b""
        if data[10:12] == b"\0\0":
            question = data[12:]
        elif (
            data[10:12] == b"\0\x01" and data[-11:-8] == b"\0\0\x29" and data[-6:-4] == b"\0\0" and data[-2:] == b"\0\0"
        ):
            question = data[12:-11]
            limit = max(limit, min(int.from_bytes(data[-8:-6]), wire.UDP_SIZE))
            tail = b"\0\0\x29\x04\xd0\0\0" + (b"\x80\0" if data[-4] & 0x80 else b"\0\0") + b"\0\0"
        else:
            return None
        if self.rules is not None:
            return None
        value = self.data.answers.get(wire.lower(question))
        if value is None or 12 + len(question) + len(value) - 6 + len(tail) > (limit if udp else wire.TCP_SIZE):
            return None
        self.counts["hit"] += 1
        value = self._shuffled(value, question[-3])
        counts = value[:6] if not tail else value[:4] + ((value[4] << 8 | value[5]) + 1).to_bytes(2)
        flags = bytes((0x84 | data[2] & 1, (0x80 if self.recursion else 0) | data[3] & 0x10))
        return b"".join((data[:2], flags, b"\0\x01", counts, question, value[6:], tail))

    def _shuffled(self, value: bytes, qtype: int) -> bytes:
        if self.shuffle and (value[1] > 1 or value[0]):
            return wire.rotate(value, qtype, self.rand(value[0] << 8 | value[1]))
        return value

    def answered_by(self, response: bytes) -> str:
        """Returns the name of the CoreDNS plugin for a response of `handle`, for metrics.

        "" if the server itself refused the query, as in CoreDNS.
        """
        if self.rules is not None and response[4:6] == b"\0\x01":
            key = wire.lower(response[12 : wire.name_end(response, 12, pointers=False) + 4])
            found = self.rules.find(key)
            found = self.rules.local(found.key, found.home) if isinstance(found, Rewritten) else found
            if found is not None:
                return found.plugin
        if response[2] & AA >> 8:
            return "kubernetes"
        return "cache" if response[6:10] != b"\0\0\0\0" else ""

    def absent(self, key: bytes) -> tuple[int, bytes] | None:
        """Returns the (rcode, value) of a negative answer without parsing the query; None: call `handle`.

        key: a whole lower-case question in the cluster zone. Most queries of pods get a negative answer: AAAA for a
        name that has only A, and the names that a search path generates.
        """
        data, kind = self.data, key[-4:]
        answers = data.answers
        name = key[:-4]
        if kind not in USUAL or not data.synced or name + CNAME_IN in answers:
            return None
        if name in data.names or name + A_IN in answers or name + AAAA_IN in answers or name + SRV_IN in answers:
            return data.negative(len(name))[0]
        if data.endpoint(name) is not None:
            return None
        return None if self.autopath or name.endswith(data.pod_apex) else data.negative(len(name))[1]

    def cached(self, key: bytes) -> tuple[int, bytes] | None:
        """Returns the cached (rcode, value) for a question outside the zone; the query has no DO, CD or AD."""
        whole = (key, False, False)
        if (
            not self.recursion
            or whole not in self.cache.entries
            or self.data.apex_of(key[:-4])
            or key[-4:] not in USUAL
        ):
            return None
        found = self.cache.get(whole, self.clock())
        return None if found is None else (found.rcode, found.value)

    def missed(self, data: bytes, key: bytes) -> Pending | None:
        """Returns the result of `handle` for a plain query that the cache cannot answer; None: call `handle`.

        The query has RD, has no DO, CD or AD, and names a host outside the zone. data: the message. key: the question
        of the message in lower case.
        """
        if (
            not self.recursion
            or (key, False, False) in self.cache.entries
            or key[-4:] not in USUAL
            or self.data.apex_of(key[:-4])
            or key[:-4] == self.loop_probe
        ):
            return None
        edns = wire.Edns(int.from_bytes(data[-8:-6])) if data[11] else None
        query = Query(int.from_bytes(data[:2]), int.from_bytes(data[2:4]), data[12 : 12 + len(key)], key, edns)
        self.counts["forward"] += 1
        self.cache.misses += 1
        return Pending(query, query.udp_limit(), key)

    def _error(self, response: bytes) -> bytes:
        self.counts["error"] += 1
        return response

    def _reply(self, query: Query, value: bytes, limit: int, *, rcode: int = NOERROR, flags: int = 0) -> bytes:
        return wire.reply(query, value, rcode=rcode, flags=flags | (RA if self.recursion else 0), limit=limit)

    def _slow(self, query: Query, limit: int) -> bytes | Pending:
        self.counts["slow"] += 1
        if query.edns is not None and query.edns.version:
            return self._error(self._reply(query, EMPTY, limit, rcode=wire.BADVERS))
        if query.qclass != IN or query.qtype in META_TYPES:
            return self._error(self._reply(query, EMPTY, limit, rcode=REFUSED))
        if query.qtype in (0, wire.OPT):
            return self._error(self._reply(query, EMPTY, limit, rcode=wire.FORMERR))
        return self._resolve(query, limit)

    def _resolve(self, query: Query, limit: int) -> bytes | Pending:
        """Follows rules and aliases from the query's question to an answer, or to a question for an upstream."""
        key, frames, seen = query.key, tuple[Frame, ...](), set[bytes]()
        while True:
            seen.add(key)
            asked, home = key, b""
            found = self.rules.find(key) if self.rules is not None else None
            if self.rules is not None and isinstance(found, Rewritten):
                frames += (Back(key, found),)
                key, home = found.key, found.home
                found = self.rules.local(key, home)
            assert not isinstance(found, Rewritten)
            if found is None:
                found = self._of_cluster(key)
            if found is None:
                return self._outside(Pending(query, limit, key, frames, home))
            if found.rcode == NXDOMAIN and self.autopath and not any(isinstance(each, Alias) for each in frames):
                frame, target = self._completed(key, found)
            else:
                frame, target = Alias(key, found.value), found.alias
            if not target:
                return self._told(query, limit, frames, key, found.rcode, found.value, AA)
            frames += (frame,)
            key = target + asked[-4:]
            if key in seen or len(seen) == MAX_ALIASES:
                return self._told(query, limit, frames, key, NOERROR, EMPTY, AA)

    def _of_cluster(self, key: bytes) -> Local | None:
        """Returns what the cluster zone answers; None for a name outside."""
        data, name, qtype = self.data, key[:-4], int.from_bytes(key[-4:-2])
        value = data.answers.get(key)
        if value is not None:
            return Local(NOERROR, self._shuffled(value, qtype))
        apex = data.apex_of(name)
        if apex is None:
            return None
        if not data.synced:
            return Local(SERVFAIL, EMPTY)
        alias = data.answers.get(name + CNAME_IN)
        if alias is None:
            return Local(*self._unrecorded(name, qtype, apex))
        return Local(NOERROR, alias, alias[6 + 12 :] if qtype in FOLLOWED else b"")

    def _search_rest(self, name: bytes) -> bytes | None:
        """Returns www.example.com for www.example.com.NAMESPACE.svc.zone, the first name of a pod's search path.

        Returns None for every other name. Returns None also for a single label and for a name below a Service of the
        namespace, so that a missing endpoint stays missing.
        """
        data, offsets, at = self.data, [], 0
        suffix = b"\x03svc" + data.zones[0]
        while name[at]:
            offsets.append(at)
            at += 1 + name[at]
        for index, start in enumerate(offsets):
            if name[start:] == suffix:
                if index < 3 or name[offsets[index - 1] :] not in data.names or data.exists(name[offsets[index - 2] :]):
                    return None
                return name[: offsets[index - 1]] + b"\0"
        return None

    def _completed(self, key: bytes, missing: Local) -> tuple[Alias, bytes]:
        """Tries the rest of the search path: svc.zone, zone, the name itself.

        Returns an alias to the first name that exists, and that name; b"" for a name without such a rest. missing: the
        answer if the last name does not exist either.
        """
        rest = self._search_rest(key[:-4])
        if rest is None:
            return Alias(key, missing.value), b""
        zone = self.data.zones[0]
        for suffix in (b"\x03svc" + zone, zone):
            name = rest[:-1] + suffix
            if len(name) <= names.MAX_WIRE and self.data.exists(name):
                return Alias(key, cname(name, self.data.ttl)), name
        return Alias(key, cname(rest, self.data.ttl), (missing.rcode, missing.value)), rest

    def _told(
        self, query: Query, limit: int, frames: tuple[Frame, ...], key: bytes, rcode: int, value: bytes, flags: int
    ) -> bytes:
        """Returns the response. rcode, value: the answer to the last question `key`, at the end of the frames."""
        if frames:
            try:
                rcode, value = unwind(frames, key, rcode, value)
            except BadRule:  # the records of the steps do not form a valid message
                rcode, value = SERVFAIL, EMPTY
            flags = AA if any(isinstance(each, Alias) for each in frames) else flags
        response = self._reply(query, value, limit, rcode=rcode, flags=0 if rcode == SERVFAIL else flags)
        return self._error(response) if rcode == SERVFAIL else response

    def _unrecorded(self, name: bytes, qtype: int, apex: bytes) -> tuple[int, bytes]:
        """Returns (rcode, value) for a name of the cluster zone that has no record of this type."""
        data = self.data
        if name == apex and qtype == SOA:
            return NOERROR, COUNTS.pack(1, 0, 0) + data.soa(name, apex)
        address = data.endpoint(name) if apex == data.zones[0] else None
        if address is not None and qtype == (A if len(address) == 4 else AAAA):
            return NOERROR, Packer(data.ttl).addresses([address])[A_IN if qtype == A else AAAA_IN]
        targets = data.pointers(name) if apex != data.zones[0] else []
        if targets and qtype == PTR:
            return NOERROR, Packer(data.ttl).pointers(targets)
        exists = bool(targets) or data.exists(name)
        if not exists and data.pods:
            pod = self._pod(name)
            kind = b"" if pod is None else A_IN if len(pod) == 4 else AAAA_IN
            if pod is not None and int.from_bytes(kind[:2]) == qtype:
                return NOERROR, Packer(data.ttl).addresses([pod])[kind]
            exists = pod is not None
        return NOERROR if exists else NXDOMAIN, COUNTS.pack(0, 1, 0) + data.soa(name, apex)

    def _pod(self, name: bytes) -> bytes | None:
        """Returns the packed address a.b.c.d for a-b-c-d.namespace.pod.zone if the namespace exists; else None.

        Source: section 2.6 of the specification.
        """
        namespace = name[1 + name[0] :]
        if namespace not in self.data.names or namespace[1 + namespace[0] :] != self.data.pod_apex:
            return None
        address = names.undashed(name[1 : 1 + name[0]].decode("ascii", "replace"))
        return None if address is None else names.packed(address)

    def _outside(self, pending: Pending) -> bytes | Pending:
        query = pending.query
        if self.loop_probe and query.name == self.loop_probe:
            self.looped = True
        if not self.recursion or not query.flags & RD:
            if any(isinstance(each, Alias) for each in pending.frames):
                return self._told(query, pending.limit, pending.frames, pending.ask, NXDOMAIN, EMPTY, AA)
            return self._error(self._reply(query, EMPTY, pending.limit, rcode=REFUSED))
        self.counts["forward"] += 1
        known = self.cache.get(pending.cache_key, self.clock())
        return pending if known is None else self.finish(pending, known)

    def finish(self, pending: Pending, answer: Upstreamed | None) -> bytes:
        """Returns the response to a pending query. answer: None if no upstream answered."""
        query = pending.query
        if answer is None:
            answer = Upstreamed(SERVFAIL, EMPTY)
        flags = AD if answer.ad and (query.flags & AD or pending.dnssec_ok) else 0
        return self._told(query, pending.limit, pending.frames, pending.ask, answer.rcode, answer.value, flags)


def forwarded_by(response: bytes) -> str:
    """Returns the name of the CoreDNS plugin for a response for which an upstream was asked: "" if none answered."""
    return "" if response[3] & 0xF == SERVFAIL else "forward"
