"""One connection as this node tells it, and its JSON. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

VERSION = 1  # of what a node answers; a reader of another version says so
OPEN, FORWARDED, REFUSED, RESET, DROPPED, UNANSWERED = "open", "forwarded", "refused", "reset", "dropped", "unanswered"
VERDICTS = (OPEN, FORWARDED, REFUSED, RESET, DROPPED, UNANSWERED)
FAILED = frozenset((REFUSED, RESET, DROPPED, UNANSWERED))
CLOSED_PORT = "closed-port"  # the reason of a refusal by the endpoint itself; the others are kernel/reasons.py's
PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6", 132: "sctp"}


class End(NamedTuple):
    """Who has an address. kind: "pod", "node", "service", "outside", or "" for an address of the cluster that nobody is
    known to have. namespace: "" where the kind has none.
    """

    kind: str = ""
    namespace: str = ""
    name: str = ""
    node: str = ""

    @property
    def words(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


class Service(NamedTuple):
    """port: the name of the Service's port, else its number."""

    namespace: str = ""
    name: str = ""
    port: str = ""

    @property
    def words(self) -> str:
        return f"{self.namespace}/{self.name}:{self.port}" if self.name else ""


class Ends(NamedTuple):
    """Both ends of a connection. service: the Service that the client dialled, empty if it dialled no Service. probe:
    the node asks whether its own pod lives.
    """

    source: End
    target: End
    service: Service = Service()
    probe: bool = False


@dataclass(slots=True)
class Flow:
    """A connection. number: unique on this node since its role started. started, changed: seconds since 1970. ip, port:
    what the client dialled. endpoint_ip, endpoint_port: who answers. Counters and duration are None where the kernel
    does not tell them. at_least: the connection is older than the agent, so earlier parts are not counted. bytes:
    network layer bytes from the client; back_bytes: to it. rule: which rule of which policies dropped it, in words.
    """

    number: int
    node: str
    started: float
    changed: float
    protocol: str
    source_ip: str
    source_port: int
    ip: str
    port: int
    endpoint_ip: str
    endpoint_port: int
    ends: Ends
    verdict: str = OPEN
    reason: str = ""
    packets: int | None = None
    bytes: int | None = None
    back_packets: int | None = None
    back_bytes: int | None = None
    duration: float | None = None
    at_least: bool = False
    rule: str = ""

    def to_json(self) -> dict[str, Any]:
        found = asdict(self)
        ends = found.pop("ends")
        return {
            **found,
            "source": ends[0]._asdict(),
            "target": ends[1]._asdict(),
            "service": ends[2]._asdict() if ends[2].name else None,
            "probe": ends[3],
        }


def from_json(data: Mapping[str, Any]) -> Flow:
    """Raises ValueError for what is not a flow of this version."""
    try:
        rest = dict(data)
        ends = Ends(
            End(**rest.pop("source")),
            End(**rest.pop("target")),
            Service(**(rest.pop("service") or {})),
            bool(rest.pop("probe")),
        )
        return Flow(ends=ends, **rest)
    except (KeyError, TypeError, AttributeError) as err:
        raise ValueError(f"not a flow of version {VERSION}: {err}") from err
