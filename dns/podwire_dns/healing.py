"""Keeps what the DNS needs on its node: the addresses on lo, and the notrack rules.

Another program may remove them: a network manager that restarts, `nft flush ruleset`, `ip addr flush`. The shared loop
(podwire_base.role.upkeep) hears of it from the kernel, and looks at counts between. What is missing is put back,
logged, and shown in the status.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence

from podwire_base.kernel.netwatch import NetWatch
from podwire_base.kernel.nft.socket import Commits
from podwire_base.role import logs, upkeep
from podwire_base.role.counts import Counts
from podwire_base.role.upkeep import Mendings, Upkeep, Watch

from . import host
from .config import DnsConfig

log = logs.get("dns")
LOOK_SECONDS = upkeep.EVERY


class NodeState:
    """mendings: what was put back. problem: what clients miss now and could not be put back; "" if nothing is missing.

    Make it before the process gives up its privileges: the notifications need them.
    """

    def __init__(self, node_name: str = "") -> None:
        self.mendings = Mendings(log, "dns", node_name)
        self.problem = ""
        self._told = ""
        self._watches = list(_watches())

    async def follow(self, config: Callable[[], DnsConfig]) -> None:
        """Looks and repairs, for ever. config: returns the settings in use."""

        def counts() -> tuple[object, ...]:
            return tuple(map(tuple, host.counts(config().addresses())))

        async def mend() -> None:
            await asyncio.to_thread(loop.reading)
            await asyncio.to_thread(self.look, config())
            await asyncio.to_thread(loop.settled)

        loop = Upkeep([Counts(counts, hinted=True)], mend, every=LOOK_SECONDS, unsettled=lambda: bool(self._told))
        try:
            await loop.run(self._watches)
        finally:
            for watch in self._watches:
                watch.close()

    def look(self, config: DnsConfig) -> None:
        """Repairs what is missing. Runs in a thread."""
        errors, mended = "", list[str]()
        self.problem = ""
        try:
            mended += [f"address {address} on lo" for address in host.ensure_addresses(config.addresses())]
        except Exception as err:  # includes netlink errors; the next look tries again
            errors = self.problem = f"the addresses of the DNS on lo cannot be checked or put back: {err}"
        if config.notrack:
            try:
                changed = host.changed_tables(config.addresses(), config.port)
                if changed:
                    host.apply_notrack(config.addresses(), config.port)
                    mended.append(f"nft table {', '.join(changed)}")
            except Exception as err:  # the DNS works without the rules, though not as well: no problem for clients
                errors = errors or f"the notrack rules cannot be checked or put back: {err}"
        if errors and errors != self._told:
            log.error("what the DNS needs on this node is missing", error=errors)
        self._told = errors
        self.mendings.tell(mended)


def _watches() -> Sequence[Watch]:
    """Returns what tells of changes of lo and of commits of rules. Without the right to hear of them, the looks at
    counts find the changes.
    """
    found: list[Watch] = []
    with contextlib.suppress(OSError):
        links = NetWatch()
        links.watch([host.LOOPBACK])
        found.append(links)
    with contextlib.suppress(OSError):
        found.append(Commits())
    return found
