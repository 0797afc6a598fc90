"""The DNS server runs without privileges: it parses what pods and upstreams send.

It becomes a numeric user with nothing but its sockets. What still needs privileges (addresses on lo, rules in nft,
sockets on port 53, after a reload too) a helper does that was forked before. The helper does it for the addresses and
ports of the settings only, which it reads itself: a server in the hands of a stranger gets nothing else from it.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import ipaddress
import os
import pkgutil
import socket
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

from podwire_base.kernel.addresses import local_addresses
from podwire_base.role import files, logs, privileges
from podwire_base.role.helper import Helper

from . import host, reading
from .config import BadConfig, DnsConfig
from .reading import Stamp
from .sources import Sources

log = logs.get("dns")
# What Python and its libraries import when it is first needed: threads, names of hosts, tracebacks, regular expressions
LATER = (
    *(
        "concurrent.futures.thread",
        "asyncio.staggered",
        "queue",
        "encodings.idna",
        "encodings.ascii",
        "encodings.latin_1",
    ),
    *("encodings.utf_8_sig", "stringprep", "linecache", "tokenize", "glob", "tempfile", "ctypes.util", "locale"),
    *("_strptime", "difflib", "shlex", "ssl", "hashlib", "hmac", "random", "secrets", "zoneinfo"),
    *("re2", "dns.rdata", "dns.tokenizer", "dns.ttl", "dns.zone", "dns.rdataclass", "dns.rdatatype", "dns.name"),
)
STATUS_BYTES, LEASE_BYTES = 64 * 1024, 64 * 1024


class Rights:
    """What the helper does, and for which arguments. sources: reads the settings; `first`: those of the start."""

    def __init__(self, sources: Sources, first: DnsConfig) -> None:
        self._sources, self._config = sources, first
        self.addresses, self.ports = set[str](), set[int]()
        self._learn(first)

    def _learn(self, config: DnsConfig) -> None:
        self._config = config
        self.addresses |= set(config.addresses())  # also the earlier ones: a reload takes them off lo
        self.ports.add(config.port)

    def calls(self) -> dict[str, Callable[..., Any]]:
        own = {function.__name__: self._checked(function) for function in host.PRIVILEGED}
        return {**own, **self._files(), "feed": self.feed, "status": self.status, "lease": self.lease}

    def _files(self) -> dict[str, Callable[..., Any]]:
        return {"open": self.open, "stamp": self.stamp, "fitting": self.fitting}

    def _checked(self, function: Callable[..., Any]) -> Callable[..., Any]:
        local = getattr(function, "here", function)

        def call(addresses: str | list[str], port: int | None = None, kind: int | None = None) -> Any:
            self._allow([addresses] if isinstance(addresses, str) else addresses, port)
            given: list[Any] = [addresses, *([] if port is None else [port])]
            return local(*given, *([] if kind is None else [socket.SocketKind(kind)]))

        return call

    def _allow(self, addresses: Iterable[str], port: int | None) -> None:
        """Raises PermissionError unless the settings have these addresses and this port."""
        wanted = list(addresses)
        if not self._known(wanted, port):
            try:
                self._learn(self._sources.load())  # the server may have read new settings
            except BadConfig as err:
                raise PermissionError(errno.EPERM, f"the settings cannot be read: {err}") from err
        if not self._known(wanted, port):
            raise PermissionError(errno.EPERM, f"the settings have no address {wanted} with port {port}")

    def _known(self, addresses: list[str], port: int | None) -> bool:
        allowed = self.addresses
        if any(ipaddress.ip_address(address).is_unspecified for address in allowed):
            allowed = allowed | {str(address) for address in local_addresses()}  # a wildcard stands for these
        return allowed.issuperset(addresses) and (port is None or port in self.ports)

    def _named(self, path: str, names: Callable[[], set[str]]) -> None:
        """Raises PermissionError unless the settings name this file or pattern."""
        if path not in names():
            with contextlib.suppress(BadConfig):  # the server reads the same files, and tells the error
                self._learn(self._sources.load())
        if path not in names():
            raise PermissionError(errno.EPERM, f"the settings do not name {path}")

    def _all(self) -> set[str]:
        tls = [route.tls for route in self._config.routes().values()]
        return self._sources.files() | {file for each in tls for file in (each.ca, each.cert, each.key) if file}

    def open(self, path: str) -> BinaryIO:
        self._named(path, self._all)
        return Path(path).open("rb")

    def stamp(self, path: str) -> Stamp:
        self._named(path, self._all)
        return reading.stamp(path)

    def fitting(self, pattern: str) -> list[str]:
        self._named(pattern, self._sources.patterns)
        return reading.fitting(pattern)

    def feed(self) -> socket.socket:
        """Returns a connection to the feeder."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(str(self._config.socket_path))
        except OSError:
            sock.close()
            raise
        return sock

    def status(self, text: str) -> None:
        if len(text) > STATUS_BYTES:
            raise OSError(errno.EMSGSIZE, "the status is too long")
        files.write(self._config.run_dir / "status" / "dns.json", text)

    def lease(self, address: str) -> str:
        """Returns the text of the lease of a pod's address, which names the pod."""
        path = self._config.run_dir / "cni" / "leases" / str(ipaddress.ip_address(address))
        with path.open() as file:
            return file.read(LEASE_BYTES)


def give_up(config: DnsConfig, sources: Callable[[], Sources]) -> Helper | None:
    """Make this process unprivileged, and return the helper that keeps the privileges. None: it stays as it is, because
    it is not root, or the settings want it so (`user` 0).

    No other thread may run yet. Raises OSError.
    """
    if not config.user or os.geteuid() != 0 or not privileges.can_drop():
        return None
    names = ("dns-helper", config.node_name) if config.node_name else ("dns-helper",)
    helper = Helper(Rights(sources(), config).calls(), names)
    if not readable_by_others(Path(sys.base_prefix)) or not readable_by_others(Path(__file__)):
        _import_all()
    privileges.drop(config.user, config.user)
    host.use(helper)
    return helper


def write(path: Path, text: str) -> None:
    """Write the status file, with the helper if there is one. Raises OSError if there is none."""
    helper = host.helper()
    if helper is None:
        files.write(path, text)
        return
    try:
        helper.call("status", text)
    except OSError as err:  # the server goes on without its helper, and its beat goes on too
        log.error("the status cannot be written", error=str(err))


def lease(folder: Path, address: str) -> str:
    """Returns the text of a lease, with the helper if there is one. Raises OSError."""
    helper = host.helper()
    return (folder / address).read_text() if helper is None else str(helper.call("lease", address))


def readable_by_others(path: Path) -> bool:
    """Whether a user without rights of its own reaches the path."""
    mode = 0o005 if path.is_dir() else 0o004
    return path.stat().st_mode & mode == mode and all(parent.stat().st_mode & 0o001 for parent in path.parents)


def _import_all() -> None:
    """Import now what would be imported later: the interpreter or podwire is in a directory of root's alone."""
    package = sys.modules[__package__ or "podwire_dns"]
    for module in pkgutil.iter_modules(package.__path__):
        if not module.ispkg and module.name != "main":
            importlib.import_module(f"{package.__name__}.{module.name}")
    for name in LATER:
        try:
            importlib.import_module(name)
        except ImportError:
            continue  # an optional package, or a module of another Python
    if "dns.rdata" in sys.modules:
        sys.modules["dns.rdata"].load_all_types()
