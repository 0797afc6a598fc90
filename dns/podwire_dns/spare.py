"""A second server process on the node, which reads the same sockets, so that nobody notices when the first one dies.

The first server forks it when the zone is whole: the sockets are inherited, and the zone's table is shared until it
changes. Changes come over a socket pair, in the frames of feed.py. For a new zone or new settings the first server
forks a new spare, and the old one leaves: it stops reading, and answers what it has.

If the first server dies, the spare goes on with the last zone. The next server asks it for the sockets over a unix
socket in the run directory, and tells it to leave as soon as it serves itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import mmap
import os
import signal
import socket
import time
from asyncio import events
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from podwire_base.role import beat, bugs, logs
from podwire_base.role.run import NOTIFY, STOP_SIGNALS, stop_event
from podwire_base.role.title import set_title

from . import feed, native
from .metrics import Tally
from .zone import ZoneData

if TYPE_CHECKING:
    from .server import Server

log = logs.get("dns")
PATHS = ("dns-spare-0.sock", "dns-spare-1.sock")
TELL_SECONDS = 1.0  # between two reports of a spare
SILENT_SECONDS = 30.0  # without a report, a spare counts as stopped
ASK_SECONDS = 2.0
LEAVE_SECONDS = 10.0
AGAIN_SECONDS = 1.0  # before the next try, if a spare ends right after its start
MOST_SOCKETS = 200
LEAVE = b"L"
Report = dict[str, tuple[list[Any], ...]]


@dataclass(slots=True)
class Heritage:
    """What a predecessor left: its sockets, by (address, port, type), and the connection to the process that holds
    them.
    """

    sockets: dict[tuple[str, int, int], socket.socket] = field(default_factory=dict)
    holders: list[socket.socket] = field(default_factory=list)

    def take(self, address: str, port: int, kind: int) -> socket.socket | None:
        return self.sockets.pop((address, port, kind), None)

    def alive(self) -> bool:
        """Whether a predecessor still serves."""
        for holder in list(self.holders):
            with contextlib.suppress(BlockingIOError):
                if holder.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK) == b"":
                    self.holders.remove(holder)
                    holder.close()
        return bool(self.holders)

    def dismiss(self) -> None:
        """Tells the predecessors to leave, and closes the sockets that nobody needs any more."""
        for holder in self.holders:
            with contextlib.suppress(OSError):
                holder.send(LEAVE)
            holder.close()
        for sock in self.sockets.values():
            sock.close()
        self.holders, self.sockets = [], {}


def inherit(run_dir: Path) -> tuple[Heritage, socket.socket]:
    """Asks a predecessor for its sockets. Returns them, and the socket on which this server's own spare listens.

    Raises OSError.
    """
    found, free = Heritage(), PATHS[0]
    for name in PATHS:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(ASK_SECONDS)
        try:
            sock.connect(str(run_dir / name))
            data, fds, _, _ = socket.recv_fds(sock, 1, MOST_SOCKETS)
        except OSError:
            free = name
            sock.close()
            continue
        for fd in fds:
            held = socket.socket(fileno=fd)
            address = held.getsockname()
            if found.sockets.setdefault((address[0], address[1], held.type), held) is not held:
                held.close()
        if data:
            sock.setblocking(False)
            found.holders.append(sock)
    run_dir.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        (run_dir / free).unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(str(run_dir / free))
    finally:
        os.umask(before)
    listener.listen(4)
    if found.sockets:
        log.info("took the sockets over from a predecessor", sockets=len(found.sockets))
    return found, listener


class Counts:
    """The counts of a spare's compiled loops, in memory that both processes share: they outlive the spare."""

    def __init__(self, loops: int) -> None:
        module = native.load()
        self.all: list[Any] = []
        if module is not None:
            size = module.ffi.sizeof("struct batch_counts")
            self._memory = mmap.mmap(-1, max(1, size * loops))
            start = module.ffi.from_buffer(self._memory)
            self.all = [module.ffi.cast("struct batch_counts *", start + size * at) for at in range(loops)]

    @property
    def taken(self) -> int:
        """Returns the queries that the spare had read and not answered."""
        return sum(int(each.taken) for each in self.all)


class Spare:
    """A spare, seen from the first server."""

    def __init__(self, server: Server, listener: socket.socket, paths: Sequence[str]) -> None:
        """Forks the spare. paths: the metrics.PATHS of the UDP sockets. Raises OSError."""
        self.counts, self.paths, self.began = Counts(len(paths)), paths, time.monotonic()
        self.heard, self.leaving = self.began, False
        self.tallies: dict[str, Tally] = {}
        self._own, other = socket.socketpair()
        gc.freeze()
        self.pid = os.fork()
        if self.pid == 0:
            become(server, other, listener, self.counts)
        other.close()
        self._own.setblocking(False)
        self._received = bytearray()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._own, self._read)
        self._backlog = bytearray()

    def send(self, message: feed.Message) -> None:
        """Passes a change of the zone on."""
        self._backlog += feed.frame(message)
        self._write()

    def _write(self) -> None:
        try:
            while self._backlog:
                del self._backlog[: self._own.send(self._backlog)]
        except BlockingIOError:
            self._loop.add_writer(self._own, self._write)
            return
        except OSError:
            self._backlog.clear()
        self._loop.remove_writer(self._own)

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError, OSError):
            data = self._own.recv(1 << 16)
            if not data:
                self._loop.remove_reader(self._own)
            self._received += data
        while len(self._received) >= 4 and len(self._received) >= (end := 4 + int.from_bytes(self._received[:4])):
            self.heard = time.monotonic()
            with contextlib.suppress(msgspec.DecodeError, ValueError, TypeError):
                self.tallies = _tallies(bytes(self._received[4:end]))
            del self._received[:end]

    def leave(self) -> None:
        self.leaving = True
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        self._loop.remove_reader(self._own)
        self._loop.remove_writer(self._own)
        self._own.close()


def _tallies(data: bytes) -> dict[str, Tally]:
    """Decodes a report: the counts of what Python answered, by path."""
    found = {}
    for path, (types, rcodes, took, queries, answers, sums) in msgspec.msgpack.decode(data).items():
        tally = Tally()
        tally.types.update({int(number): int(count) for number, count in types})
        tally.rcodes.update({(int(number), str(plugin)): int(count) for number, plugin, count in rcodes})
        tally.took, tally.query_sizes, tally.answer_sizes = list(took), list(queries), list(answers)
        tally.took_seconds, tally.query_bytes, tally.answer_bytes, tally.dnssec_ok, tally.errors = sums
        found[str(path)] = tally
    return found


def report(tallies: dict[str, Tally]) -> bytes:
    """Encodes a report, with its length before it."""
    body = msgspec.msgpack.encode(
        {
            path: (
                list(tally.types.items()),
                [(number, plugin, count) for (number, plugin), count in tally.rcodes.items()],
                tally.took,
                tally.query_sizes,
                tally.answer_sizes,
                (tally.took_seconds, tally.query_bytes, tally.answer_bytes, tally.dnssec_ok, tally.errors),
            )
            for path, tally in tallies.items()
        }
    )
    return len(body).to_bytes(4) + body


# The spare's side


def become(first: Server, link: socket.socket, listener: socket.socket, counts: Counts) -> None:
    """Serves in the new process. Never returns."""
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in (*STOP_SIGNALS, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        os.environ.pop(NOTIFY, None)  # the service manager hears the first server only
        beat.begin(None)  # the beat is the first server's
        gc.freeze()  # what the first server made must never be destroyed here: its destructors close descriptors
        sockets = first.sockets()
        kept = {link.fileno(), listener.fileno(), *(sock.fileno() for sock in sockets)}
        _drop_others(kept)
        set_title("podwire", *("dns-spare", first.config.node_name))
        data = first.answerer.data
        if data.memory is not None:
            data.memory.lib.table_forked(data.memory.raw)
        events._set_running_loop(None)
        asyncio.run(_serve(first, sockets, link, listener, counts, data))
        status = 0
    except BaseException as err:
        bugs.report(log, "the spare server ends", err)
    finally:
        os._exit(status)


def _drop_others(kept: set[int]) -> None:
    """Replaces all other descriptors by /dev/null: a connection that the first server closes must not stay open here.

    The numbers stay in use, so that a forgotten object of the first server can never close a descriptor of this one.
    """
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for entry in list(Path("/proc/self/fd").iterdir()):
        fd = int(entry.name)
        if fd > 2 and fd != null and fd not in kept:
            with contextlib.suppress(OSError):  # the descriptor of the listing
                os.dup2(null, fd, inheritable=False)


async def _serve(
    first: Server,
    sockets: list[socket.socket],
    link: socket.socket,
    listener: socket.socket,
    counts: Counts,
    data: ZoneData,
) -> None:
    stop, loop = stop_event(), asyncio.get_running_loop()
    async with first.spare(sockets, counts, data, stop) as server:
        frames = feed.Frames()
        link.setblocking(False)
        orphan = False

        def read() -> None:
            nonlocal orphan
            try:
                received = link.recv(1 << 18)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                received = b""
            if not received:
                orphan = True
                loop.remove_reader(link)
                log.warn("the first server is gone, going on with the last zone", answers=len(data.answers))
                return
            for message in frames.add(received):
                if isinstance(message, feed.Delta):
                    data.apply(message)

        loop.add_reader(link, read)
        listener.setblocking(False)
        holding = asyncio.create_task(_hold(listener, sockets, stop))
        while not stop.is_set():
            if not orphan:
                with contextlib.suppress(OSError):  # a full queue: the next report has everything
                    link.send(report(server.tallies_of_python()))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), TELL_SECONDS)
        holding.cancel()


async def _hold(listener: socket.socket, sockets: list[socket.socket], stop: asyncio.Event) -> None:
    """Gives the sockets to the next server, and sets `stop` when that server says so."""
    loop = asyncio.get_running_loop()

    async def give(heir: socket.socket) -> None:
        with heir:
            try:
                socket.send_fds(heir, [b"S"], [sock.fileno() for sock in sockets[:MOST_SOCKETS]])
                if await loop.sock_recv(heir, 1) == LEAVE:
                    stop.set()
            except OSError:
                pass  # the heir is gone; another one will come

    giving: set[asyncio.Task[None]] = set()
    while True:
        heir, _ = await loop.sock_accept(listener)
        heir.setblocking(False)
        task = asyncio.create_task(give(heir))
        giving.add(task)
        task.add_done_callback(giving.discard)
