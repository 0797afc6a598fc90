"""Sets up the node for DNS: adds addresses to lo, and exempts DNS packets from conntrack.

notrack: a resolver sends A and AAAA queries at once from one socket. The two packets race for one conntrack entry, and
the kernel drops the loser (a 5 s stall). A DNS answer on the node itself needs no entry. The kernel cannot translate a
notrack packet, so the proxy skips this Service.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import ipaddress
import os
import platform
import socket
import struct
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from podwire_base.kernel.addresses import local_addresses
from podwire_base.kernel.netlink import rtnetlink as nl
from podwire_base.kernel.netlink.socket import RouteSocket
from podwire_base.role import logs
from podwire_base.role.helper import Connection

TABLE = "podwire-dns"
LOOPBACK = 1
UDP_BUFFER = 1 << 20
SCHED_SETATTR = {"x86_64": 314, "aarch64": 274, "riscv64": 274, "ppc64le": 355, "s390x": 345}
SLICE_NS = 100_000
NICE = -5
log = logs.get("dns")

if TYPE_CHECKING:
    from podwire_base.kernel.nft import ruleset as nft


P = ParamSpec("P")
R = TypeVar("R")
PRIVILEGED: list[Callable[..., Any]] = []  # in a server without privileges, its helper calls these
_helpers: list[Connection] = []


def use(helper: Connection | None) -> None:
    """From now on `helper` calls the functions that need privileges (rights.py)."""
    _helpers[:] = [] if helper is None else [helper]


def helper() -> Connection | None:
    return _helpers[0] if _helpers else None


def privileged(function: Callable[P, R]) -> Callable[P, R]:
    """Marks a function of addresses, and maybe a port and a kind of socket, that needs privileges."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if not _helpers:
            return function(*args, **kwargs)
        plain = [arg if isinstance(arg, str | int) else list(arg) for arg in args]  # type: ignore[call-overload]  # iterables
        found: R = _helpers[0].call(function.__name__, *plain)
        return found

    setattr(call, "here", function)  # noqa: B010 - a Callable has no such attribute
    PRIVILEGED.append(call)
    return call


@privileged
def ensure_addresses(addresses: Iterable[str]) -> list[str]:
    """Adds the missing addresses to lo, in this thread's network namespace, and sets lo up. Returns the added
    addresses. Raises OSError.
    """
    wanted = [ip for ip in map(ipaddress.ip_address, addresses) if not ip.is_unspecified and not ip.is_loopback]
    if not wanted:
        return []
    with RouteSocket() as sock:
        here = set(local_addresses())
        missing = [address for address in wanted if address not in here]
        if missing or not nl.is_set_up(sock.ask([nl.get_link(LOOPBACK)])[0]):
            sock.send([nl.link_up(LOOPBACK)])
            # After lo was down, the kernel has removed its IPv6 addresses. EEXIST: a sibling server was faster.
            orders = [nl.new_address(LOOPBACK, address, address.max_prefixlen) for address in missing]
            sock.send(orders, present=lambda _: True)
    return [str(address) for address in missing]


def _is_local(address: str) -> bool:
    """Whether a socket can bind the address."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError as err:
            if err.errno == errno.EADDRNOTAVAIL:
                return False
            raise
    return True


def beside(addresses: Sequence[str]) -> list[str]:
    """Returns the current addresses that a wildcard (0.0.0.0, ::) in `addresses` stands for.

    These are all addresses of the network namespace except loopback and link-local addresses. A UDP answer must have
    the queried address as source; with a wildcard socket, the route would choose the source.
    """
    versions = {
        ipaddress.ip_address(address).version for address in addresses if ipaddress.ip_address(address).is_unspecified
    }
    if not versions:
        return []
    here = local_addresses()
    found = dict.fromkeys(
        str(address)
        for address in here
        if address.version in versions and not address.is_loopback and not address.is_link_local
    )
    return [address for address in found if address not in addresses and _is_local(address)]


def own_addresses() -> frozenset[bytes]:
    """Returns the packed addresses of this network namespace; an empty set if they cannot be read."""
    try:
        return frozenset(address.packed for address in local_addresses())
    except OSError:
        return frozenset()


@privileged
def has_sibling(address: str, port: int) -> bool:
    """Whether another process already serves at this address and port."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, port))  # without SO_REUSEPORT, only one socket can bind
        except OSError as err:
            return err.errno == errno.EADDRINUSE
    return False


@privileged
def open_socket(address: str, port: int, kind: socket.SocketKind) -> socket.socket:
    """Returns a bound socket that sibling processes can share (SO_REUSEPORT). A TCP socket also listens."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, kind)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    if kind == socket.SOCK_DGRAM:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, UDP_BUFFER)
    try:
        sock.bind((address, port))
    except OSError as err:
        sock.close()
        raise OSError(err.errno, f"cannot listen on {address} port {port}: {err.strerror}") from err
    if kind == socket.SOCK_STREAM:
        sock.listen(256)
        sock.setblocking(False)
    return sock


@privileged
def apply_notrack(addresses: Iterable[str], port: int) -> None:
    """Writes the notrack rules. One commit replaces the old content of the table."""
    from podwire_base.kernel.nft import socket as nft_socket

    nft_socket.apply(notrack(addresses, port))


def prepare(addresses: Sequence[str], port: int, *, notrack: bool) -> None:
    """Adds the addresses and, if wanted, the notrack rules. Raises OSError if an address cannot be added."""
    added = ensure_addresses(addresses)
    if added:
        log.info("address added", addresses=added, device="lo")
    if notrack:
        try:
            apply_notrack(addresses, port)
        except OSError as err:  # a kernel without raw hooks: DNS is slower, and A and AAAA race, but the server answers
            log.warn("no notrack rules; parallel A and AAAA queries may stall", error=str(err))


@privileged
def changed_tables(addresses: Iterable[str], port: int) -> list[str]:
    """Returns the tables of `notrack` whose chains or rules the kernel has not, or not as they were written.

    Raises OSError.
    """
    from podwire_base.kernel.nft import ruleset as nft
    from podwire_base.kernel.nft import socket as nft_socket

    wanted: dict[nft.Table, list[nft.Chain | nft.Rule]] = {}
    for op in notrack(addresses, port).ops:
        if op.verb == "add" and isinstance(op.thing, nft.Chain):
            wanted.setdefault(op.thing.table, []).append(op.thing)
        elif op.verb == "add" and isinstance(op.thing, nft.Rule):
            wanted.setdefault(op.thing.chain.table, []).append(op.thing)
    changed = []
    with nft_socket.Connection() as connection:
        for table, things in wanted.items():
            dump = connection.dump(table, exprs=True)
            if dump is None:
                changed.append(f"{table.family} {table.name}")
                continue
            chains = {thing.name: thing for thing in things if isinstance(thing, nft.Chain)}
            rules = {name: [_content(rule) for rule in found] for name, found in dump.rules.items()}
            kept = {
                name: [_content(rule) for rule in things if isinstance(rule, nft.Rule) and rule.chain.name == name]
                for name in chains
            }
            if any(dump.chains.get(name) != chain for name, chain in chains.items()) or rules != kept:
                changed.append(f"{table.family} {table.name}")
    return changed


@privileged
def counts(addresses: Iterable[str]) -> list[list[object]]:
    """Returns what is counted of `addresses` and of the notrack tables: which of the addresses are there, whether lo is
    up, and the kernel's counts of the tables. Raises OSError.
    """
    from podwire_base.kernel.nft import ruleset as nft
    from podwire_base.kernel.nft import socket as nft_socket

    wanted, here = set(addresses), set(map(str, local_addresses()))
    with RouteSocket() as sock:
        up = nl.is_set_up(sock.ask([nl.get_link(LOOPBACK)])[0])
    found: list[list[object]] = [["lo", up], ["addresses", *sorted(wanted & here)]]
    if not nft_socket.missing():
        with nft_socket.Connection() as connection:
            tables = [nft.Table(family, TABLE) for family in ("ip", "ip6")]
            found += [list(one) for one in connection.counts(tables, contents=True)]
    return found


def _content(rule: nft.Rule) -> tuple[object, str]:
    return rule.exprs, rule.comment


def notrack(addresses: Iterable[str], port: int) -> nft.Transaction:
    """Returns the tables that exempt packets to and from the cluster DNS from conntrack."""
    from podwire_base.kernel.nft import ruleset as nft

    transaction = nft.Transaction()
    families: dict[int, list[bytes]] = {}
    for text in addresses:
        families.setdefault(ipaddress.ip_address(text).version, []).append(ipaddress.ip_address(text).packed)
    for version, packed in families.items():
        table = nft.Table("ip" if version == 4 else "ip6", TABLE)
        source, destination, size = (12, 16, 4) if version == 4 else (8, 24, 16)
        inward = nft.Chain(table, "prerouting", hook="prerouting", type="filter", priority=-300)
        # Queries of local clients and all answers pass the output hook.
        outward = nft.Chain(table, "output", hook="output", type="filter", priority=-300)
        ops: list[nft.Chain | nft.Rule] = [inward, outward]
        for address in packed:
            for protocol in (b"\x11", b"\x06"):
                asked = (
                    nft.Payload("network", destination, size),
                    nft.Cmp(address),
                    nft.Meta("l4proto"),
                    nft.Cmp(protocol),
                    nft.Payload("transport", 2, 2),
                    nft.Cmp(port.to_bytes(2)),
                    nft.Notrack(),
                )
                answered = (
                    nft.Payload("network", source, size),
                    nft.Cmp(address),
                    nft.Meta("l4proto"),
                    nft.Cmp(protocol),
                    nft.Payload("transport", 0, 2),
                    nft.Cmp(port.to_bytes(2)),
                    nft.Notrack(),
                )
                ops += [
                    nft.Rule(inward, asked, comment="to the cluster DNS"),
                    nft.Rule(outward, asked, comment="to the cluster DNS"),
                    nft.Rule(outward, answered, comment="from the cluster DNS"),
                    nft.Rule(inward, answered, comment="from the cluster DNS, over lo"),
                ]
        transaction = transaction.remake(table).add(*ops)
    return transaction


def run_soon() -> None:
    """Asks the scheduler to run this thread, and the threads that it starts, soon after they wake.

    The time slice is 0.1 ms instead of some ms (EEVDF, Linux 6.12 and later; older kernels ignore the slice). The share
    of busy CPUs is three times the share of an ordinary process, because the whole node waits for names. Without the
    privilege (CAP_SYS_NICE) the share stays unchanged.
    """
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, min(os.getpriority(os.PRIO_PROCESS, 0), NICE))
    number = SCHED_SETATTR.get(platform.machine())
    if number is None:
        return
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    attributes = struct.pack(
        "=IIQiIQQQ", 48, 0, 0, nice, 0, SLICE_NS, 0, 0
    )  # struct sched_attr: normal policy, nice, runtime
    if ctypes.CDLL(None, use_errno=True).syscall(number, 0, attributes, 0):
        log.info("no short time slices", error=os.strerror(ctypes.get_errno()))


@privileged
def drop_addresses(addresses: Iterable[str], port: int) -> list[str]:
    """Removes from lo the addresses that no process serves, even if another program added them (as `cleanup` does).

    Returns the removed addresses.
    """
    idle = {
        address
        for address in addresses
        if not ipaddress.ip_address(address).is_loopback and not has_sibling(address, port)
    }
    if not idle:
        return []
    from pyroute2 import IPRoute

    with IPRoute() as ipr:
        return _off_lo(ipr, idle)


def _off_lo(ipr: Any, wanted: set[str]) -> list[str]:
    removed = []
    for message in ipr.get_addr(index=LOOPBACK):
        address = str(message.get_attr("IFA_ADDRESS"))
        if address in wanted:
            ipr.addr("del", index=LOOPBACK, address=address, prefixlen=message["prefixlen"])
            removed.append(address)
    return removed


def cleanup(addresses: Iterable[str]) -> list[str]:
    """Undoes `ensure_addresses` and `apply_notrack`. Returns a line for each removal."""
    from pyroute2 import IPRoute

    from podwire_base.kernel.nft import ruleset as nft
    from podwire_base.kernel.nft import socket as nft_socket

    with IPRoute() as ipr:
        removed = [f"address {address} on lo" for address in _off_lo(ipr, set(addresses))]
    with nft_socket.Connection() as connection:
        present = set(connection.tables())
        for family in ("ip", "ip6"):
            table = nft.Table(family, TABLE)
            if table in present:
                connection.commit(nft.Transaction().remove(table))
                removed.append(f"nft table {family} {TABLE}")
    return removed
