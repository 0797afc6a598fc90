"""Reads and writes settings of the host: conntrack and sysctls. Collects obstacles for Services. I/O.

The functions work in the caller's network namespace.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from podwire_base.role import logs

from .hostfacts import Foreign, HostFacts

log = logs.get("proxy")
TABLE = "nf_conntrack_max"


@dataclass(slots=True)
class ConntrackSettings:
    """Keeps conntrack's settings: the timeouts of this network namespace, and the machine's table of flows.

    wanted: net.netfilter settings and their values. flows: the number of flows for which the table must have room; 0:
    any. The maximum is never lowered. All network namespaces share the table, so it is the machine's, and only a
    process in the machine's namespace may set it: a node of an embedded cluster leaves it alone, whatever the kernel
    allows. table: whether the role may set it. refused: setting -> the reason, after `apply`.
    """

    wanted: Mapping[str, int]
    flows: int
    table: bool = True
    refused: dict[str, str] = field(default_factory=dict)
    root: Path = Path("/proc/sys/net/netfilter")

    def apply(self) -> None:
        """Writes what differs. Before the module nf_conntrack is loaded there is nothing to write, so the role calls
        this at each full sync.
        """
        self.refused = {}
        for name, value in self.wanted.items():
            self._set(name, value, at_least=False)
        if self.flows and self.table and in_the_machines_namespace() and self._set(TABLE, self.flows, at_least=True):
            self._set("nf_conntrack_buckets", self.flows // 4, at_least=True)
            self.refused.pop("nf_conntrack_buckets", None)  # fewer buckets are slower, and no flow is lost
        self.refused.pop(TABLE, None)  # hostfacts.py tells of a table that is too small

    def _set(self, name: str, value: int, *, at_least: bool) -> bool:
        """Returns whether the setting was written."""
        path = self.root / name
        try:
            now = int(path.read_text())
            if now == value or (at_least and now > value):
                return False
            path.write_text(str(value))
        except (OSError, ValueError) as err:
            self.refused[name] = getattr(err, "strerror", None) or str(err)
            return False
        log.info("conntrack setting", name=name, value=value, was=now)
        return True


def in_the_machines_namespace() -> bool:
    """Whether this is the network namespace of process 1: the machine's, or for a container with the host's network the
    same. An unreadable namespace counts as the machine's.
    """
    try:
        return os.stat("/proc/self/ns/net").st_ino == os.stat("/proc/1/ns/net").st_ino
    except OSError:
        return True


def set_oom_score(value: int) -> str:
    """Sets this process's oom_score_adj. Returns the problem; "" on success."""
    try:
        Path("/proc/self/oom_score_adj").write_text(str(value))
    except OSError as err:
        return err.strerror or str(err)
    return ""


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
