"""The functions that Kubernetes adds to CEL (k8s.io/apiserver, pkg/cel/library): lists, regular expressions, sets,
quantities, IP addresses, CIDRs, URLs, semantic versions, named formats.

CEL's engine knows no types of ours, so that a quantity, an address and so on is a map with one entry, whose key names
the type. It takes no times inside of objects either: a text in the format date-time or duration stays a text, which the
operators here compare with times, and what is optional is a list of at most one item. Each row of FUNCTIONS is (name,
types of the parameters, type of the result, whether it is a method, function).
"""

from __future__ import annotations

import ipaddress
import operator
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from itertools import pairwise
from typing import Any
from urllib.parse import parse_qs, urlsplit

from podwire_base.kube import quantity

from ...rules import fields
from .. import formats, patterns
from . import twovariables

Boxed = dict[str, Any]
_QUANTITY, _IP, _CIDR = "kubernetes.Quantity", "kubernetes.IP", "kubernetes.CIDR"
_URL, _SEMVER, _FORMAT = "kubernetes.URL", "kubernetes.Semver", "kubernetes.NamedFormat"
_VERSION = re.compile(
    r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(?:-([0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*))?(?:\+[0-9A-Za-z.-]+)?"
)


def _unbox(value: Boxed, kind: str) -> Any:
    if not isinstance(value, dict) or kind not in value:
        raise ValueError(f"expected a {kind.rpartition('.')[2]}")
    return value[kind]


# ---- lists


def _ordered(values: list[Any]) -> bool:
    return all(one <= other for one, other in pairwise(values))


def _extreme(pick: Callable[[list[Any]], Any]) -> Callable[[list[Any]], Any]:
    def extreme(values: list[Any]) -> Any:
        if not values:
            raise ValueError("min and max of an empty list")
        return pick(values)

    return extreme


def _same(one: Any, other: Any) -> bool:
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def _index(values: list[Any], wanted: Any) -> int:
    return next((n for n, one in enumerate(values) if _same(one, wanted)), -1)


def _last_index(values: list[Any], wanted: Any) -> int:
    return next((n for n in range(len(values) - 1, -1, -1) if _same(values[n], wanted)), -1)


def _contains(values: list[Any], wanted: list[Any]) -> bool:
    return all(any(_same(one, other) for other in values) for one in wanted)


def _intersects(values: list[Any], others: list[Any]) -> bool:
    return any(_same(one, other) for one in values for other in others)


# ---- regular expressions


def _find(text: str, pattern: str) -> str:
    found = patterns.compiled(pattern).search(text)
    return found.group(0) if found else ""


def _find_all(text: str, pattern: str, limit: int = -1) -> list[str]:
    found = [one.group(0) for one in patterns.compiled(pattern).finditer(text)]
    return found if limit < 0 else found[:limit]


# ---- quantities


def _amount(value: Boxed) -> Fraction:
    return Fraction(_unbox(value, _QUANTITY))


def _boxed(amount: Fraction) -> Boxed:
    return {_QUANTITY: str(amount)}


def _quantity(text: str) -> Boxed:
    return _boxed(Fraction(quantity.parse(text)))


def _is(parse: Callable[[str], Any]) -> Callable[[str], bool]:
    def test(text: str) -> bool:
        try:
            parse(text)
        except ValueError:
            return False
        return True

    return test


def _compare(one: Any, other: Any) -> int:
    return int(one > other) - int(one < other)


def _added(value: Boxed, other: Any) -> Boxed:
    return _boxed(_amount(value) + (Fraction(other) if isinstance(other, int) else _amount(other)))


def _subtracted(value: Boxed, other: Any) -> Boxed:
    return _boxed(_amount(value) - (Fraction(other) if isinstance(other, int) else _amount(other)))


def _as_integer(value: Boxed) -> int:
    amount = _amount(value)
    if amount.denominator != 1:
        raise ValueError("cannot convert value to integer")
    return int(amount)


# ---- addresses, URLs


def _ip(text: str) -> Boxed:
    address = fields.parsed_ip(text)
    if address is None:
        raise ValueError(f"{text!r} is no IP address")
    return {_IP: str(address)}


def _address(value: Boxed) -> Any:
    return ipaddress.ip_address(_unbox(value, _IP))


def _cidr(text: str) -> Boxed:
    if fields.parsed_cidr(text) is None:
        raise ValueError(f"{text!r} is no CIDR")
    return {_CIDR: text}


def _network(value: Boxed) -> Any:
    return ipaddress.ip_network(_unbox(value, _CIDR), strict=False)


def _masked(value: Boxed) -> Boxed:
    return {_CIDR: str(_network(value))}


def _contains_ip(value: Boxed, other: Any) -> bool:
    address, network = _address(_ip(other) if isinstance(other, str) else other), _network(value)
    return bool(address.version == network.version and address in network)


def _contains_cidr(value: Boxed, other: Any) -> bool:
    one, two = _network(value), _network(_cidr(other) if isinstance(other, str) else other)
    return bool(one.version == two.version and two.subnet_of(one))


def _url(text: str) -> Boxed:
    parts = urlsplit(text)
    if not parts.scheme and not text.startswith("/"):
        raise ValueError(f"{text!r} is no URL")
    _ = parts.port
    return {_URL: text}


def _host(value: Boxed) -> str:
    return str(urlsplit(_unbox(value, _URL)).netloc.rpartition("@")[2])


def _version(text: str) -> Boxed:
    if not _VERSION.fullmatch(text):
        raise ValueError(f"{text!r} is no semantic version")
    return {_SEMVER: text}


def _version_key(value: Boxed) -> tuple[Any, ...]:
    found = _VERSION.fullmatch(_unbox(value, _SEMVER))
    assert found is not None
    early = [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in (found[4] or "").split(".") if p]
    return (*(int(found[n]) for n in (1, 2, 3)), not early, early)


def _link_local_multicast(value: Boxed) -> bool:
    address = _address(value)
    wanted = ipaddress.ip_network("224.0.0.0/24" if address.version == 4 else "ff02::/16")
    return address in wanted


def _global_unicast(value: Boxed) -> bool:
    """As Go's netip: neither unspecified, loopback, multicast, link-local nor the broadcast address."""
    address = _address(value)
    odd = address.is_unspecified or address.is_loopback or address.is_multicast or address.is_link_local
    return not odd and str(address) != "255.255.255.255"


def compared(one: Boxed, other: Boxed) -> int:
    """Compare two quantities or two versions."""
    if _SEMVER in one:
        return _compare(_version_key(one), _version_key(other))
    return _compare(_amount(one), _amount(other))


# ---- named formats


def _named(name: str) -> Boxed:
    if formats.named(name) is None:
        raise ValueError(f"no format {name}")
    return {_FORMAT: name}


def _problems(value: Boxed, text: str) -> list[list[str]]:
    check = formats.named(_unbox(value, _FORMAT))
    assert check is not None
    found = check(text)
    return [found] if found else []


# ---- times that are texts

_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ns": 1e-9}


def _moment(value: Any) -> Any:
    if isinstance(value, datetime):
        return value
    found = datetime.fromisoformat(value.replace("Z", "+00:00").replace("z", "+00:00"))
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _span(value: Any) -> Any:
    if isinstance(value, timedelta):
        return value
    parts = re.findall(r"([0-9.]+)(ns|us|µs|μs|ms|s|m|h)", value)
    if not parts:
        raise ValueError(f"{value!r} is no duration")
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    return timedelta(seconds=-seconds if value.startswith("-") else seconds)


def _operator(read: Callable[[Any], Any], compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    return lambda one, other: compare(read(one), read(other))


_STRING, _MAP, _ANY, _BOOL, _INT, _LIST = "string", "map", "dyn", "bool", "int", "list"
_TIME, _SPAN = "timestamp", "duration"
_OPERATORS = (("_<_", operator.lt), ("_<=_", operator.le), ("_>_", operator.gt), ("_>=_", operator.ge))
Row = tuple[str, tuple[str, ...], str, bool, Callable[..., Any]]
FUNCTIONS: tuple[Row, ...] = (
    (twovariables.PAIRS, (_ANY,), _LIST, True, twovariables.pairs),
    (twovariables.MAPPED, (_LIST,), _ANY, True, twovariables.mapped),
    (twovariables.MERGED, (_LIST,), _ANY, True, twovariables.merged),
    ("isSorted", (_LIST,), _BOOL, True, _ordered),
    ("sum", (_LIST,), _ANY, True, sum),
    ("min", (_LIST,), _ANY, True, _extreme(min)),
    ("max", (_LIST,), _ANY, True, _extreme(max)),
    ("indexOf", (_LIST, _ANY), _INT, True, _index),
    ("lastIndexOf", (_LIST, _ANY), _INT, True, _last_index),
    ("sets.contains", (_LIST, _LIST), _BOOL, False, _contains),
    ("sets.equivalent", (_LIST, _LIST), _BOOL, False, lambda a, b: _contains(a, b) and _contains(b, a)),
    ("sets.intersects", (_LIST, _LIST), _BOOL, False, _intersects),
    ("find", (_STRING, _STRING), _STRING, True, _find),
    ("findAll", (_STRING, _STRING), _LIST, True, _find_all),
    ("findAll", (_STRING, _STRING, _INT), _LIST, True, _find_all),
    ("quantity", (_STRING,), _MAP, False, _quantity),
    ("isQuantity", (_STRING,), _BOOL, False, _is(_quantity)),
    ("sign", (_MAP,), _INT, True, lambda a: _compare(_amount(a), 0)),
    ("isInteger", (_MAP,), _BOOL, True, lambda a: _amount(a).denominator == 1),
    ("asInteger", (_MAP,), _INT, True, _as_integer),
    ("asApproximateFloat", (_MAP,), "double", True, lambda a: float(_amount(a))),
    ("isGreaterThan", (_MAP, _MAP), _BOOL, True, lambda a, b: compared(a, b) > 0),
    ("isLessThan", (_MAP, _MAP), _BOOL, True, lambda a, b: compared(a, b) < 0),
    ("compareTo", (_MAP, _MAP), _INT, True, compared),
    ("add", (_MAP, _ANY), _MAP, True, _added),
    ("sub", (_MAP, _ANY), _MAP, True, _subtracted),
    ("ip", (_STRING,), _MAP, False, _ip),
    ("isIP", (_STRING,), _BOOL, False, _is(_ip)),
    ("ip.isCanonical", (_STRING,), _BOOL, False, lambda text: _ip(text)[_IP] == text),
    ("family", (_MAP,), _INT, True, lambda a: _address(a).version),
    ("isUnspecified", (_MAP,), _BOOL, True, lambda a: _address(a).is_unspecified),
    ("isLoopback", (_MAP,), _BOOL, True, lambda a: _address(a).is_loopback),
    ("isLinkLocalMulticast", (_MAP,), _BOOL, True, _link_local_multicast),
    ("isLinkLocalUnicast", (_MAP,), _BOOL, True, lambda a: _address(a).is_link_local),
    ("isGlobalUnicast", (_MAP,), _BOOL, True, _global_unicast),
    ("cidr", (_STRING,), _MAP, False, _cidr),
    ("isCIDR", (_STRING,), _BOOL, False, _is(_cidr)),
    ("containsIP", (_MAP, _ANY), _BOOL, True, _contains_ip),
    ("containsCIDR", (_MAP, _ANY), _BOOL, True, _contains_cidr),
    ("ip", (_MAP,), _MAP, True, lambda a: {_IP: _unbox(a, _CIDR).partition("/")[0]}),
    ("masked", (_MAP,), _MAP, True, _masked),
    ("prefixLength", (_MAP,), _INT, True, lambda a: _network(a).prefixlen),
    ("url", (_STRING,), _MAP, False, _url),
    ("isURL", (_STRING,), _BOOL, False, _is(_url)),
    ("getScheme", (_MAP,), _STRING, True, lambda a: urlsplit(_unbox(a, _URL)).scheme),
    ("getHost", (_MAP,), _STRING, True, _host),
    ("getHostname", (_MAP,), _STRING, True, lambda a: urlsplit(_unbox(a, _URL)).hostname or ""),
    ("getPort", (_MAP,), _STRING, True, lambda a: str(urlsplit(_unbox(a, _URL)).port or "")),
    ("getEscapedPath", (_MAP,), _STRING, True, lambda a: urlsplit(_unbox(a, _URL)).path),
    ("getQuery", (_MAP,), _MAP, True, lambda a: parse_qs(urlsplit(_unbox(a, _URL)).query, keep_blank_values=True)),
    ("semver", (_STRING,), _MAP, False, _version),
    ("isSemver", (_STRING,), _BOOL, False, _is(_version)),
    ("major", (_MAP,), _INT, True, lambda a: _version_key(a)[0]),
    ("minor", (_MAP,), _INT, True, lambda a: _version_key(a)[1]),
    ("patch", (_MAP,), _INT, True, lambda a: _version_key(a)[2]),
    ("format.named", (_STRING,), _MAP, False, _named),
    ("validate", (_MAP, _STRING), _LIST, True, _problems),
    ("hasValue", (_LIST,), _BOOL, True, bool),
    ("value", (_LIST,), _ANY, True, lambda found: found[0]),
    ("orValue", (_LIST, _ANY), _ANY, True, lambda found, other: found[0] if found else other),
    *(
        (name, pair, _BOOL, False, _operator(_moment if _TIME in pair else _span, compare))
        for name, compare in _OPERATORS
        for pair in ((_STRING, _TIME), (_TIME, _STRING), (_STRING, _SPAN), (_SPAN, _STRING))
    ),
    *((f"format.{name}", (), _MAP, False, lambda name=name: {_FORMAT: name}) for name in formats.NAMED),
)
