"""Reads what a node's kernel says: rules of all programs, routes, links, sockets, and the namespaces of its pods. I/O,
without any change and without a packet.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any, TypeVar

from podwire_base.kernel.addresses import local_addresses
from podwire_base.kernel.ip import FAMILIES
from podwire_base.kernel.listening import listeners
from podwire_base.kernel.netlink import codec
from podwire_base.kernel.netlink import rtnetlink as nl
from podwire_base.kernel.netlink.socket import RouteSocket
from podwire_base.kernel.netns import call_in
from podwire_base.kernel.nft.anytable import AnyTable
from podwire_base.kernel.nft.socket import Connection, missing
from podwire_base.role import status
from podwire_cni.plan import host_veth
from podwire_cni.types import Attachment
from podwire_policy.tables import layout as policies
from podwire_proxy import backends
from podwire_proxy.iptables import programs
from podwire_proxy.model import NodeInfo

from .facts import Facts, Inside, Link, Route, RouteKind

T = TypeVar("T")
HERE = "/proc/self/ns/net"
_KINDS: dict[int, RouteKind] = {
    1: "unicast", 2: "local", 3: "broadcast", 6: "blackhole", 7: "unreachable", 8: "prohibit",
}  # fmt: skip
_REFUSALS: dict[int, tuple[RouteKind, str]] = {
    errno.ENETUNREACH: ("none", "no route"),
    errno.EHOSTUNREACH: ("unreachable", "unreachable, by a route or because the node does not forward"),
    errno.EACCES: ("prohibit", "prohibited by a route"),
    errno.EXDEV: ("martian", "the source does not belong to the link that it comes by (rp_filter)"),
    errno.EINVAL: ("blackhole", "dropped by a route (blackhole), or a source that is not valid there"),
    errno.ENODEV: ("none", "the link is gone"),
}


def read_links() -> dict[str, Link]:
    """Returns the links of the caller's network namespace by name."""
    found: dict[int, tuple[Link, int]] = {}
    with RouteSocket() as sock:
        for body in sock.everything(nl.GETLINK, nl.all_links()):
            got = codec.parse(body[16:])
            index = nl.index_of(body)
            kind = codec.to_text(codec.parse(got.get(nl.IFLA_LINKINFO, b"")).get(1))
            link = Link(
                codec.to_text(got.get(nl.IFLA_IFNAME)),
                index,
                _number(got.get(nl.IFLA_MTU)),
                nl.is_set_up(body),
                got.get(nl.IFLA_OPERSTATE, b"\0")[:1] in (b"\x06", b"\0"),
                "",
                kind,
                got.get(nl.IFLA_ADDRESS, b"").hex(":"),
                _number(got.get(nl.IFLA_GROUP)),
            )
            found[index] = link, _number(got.get(nl.IFLA_MASTER))
    return {
        link.name: Link(
            link.name, link.index, link.mtu, link.up, link.carrier,
            found[master][0].name if master in found else "", link.kind, link.mac, link.group,
        )
        for link, master in found.values()
    }  # fmt: skip


def _number(raw: bytes | None) -> int:
    return int(struct.unpack("=I", raw)[0]) if raw and len(raw) == 4 else 0


def ask_route(dst: str, src: str = "", iif: str = "") -> Route:
    """Returns the route of a packet in the caller's network namespace: by all tables and policy rules. iif: the link by
    which it comes; "": the machine itself sends it.
    """
    with RouteSocket() as sock:
        index = sock.index(iif) if iif else 0
        if iif and not index:
            return Route("none", error=f"there is no link {iif}")
        kind, body = nl.route_question(ip_address(dst), ip_address(src) if src else None, index)
        try:
            answers = [answer for found, answer in sock.request(kind, body) if found == nl.NEWROUTE]
        except OSError as err:
            refused, words = _REFUSALS.get(err.errno or 0, ("none", os.strerror(err.errno or 0)))
            return Route(refused, error=words)
    return _route(answers[0]) if answers else Route("none", error="no answer of the kernel")


def _route(body: bytes) -> Route:
    number, index, via, source, mtu = nl.route_answer(body)
    kind, dev = _KINDS.get(number, "none"), ""
    if index:
        with contextlib.suppress(OSError):
            dev = socket.if_indextoname(index)
    words = {"unreachable": "unreachable by a route", "blackhole": "dropped by a route (blackhole)",
             "prohibit": "prohibited by a route", "none": "no route"}.get(kind, "")  # fmt: skip
    return Route(kind, dev, str(via or ""), mtu, str(source or ""), words)


def _sysctl(name: str) -> str:
    try:
        return Path("/proc/sys", name).read_text().strip()
    except OSError:
        return ""


def _legacy(notes: list[str]) -> dict[str, str]:
    """Returns family -> the output of iptables-legacy-save, for families with such tables."""
    found: dict[str, str] = {}
    for family in FAMILIES:
        names = Path("/proc/thread-self/net", f"{family}_tables_names")
        try:
            if not names.read_text().split():
                continue
            with open("/proc/thread-self/ns/net") as namespace:  # the program runs in a child of another thread
                found[family] = programs.save("legacy", family, namespace.fileno())
        except FileNotFoundError:
            continue
        except OSError as err:
            notes.append(f"rules of iptables-legacy are here and cannot be read: {err}")
    return found


class Pods:
    """Finds the namespaces of a node's pods by its leases. extra: address -> path of a namespace."""

    def __init__(self, run_dir: Path | None, extra: Mapping[str, str]) -> None:
        self._run_dir, self._extra = run_dir, extra

    def __call__(self, ip: str) -> Inside | None:
        pod, port, path, problem = "", "", self._extra.get(ip, ""), ""
        if not path:
            lease = self._lease(ip)
            if lease is None:
                return None
            pod = str(lease.get("pod") or "")
            port = host_veth(Attachment(str(lease.get("containerID")), str(lease.get("ifname"))))
            path = namespace_of(str(lease.get("netns") or ""))
            problem = "" if path else "its network namespace is gone"
        if problem:
            return Inside(ip, pod, port, problem=problem)
        try:
            return call_in(path, lambda: _inside(ip, pod, port, path))
        except OSError as err:
            return Inside(ip, pod, port, problem=f"its network namespace cannot be read: {err.strerror or err}")

    def path(self, ip: str) -> str:
        """Returns the path of the namespace of the pod with the address, "" if there is none."""
        return self._extra.get(ip, "") or namespace_of(str((self._lease(ip) or {}).get("netns") or ""))

    def _lease(self, ip: str) -> dict[str, Any] | None:
        if self._run_dir is None:
            return None
        try:
            found = json.loads((self._run_dir / "cni" / "leases" / ip).read_text().partition("\n")[0])
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None


def namespace_of(recorded: str) -> str:
    """Returns a path of the namespace that a lease records as "DEVICE:INODE PATH", "" if there is none any more."""
    ident, _, path = recorded.partition(" ")
    inode = ident.partition(":")[2]

    def candidates() -> Iterator[str]:
        yield path
        yield from (f"{entry.path}/ns/net" for entry in os.scandir("/proc") if entry.name.isdecimal())

    for one in candidates():
        with contextlib.suppress(OSError):
            found = os.stat(one)
            if f"{found.st_dev}:{found.st_ino}" == ident and inode:
                return one
    return ""


def _inside(ip: str, pod: str, port: str, path: str) -> Inside:
    with contextlib.ExitStack() as stack:
        tables = () if missing() else _begun(stack.enter_context(Connection()).everything())
    return Inside(
        ip,
        pod,
        port,
        read_links(),
        tuple(map(str, local_addresses())),
        tuple(_listeners()),
        tables,
        lambda dst, src, iif: call_in(path, lambda: ask_route(dst, src, iif)),
    )


def _begun(tables: Sequence[AnyTable]) -> tuple[AnyTable, ...]:
    """Returns the tables as a flow that begins meets them: its source port is none of those of flows that a change of
    policies ended.
    """
    for table in tables:
        if table.name == policies.TABLE_NAME and policies.CUT in table.sets:
            table.sets[policies.CUT].elements.clear()
    return tuple(tables)


def _listeners() -> list[Any]:
    try:
        return listeners()
    except OSError:
        return []


def facts(path: str, name: str = "", run_dir: Path | None = None, extra: Mapping[str, str] | None = None) -> Facts:
    """Reads a node. path: its network namespace. run_dir: its agent's run directory, for the pods' namespaces and the
    roles' status. extra: address -> path of further pods' namespaces. Raises OSError.
    """

    def inside(work: Callable[[], T]) -> T:
        return call_in(path, work)

    def read() -> Facts:
        notes: list[str] = []
        addresses = tuple(sorted(map(str, local_addresses())))
        live = backends.observe()
        tables = []
        if not missing():
            with Connection() as conn:  # the proxy's own table is read by `observe`
                tables = list(_begun(conn.everything(without=lambda _, table: table == "podwire")))
        return Facts(
            name,
            addresses,
            live.node(name, addresses) if live else NodeInfo(name, addresses),
            live,
            tuple(tables),
            _legacy(notes),
            read_links(),
            tuple(_listeners()),
            lambda dst, src, iif: inside(lambda: ask_route(dst, src, iif)),
            Pods(run_dir, extra or {}),
            {"ip": _sysctl("net/ipv4/ip_forward") == "1", "ip6": _sysctl("net/ipv6/conf/all/forwarding") == "1"},
            (
                int(_sysctl("net/netfilter/nf_conntrack_count") or 0),
                int(_sysctl("net/netfilter/nf_conntrack_max") or 0),
            ),
            status.read_all(run_dir) if run_dir else {},
            backends.places(),
            tuple(notes),
        )

    return inside(read)
