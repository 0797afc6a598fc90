"""The IO of the nftables backend: keep the tables `podwire` of a namespace equal to the Dataplane."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterable
from pathlib import Path

from podwire_base.kernel.ip import FAMILIES
from podwire_base.kernel.nft import ruleset as nft
from podwire_base.kernel.nft import socket as nft_socket
from podwire_base.role import logs

from ..backend import Counted, Synced, families
from ..dataplane import Dataplane, Delta
from ..flows import FlowKeeper, Swept
from ..hostfacts import ForeignChain, HostFacts
from ..model import NodeInfo
from .layout import AFFINITY, INVALID, ON_LOCALHOST, TABLE_NAME, Layout
from .plan import Planner

log = logs.get("proxy")
FORGET_TURNS = 5
IN_FLIGHT = 0.05  # seconds: far longer than a packet is on its way through the hooks


class Proxier:
    """Owns the connection to the kernel. `sync` after each change, `sweep` a moment later; errors change nothing."""

    no_notifications = False

    def __init__(self, node: NodeInfo, ns_fd: int | None = None) -> None:
        self._ns_fd = ns_fd
        self._conn = nft_socket.Connection(ns_fd)
        self._planners = [Planner(Layout(family), node) for family in families(node)]
        self.flows = FlowKeeper(families(node), ns_fd)
        self.watchers: list[nft_socket.Watcher] = []
        self._commits = 0

    def close(self) -> None:
        """The rules stay."""
        for watcher in self.watchers:
            watcher.close()
        self._conn.close()

    def sync(self, dataplane: Dataplane, delta: Delta | None) -> Synced:
        """Write what `delta` changed; None: read the kernel's state back and write what differs. Raises NftError."""
        started = time.monotonic()
        operations = elements = verdicts = 0
        for planner in self._planners:
            planner.node = dataplane.node
            if delta is None:
                tx = planner.full(dataplane, self._conn.dump(planner.layout.table))
            else:
                tx = planner.change(dataplane, delta)
            self._commit(planner, tx)
            operations, elements, verdicts = operations + len(tx.ops), elements + tx.elements, verdicts + tx.verdicts
            if planner.suspects or planner.suspects is None:
                self._forget(planner)
        self.flows.note(dataplane, delta)
        return Synced(delta is None, operations, elements, time.monotonic() - started, verdicts)

    def _commit(self, planner: Planner, tx: nft.Transaction) -> None:
        self._conn.commit(tx)
        self._commits += bool(tx)
        planner.committed(tx)

    def _forget(self, planner: Planner) -> None:
        """End the session affinity of clients whose endpoint is gone. Elements can expire while we look, hence the
        turns."""
        for local, name in enumerate(AFFINITY):
            set_ = planner.layout.sets()[name]
            for turn in range(FORGET_TURNS):
                gone = planner.outdated(bool(local), self._conn.elements(set_))
                # The last turns go one by one, so that no expiring neighbour can be in the way.
                parts = [gone] if turn < FORGET_TURNS - 2 else [{key: value} for key, value in gone.items()]
                done = [self._delete(nft.Elements(set_, part)) for part in parts]
                if all(done):
                    break

    def _delete(self, elements: nft.Elements) -> bool:
        """False where one of them was gone already, and then none is deleted."""
        tx = nft.Transaction().delete(elements)
        try:
            self._conn.commit(tx)
        except nft.NftError as err:
            if err.errno != errno.ENOENT:
                raise
            return False
        self._commits += bool(tx)
        return True

    def counted(self) -> Counted:
        """By a connection of its own, for any thread."""
        invalid = localhost = 0
        with nft_socket.Connection(self._ns_fd) as conn:
            for planner in self._planners:
                for comment, count in conn.packets(planner.layout.table, "forward").items():
                    invalid += count if comment.startswith(INVALID) else 0
                for comment, count in conn.packets(planner.layout.table, "postrouting").items():
                    localhost += count if comment.startswith(ON_LOCALHOST) else 0
        return Counted(invalid, localhost)

    def foreign_commits(self) -> int:
        """A number that rises with every commit in this namespace that was not ours."""
        return self._conn.generation() - self._commits

    @property
    def unswept(self) -> bool:
        return any(planner.unswept for planner in self._planners)

    def sweep(self) -> Swept:
        """Both at once: the rules and the flows that changes left behind."""
        self.sweep_rules()
        return self.flows.sweep()

    def sweep_rules(self) -> None:
        """Delete what no packet in flight can reach any more; call it some milliseconds after the sync."""
        for planner in self._planners:
            tx = planner.sweep()
            self._commit(planner, tx)
            if planner.suspects or planner.suspects is None:
                self._forget(planner)  # again: a packet in flight may have been noted with the old endpoint
            planner.suspects = set()

    def watch(self) -> list[nft_socket.Watcher]:
        """Start to hear of foreign changes to our tables. After the first sync, so that our own load is no news."""
        self.watchers = [nft_socket.Watcher(p.layout.table, self._conn.port_id, self._ns_fd) for p in self._planners]
        return self.watchers


def remove_idle(node: NodeInfo, ns_fd: int | None = None) -> None:
    """Delete the table of a family that has no Service range (any more)."""
    wanted = families(node)
    with nft_socket.Connection(ns_fd) as conn:
        for table in conn.tables():
            if table.name == Layout("ip").table.name and table.family not in wanted and table.family != "inet":
                conn.commit(nft.Transaction().remove(table))
                log.info("removed the table of a family without Services", family=table.family)


def _present(conn: nft_socket.Connection) -> list[nft.Table]:
    ours = {Layout(family).table for family in FAMILIES}
    return [table for table in conn.tables() if table in ours]


def existing(ns_fd: int | None = None) -> list[str]:
    """What `cleanup` would remove."""
    with nft_socket.Connection(ns_fd) as conn:
        return [f"table {table.family} {table.name}" for table in _present(conn)]


def cleanup(ns_fd: int | None = None) -> list[str]:
    """Remove everything the proxy ever wrote; returns what was there."""
    with nft_socket.Connection(ns_fd) as conn:
        found = _present(conn)
        first, last = nft.Transaction(), nft.Transaction()
        for table in found:
            first.flush(
                *(chain for chain in conn.chains() if chain.table == table and chain.name in ("prerouting", "output"))
            )
            last.delete(table)
        conn.commit(first)  # no new flow is translated; those in flight still find their way through postrouting
        if first:
            time.sleep(IN_FLIGHT)
        conn.commit(last)
    return [f"table {table.family} {table.name}" for table in found]


def raise_conntrack_max(wanted: int) -> None:
    """Make room for so many flows where there is less; only the host's own network namespace can. hostfacts.py tells
    where it was not enough."""
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
    """Let a loopback address be the source of packets that leave by other links, and the destination of their answers;
    the rules drop what comes from the wire with one. Returns the problem, "" for none."""
    try:
        Path("/proc/sys/net/ipv4/conf/all/route_localnet").write_text("1")
    except OSError as err:
        return f"net.ipv4.conf.all.route_localnet: {err.strerror or err}"
    return ""


def host_facts(chains: Iterable[ForeignChain] = ()) -> HostFacts:
    """Of the caller's namespace. What cannot be read counts as harmless. chains: of iptables, not ours."""

    def words(path: str) -> list[str]:
        try:
            return Path("/proc", path).read_text().split()
        except OSError:
            return []

    def number(path: str, default: int = 0) -> int:
        found = words(f"sys/net/{path}")
        return int(found[0]) if found else default

    with nft_socket.Connection() as conn:
        tables = [f"{table.family} {table.name}" for table in conn.tables()]
        drops = [
            f"{c.table.family} {c.table.name} {c.name}"
            for c in conn.chains()
            if c.hook == "forward" and c.policy == "drop" and not c.table.name.startswith(TABLE_NAME)
        ]
    return HostFacts(
        bool(number("ipv4/ip_forward", 1)),
        number("ipv4/conf/all/rp_filter") == 1,
        number("netfilter/nf_conntrack_count"),
        number("netfilter/nf_conntrack_max"),
        tuple(drops),
        tuple(tables),
        tuple(chains),
    )
