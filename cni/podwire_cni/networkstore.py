"""Stores the further networks (bridges besides the node's own) in the kernel and in files.

The files are beside the leases, so that after a restart the agent knows each network's gateways and masquerading. A
bridge stays when its last pod ends.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable
from pathlib import Path

from podwire_base.role import files

from .errors import CNIError, ErrorCode
from .networks import Network, asked, clash, parse
from .nodetable import OtherNet
from .plan import NodeNet
from .types import NetConf


class Networks:
    """The further networks of a node. make: creates a network in the kernel. changed: is called with all networks after
    each change. foreign: returns why the node cannot have a new or changed network, "" if it can. end: removes a
    bridge; returns False if the bridge still has pods. Methods are thread-safe.
    """

    def __init__(
        self,
        directory: Path,
        make: Callable[[NodeNet], object],
        changed: Callable[[tuple[OtherNet, ...]], None],
        foreign: Callable[[NodeNet], str] = lambda _: "",
        end: Callable[[str], bool] = lambda _: False,
    ) -> None:
        self.directory, self._make, self._changed, self._foreign, self._end = directory, make, changed, foreign, end
        self._lock = threading.Lock()
        self.known: dict[str, Network] = {}

    def restore(self) -> None:
        """Load the networks of an earlier process. A file with invalid content is skipped, and the next ADD writes it
        again.
        """
        for file in sorted(self.directory.glob("*.json")):
            try:
                found = parse(file.read_text())
            except (OSError, UnicodeDecodeError):
                continue
            if found is not None:
                self.known[found.net.bridge] = found

    def rules(self) -> tuple[OtherNet, ...]:
        return tuple(self.known[bridge].rules() for bridge in sorted(self.known))

    def routed(self, bridge: str) -> bool:
        """Whether the pods on this bridge send only to the node: then its MAC is in the rules (see Network.rules)."""
        known = self.known.get(bridge)
        return known is None or known.rules().mac != ""

    def ensure(self) -> list[str]:
        """Re-create all bridges that other programs removed. Continues after an error. Returns one line for
        each error.
        """
        refused = []
        for network in list(self.known.values()):
            try:
                self._make(network.net)
            except Exception as err:  # an error here must not delay the node's own pods
                refused.append(f"bridge {network.net.bridge}: {err}")
        return refused

    def of(self, conf: NetConf, main: NodeNet | None, *, make: bool) -> NodeNet:
        """Returns the network of a configuration. make: create the network if it does not exist. Raises CNIError or
        OSError.
        """
        want = asked(conf, main.mtu if main else 1500, ipv6=main is None or main.ipv6)
        with self._lock:
            if self.known.get(conf.bridge) == want or not make:
                return want.net
            if main:
                clash(want, main.ranges, main.bridge)
            self._make_room(want)
            if not self._as_before(want.net) and (why := self._foreign(want.net)):
                raise CNIError(
                    ErrorCode.INVALID_CONFIG,
                    f"network configuration: bridge {conf.bridge}: {why}",
                    "name one that does not exist, it is made when its first pod comes; with addresses that the "
                    "node does not know yet",
                )
            self._make(want.net)
            self._write(want)
            self.known[conf.bridge] = want
            self._changed(self.rules())
        return want.net

    def _make_room(self, want: Network) -> None:
        """Remove the networks without pods whose addresses overlap `want`. (An edited conflist may move addresses from
        one bridge to another.)
        """
        for other in [network.net for network in self.known.values() if network.net.bridge != want.net.bridge]:
            try:
                clash(want, other.ranges, other.bridge)
            except CNIError:
                if not self._end(other.bridge):
                    raise
                del self.known[other.bridge]
                with contextlib.suppress(OSError):
                    (self.directory / f"{other.bridge}.json").unlink()

    def _as_before(self, net: NodeNet) -> bool:
        """Whether the change leaves the connectivity of the pods on the bridge as it is."""
        known = self.known.get(net.bridge)
        return known is not None and (known.net.ranges, known.net.is_gateway) == (net.ranges, net.is_gateway)

    def _write(self, network: Network) -> None:
        try:
            files.write(self.directory / f"{network.net.bridge}.json", json.dumps(network.to_json()) + "\n")
        except OSError as err:
            raise CNIError(
                ErrorCode.IO_FAILURE,
                f"the network {self.directory}/{network.net.bridge}.json cannot be written: {err.strerror}",
                "make room, or make the directory writable for the wiring agent",
            ) from err
