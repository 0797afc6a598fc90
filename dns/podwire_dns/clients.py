"""Finds the pod of a client address in this node's CNI leases, so that the server need not watch pods."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field

KEEP_SECONDS, LARGEST = 1.0, 4096


@dataclass(slots=True)
class Clients:
    """Finds pods and caches each result for KEEP_SECONDS.

    lease: returns the text of an address's lease file; raises OSError if the file is missing.
    """

    lease: Callable[[str], str]
    _known: dict[str, tuple[float, str]] = field(default_factory=dict)

    def pod(self, address: str, now: float) -> str:
        """Returns "namespace/name"; "" if no pod of this node has the address."""
        known = self._known.get(address)
        if known is not None and now - known[0] < KEEP_SECONDS:
            return known[1]
        if len(self._known) >= LARGEST:
            self._known.clear()
        pod = self._read(address)
        self._known[address] = now, pod
        return pod

    def _read(self, address: str) -> str:
        try:
            lines = self.lease(address).splitlines()
            return str(json.loads(lines[0]).get("pod") or "")
        except (OSError, ValueError, IndexError, AttributeError):
            return ""  # without a complete lease, the log line has no name
