"""The I/O of the nftables backend: reads and writes the tables `podwire` of a network namespace."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence

from podwire_base.kernel.ip import FAMILIES, Family
from podwire_base.kernel.nft import logging
from podwire_base.kernel.nft import ruleset as nft
from podwire_base.kernel.nft import socket as nft_socket
from podwire_base.kernel.nft.codec import TableDump
from podwire_base.kernel.reasons import PODS_FORWARDED, Reason, reason_of
from podwire_base.role import logs
from podwire_base.role.counts import Counts

from ..backend import families
from ..hostfacts import Foreign
from ..model import NodeInfo
from . import affinity
from .layout import TABLE_NAME, Layout, downgrade, layout_of
from .plan import Planner

log = logs.get("proxy")
IN_FLIGHT = 0.05  # seconds; a packet needs far less time for the hooks
COUNTING = ("forward", "postrouting")  # the chains with the counters that the proxy reports


class Tables:
    """One connection to the kernel. Implements the protocol backend.Kernel."""

    no_notifications = False

    def __init__(self, ns_fd: int | None = None) -> None:
        self._ns_fd = ns_fd
        self._conn = nft_socket.Connection(ns_fd)
        self._commits = 0

    def close(self) -> None:
        self._conn.close()

    def read(self, family: Family) -> TableDump | None:
        return self._conn.dump(Layout(family).table)

    def commit(self, planner: Planner, plan: nft.Transaction) -> None:
        self._conn.commit(plan)
        self._commits += bool(plan)

    def settle(self, planner: Planner, *, swept: bool) -> None:
        """Ends the session affinity of clients whose endpoint was removed.

        The work repeats after a sweep, because a rule may have recorded the old endpoint for a packet in flight.
        """
        if planner.suspects or planner.suspects is None:
            self._commits += affinity.forget(planner, self._conn)
        if swept:
            planner.suspects = set()

    def counted(self, planners: Sequence[Planner]) -> Mapping[Reason, int]:
        """Returns the packet counts by reason. Opens a separate connection, so it is thread-safe."""
        found = Counter[Reason]()
        with nft_socket.Connection(self._ns_fd) as conn:
            for planner in planners:
                for chain in COUNTING:
                    for comment, count in conn.packets(planner.layout.table, chain).items():
                        if reason := reason_of(comment):
                            found[reason] += count
        return found

    def foreign_commits(self) -> int:
        return self._conn.generation() - self._commits

    def counts(self, planners: Sequence[Planner]) -> list[Counts]:
        """Opens a connection for each look, so it is thread-safe. Elements are not counted: the watch tells of them,
        and also when it lost a notification.
        """
        tables = [planner.layout.table for planner in planners]

        def figures() -> tuple[tuple[str, int], ...]:
            with nft_socket.Connection(self._ns_fd) as conn:
                return conn.counts(tables)

        def generation() -> int:
            with nft_socket.Connection(self._ns_fd) as conn:
                return conn.generation() - self._commits

        return [Counts(figures, generation, lambda: self._commits)]

    def watch(self, planners: Sequence[Planner]) -> list[nft_socket.Watcher]:
        return [nft_socket.Watcher(p.layout.table, self._conn.port_id, self._ns_fd) for p in planners]

    def retire(self) -> list[str]:
        return []


def can_log(ns_fd: int | None = None) -> bool:
    """Whether the kernel can log refused packets."""
    if problem := logging.problem(f"{TABLE_NAME}-try", ns_fd):
        log.warn("refused packets are not logged", error=problem)
    return not problem


def observed(ns_fd: int | None = None) -> dict[Family, TableDump]:
    """Returns the tables `podwire`, with the expressions of their rules."""
    if nft_socket.missing(ns_fd):
        return {}
    with nft_socket.Connection(ns_fd) as conn:
        return {family: dump for family in FAMILIES if (dump := conn.dump(Layout(family).table, exprs=True))}


def remove_idle(node: NodeInfo, ns_fd: int | None = None) -> None:
    """Deletes the table of a family that no longer has a Service range."""
    if nft_socket.missing(ns_fd):
        return
    wanted = families(node)
    with nft_socket.Connection(ns_fd) as conn:
        for table in _present(conn):
            if table.family not in wanted:
                conn.commit(nft.Transaction().remove(table))
                log.info("removed the table of a family without Services", family=table.family)


def _present(conn: nft_socket.Connection) -> list[nft.Table]:
    ours = {Layout(family).table for family in FAMILIES}
    return [table for table in conn.tables() if table in ours]


def newest(ns_fd: int | None = None) -> int:
    """Returns the layout that the tables tell; 0 without tables, and for those of version 0.2."""
    if nft_socket.missing(ns_fd):
        return 0
    with nft_socket.Connection(ns_fd) as conn:
        return max(map(layout_of, conn.chains()), default=0)


def downgraded(ns_fd: int | None = None) -> list[str]:
    """Removes what version 0.2 does not know. Returns a line for each item found."""
    if nft_socket.missing(ns_fd):
        return []
    lines = list[str]()
    with nft_socket.Connection(ns_fd) as conn:
        for family in FAMILIES:
            table = Layout(family).table
            plan, gone = downgrade(Layout(family), (c for c in conn.chains() if c.table == table))
            conn.commit(plan)
            lines += [f"chain {family} {table.name} {chain.name}" for chain in gone]
    return lines


def existing(ns_fd: int | None = None) -> list[str]:
    """Returns a line for each item that `cleanup` would remove."""
    if nft_socket.missing(ns_fd):
        return []
    with nft_socket.Connection(ns_fd) as conn:
        return [f"table {table.family} {table.name}" for table in _present(conn)]


def cleanup(ns_fd: int | None = None) -> list[str]:
    """Removes everything that this backend ever wrote. Returns a line for each item found."""
    if nft_socket.missing(ns_fd):
        return []
    with nft_socket.Connection(ns_fd) as conn:
        found = _present(conn)
        first, last = nft.Transaction(), nft.Transaction()
        for table in found:
            first.flush(
                *(chain for chain in conn.chains() if chain.table == table and chain.name in ("prerouting", "output"))
            )
            last.delete(table)
        conn.commit(first)  # no new flow is translated; flows in progress still pass postrouting
        if first:
            time.sleep(IN_FLIGHT)
        conn.commit(last)
    return [f"table {table.family} {table.name}" for table in found]


def foreign() -> Foreign:
    """Returns the tables of other programs, and their chains that drop forwarded packets, but for those in which wiring
    has rules for pods.
    """
    if nft_socket.missing():
        return Foreign()
    with nft_socket.Connection() as conn:
        closed = [
            c
            for c in conn.chains()
            if c.hook == "forward" and c.policy == "drop" and not c.table.name.startswith(TABLE_NAME)
        ]
        return Foreign(
            tuple(f"{table.family} {table.name}" for table in conn.tables()),
            tuple(
                f"{c.table.family} {c.table.name} {c.name}"
                for c in closed
                if not any(rule.comment.startswith(PODS_FORWARDED) for rule in conn.rules(c))
            ),
        )
