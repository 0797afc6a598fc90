"""The messages of a feeder to a server: frames of a 4-byte length and one msgpack message.

A connection carries Hello, then Delta frames with the whole zone, then Synced, then one Delta frame per change. The
server replaces its old zone at Synced, so clients of a restarted feeder never see a partial zone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import msgspec

VERSION = 4
CHUNK = 512  # answers in one frame; a larger frame would delay queries while the server reads it
MAX_FRAME = 64 << 20


class Hello(msgspec.Struct, tag="hello", array_like=True, frozen=True):
    """The first message of a connection.

    version: the version of this protocol. zones: apexes in wire form, the cluster domain first. ttl: the TTL of
    negative answers, in seconds.
    """

    version: int
    zones: tuple[bytes, ...]
    ttl: int
    pods: bool


class Delta(msgspec.Struct, tag="delta", array_like=True, frozen=True):
    """One change of the zone.

    answers: question key -> value. gone: keys that no longer have data. names: wire names without data that now exist.
    lost: wire names without data that no longer exist. places: packed address of an endpoint -> Services, as in
    places.py; b"": no Service has this endpoint any more. triggered: the times at which headless Services changed,
    according to their EndpointSlices, in seconds since the epoch.
    """

    serial: int
    answers: dict[bytes, bytes] = {}
    gone: tuple[bytes, ...] = ()
    names: tuple[bytes, ...] = ()
    lost: tuple[bytes, ...] = ()
    places: dict[bytes, bytes] = {}
    triggered: tuple[float, ...] = ()

    @property
    def size(self) -> int:
        """Returns the number of answers and names, a measure of the cost of this message."""
        return len(self.answers) + len(self.gone) + len(self.names) + len(self.lost) + len(self.places)


class ApiCalls(msgspec.Struct, tag="api", array_like=True, frozen=True):
    """The feeder's requests to the API server since its start.

    requests: (method, status code or "<error>", host:port, number). took: (verb, host:port, counts in the buckets of
    metrics.API_BOUNDS, sum of the seconds).
    """

    requests: tuple[tuple[str, str, str, int], ...] = ()
    took: tuple[tuple[str, str, tuple[int, ...], float], ...] = ()


NO_CALLS = ApiCalls()


class Synced(msgspec.Struct, tag="synced", array_like=True, frozen=True):
    """The zone is complete."""

    serial: int


Message = Hello | Delta | ApiCalls | Synced
_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


class BadFeed(ValueError):
    """The peer uses another protocol version or sends a malformed message."""


def frame(message: Message) -> bytes:
    body = _encoder.encode(message)
    return len(body).to_bytes(4) + body


def decode(body: bytes) -> Message:
    try:
        message = _decoder.decode(body)
    except msgspec.DecodeError as err:
        raise BadFeed(f"feed: {err}") from err
    if isinstance(message, Hello) and message.version != VERSION:
        raise BadFeed(f"feed: version {message.version} of the feeder, {VERSION} here; restart both from one release")
    return message


@dataclass(slots=True)
class Frames:
    """Turns received bytes into messages."""

    _buffer: bytearray = field(default_factory=bytearray)

    def add(self, data: bytes) -> Iterator[Message]:
        """Adds received bytes and yields the complete messages. Raises BadFeed."""
        self._buffer += data
        while len(self._buffer) >= 4:
            length = int.from_bytes(self._buffer[:4])
            if length > MAX_FRAME:
                raise BadFeed(f"feed: a frame of {length} bytes")
            if len(self._buffer) < 4 + length:
                return
            body = bytes(self._buffer[4 : 4 + length])
            del self._buffer[: 4 + length]
            yield decode(body)


def pieces(delta: Delta, most: int = CHUNK) -> Iterator[Delta]:
    """Splits a large change into pieces of at most `most` answers.

    Only the last piece has removals, so that all new answers exist before an old answer disappears.
    """
    answers = list(delta.answers.items())
    while len(answers) > most:
        yield Delta(delta.serial, dict(answers[:most]))
        del answers[:most]
    places = list(delta.places.items())
    while len(places) > most:
        yield Delta(delta.serial, dict(answers), places=dict(places[:most]))
        answers.clear()
        del places[:most]
    yield msgspec.structs.replace(delta, answers=dict(answers), places=dict(places))


def snapshot(
    hello: Hello,
    answers: Mapping[bytes, bytes],
    names: Iterator[bytes],
    serial: int,
    places: Iterable[tuple[bytes, bytes]] = (),
) -> Iterator[bytes]:
    """Yields the frames of a whole zone, in pieces that do not stall the receiver."""
    yield frame(hello)
    chunk: dict[bytes, bytes] = {}
    for key, value in answers.items():
        chunk[key] = value
        if len(chunk) == CHUNK:
            yield frame(Delta(serial, chunk))
            chunk = {}
    yield frame(Delta(serial, chunk, names=tuple(names)))
    chunk = {}
    for address, value in places:
        chunk[address] = value
        if len(chunk) == CHUNK:
            yield frame(Delta(serial, places=chunk))
            chunk = {}
    yield frame(Delta(serial, places=chunk))
    yield frame(Synced(serial))
