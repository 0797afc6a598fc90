"""What a server and its spare tell one another: frames of a 4-byte length and one msgpack message.

The first server sends each change of the zone (feed.Delta). The spare answers with the number of changes that it has
applied, and sends its figures each second. Both send the answers and failures of upstreams that they put into their
caches, so that a name is asked for once, and that both have an expired answer when no upstream answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec

from .cache import Cache, CacheKey, Upstreamed
from .feed import Delta
from .figures import Report

MOST_WAITING = 4 << 20  # bytes that a peer may leave unread; while it does, answers are not shared


class Kept(msgspec.Struct, array_like=True, frozen=True):
    """An answer of an upstream. key: as in cache.CacheKey. caps: for positive answers and for negative ones, in
    seconds. failure: the lifetime of a failure; 0: it is none. source: as in shares.py.
    """

    key: tuple[bytes, bool, bool, bytes]
    rcode: int
    value: bytes
    ad: bool
    edns: bool
    caps: tuple[float, float]
    failure: float
    source: bytes


class Answers(msgspec.Struct, tag="answers", array_like=True, frozen=True):
    rows: list[Kept]


class Applied(msgspec.Struct, tag="applied", array_like=True, frozen=True):
    number: int


class Linger(msgspec.Struct, tag="linger", array_like=True, frozen=True):
    """The first server ends; its spare serves until the next one takes over, at most so many seconds."""

    seconds: float


Message = Delta | Answers | Applied | Report | Linger
_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


def frame(message: Message) -> bytes:
    body = _encoder.encode(message)
    return len(body).to_bytes(4) + body


class Frames:
    """Turns received bytes into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def add(self, data: bytes) -> Iterator[Message]:
        """Raises msgspec.DecodeError."""
        self._buffer += data
        while len(self._buffer) >= 4 and len(self._buffer) >= (end := 4 + int.from_bytes(self._buffer[:4])):
            body = bytes(self._buffer[4:end])
            del self._buffer[:end]
            yield _decoder.decode(body)


class Sharing:
    """Passes the answers that `cache` gets to a peer, those of one turn of the event loop in one message.

    send: sends a frame. waiting: returns the bytes that the peer has not read yet. soon: calls a function at the end of
    this turn.
    """

    def __init__(
        self,
        send: Callable[[bytes], object],
        waiting: Callable[[], int],
        soon: Callable[[Callable[[], None]], object],
    ) -> None:
        self._send, self._waiting, self._soon = send, waiting, soon
        self._rows: list[Kept] = []

    def tell(self, key: CacheKey, answer: Upstreamed, caps: tuple[float, float], failure: float, source: bytes) -> None:
        if not self._rows:
            self._soon(self._flush)
        home = key[3] if len(key) > 3 else b""
        self._rows.append(
            Kept((*key[:3], home), answer.rcode, answer.value, answer.ad, answer.edns, caps, failure, source)
        )

    def _flush(self) -> None:
        rows, self._rows = self._rows, []
        if self._waiting() <= MOST_WAITING:
            self._send(frame(Answers(rows)))


def take(cache: Cache, answers: Answers, now: float) -> None:
    """Puts the answers of the peer into the cache."""
    for row in answers.rows:
        question, dnssec_ok, checking_disabled, home = row.key
        key: CacheKey = (question, dnssec_ok, checking_disabled, home) if home else row.key[:3]
        answer = Upstreamed(row.rcode, row.value, row.ad, row.edns)
        if row.failure:
            cache.fail(key, answer, now, row.failure)
        else:
            cache.put(key, answer, now, *row.caps, row.source)
