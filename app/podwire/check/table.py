"""The one table of checks: what `podwire check` makes, what `podwire demo` proves, what the tests repeat.

Rows with `probes` need only a cluster; `podwire check` makes them. Rows with `lab` kill processes, call the plugin by
hand or use hosts outside the cluster: the demo's own cluster is there for that.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass

from ..demo import checks_control, checks_dns, checks_pods, checks_services
from ..demo.rows import Row
from . import matrix
from .rows import Finding
from .world import World


@dataclass(frozen=True, slots=True)
class Check:
    """One row. part: the part of the demo to which it belongs. says: what is true if it holds. probes, lab: the
    function that makes it; one of the two is None.
    """

    name: str
    part: str
    says: str
    probes: Callable[[World], AsyncIterator[Finding]] | None = None
    lab: Callable[..., Iterator[Row]] | None = None


def _says(function: Callable[..., object]) -> str:
    return " ".join((function.__doc__ or "").split())


def _probes(part: str, *functions: Callable[[World], AsyncIterator[Finding]]) -> tuple[Check, ...]:
    return tuple(Check(f.__name__.replace("_", "-"), part, _says(f), probes=f) for f in functions)


def _lab(part: str, *functions: Callable[..., Iterator[Row]]) -> tuple[Check, ...]:
    return tuple(Check(f"demo-{f.__name__.replace('_', '-')}", part, _says(f), lab=f) for f in functions)


TABLE: tuple[Check, ...] = (
    *_lab("1", *checks_pods.CHECKS),
    *_lab("3", *checks_services.CHECKS),
    *_lab("6", *checks_dns.CHECKS),
    *_probes(
        "9",
        matrix.same_node,
        matrix.other_node,
        matrix.mtu,
        matrix.large_datagrams,
        matrix.sctp,
        matrix.cluster_ip,
        matrix.node_to_service,
        matrix.node_port,
        matrix.load_balancer,
        matrix.without_selector,
        matrix.no_endpoints,
        matrix.hairpin,
        matrix.host_port,
        matrix.api_server,
        matrix.names,
        matrix.outside,
    ),
    *_lab("7", *checks_control.CHECKS),  # the last ones: they restart what the others use
)
ON_ANY_CLUSTER = tuple(check for check in TABLE if check.probes is not None)
IN_THE_DEMO = tuple(check for check in TABLE if check.lab is not None)
