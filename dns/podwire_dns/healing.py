"""Keeps what the DNS needs on its node: the addresses on lo, and the notrack rules.

Another program may remove them: a network manager that restarts, `nft flush ruleset`, `ip addr flush`. Every
LOOK_SECONDS the role compares the node with its settings, puts back what is missing, logs it, and shows it in its
status.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from podwire_base.kube.times import timestamp
from podwire_base.role import logs

from . import host
from .config import DnsConfig

log = logs.get("dns")
LOOK_SECONDS = 3.0


class NodeState:
    """repairs: the number of repairs. last: the last repair, with its time. problem: what clients miss now and could
    not be repaired; "" if nothing is missing.
    """

    def __init__(self) -> None:
        self.repairs = 0
        self.last = self.problem = ""
        self._told = ""

    async def follow(self, config: Callable[[], DnsConfig]) -> None:
        """Looks and repairs, for ever. config: returns the settings in use."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await asyncio.to_thread(self.look, config())

    def look(self, config: DnsConfig) -> None:
        """Repairs what is missing. Runs in a thread."""
        errors = ""
        self.problem = ""
        try:
            for address in host.ensure_addresses(config.addresses()):
                self._repaired(f"address {address} on lo")
        except Exception as err:  # includes netlink errors; the next look tries again
            errors = self.problem = f"the addresses of the DNS on lo cannot be checked or put back: {err}"
        if config.notrack:
            try:
                changed = host.changed_tables(config.addresses(), config.port)
                if changed:
                    host.apply_notrack(config.addresses(), config.port)
                    self._repaired(f"nft table {', '.join(changed)}")
            except Exception as err:  # the DNS works without the rules, though not as well: no problem for clients
                errors = errors or f"the notrack rules cannot be checked or put back: {err}"
        if errors and errors != self._told:
            log.error("what the DNS needs on this node is missing", error=errors)
        self._told = errors

    def _repaired(self, what: str) -> None:
        self.repairs += 1
        self.last = f"{what}, {timestamp(time.time())}"
        log.warn("another program removed what the DNS needs, put back", what=what)
