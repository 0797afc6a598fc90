"""What a failed test leaves to read: for each of its namespaces the packets, and the kernel's state beside them.

Every namespace of a Lab has a packet socket that nobody reads: the kernel keeps the first 8 MB of frames in it at the price
of a reference each. Only when a test fails they are written, as pcapng with the interface of each frame.
"""

from __future__ import annotations

import re
import socket
import struct
import time
from pathlib import Path
from typing import Protocol
from weakref import WeakSet

from .netns import NetNS, watchers

ETH_P_ALL, SO_TIMESTAMPNS, SO_RCVBUFFORCE = 3, 35, 33
STATE = ("nft list ruleset", "iptables-legacy-save -c", "ip6tables-legacy-save -c", "ip -d address", "ip route show table all",
         "ip -6 route show table all", "ip neighbour", "bridge fdb", "tc -s qdisc", "conntrack -L", "conntrack -L -f ipv6",
         "cat /proc/net/snmp /proc/net/snmp6")


class Describes(Protocol):
    """Something else that can tell of itself after a failure: an agent with its leases and its log."""

    def describe(self) -> str: ...


_tapped: WeakSet[Tap] = WeakSet()
_told: WeakSet[Describes] = WeakSet()


class Tap:
    """The unread packet socket of one namespace."""

    def __init__(self, ns: NetNS) -> None:
        self.ns = ns

        def start() -> socket.socket:
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
            sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
            sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
            sock.setblocking(False)
            return sock

        self.sock = ns.call(start)

    def close(self) -> None:
        self.sock.close()

    def frames(self) -> list[tuple[str, int, bytes]]:
        """(interface, time in ns, frame) of everything that waits; the socket is empty then."""
        out: list[tuple[str, int, bytes]] = []
        while True:
            try:
                data, extra, _, where = self.sock.recvmsg(65600, 64)
            except (BlockingIOError, OSError):
                return out
            stamp = next((struct.unpack("=qq", d[:16]) for _, kind, d in extra if kind == SO_TIMESTAMPNS), (time.time_ns(), 0))
            out.append((where[0], stamp[0] * 10**9 + stamp[1], data))

    def forget(self) -> None:
        while True:
            try:
                self.sock.recv(1)
            except (BlockingIOError, OSError):
                return


def tap(ns: NetNS) -> None:
    made = Tap(ns)
    ns.on_close(made.close)
    ns.tap = made  # the namespace keeps it alive, the set below does not
    _tapped.add(made)


watchers.append(tap)


def tells(something: Describes) -> None:
    """Ask `something` too when a test fails, as long as it lives."""
    _told.add(something)


def forget() -> None:
    for one in _tapped:
        one.forget()


def keep(folder: Path, test: str) -> list[Path]:
    """Write what all living namespaces hold; returns the files."""
    live = [one for one in _tapped if one.ns.fd >= 0]
    if not live and not _told:
        return []
    where = folder / re.sub(r"[^A-Za-z0-9._-]+", "-", test).strip("-")[:120]
    where.mkdir(parents=True, exist_ok=True)
    files = []
    for one in live:
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", one.ns.name)
        frames = one.frames()
        (where / f"{name}.txt").write_text(_state(one.ns))
        (where / f"{name}.pcapng").write_bytes(pcapng(frames))
        files += [where / f"{name}.txt", where / f"{name}.pcapng"]
    for number, something in enumerate(_told):
        path = where / f"{type(something).__name__}-{number}.txt"
        path.write_text(something.describe())
        files.append(path)
    return files


def _state(ns: NetNS) -> str:
    """All commands by one shell: a failing suite should not take minutes to tell why."""
    script = "".join(f"echo '$ {command}'; {command} 2>&1; echo; " for command in STATE)
    return ns.run(["sh", "-c", script], check=False, timeout=60).stdout


def pcapng(frames: list[tuple[str, int, bytes]]) -> bytes:
    """A capture file (IETF draft-ietf-opsawg-pcapng): one section, an interface a name, time in nanoseconds."""

    def block(kind: int, body: bytes) -> bytes:
        size = len(body) + 12
        return struct.pack("<II", kind, size) + body + struct.pack("<I", size)

    def padded(data: bytes) -> bytes:
        return data + bytes(-len(data) % 4)

    def option(code: int, value: bytes) -> bytes:
        return struct.pack("<HH", code, len(value)) + padded(value)

    names = list(dict.fromkeys(name for name, _, _ in frames))
    out = [block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1))]
    for name in names:
        options = option(2, name.encode()) + option(9, b"\x09") + option(0, b"")
        out.append(block(1, struct.pack("<HHI", 1, 0, 0) + options))
    for name, stamp, data in frames:
        head = struct.pack("<IIIII", names.index(name), stamp >> 32, stamp & 0xFFFFFFFF, len(data), len(data))
        out.append(block(6, head + padded(data)))
    return b"".join(out)
