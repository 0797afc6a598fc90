"""The bridges besides that of the node's pods, in the kernel and in files.

What they are is kept beside the leases, so that a restart finds their pods' gateways and masquerading again. A bridge
stays when its last pod goes.
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
    """make: puts a network into the kernel. changed: is told all of them. foreign: why the node has no place for one
    that is new or has changed. end: takes a bridge away, or says no because pods are on it. For many threads."""

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
        """What an earlier process knew. A file that says nothing sensible is left out: the next ADD writes it anew."""
        for file in sorted(self.directory.glob("*.json")):
            try:
                found = parse(file.read_text())
            except (OSError, UnicodeDecodeError):
                continue
            if found is not None:
                self.known[found.net.bridge] = found

    def rules(self) -> tuple[OtherNet, ...]:
        return tuple(self.known[bridge].rules() for bridge in sorted(self.known))

    def ensure(self) -> list[str]:
        """Make all of them again where somebody took them away. Returns what the kernel refused; that stops no
        other."""
        refused = []
        for network in list(self.known.values()):
            try:
                self._make(network.net)
            except Exception as err:  # the node's own pods must not wait for this one
                refused.append(f"bridge {network.net.bridge}: {err}")
        return refused

    def of(self, conf: NetConf, main: NodeNet | None, *, make: bool) -> NodeNet:
        """The network of a configuration; with `make` it is there then. Raises CNIError, OSError."""
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
        """An edited conflist may give the addresses of a bridge to another one; what nobody uses any more is no
        obstacle."""
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
        """Whether pods that are on the bridge will notice nothing."""
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
