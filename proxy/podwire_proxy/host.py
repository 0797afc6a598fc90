"""The machine around the rules: conntrack's settings, sysctls, and obstacles for Services. I/O, in the caller's network
namespace.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from podwire_base.role import logs

from .hostfacts import Foreign, HostFacts

log = logs.get("proxy")


def raise_conntrack_max(wanted: int) -> None:
    """Raise conntrack's maximum to this number of flows if it is lower; only the host's own network namespace can.
    hostfacts.py reports a maximum that stays too low.
    """
    path = Path("/proc/sys/net/netfilter/nf_conntrack_max")
    try:
        if wanted and int(path.read_text()) < wanted:
            path.write_text(str(wanted))
            log.info("conntrack's maximum raised", flows=wanted)
    except (OSError, ValueError) as err:
        log.debug("conntrack's maximum cannot be raised here", error=str(err))


def set_conntrack(settings: Iterable[tuple[str, int]]) -> list[tuple[str, str]]:
    """Write net.netfilter settings of this namespace; returns those that could not be made, and why."""
    failed = []
    for name, value in settings:
        try:
            Path(f"/proc/sys/net/netfilter/{name}").write_text(str(value))
        except OSError as err:
            failed.append((name, err.strerror or str(err)))
    return failed


def route_localnet() -> str:
    """Let packets that leave by other links have a loopback address as source, and let their answers return; the rules
    drop packets from the wire with one. Returns the problem, "" for none.
    """
    try:
        Path("/proc/sys/net/ipv4/conf/all/route_localnet").write_text("1")
    except OSError as err:
        return f"net.ipv4.conf.all.route_localnet: {err.strerror or err}"
    return ""


def facts(foreign: Iterable[Foreign]) -> HostFacts:
    """The host's facts; a value that cannot be read counts as harmless. foreign: rules of others, from each backend."""

    def number(path: str, default: int = 0) -> int:
        try:
            return int(Path("/proc/sys/net", path).read_text().split()[0])
        except (OSError, ValueError, IndexError):
            return default

    return HostFacts(
        bool(number("ipv4/ip_forward", 1)),
        number("ipv4/conf/all/rp_filter") == 1,
        number("netfilter/nf_conntrack_count"),
        number("netfilter/nf_conntrack_max"),
        tuple(foreign),
    )
