"""Evidence of a failed test: the packets and the kernel state of each namespace of the test, and the state of each
agent.

Every namespace of a Lab has a packet socket. The kernel keeps the first 8 MB of frames in its queue, which costs a
reference for each frame. The queue is read only when a test fails, and written as pcapng with the interface of each
frame. When an exception ends a Lab inside the test, the evidence is collected before the Lab is closed.
"""

from __future__ import annotations

import itertools
import re
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol
from weakref import WeakSet

from .netns import NetNS, watchers, witnesses

ETH_P_ALL, SO_TIMESTAMPNS, SO_RCVBUFFORCE = 3, 35, 33
STATE = (
    "nft list ruleset",
    "iptables-legacy-save -c",
    "ip6tables-legacy-save -c",
    "ipset list",
    "ip -d address",
    "ip route show table all",
    "ip -6 route show table all",
    "ip neighbour",
    "bridge fdb",
    "tc -s qdisc",
    "conntrack -L",
    "conntrack -L -f ipv6",
    "cat /proc/net/snmp /proc/net/snmp6",
)


class Describes(Protocol):
    """An agent that describes its state, for example leases and log, after a failure. `ns` must be open then."""

    name: str
    ns: NetNS

    def describe(self) -> str: ...


_tapped: WeakSet[Tap] = WeakSet()
_told: WeakSet[Describes] = WeakSet()
_born = itertools.count()
_left: dict[str, bytes] = {}  # file name -> content, of Labs that an exception has ended since the test began


class Tap:
    """The packet socket of one namespace. It is read only after a failure."""

    def __init__(self, ns: NetNS) -> None:
        self.ns, self.number = ns, next(_born)

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
        """Read all frames from the socket and return (interface, time in ns, frame) for each frame."""
        out: list[tuple[str, int, bytes]] = []
        while True:
            try:
                data, extra, _, where = self.sock.recvmsg(65600, 64)
            except (BlockingIOError, OSError):
                return out
            stamp = next(
                (struct.unpack("=qq", d[:16]) for _, kind, d in extra if kind == SO_TIMESTAMPNS), (time.time_ns(), 0)
            )
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
    ns.tap = made  # this reference keeps the tap alive; the set below is weak
    _tapped.add(made)


watchers.append(tap)


def tells(something: Describes) -> None:
    """Register `something`. Its state is recorded when a test fails."""
    _told.add(something)


def forget() -> None:
    _left.clear()
    for one in _tapped:
        one.forget()


def keep(folder: Path, test: str) -> list[Path]:
    """Write the state of all open namespaces, and of those that the failure has closed. Return the written files."""
    _look(one for one in _tapped if one.ns.fd >= 0)
    found = dict(_left)
    _left.clear()
    where = folder / re.sub(r"[^A-Za-z0-9._-]+", "-", test).strip("-")[:200]
    shutil.rmtree(where, ignore_errors=True)  # from an earlier run
    if found:
        where.mkdir(parents=True)
    for name, data in found.items():
        (where / name).write_bytes(data)
    return [where / name for name in found]


def witness(made: list[NetNS]) -> None:
    """Record the state of these namespaces, which an exception is about to close."""
    _look(one for one in _tapped if one.ns in made and one.ns.fd >= 0)


witnesses.append(witness)


def _look(taps: Iterable[Tap]) -> None:
    """Record the state into `_left`. If several namespaces have the same name, all but the first get a number."""
    spaces = []
    for one in sorted(taps, key=lambda one: one.number):
        name = _free(one.ns.name)
        frames = one.frames()
        _left[f"{name}.txt"], _left[f"{name}.pcapng"] = _state(one.ns).encode(), pcapng(frames)
        spaces.append(one.ns)
    for something in sorted((one for one in _told if one.ns in spaces), key=lambda one: one.name):
        name = _free(f"{type(something).__name__}-{something.name}")
        try:
            _left[f"{name}.txt"] = something.describe().encode()
        except (OSError, ValueError) as err:  # a crashed agent may have no readable state; record the other agents
            _left[f"{name}.txt"] = f"could not be read: {err}\n".encode()


def _free(wanted: str) -> str:
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", wanted)
    names = itertools.chain([name], (f"{name}.{number}" for number in itertools.count(2)))
    return next(one for one in names if f"{one}.txt" not in _left)


def _state(ns: NetNS) -> str:
    """Return the output of the STATE commands. They run in one shell, because a run with many failed tests would
    otherwise take minutes for the evidence.
    """
    script = "".join(f"echo '$ {command}'; {command} 2>&1; echo; " for command in STATE)
    try:
        return ns.run(["sh", "-c", script], check=False, timeout=60).stdout
    except (OSError, subprocess.SubprocessError) as err:
        return f"could not be read: {err}\n"


def pcapng(frames: list[tuple[str, int, bytes]]) -> bytes:
    """Return a capture file (IETF draft-ietf-opsawg-pcapng) with one section, one interface per name, and times in
    nanoseconds.
    """

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
