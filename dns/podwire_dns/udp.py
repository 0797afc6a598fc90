"""Runs the thread of one UDP socket: receive, look up, send.

The thread handles batches of packets with native/batch.c if the native code is available, else one packet at a time. It
passes a query that must wait for an upstream to the event loop.
"""

from __future__ import annotations

import array
import contextlib
import errno
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

from .answer import Answerer, Pending, forwarded_by
from .answertable import AnswerTable
from .observer import Observer
from .shares import packed

LARGEST_QUERY = 4096
SEND, FORWARDED = 16, 64  # of batch.c
# ECONNREFUSED: an ICMP error about an earlier answer
PASSING = frozenset((errno.EINTR, errno.EAGAIN, errno.ECONNREFUSED))
SHORT_OF_MEMORY = frozenset((errno.ENOBUFS, errno.ENOMEM))
PAUSE_SECONDS, WAKE_SECONDS = 0.01, 0.5
KICK_SECONDS = 0.01
KICK = signal.SIGURG  # interrupts the system call of a thread; ignored where no handler is installed
LAST_QUERIES = 4096  # of a queue, which clients may fill faster than the last look empties it
Send = Callable[[bytes], None]
Waiting = list[tuple[Pending, Send, bytes]]  # a query, the sender of its answer, and its source (shares.py)
Later = Callable[[Waiting], object]


class UdpLoop:
    """The loop of one UDP socket.

    This thread calls `later([(pending, send, source)])`. Any thread may call `send`. native: the result of
    native.load().
    """

    def __init__(
        self,
        sock: socket.socket,
        answerer: Answerer,
        later: Later,
        native: Any | None,
        observer: Observer,
        *,
        shared: bool = False,
        counts: Any = None,
    ) -> None:
        """shared: another process may read this socket too. counts: the memory of the counts, see native/batch.c."""
        self.shared = shared
        self.sock, self.answerer, self.later, self.observer = sock, answerer, later, observer
        self._native = native
        self._memory: AnswerTable | None = None  # this reference keeps the table alive while the thread uses it
        self.batch: Any | None = None
        self._waiting: Waiting = []
        self._out: list[tuple[bytes, bytes]] = []  # (answer, client) of upstream answers that wait for `flush`
        self.soon: Callable[[Callable[[], None]], object] | None = None  # None: send answers one by one
        if native is not None:
            made = native.lib.batch_new(sock.fileno(), native.ffi.NULL if counts is None else counts)
            if made != native.ffi.NULL:
                self.batch = native.ffi.gc(made, native.lib.batch_free)
                self._size = self.batch.packet_size
                self._packets = native.ffi.buffer(self.batch.packets, native.lib.BATCH * self._size)
                self._peers = native.ffi.buffer(native.lib.batch_peers(self.batch), native.lib.BATCH * 28)
                self.configure()
        self.path = "udp" if sock.family == socket.AF_INET else "udp6"
        self.address = str(sock.getsockname()[0])
        self.failed = ""  # the error that ended the thread
        self.stopping = False
        self._idle, self._turns = True, 0  # of `_one`
        self._seen, self._since = -1, time.monotonic()  # the progress at the last look, and the time of a change
        if self.shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 0, int(WAKE_SECONDS * 1e6)))
        self.thread = threading.Thread(target=self._run, daemon=True, name=f"udp {self.address}")

    def _run(self) -> None:
        """Runs the thread. If the thread ends by an error, `failed` says why: its socket then answers nobody."""
        why = "the socket was shut down"
        try:
            (self._many if self.batch is not None else self._one)()
        except Exception as err:  # the server opens the socket anew
            why = str(err) or repr(err)
        if not self.stopping:
            self.failed = why

    def stuck_since(self, now: float) -> float | None:
        """Returns the time since which the thread handles the same queries; None if it waits for some, or ended. Only
        the event loop calls this function.
        """
        if self.batch is None:
            idle, turns = self._idle, self._turns
        else:
            idle, turns = bool(self.batch.idle), int(self.batch.counts.calls)
        if idle or turns != self._seen or not self.thread.is_alive():
            self._seen, self._since = turns, now
            return None
        return self._since

    def configure(self) -> None:
        """Applies changes of the answerer and the observer, also while packets arrive."""
        if self._native is None or self.batch is None:
            return
        answerer = self.answerer
        data, zone = answerer.data, answerer.data.zones[0]
        memory = data.memory if data.synced and not self._special else None
        self._native.lib.batch_set(
            self.batch,
            answerer.recursion,
            answerer.shuffle,
            answerer.autopath,
            zone,
            len(zone),
            self._native.ffi.NULL if memory is None else memory.raw,
        )
        self._memory = memory

    @property
    def _special(self) -> bool:
        """Whether Python must check every question, even if an answer exists."""
        return self.answerer.rules is not None or self.observer.clients is not None

    def stop_soon(self) -> None:
        """Makes the thread end after its batch, also if `stop` waits for another thread first."""
        self.stopping = True
        if self.batch is not None:
            self.batch.stop = self.shared

    def stop(self, seconds: float) -> None:
        """Ends the thread within `seconds`. The thread first answers the queries in the queue."""
        self.stop_soon()
        if self.shared:  # a shutdown would stop the other process too
            end = time.monotonic() + seconds + WAKE_SECONDS
            while self.thread.is_alive() and time.monotonic() < end:
                if self.thread.ident is not None and callable(signal.getsignal(KICK)):
                    signal.pthread_kill(self.thread.ident, KICK)
                self.thread.join(KICK_SECONDS)
            return
        with contextlib.suppress(OSError):  # the call fails with ENOTCONN but wakes the thread
            self.sock.shutdown(socket.SHUT_RD)
        self.thread.join(seconds)

    def close(self, *, last: bool = True) -> None:
        """Answers the queries that arrived after the end of the thread, and closes the socket. last: no other process
        reads the queue.
        """
        self.flush()
        with contextlib.suppress(OSError):  # the queue is empty
            for _ in range(LAST_QUERIES if last else 0):
                # Not `setblocking`: it would change the socket for the other processes too.
                data, peer = self.sock.recvfrom(LARGEST_QUERY, socket.MSG_DONTWAIT)
                if not data and not peer:
                    break
                answer = self._answer(data, peer)
                if answer is not None:
                    self.sock.sendto(answer, peer)
        self._hand_over()
        self.sock.close()

    def _hand_over(self) -> None:
        if self._waiting:
            self.later(self._waiting)
            self._waiting = []

    def _one(self) -> None:
        receive, send = self.sock.recvfrom, self.sock.sendto
        while not (self.stopping and self.shared):
            self._idle = True
            try:
                data, peer = receive(LARGEST_QUERY)
            except ConnectionError:
                continue  # an ICMP error about an earlier answer
            except OSError as err:
                _pass_over(err.errno or 0)
                continue
            finally:
                self._idle, self._turns = False, self._turns + 1
            if not data and not peer:
                return
            try:
                answer = self._answer(data, peer)
                if answer is not None:
                    send(answer, peer)
                self._hand_over()
            except OSError:
                continue  # the client is unreachable, or its port is 0: the answer cannot be sent

    def _answer(self, data: bytes, peer: tuple[Any, ...]) -> bytes | None:
        began = time.monotonic()
        try:
            answer = self.answerer.handle(data, udp=True)
            if isinstance(answer, bytes):
                self.observer.answered(self.path, peer, data, answer, began, self.answerer.answered_by(answer))
                return answer
            if answer is not None:
                self._waiting.append((answer, self._sender(peer, data, began), packed(peer[0])))
        except Exception as err:  # one message must never stop the service
            self.observer.failed(self.path, peer, data, err)
        return None

    def _sender(self, peer: tuple[Any, ...], query: bytes, began: float) -> Send:
        def send(answer: bytes) -> None:
            self.observer.answered(self.path, peer, query, answer, began, forwarded_by(answer))
            self.sock.sendto(answer, peer)

        return send

    def _batch_sender(self, index: int, query: bytes, began: float) -> Send:
        """Returns a function that answers a query of this batch.

        The thread of the event loop calls this function with the answer of an upstream.
        """
        raw = self._raw_peer(index)

        def send(answer: bytes) -> None:
            peer = ("",) if self.observer.clients is None else self._peer(raw)
            self.observer.answered(self.path, peer, query, answer, began, forwarded_by(answer))
            if self.soon is None:
                self.sock.sendto(answer, self._peer(raw))
                return
            if not self._out:
                self.soon(self.flush)
            self._out.append((answer, raw))

        return send

    def flush(self) -> None:
        """Sends the answers of upstreams with one system call.

        One call per answer would release the interpreter each time.
        """
        out, self._out = self._out, []
        if out and self._native is not None:
            self._native.lib.batch_answer(
                self.batch,
                len(out),
                b"".join(answer for answer, _ in out),
                [len(answer) for answer, _ in out],
                b"".join(raw for _, raw in out),
            )

    def _many(self) -> None:
        assert self._native is not None
        lib, ffi, batch = self._native.lib, self._native.ffi, self.batch
        assert batch is not None
        receive, unpack = lib.batch_receive, ffi.unpack
        room = lib.BATCH
        modes, sizes = bytearray(room), array.array("i", bytes(4 * room))
        modes_at, sizes_at = ffi.from_buffer(modes), ffi.cast("int32_t *", ffi.from_buffer(sizes))
        all_keys = ffi.buffer(batch.keys, room * 260)
        all_zones, all_simple = ffi.buffer(batch.zone), ffi.buffer(batch.simple)
        other = self._other
        while not (self.stopping and self.shared):
            count = receive(batch)
            if count <= 0:
                if not count:
                    return
                _pass_over(-count)
                continue
            get = self.answerer.data.answers.get
            special = self._special
            rest = unpack(batch.rest, count)
            ends = unpack(batch.ends, rest[-1] + 2)
            keys = all_keys[: ends[-1]]
            zones, simple = all_zones[:], all_simple[:]
            values, slow = [], []
            for at, index in enumerate(rest):
                key = keys[ends[index] : ends[index + 1]]
                value, mode = get(key), SEND
                if value is None or special:
                    try:
                        found = other(key, value, zones[index], simple[index])
                    except Exception:  # `_answer` meets the same error and logs it; this thread must not end
                        found = None
                    if found is None:
                        slow.append((index, key if simple[index] and not special and not zones[index] else b""))
                        value, mode = b"", 0
                    else:
                        mode, value = found
                values.append(value)
                modes[at] = mode
                sizes[at] = len(value)
            left = lib.batch_send(batch, count, b"".join(values), sizes_at, modes_at)
            if left:
                slow += [(index, b"") for index in unpack(batch.left, left)]
            self.answerer.counts["hit"] += count - len(slow)
            for index, key in slow:
                self._slowly(index, key)
            if self._waiting:
                self._hand_over()

    def _other(self, key: bytes, value: bytes | None, ours: int, simple: int) -> tuple[int, bytes] | None:
        """Returns (mode, value) for a question that is not a plain hit; None if Python must parse the message."""
        rules = self.answerer.rules
        if not key or self.observer.clients is not None or (rules is not None and rules.find(key) is not None):
            return None
        if value is not None:
            return SEND, value
        if ours:
            found = self.answerer.absent(key)
            return None if found is None else (SEND + found[0], found[1])
        found = self.answerer.cached(key) if simple else None
        return None if found is None else (SEND + FORWARDED + found[0], found[1])

    def _slowly(self, index: int, key: bytes) -> None:
        """Handles one query of the batch in Python: answers the query or sends it to an upstream.

        key: the question key of a plain query that is not in the cache; empty for any other query.
        """
        assert self._native is not None
        assert self.batch is not None
        lib, batch = self._native.lib, self.batch
        start = index * self._size
        data = self._packets[start : start + min(batch.lengths[index], self._size)]
        pending = self.answerer.missed(data, key) if key else None
        if pending is not None:
            self._waiting.append((pending, self._batch_sender(index, data, time.monotonic()), self._source(index)))
            return
        answer = self._answer(data, self._peer(self._raw_peer(index)))
        if answer is not None:
            lib.batch_reply(batch, index, answer, len(answer))

    def _peer(self, raw: bytes) -> tuple[Any, ...]:
        """Returns the address of a sender in the form of the socket module."""
        port = int.from_bytes(raw[2:4])
        if self.sock.family == socket.AF_INET:
            return socket.inet_ntop(socket.AF_INET, raw[4:8]), port
        return socket.inet_ntop(socket.AF_INET6, raw[8:24]), port, 0, int.from_bytes(raw[24:28], "little")

    def _source(self, index: int) -> bytes:
        raw = self._raw_peer(index)
        return raw[4:8] if self.sock.family == socket.AF_INET else raw[8:24]

    def _raw_peer(self, index: int) -> bytes:
        """Returns the address of a sender in the kernel's form: 28 bytes, the size of an IPv6 socket address."""
        raw: bytes = self._peers[28 * index : 28 * index + 28]
        return raw


def _pass_over(error: int) -> None:
    """Returns if the thread can continue after this errno of a receive call. Raises OSError for every other errno."""
    if error in SHORT_OF_MEMORY:
        time.sleep(PAUSE_SECONDS)
    elif error not in PASSING:
        raise OSError(error, os.strerror(error))
