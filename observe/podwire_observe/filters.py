"""Which connections a reader wants, with the names of Hubble's filters. Pure.

Values of one filter are alternatives; different filters must all agree. Denied filters (`--not`) leave out what any of
them matches. Pod and Service names are [NAMESPACE/]NAME and match by prefix; "NAMESPACE/" is all of a namespace.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from podwire_base.kernel.reasons import Reason

from .record import CLOSED_PORT, PROTOCOLS, VERDICTS, End, Flow

Values = tuple[str, ...]


class BadFilter(ValueError):
    """The message names the filter, its value, and what it may be."""


def _named(prefix: str, space: str, own: str) -> bool:
    wanted, slash, name = prefix.rpartition("/")
    return bool(own) and own.startswith(name) and (not slash or space == wanted)


def _pod(value: str, end: End) -> bool:
    return end.kind == "pod" and _named(value, end.namespace, end.name)


def _exact_pod(value: str, end: End) -> bool:
    return end.kind == "pod" and value == f"{end.namespace}/{end.name}"


def _space(value: str, end: End) -> bool:
    return end.namespace == value


def _service(value: str, flow: Flow) -> bool:
    return _named(value, flow.ends.service.namespace, flow.ends.service.name)


def _in(value: str, ip: str) -> bool:
    return ipaddress.ip_address(ip) in ipaddress.ip_network(value, strict=False)


Match = Callable[[str, Flow], bool]
# filter -> whether a value matches
_ONE: dict[str, Match] = {
    "from-pod": lambda value, flow: _pod(value, flow.ends.source),
    "to-pod": lambda value, flow: _pod(value, flow.ends.target),
    "from-exact": lambda value, flow: _exact_pod(value, flow.ends.source),
    "to-exact": lambda value, flow: _exact_pod(value, flow.ends.target),
    "to-service": _service,
    "from-namespace": lambda value, flow: _space(value, flow.ends.source),
    "to-namespace": lambda value, flow: value in (flow.ends.target.namespace, flow.ends.service.namespace),
    "from-ip": lambda value, flow: _in(value, flow.source_ip),
    "to-ip": lambda value, flow: _in(value, flow.ip) or _in(value, flow.endpoint_ip),
    "from-port": lambda value, flow: int(value) == flow.source_port,
    "to-port": lambda value, flow: int(value) in (flow.port, flow.endpoint_port),
    "protocol": lambda value, flow: value.lower() == flow.protocol,
    "verdict": lambda value, flow: value.lower() == flow.verdict,
    "reason": lambda value, flow: value == flow.reason,
    "node-name": lambda value, flow: value in (flow.node, flow.ends.source.node, flow.ends.target.node),
}
EITHER = ("pod", "exact", "namespace", "ip", "port", "service")  # "from-X" or "to-X"
NAMES = (*_ONE, "from-service", *EITHER)
OF_CONNECTIONS = ("from-ip", "to-ip", "ip", "from-port", "to-port", "port")  # sums by pair do not have these


@dataclass(frozen=True, slots=True)
class Filters:
    """allow, deny: filter -> values. behind: the value of a from-service -> the pods behind the Services that it names,
    as "namespace/name"; the reader looks them up.
    """

    allow: Mapping[str, Values] = field(default_factory=dict)
    deny: Mapping[str, Values] = field(default_factory=dict)
    probes: bool = False
    behind: Mapping[str, Values] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, values in (*self.allow.items(), *self.deny.items()):
            for value in values:
                check(name, value)

    def wants(self, flow: Flow) -> bool:
        if flow.ends.probe and not self.probes:
            return False
        allowed = all(any(self._is(name, value, flow) for value in values) for name, values in self.allow.items())
        return allowed and not any(
            self._is(name, value, flow) for name, values in self.deny.items() for value in values
        )

    def _is(self, name: str, value: str, flow: Flow) -> bool:
        if name in EITHER:
            return self._is(f"from-{name}", value, flow) or self._is(f"to-{name}", value, flow)
        if name == "from-service":
            return any(_exact_pod(pod, flow.ends.source) for pod in self.behind.get(value, ()))
        return _ONE[name](value, flow)

    def to_json(self) -> dict[str, Any]:
        return {
            "allow": {name: list(values) for name, values in self.allow.items()},
            "deny": {name: list(values) for name, values in self.deny.items()},
            "probes": self.probes,
            "behind": {value: list(pods) for value, pods in self.behind.items()},
        }


def from_json(data: Mapping[str, Any]) -> Filters:
    """Raises BadFilter."""
    try:
        allow, deny, behind = (
            {str(key): tuple(map(str, values)) for key, values in (data.get(part) or {}).items()}
            for part in ("allow", "deny", "behind")
        )
    except (AttributeError, TypeError) as err:
        raise BadFilter(f"filters: {err}") from err
    return Filters(allow, deny, bool(data.get("probes")), behind)


REASONS = (*(reason.value for reason in Reason), CLOSED_PORT)


def check(name: str, value: str) -> None:
    """Raises BadFilter for a filter that does not exist or a value that can never match."""
    if name not in NAMES:
        raise BadFilter(f"{name}: no such filter; there are {', '.join(NAMES)}")
    if name.endswith("ip"):
        try:
            ipaddress.ip_network(value, strict=False)
        except ValueError:
            raise BadFilter(f"{name}: {value!r} is neither an address nor a CIDR") from None
    if name.endswith("port") and not (value.isdecimal() and int(value) < 65536):
        raise BadFilter(f"{name}: {value!r} is not a port number")
    _one_of(name, value.lower(), {"protocol": PROTOCOLS.values(), "verdict": VERDICTS})
    _one_of(name, value, {"reason": REASONS})


def _one_of(name: str, value: str, known: Mapping[str, Iterable[str]]) -> None:
    if name in known and value not in known[name]:
        raise BadFilter(f"{name}: {value!r} is none of {', '.join(known[name])}")
