"""Reads and writes the tables `podwire-policy` of a network namespace. I/O."""

from __future__ import annotations

from collections.abc import Collection

from podwire_base.kernel.ip import FAMILIES, Family
from podwire_base.kernel.nft import logging
from podwire_base.kernel.nft import ruleset as nft
from podwire_base.kernel.nft import socket as nft_socket
from podwire_base.kube.errors import ConfigError
from podwire_base.role import logs
from podwire_base.role.counts import Counts
from podwire_base.role.layout import refusal

from .compiled import Compiled, Delta
from .counted import Place
from .tables import layout
from .tables.plan import Planner

log = logs.get("policy")


class Tables:
    """Both tables, through one connection. After an OSError only `full` helps."""

    def __init__(self, ns_fd: int | None = None, *, own_node: bool = False) -> None:
        """own_node: what pods send to their own node is judged too."""
        self._ns_fd = ns_fd
        if problem := logging.problem(f"{layout.TABLE_NAME}-try", ns_fd):
            log.warn("dropped packets are not logged", error=problem)
        self._conn = nft_socket.Connection(ns_fd)
        fixed = layout.Fixed(not problem, own_node)
        self._planners: dict[Family, Planner] = {family: Planner(family, fixed) for family in FAMILIES}
        self._commits = 0

    def close(self) -> None:
        self._conn.close()

    def full(self, compiled: Compiled) -> int:
        """Reads back and writes the difference. Returns the number of operations. Raises OSError."""
        return sum(
            self.commit(planner.full(compiled, self._conn.dump(layout.table(family))))
            for family, planner in self._planners.items()
        )

    def close_ranges(self, ranges: tuple[str, ...]) -> bool:
        """Drops addresses in these CIDRs that nobody has judged, from the next `full` on. Returns whether that is
        news.
        """
        news = False
        for planner in self._planners.values():
            news |= planner.fixed.ranges != ranges
            planner.fixed = planner.fixed._replace(ranges=ranges)
        return news

    def change(self, compiled: Compiled, delta: Delta) -> int:
        """Writes what a change touched. Returns the number of operations. Raises OSError."""
        return sum(self.commit(planner.change(compiled, delta)) for planner in self._planners.values())

    def commit(self, tx: nft.Transaction) -> int:
        """Commits a change of the tables. Returns the number of operations. Raises OSError."""
        self._conn.commit(tx)
        self._commits += bool(tx)
        return tx.operations

    def watch(self) -> list[nft_socket.Watcher]:
        return [nft_socket.Watcher(layout.table(f), self._conn.port_id, self._ns_fd) for f in FAMILIES]

    def counts(self) -> Counts:
        """Returns what is counted of the tables in the kernel. It has connections of its own, so it is thread-safe."""
        tables = [layout.table(family) for family in FAMILIES]

        def figures() -> tuple[object, ...]:
            with nft_socket.Connection(self._ns_fd) as conn:
                return conn.counts(tables)

        def generation() -> int:
            with nft_socket.Connection(self._ns_fd) as conn:
                return conn.generation()

        return Counts(figures, generation, lambda: self._commits)

    def dropped(self, chains: Collection[str]) -> dict[Place, int]:
        """Returns the packet counts of the rules of these chains since the rules were made. It has a connection of its
        own, so it is thread-safe. Raises OSError.
        """
        with nft_socket.Connection(self._ns_fd) as conn:
            return {
                (family, chain, comment): count
                for family in FAMILIES
                for chain in chains
                for comment, count in conn.packets(layout.table(family), chain).items()
            }


def refuse_newer(ns_fd: int | None = None) -> None:
    """Raises ConfigError if a later version wrote the tables."""
    if nft_socket.missing(ns_fd):
        return
    with nft_socket.Connection(ns_fd) as conn:
        found = max(map(layout.layout_of, conn.chains()), default=0)
    if found > layout.LAYOUT:
        raise ConfigError(refusal(f"nft tables {layout.TABLE_NAME}", found, layout.LAYOUT))


def cleanup(ns_fd: int | None = None) -> list[str]:
    """Removes the tables. Every pod is open from then on. Returns a line for each."""
    if nft_socket.missing(ns_fd):
        return []
    with nft_socket.Connection(ns_fd) as conn:
        found = [table for table in conn.tables() if table.name == layout.TABLE_NAME]
        for table in found:
            conn.commit(nft.Transaction().remove(table))
    return [f"table {table.family} {table.name}" for table in found]
