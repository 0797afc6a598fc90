"""Reads the `cache` of a Corefile. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from .cache import CAPACITY, FAILURE_SECONDS
from .corefile_text import Directive, bad, number, seconds

POSITIVE, NEGATIVE, STALE = 3600.0, 1800.0, 3600.0  # CoreDNS's defaults for a `cache` without TTL
LONGEST_FAILURE = 300.0  # seconds, as in CoreDNS and RFC 9520 section 3.2
KINDS = ("success", "denial")


@dataclass(slots=True)
class Caching:
    """The `cache` of a server block. The lives are seconds; 0: nothing is cached.

    success, denials: capacities; 0: not given. stale: the option `serve_stale` and its seconds. cluster: the kinds of
    answers of the cluster whose TTLs it bounds.
    """

    positive: float = 0.0
    negative: float = 0.0
    failures: float = FAILURE_SECONDS
    success: int = 0
    denials: int = 0
    prefetch: bool = False
    stale: tuple[Directive, float] | None = None
    cluster: set[str] = field(default_factory=lambda: set(KINDS))

    @property
    def capacity(self) -> int:
        """Returns the capacity of the cache, which keeps both kinds together; 0: not given."""
        return (self.success or CAPACITY) + self.denials if self.success or self.denials else 0


Note = Callable[[Directive, str], None]


def read(item: Directive, cluster_domain: str, note: Note) -> Caching:
    """Returns the settings. Raises BadConfig."""
    made, words = Caching(POSITIVE, NEGATIVE), item.args
    if words and words[0].isdecimal():
        made.positive = float(number(words[0], item))
        if not made.positive:
            raise bad(item, "the TTL must be above 0; without `cache` nothing is cached")
        made.negative = min(made.negative, made.positive)
        words = words[1:]
    if words:
        note(item, "names zones; answers of all upstreams of its block are cached")
    for option in item.block:
        if option.name == "disable":
            _disable(option, made, cluster_domain, note)
        else:
            _option(option, made, note)
    return made


def _option(option: Directive, made: Caching, note: Note) -> None:
    if option.name in KINDS:
        _kind(option, made, note)
    elif option.name == "serve_stale":
        made.stale = option, seconds(option.args[0], option) if option.args else STALE
        if option.args[1:] not in ([], ["verify"]):
            note(option, "is as `verify` here: an upstream is asked before an expired answer is given")
    elif option.name == "servfail":
        made.failures = seconds(option.args[0], option)
        if made.failures > LONGEST_FAILURE:
            raise bad(option, f"servfail is {option.args[0]}; it must be at most 5m (RFC 9520)")
    elif option.name == "prefetch":
        made.prefetch = True
        if option.args:
            note(option, "has numbers that have no effect here: three requests make an answer popular")
    else:
        note(option, "is not supported and left out")


def _kind(option: Directive, made: Caching, note: Note) -> None:
    """Reads the option `success|denial CAPACITY [TTL] [LEAST_TTL]`."""
    capacity = number(option.args[0], option)
    ttl = seconds(option.args[1], option) if len(option.args) > 1 else None
    if ttl == 0:
        raise bad(option, "the TTL must be above 0; `disable` switches the cache off")
    if option.name == "success":
        made.success, made.positive = capacity, made.positive if ttl is None else ttl
    else:
        made.denials, made.negative = capacity, made.negative if ttl is None else ttl
    if len(option.args) > 2:
        note(option, "has a minimum TTL, which is left out: an expired answer is requested again")


def _disable(option: Directive, made: Caching, cluster_domain: str, note: Note) -> None:
    """Reads the option `disable success|denial [ZONE...]`. Names of the cluster are never cached; their TTLs are."""
    kinds, zones = option.args[:1], [word.rstrip(".").lower() for word in option.args[1:]]
    if kinds not in (["success"], ["denial"]):
        raise bad(option, "disable takes success or denial, and zones")
    if zones == [cluster_domain.rstrip(".")]:
        made.cluster -= set(kinds)
    elif not zones:
        made.cluster -= set(kinds)
        if kinds == ["success"]:
            made.positive = 0.0
        else:
            made.negative = 0.0
    else:
        if cluster_domain.rstrip(".") in zones:
            made.cluster -= set(kinds)
        note(option, "holds for the cluster domain only: answers of upstreams are cached")
