"""Reads and writes settings of the host: conntrack and sysctls. Collects obstacles for Services. I/O.

The functions work in the caller's network namespace.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from podwire_base.role import logs

from .hostfacts import Foreign, HostFacts

log = logs.get("proxy")


def raise_conntrack_max(wanted: int) -> None:
    """Raises conntrack's maximum to this number of flows if the maximum is lower.

    Only the host's initial network namespace can raise the maximum. hostfacts.py reports a maximum that stays too low.
    """
    path = Path("/proc/sys/net/netfilter/nf_conntrack_max")
    try:
        if wanted and int(path.read_text()) < wanted:
            path.write_text(str(wanted))
            log.info("conntrack's maximum raised", flows=wanted)
    except (OSError, ValueError) as err:
        log.debug("conntrack's maximum cannot be raised here", error=str(err))


def set_conntrack(settings: Iterable[tuple[str, int]]) -> list[tuple[str, str]]:
    """Writes net.netfilter settings of this namespace. Returns (setting, reason) for each failure."""
    failed = []
    for name, value in settings:
        try:
            Path(f"/proc/sys/net/netfilter/{name}").write_text(str(value))
        except OSError as err:
            failed.append((name, err.strerror or str(err)))
    return failed


def route_localnet() -> str:
    """Allows a loopback source address on packets that leave by other links, and allows their answers.

    The rules drop packets from the wire that have a loopback address. Returns the problem; "" on success.
    """
    try:
        Path("/proc/sys/net/ipv4/conf/all/route_localnet").write_text("1")
    except OSError as err:
        return f"net.ipv4.conf.all.route_localnet: {err.strerror or err}"
    return ""


def facts(foreign: Iterable[Foreign]) -> HostFacts:
    """Returns the facts of the host. An unreadable value counts as harmless. foreign: foreign rules, per backend."""

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
