"""What programs of a backend count: connections by frontend and endpoint, and what they left to other rules. Pure.

A connection counts when a program chooses its endpoint: at connect(), or at the first datagram of a socket without
connect(). Of a frontend that is left to nftables each call counts. An endpoint that is gone gives its number to the
frontend's row of gone endpoints, so a Service's sum never falls; a frontend that is gone loses its rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from .backend import Figures
from .dataplane import Frontend, Key
from .model import Destination

SHOWN = 1000  # rows of one family of metrics; those that count least are summed
GONE = "gone"


class Tally(NamedTuple):
    """A count. to: the endpoint; None: endpoints that are gone (why ""), or why it was left to nftables."""

    key: Key
    to: Destination | None
    why: str
    number: int


@dataclass(frozen=True, slots=True)
class Tallies:
    """rows: by frontend and endpoint or reason. left: by reason, of all Services ever. uncounted: connections that are
    in no row because the map was full.
    """

    rows: tuple[Tally, ...] = ()
    served: int = 0
    left: Mapping[str, int] | None = None
    uncounted: int = 0


@runtime_checkable
class Counting(Protocol):
    """A backend whose programs count."""

    def tallies(self, ns_fd: int | None = None) -> Tallies | None:
        """Returns what they counted in the namespace; None if they are not there."""


def metrics(found: Tallies, frontend: Callable[[Key], Frontend | None]) -> Iterator[Figures]:
    """Yields the families for /metrics. A Service has a row for each port and protocol, and for each endpoint."""
    prefix = "podwire_proxy_socket_hook"
    by_port, by_endpoint = Counter[tuple[str, ...]](), Counter[tuple[str, ...]]()
    for row in found.rows:
        service = one.service if (one := frontend(row.key)) else ""
        if not service or row.why:
            continue
        by_port[service, row.key.protocol, str(row.key.port)] += row.number
        to = f"[{row.to.ip}]:{row.to.port}" if row.to and ":" in row.to.ip else row.to and f"{row.to.ip}:{row.to.port}"
        by_endpoint[service, row.key.protocol, to or GONE] += row.number
    yield f"{prefix}_connections_total", "counter", _shown(by_port, "port")
    yield f"{prefix}_endpoint_connections_total", "counter", _shown(by_endpoint, "endpoint")
    left = [({"reason": why}, number) for why, number in (found.left or {}).items()]
    yield f"{prefix}_left_to_nftables_total", "counter", left
    yield f"{prefix}_uncounted_total", "counter", [({}, found.uncounted)]


def passed(packets: int, size: int) -> Iterator[Figures]:
    """Yields the families of the bypass. size: in bytes."""
    yield "podwire_proxy_bypass_packets_total", "counter", [({}, packets)]
    yield "podwire_proxy_bypass_bytes_total", "counter", [({}, size)]


def _shown(counted: Counter[tuple[str, ...]], last: str) -> list[tuple[dict[str, str], float]]:
    most = counted.most_common()
    rows: list[tuple[dict[str, str], float]] = [
        ({"namespace": service.partition("/")[0], "service": service.partition("/")[2], "protocol": protocol, last: to},
         number)
        for (service, protocol, to), number in sorted(most[:SHOWN])
    ]  # fmt: skip
    if rest := sum(number for _, number in most[SHOWN:]):
        rows.append(({"namespace": "", "service": "other", "protocol": "", last: ""}, rest))
    return rows
