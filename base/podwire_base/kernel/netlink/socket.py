"""Netlink sockets: opens a socket in a network namespace, sends requests and reads dumps. No other module opens netlink
sockets. I/O.
"""

from __future__ import annotations

import errno
import fcntl
import socket
import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Self

from ..netns import within
from . import codec
from .codec import NetlinkError

ROUTE, NETFILTER = 0, 12  # protocols (linux/netlink.h)
SOL_NETLINK, ADD_MEMBERSHIP, CAP_ACK, EXT_ACK = 270, 1, 10, 11
SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33
SIOCGIFINDEX = 0x8933
# The receive buffer in bytes. The kernel sends dumps in pieces of at most 32 KiB. For a larger buffer, malloc would
# make a memory mapping at each call.
ROOM = 1 << 16
MANY_ANSWERS = 4 << 20  # receive queue in bytes, instead of the system's default
VIEWS = 5
_U32 = struct.Struct("=I")


def open_socket(protocol: int, ns_fd: int | None = None, *, room: int = 0, groups: Sequence[int] = ()) -> socket.socket:
    """Open a socket in the network namespace behind `ns_fd` (None: the caller's namespace). The socket stays in this
    namespace.

    room: the size of the receive queue in bytes (0: the system's default). groups: the multicast groups of
    notifications to join.
    """

    def make() -> socket.socket:
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        try:
            sock.setsockopt(SOL_NETLINK, CAP_ACK, 1)
            sock.setsockopt(SOL_NETLINK, EXT_ACK, 1)
            if room:
                sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, room)
            if groups:
                # Bind the socket, so that the kernel assigns a port id. A notification is not sent to the port id that
                # caused the change, and an unbound socket has port id 0, like the kernel itself.
                sock.bind((0, 0))
            for group in groups:
                sock.setsockopt(SOL_NETLINK, ADD_MEMBERSHIP, group)
        except BaseException:
            sock.close()
            raise
        return sock

    return within(ns_fd, make)


def waiting(sock: socket.socket) -> Iterator[bytes | None]:
    """Yields the datagrams that wait on a non-blocking socket, and None where the kernel dropped some (ENOBUFS)."""
    while True:
        try:
            data = sock.recv(ROOM)
        except BlockingIOError:
            return
        except OSError as err:
            if err.errno != errno.ENOBUFS:
                raise
            yield None
        else:
            yield data


class Netlink:
    """One netlink socket. It is not thread-safe. Every method may raise OSError, or NetlinkError if the kernel refuses
    a request.
    """

    def __init__(self, protocol: int, ns_fd: int | None = None, *, room: int = 0) -> None:
        self.sock = open_socket(protocol, ns_fd, room=room)
        self.interrupted = False  # whether the kernel's state changed during the last dump
        self._seq = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.sock.close()

    def take(self, count: int) -> int:
        """Reserve the next `count` sequence numbers for other code that uses this socket. Returns the last number
        before them.
        """
        used, self._seq = self._seq, self._seq + count
        return used

    def frames(self) -> Iterable[tuple[int, int, int, int, bytes]]:
        """Returns the messages of the next datagram; see codec.split."""
        return codec.split(self.sock.recv(ROOM))

    def request(self, kind: int, body: bytes, flags: int = 0) -> Iterator[tuple[int, bytes]]:
        """Send a request. Yields (type, body) of each answer; read the iterator to its end before the next request.
        flags: DUMP for all objects, ACK if only a refusal matters.
        """
        self._seq += 1
        self.interrupted, seq = False, self._seq
        self.sock.send(codec.message(kind, flags, body, seq))
        while True:
            for answer, flag, number, _, payload in self.frames():
                if number != seq:
                    continue
                self.interrupted = self.interrupted or bool(flag & codec.DUMP_INTR and flags & codec.DUMP)
                if answer == codec.DONE:
                    return
                if answer == codec.ERROR:
                    if refused := codec.decode_error(flag, number, payload):
                        raise refused
                    return
                yield answer, payload
                if not flag & codec.MULTI and not flags & codec.ACK:
                    return

    def everything(self, kind: int, body: bytes) -> Iterator[bytes]:
        """Yields the body of each answer to a dump. If objects are added or removed meanwhile, the kernel may leave out
        an object that still exists. Then the dump is repeated, a limited number of times, and the method yields the
        union of all dumps.
        """
        for _ in range(VIEWS):
            for _, answer in self.request(kind, body, codec.DUMP):
                yield answer
            if not self.interrupted:
                return

    def batch(
        self,
        messages: Sequence[bytes],
        on_answer: Callable[[int, bytes], None] | None = None,
        *,
        answered: bool = False,
    ) -> list[NetlinkError]:
        """Send many messages in one call and wait until the kernel is done. Returns the refusals; the `seq` of a
        refusal is the position in `messages`. The kernel processes the messages in order and continues after a refusal.

        Only the last message requests an acknowledgement, so a batch takes one system call to send and one to receive.
        (The kernel always reports a refusal.) on_answer: called with (type, body) of each answer to a query. answered:
        the last message is a query, and the answer to it ends the batch.
        """
        if not messages:
            return []
        first = self._seq + 1
        self._seq += len(messages)
        batch, at = bytearray(b"".join(messages)), 0
        for seq, part in enumerate(messages, first):
            _U32.pack_into(batch, at + 8, seq)
            at += len(part)
        if not answered:
            batch[at - len(part) + 6] |= codec.ACK
        self.sock.send(batch)
        refusals, over = list[NetlinkError](), False
        while not over:
            for kind, flags, seq, _, body in self.frames():
                if not first <= seq <= self._seq:
                    continue
                if kind == codec.ERROR:
                    over = over or seq == self._seq
                    if refused := codec.decode_error(flags, seq - first, body):
                        refusals.append(refused)
                else:
                    over = over or (answered and seq == self._seq)
                    if on_answer:
                        on_answer(kind, body)
        return refusals


class RouteSocket(Netlink):
    """One rtnetlink socket; rtnetlink.py encodes its messages."""

    def __init__(self, ns_fd: int | None = None) -> None:
        super().__init__(ROUTE, ns_fd)

    def send(
        self,
        messages: Sequence[bytes],
        on_answer: Callable[[int, bytes], None] | None = None,
        *,
        fine: Collection[int] = (),
        present: Callable[[int], bool] = lambda _: False,
    ) -> None:
        """Send a batch and raise the first refusal. If the last message is a query, the answer to it ends the batch.

        The method ignores refusals with an errno in `fine`. It ignores "already exists" (EEXIST) for each position for
        which `present` returns True. Raises NetlinkError.
        """
        question = bool(messages) and codec.HEADER.unpack_from(messages[-1])[1] & 3 == 2  # RTM_GET*
        for refused in self.batch(messages, on_answer, answered=question):
            if refused.errno not in fine and not (refused.errno == errno.EEXIST and present(refused.seq)):
                raise refused

    def ask(self, messages: Sequence[bytes]) -> list[bytes]:
        """Send queries with one answer each. Returns the bodies of the answers. Raises NetlinkError."""
        answers: list[bytes] = []
        self.send(messages, lambda _, body: answers.append(body))
        return answers

    def index(self, name: str) -> int:
        """Returns the index of link `name` in this socket's network namespace; 0 if there is no such link."""
        try:
            answer = fcntl.ioctl(self.sock, SIOCGIFINDEX, struct.pack("16si20x", name.encode(), 0))
        except OSError as err:
            if err.errno == errno.ENODEV:
                return 0
            raise
        found: int = struct.unpack_from("i", answer, 16)[0]
        return found
