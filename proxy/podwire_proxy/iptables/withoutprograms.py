"""Finds and removes PODWIRE-* chains on a host that has no iptables programs. I/O.

The nft variant's tables are ordinary netlink objects, so they are removed. The tables of legacy iptables change only as
a whole, which is the programs' work; here they are read with a system call, so that nobody is told that they are gone.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct

from podwire_base.kernel.ip import FAMILIES, Family
from podwire_base.kernel.netns import within
from podwire_base.kernel.nft import expr
from podwire_base.kernel.nft import objects as nft
from podwire_base.kernel.nft import socket as nft_socket

from . import programs
from .layout import PREFIX, is_ours
from .programs import BUILT_IN, legacy_tables

GET_INFO, GET_ENTRIES = 64, 65  # IPT_SO_GET_INFO and IPT_SO_GET_ENTRIES, the same numbers for IPv6
INFO, HEAD = 84, 40  # bytes of struct ipt_getinfo, and of struct ipt_get_entries before the entries
SIZE_AT = 80
_LEVELS = {"ip": (socket.AF_INET, socket.IPPROTO_IP), "ip6": (socket.AF_INET6, socket.IPPROTO_IPV6)}
_WORDS = {"ip": "IPv4", "ip6": "IPv6"}


def _jumps(rule: nft.Rule) -> bool:
    return any(
        isinstance(one, expr.Immediate) and isinstance(one.value, expr.Verdict) and is_ours(one.value.chain)
        for one in rule.exprs
    )


def nft_chains(ns_fd: int | None, *, remove: bool) -> list[str]:
    """Returns a line for each table of the nft variant with our chains. remove: also removes chains and jumps."""
    if nft_socket.missing(ns_fd):
        return []
    lines = []
    with nft_socket.Connection(ns_fd) as conn:
        for table in conn.tables():
            if table.family not in FAMILIES or table.name not in BUILT_IN:
                continue
            dump = conn.dump(table, elements=False, exprs=True)
            ours = [chain for chain in dump.chains.values() if is_ours(chain.name)] if dump else []
            if not ours or dump is None:
                continue
            jumps = [rule for name, rules in dump.rules.items() if not is_ours(name) for rule in rules if _jumps(rule)]
            if remove:
                conn.commit(nft.Transaction().delete(*jumps).flush(*ours).delete(*ours))
            lines.append(f"{len(ours)} chains of table {table.name} (iptables-nft, {_WORDS[table.family]})")
    return lines


def legacy_chains(ns_fd: int | None) -> list[str]:
    """Returns a line for each table of legacy iptables with our chains. Raises OSError."""
    return [
        f"chains of table {table} (iptables-legacy, {_WORDS[family]})"
        for family in FAMILIES
        for table in legacy_tables(family, ns_fd)
        if PREFIX.encode() in within(ns_fd, lambda f=family, t=table: _entries(f, t))  # type: ignore[misc]  # bound
    ]


def _entries(family: Family, table: str) -> bytes:
    """Returns the rules of a table as the kernel keeps them."""
    kind, level = _LEVELS[family]
    with socket.socket(kind, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
        info = _asked(sock.fileno(), level, GET_INFO, table.encode().ljust(INFO, b"\0"))
        (size,) = struct.unpack_from("=I", info, SIZE_AT)
        head = table.encode().ljust(32, b"\0") + struct.pack("=I4x", size)
        return _asked(sock.fileno(), level, GET_ENTRIES, head + bytes(size))[HEAD:]


def _asked(fd: int, level: int, option: int, given: bytes) -> bytes:
    """getsockopt(2) with a buffer that has input too, which Python's own cannot have."""
    libc, buffer = ctypes.CDLL(None, use_errno=True), ctypes.create_string_buffer(given, len(given))
    length = ctypes.c_uint32(len(given))
    if libc.getsockopt(fd, level, option, buffer, ctypes.byref(length)) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return buffer.raw


def existing(ns_fd: int | None) -> list[str]:
    """Returns a line for each table that no installed program shows."""
    return [
        *([] if programs.installed("nft") else nft_chains(ns_fd, remove=False)),
        *([] if programs.installed("legacy") else legacy_chains(ns_fd)),
    ]


def cleanup(ns_fd: int | None) -> tuple[list[str], str]:
    """Removes what can be removed without a program. Returns a line for each table, and why something stays."""
    lines = [] if programs.installed("nft") else nft_chains(ns_fd, remove=True)
    left = [] if programs.installed("legacy") else legacy_chains(ns_fd)
    why = "these stay, because iptables-legacy is not installed: " + "; ".join(left)
    return lines, f"{why}. Install the package iptables, or use deploy/cleanup, whose image has it" if left else ""
