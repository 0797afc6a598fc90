"""The further bridges, in the kernel and in files.

The files are beside the leases, so that after a restart the gateways and the masquerading of their pods are known. A
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
    """make: puts a network into the kernel. changed: receives all networks. foreign: why the node cannot have a new or
    changed network. end: removes a bridge, or refuses because pods are on it. Thread-safe.
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
        """Load the networks of an earlier process. A file with other content is skipped: the next ADD writes it
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
        """Whether pods on this bridge have full-length prefixes."""
        return bridge not in self.known or self.known[bridge].net.routed

    def ensure(self) -> list[str]:
        """Create again all bridges that others removed. Returns the kernel's refusals; a refusal does not stop the
        others.
        """
        refused = []
        for network in list(self.known.values()):
            try:
                self._make(network.net)
            except Exception as err:  # the node's own pods must not wait for this
                refused.append(f"bridge {network.net.bridge}: {err}")
        return refused

    def of(self, conf: NetConf, main: NodeNet | None, *, make: bool) -> NodeNet:
        """The network of a configuration; with `make` it exists afterwards. Raises CNIError, OSError."""
        want = asked(conf, main.mtu if main else 1500)
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
        """An edited conflist may move the addresses of a bridge to another bridge. A network without pods is no
        obstacle.
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
        """Whether pods on the bridge will notice no difference."""
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
