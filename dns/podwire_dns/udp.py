"""The thread of one UDP socket: receive, look up, send. In batches through native/batch.c where that was compiled, else one
packet at a time. What must wait for an upstream is handed to the event loop."""

from __future__ import annotations

import array
import errno
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from .answer import Answerer, Pending
from .observer import Observer

LARGEST_QUERY = 4096
SEND, FORWARDED = 16, 64  # of batch.c
PASSING = frozenset((errno.EINTR, errno.EAGAIN, errno.ECONNREFUSED))  # the last: an ICMP error about an earlier answer
Send = Callable[[bytes], None]
Later = Callable[[Pending, Send], object]


class UdpLoop:
    """`later(pending, send)` is called from this thread; `send` may be called from any. `native`: native.load(), or None."""

    def __init__(self, sock: socket.socket, answerer: Answerer, later: Later, native: Any | None,
                 observer: Observer) -> None:
        self.sock, self.answerer, self.later, self.observer = sock, answerer, later, observer
        self._native = native
        self.batch: Any | None = None
        if native is not None:
            zone = answerer.data.zones[0]
            made = native.lib.batch_new(sock.fileno(), answerer.recursion, zone, len(zone))
            if made != native.ffi.NULL:
                self.batch = native.ffi.gc(made, native.lib.batch_free)
        self.thread = threading.Thread(target=self._many if self.batch is not None else self._one, daemon=True,
                                       name=f"udp {sock.getsockname()[0]}")

    def _one(self) -> None:
        receive, send = self.sock.recvfrom, self.sock.sendto
        while True:
            try:
                data, peer = receive(LARGEST_QUERY)
            except ConnectionError:
                continue  # an ICMP error about an earlier answer
            except OSError:
                return
            if not data and not peer:
                return
            try:
                answer = self._answer(data, peer)
                if answer is not None:
                    send(answer, peer)
            except OSError:
                continue  # the client's network is gone, or its port is 0: nobody to tell

    def _answer(self, data: bytes, peer: tuple[Any, ...]) -> bytes | None:
        began = time.monotonic()
        try:
            answer = self.answerer.handle(data, udp=True)
            if isinstance(answer, bytes):
                self.observer.answered("udp", peer, data, answer, began)
                return answer
            if answer is not None:
                self.later(answer, self._sender(peer, data, began))
        except Exception as err:  # one message must never stop the service
            self.observer.failed("udp", peer, data, err)
        return None

    def _sender(self, peer: tuple[Any, ...], query: bytes, began: float) -> Send:
        def send(answer: bytes) -> None:
            self.observer.answered("udp", peer, query, answer, began)
            self.sock.sendto(answer, peer)

        return send

    def _many(self) -> None:
        assert self._native is not None
        lib, ffi, batch = self._native.lib, self._native.ffi, self.batch
        assert batch is not None
        receive, unpack, absent = lib.batch_receive, ffi.unpack, self.answerer.absent
        room = lib.BATCH
        modes, sizes = bytearray(room), array.array("i", bytes(4 * room))
        modes_at, sizes_at = ffi.from_buffer(modes), ffi.cast("int32_t *", ffi.from_buffer(sizes))
        all_keys = ffi.buffer(batch.keys, room * 260)
        all_zones, all_simple = ffi.buffer(batch.zone), ffi.buffer(batch.simple)
        cached = self.answerer.cached
        while True:
            count = receive(batch)
            if count <= 0:
                if -count in PASSING:
                    continue
                return
            data = self.answerer.data
            get = data.answers.get
            ends = unpack(batch.ends, count + 1)
            keys, zones, simple = all_keys[:ends[count]], all_zones[:], all_simple[:]
            values, slow, at = [], [], 0
            for index in range(count):
                end = ends[index + 1]
                key = keys[at:end]
                at = end
                value, mode = get(key), SEND
                if value is None:
                    if zones[index]:
                        found, kind = absent(key) if key else None, SEND
                    else:
                        found, kind = cached(key) if simple[index] and key else None, SEND + FORWARDED
                    if found is None:
                        slow.append(index)
                        value, mode = b"", 0
                    else:
                        mode, value = kind + found[0], found[1]
                values.append(value)
                modes[index] = mode
                sizes[index] = len(value)
            left = lib.batch_send(batch, count, b"".join(values), sizes_at, modes_at)
            if left:
                slow += unpack(batch.left, left)
            self.answerer.counts["hit"] += count - len(slow)
            for index in slow:
                self._slowly(index)

    def _slowly(self, index: int) -> None:
        """One query of the batch that needs Python: parse it, answer it, or have an upstream asked."""
        assert self._native is not None
        assert self.batch is not None
        lib, ffi, batch = self._native.lib, self._native.ffi, self.batch
        size = batch.packet_size
        data = bytes(ffi.buffer(batch.packets + index * size, min(batch.lengths[index], size)))
        peer = self._peer(index)
        answer = self._answer(data, peer)
        if answer is not None:
            lib.batch_reply(batch, index, answer, len(answer))

    def _peer(self, index: int) -> tuple[Any, ...]:
        """The sender's address, as the socket module writes it."""
        assert self._native is not None
        assert self.batch is not None
        raw = bytes(self._native.ffi.buffer(self._native.lib.batch_peer(self.batch, index), 28))
        port = int.from_bytes(raw[2:4])
        if self.sock.family == socket.AF_INET:
            return socket.inet_ntop(socket.AF_INET, raw[4:8]), port
        return socket.inet_ntop(socket.AF_INET6, raw[8:24]), port, 0, int.from_bytes(raw[24:28], "little")

