"""Ends flows that a change of policies forbids (cut.py). I/O."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import time
from collections.abc import Callable, Iterator

from podwire_base.kernel.addresses import local_addresses
from podwire_base.kernel.conntrack.codec import Flow, sent_by
from podwire_base.kernel.conntrack.socket import Conntrack
from podwire_base.kernel.ip import FAMILIES, Family
from podwire_base.kernel.netns import within
from podwire_base.kernel.nft import ruleset as nft

from . import cut
from .compiled import Compiled
from .tables import layout

FEW = 8  # addresses, up to which the kernel is asked for the flows of each
IPV6_HDRINCL = 36  # linux/in6.h


class Cutter:
    """Ends flows in one network namespace. One call at a time."""

    def __init__(
        self, commit: Callable[[nft.Transaction], object], ns_fd: int | None = None, *, own_node: bool = False
    ) -> None:
        """commit: commits a change of the tables; raises OSError. own_node: packets of pods to their node count."""
        self._commit, self._ns_fd, self._own_node = commit, ns_fd, own_node
        self._held = cut.Held()
        self.ended = 0  # flows, since the role began

    async def look(self, compiled: Compiled, touched: set[str] | None) -> list[Flow]:
        """Ends the flows of these addresses (None: all) that are forbidden, and lets those go on again that are not.
        The flows are read in a thread; `compiled` may change meanwhile, and the present one counts. Returns what was
        ended. Raises OSError.
        """
        self.release(compiled)
        if touched is not None and not touched:
            return []
        flows = await asyncio.to_thread(lambda: list(self.flows(touched)))
        return self.end(compiled, flows)

    def flows(self, touched: set[str] | None) -> Iterator[Flow]:
        """Yields the flows of these addresses, perhaps with others. Raises OSError."""
        tracked = Conntrack(self._ns_fd)
        try:
            for family in FAMILIES:
                there = None if touched is None else {ip for ip in touched if layout.of(family, ip)}
                if there is None or (there and (family == "ip6" or len(there) > FEW)):
                    yield from tracked.flows(family)  # Linux 6.18 compares IPv6 addresses the wrong way round
                    continue
                for ip in there:
                    yield from tracked.flows(family, sent_by(ip))
                    yield from tracked.flows(family, sent_by(ip, answers=True))
        finally:
            tracked.close()

    def end(self, compiled: Compiled, flows: list[Flow]) -> list[Flow]:
        """Ends those of the flows that are forbidden. Returns them. Raises OSError."""
        own = {str(ip) for ip in within(self._ns_fd, local_addresses)}
        found = list(dict.fromkeys(cut.forbidden(compiled, flows, own, self._own_node)))
        if not found:
            return []
        tx = nft.Transaction()
        for family in FAMILIES:
            those = {key: None for flow in found if flow.family == family for key in cut.keys(flow)}
            tx.add(nft.Elements(layout.cut_set(family), those))
        self._commit(tx)
        self._held.add(found, time.monotonic() + layout.CUT_SECONDS)
        tracked = Conntrack(self._ns_fd)
        try:
            tracked.delete(found)
        finally:
            tracked.close()
        within(self._ns_fd, lambda: _provoke(found))
        self.ended += len(found)
        return found

    def release(self, compiled: Compiled) -> None:
        """Takes out of `cut` what is allowed again. Raises OSError."""
        if not self._held.flows or not (found := self._held.released(compiled, time.monotonic())):
            return
        for flow in found:
            for key in cut.keys(flow):
                try:
                    self._commit(nft.Transaction().delete(nft.Elements(layout.cut_set(flow.family), {key: None})))
                except OSError as err:
                    if err.errno != errno.ENOENT:  # it expired meanwhile
                        raise


def _provoke(flows: list[Flow]) -> None:
    """Sends a segment to both ends of each TCP flow, from the namespace of the thread. An end that hears nothing of it
    learns of the end of the flow when it sends.
    """
    with contextlib.ExitStack() as stack:
        socks: dict[Family, socket.socket] = {}
        for flow in flows:
            for family, to, packet in cut.provocations(flow):
                if family not in socks:
                    kind = socket.AF_INET6 if family == "ip6" else socket.AF_INET
                    socks[family] = sock = stack.enter_context(socket.socket(kind, socket.SOCK_RAW, socket.IPPROTO_RAW))
                    if family == "ip6":
                        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_HDRINCL, 1)
                with contextlib.suppress(OSError):  # no route to this end: it learns it when it sends
                    socks[family].sendto(packet, (to, 0))
