"""Policy for names outside the zone: chooses the upstream, builds the query, and checks the answer. Pure; upstream.py
sends the queries.

The policy gives the order of the upstreams. When an upstream exceeds its patience (four times its usual answer time),
the next upstream gets the query too, and both may still answer. After DOWN_AFTER time-outs in a row an upstream is
down. An upstream that is down is the last choice. Every PROBE_EVERY seconds, one query goes both to this upstream and
to a healthy upstream, until the first answers again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

from .cache import FAILURE_SECONDS, NEGATIVE_CAP, POSITIVE_CAP, Upstreamed
from .wire import (
    AD,
    BADVERS,
    CD,
    COUNTS,
    EMPTY,
    FORMERR,
    HEADER,
    NOERROR,
    NOTIMP,
    NXDOMAIN,
    OPT,
    QR,
    RD,
    SERVFAIL,
    TC,
    Edns,
    Malformed,
    lower,
    opt,
    records,
)

PATIENCE_FIRST, PATIENCE_LEAST, PATIENCE_MOST = 0.4, 0.1, 1.0
DEADLINE = 4.0  # below the 5 s after which common resolvers retry
DOWN_AFTER, PROBE_EVERY = 2, 1.0
STALE_PATIENCE = 1.8  # after this time a stale answer is given, if the cache has one (RFC 8767 section 5)
ROUNDS = 2
EXPIRE = 10.0
TLS = "tls://"
POLICIES = ("sequential", "round_robin", "random")
PLAIN_SECONDS = 900.0  # an upstream without EDNS gets queries without OPT for this time
REFUSES_EDNS = (FORMERR, NOTIMP, BADVERS)


@dataclass(slots=True)
class _Health:
    silences: int = 0
    usual: float = 0.0  # smoothed answer time, 0: never answered
    probed: float = float("-inf")
    plain_until: float = 0.0  # the upstream does not know EDNS; on the clock of `attempts`


@dataclass(frozen=True, slots=True)
class Tls:
    """Settings of DNS over TLS (RFC 7858).

    servername: the name that the certificate must have; "": the address of the upstream. ca, cert, key: files; without
    ca, the certificate authorities of the system apply.
    """

    servername: str = ""
    ca: str = ""
    cert: str = ""
    key: str = ""


NO_TLS = Tls()


@dataclass(frozen=True, slots=True)
class Route:
    """The upstreams of the names of one domain. addresses: "IP#port" or "tls://IP#port"; without addresses, the
    server refuses these names.

    policy: one of POLICIES. max_fails: time-outs in a row after which an upstream counts as down; 0: never. expire:
    seconds after which an unused connection closes. positive_cap, negative_cap: the maximum lifetime, in seconds, of
    positive and negative answers in the cache. failure_cap: the same for failures.
    """

    addresses: tuple[str, ...]
    policy: str = "sequential"
    tls: Tls = NO_TLS
    force_tcp: bool = False
    max_fails: int = DOWN_AFTER
    expire: float = EXPIRE
    positive_cap: float = POSITIVE_CAP
    negative_cap: float = NEGATIVE_CAP
    failure_cap: float = FAILURE_SECONDS


@lru_cache(maxsize=256)
def split(address: str) -> tuple[str, str, int]:
    """Splits an address of a Route into ("tls://" or "", IP, port)."""
    scheme = TLS if address.startswith(TLS) else ""
    host, _, port = address.removeprefix(TLS).partition("#")
    return scheme, host, int(port)


def shown(address: str) -> str:
    """Returns an address of a Route in the form of CoreDNS's metrics: "192.0.2.1:53"."""
    _, host, port = split(address)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@dataclass(slots=True)
class Upstreams:
    """Chooses the next upstream. rand: returns a number in [0, n), for the policy "random"."""

    route: Route
    rand: Callable[[int], int] = lambda n: 0
    _turn: int = 0
    _silent: int = 0  # the number of upstreams with time-outs
    _health: dict[str, _Health] = field(init=False)

    def __post_init__(self) -> None:
        self._health = {address: _Health() for address in self.addresses}

    @property
    def addresses(self) -> tuple[str, ...]:
        return self.route.addresses

    def answered(self, address: str, took: float) -> None:
        health = self._health[address]
        if health.silences:
            health.silences = 0
            self._silent -= 1
        health.usual = took if not health.usual else health.usual * 0.75 + took * 0.25

    def silent(self, address: str) -> None:
        health = self._health[address]
        self._silent += not health.silences
        health.silences += 1

    def knows_edns(self, address: str, now: float) -> bool:
        return now >= self._health[address].plain_until

    def lacks_edns(self, address: str, now: float) -> None:
        """Remembers that the upstream answers only queries without OPT, or ignores OPT (RFC 6891 section 7).

        The upstream gets OPT again after PLAIN_SECONDS. A time-out is no sign of this: it has other causes, and the
        DNS flag day of 2019 ended the support of servers that do not answer OPT.
        """
        self._health[address].plain_until = now + PLAIN_SECONDS

    def is_down(self, address: str) -> bool:
        return 0 < self.route.max_fails <= self._health[address].silences

    def all_down(self) -> bool:
        return self._silent > 0 and all(self.is_down(address) for address in self.addresses)

    def patience(self, address: str) -> float:
        usual = self._health[address].usual
        return min(PATIENCE_MOST, max(PATIENCE_LEAST, 4 * usual)) if usual else PATIENCE_FIRST

    def _in_order(self, healthy: list[str]) -> list[str]:
        """Returns the upstreams in the order of the policy."""
        policy = self.route.policy
        if len(healthy) < 2 or policy == "sequential":
            return healthy
        self._turn += 1
        first = (self._turn - 1 if policy == "round_robin" else self.rand(len(healthy))) % len(healthy)
        return healthy[first:] + healthy[:first]

    def attempts(self, now: float) -> list[tuple[str, float]]:
        """Returns (address, seconds until the next upstream gets the query too), in order.

        The first entry may be a probe, which has no wait.
        """
        if not self._silent and len(self.addresses) == 1:
            return [(self.addresses[0], self.patience(self.addresses[0]))] * ROUNDS
        down = [a for a in self.addresses if self.is_down(a)] if self._silent else []
        healthy = self._in_order([a for a in self.addresses if a not in down] if down else list(self.addresses))
        plan = [(a, self.patience(a)) for a in [*healthy, *down] * ROUNDS]
        due = [a for a in down if now - self._health[a].probed >= PROBE_EVERY]
        if healthy and due:
            self._health[due[0]].probed = now
            plan.insert(0, (due[0], 0.0))
        return plan


OPTS = (opt(Edns(0)), opt(Edns(0, dnssec_ok=True)))


def build_ask(key: bytes, ident: int, *, dnssec_ok: bool, checking_disabled: bool, edns: bool = True) -> bytes:
    """Returns the query to an upstream for a question key. edns: with OPT; DO exists only there."""
    flags = RD | (CD if checking_disabled else 0)
    return HEADER.pack(ident, flags, 1, 0, 0, edns) + key + (OPTS[dnssec_ok] if edns else b"")


def read_answer(key: bytes, ident: int, data: bytes) -> Upstreamed | None:
    """Parses the answer of an upstream to `build_ask`.

    Returns None if the answer is truncated (TC): the caller must repeat the query over TCP. Raises Malformed for a
    message that does not answer this question. The caller must ignore such a message, because any host may have sent
    it.
    """
    if len(data) < 12:
        raise Malformed("shorter than a header")
    got, flags, questions, an, ns, ar = HEADER.unpack_from(data)
    if got != ident or not flags & QR or flags & 0x7800:
        raise Malformed("no answer to this query")
    rcode, failed = flags & 0xF, flags & 0xF not in (NOERROR, NXDOMAIN)
    if lower(data[12 : 12 + len(key)]) != key or questions != 1:
        if failed and (len(data) == 12 or questions == 0):
            return Upstreamed(rcode, EMPTY)
        if questions == 0:  # a server that does not know the EDNS version may leave the question out
            answer = _without_opt(data, 12, (an, ns, ar), rcode, ad=False)
            if answer.rcode == BADVERS:
                return Upstreamed(BADVERS, EMPTY)
        raise Malformed("the answer is to another question")
    if flags & TC and rcode not in REFUSES_EDNS:
        return None
    try:
        return _without_opt(data, 12 + len(key), (an, ns, ar), rcode, bool(flags & AD))
    except Malformed:
        if failed:  # servers that do not know OPT may leave the record out and keep the count of the query
            return Upstreamed(rcode, EMPTY)
        raise


def _without_opt(data: bytes, at: int, counts: tuple[int, int, int], rcode: int, ad: bool) -> Upstreamed:
    """Removes OPT, which concerns one hop only, and the records after OPT, whose pointers would become invalid.

    The rcode of the result is the extended one for BADVERS only: a client without EDNS does not understand the others.
    """
    an, ns, ar = counts
    end, kept, edns = at, 0, False
    for index, record in enumerate(records(data, at, an + ns + ar)):
        if index >= an + ns and record.rtype == OPT:
            extended = record.ttl >> 24 << 4 | rcode
            rcode = extended if extended < 16 or extended == BADVERS else SERVFAIL
            edns = True
            break
        end, kept = record.end, kept + 1
    return Upstreamed(rcode, COUNTS.pack(an, ns, max(0, kept - an - ns)) + data[at:end], ad, edns)


def refuses_edns(answer: Upstreamed) -> bool:
    """Whether the upstream must get a query with OPT again, without OPT (RFC 6891 sections 6.1.3 and 7).

    The rcode alone decides: some servers copy the OPT of the query into a FORMERR that is about this OPT.
    """
    return answer.rcode in REFUSES_EDNS


def ignores_edns(answer: Upstreamed) -> bool:
    """Whether a whole answer to a query with OPT shows that the upstream skips OPT. Error messages often have none."""
    return not answer.edns and is_final(answer)


def for_clients(answer: Upstreamed) -> Upstreamed:
    """Replaces BADVERS, which is about OPT between this server and the upstream."""
    return Upstreamed(SERVFAIL, EMPTY) if answer.rcode == BADVERS else answer


def is_final(answer: Upstreamed) -> bool:
    """Whether the answer is final. After SERVFAIL, REFUSED and similar errors, the flight tries another upstream."""
    return answer.rcode in (NOERROR, NXDOMAIN)
