"""Dumps and deletes the kernel's conntrack entries, and receives their events. I/O."""

from __future__ import annotations

import errno
from collections.abc import Collection, Iterator, Sequence
from itertools import islice
from typing import NamedTuple, Self

from ..ip import Family
from ..netlink.codec import DUMP, NetlinkError, message, split
from ..netlink.socket import MANY_ANSWERS, NETFILTER, Netlink, open_socket, waiting
from . import codec
from .codec import Event, Flow, Kind

AT_ONCE = 100  # deletions in one batch: if the kernel refuses all, the errors must fit into the socket's queue
AT_A_LOOK = 256  # datagrams of notifications that one `read` takes


def _refused(err: NetlinkError) -> OSError:
    return OSError(err.errno, f"conntrack: {err.name} {err.strerror}")


class Conntrack(Netlink):
    """One ctnetlink socket. dumps: the number of requested dumps. entries: the number of received entries."""

    def __init__(self, ns_fd: int | None = None) -> None:
        super().__init__(NETFILTER, ns_fd, room=MANY_ANSWERS)
        self.dumps = self.entries = 0

    def flows(self, family: Family, which: bytes = b"") -> Iterator[Flow]:
        """Yields the entries of one IP family. Read the iterator to its end before the next call. which: a filter made
        by codec.matching. Raises OSError.
        """
        self.dumps += 1
        try:
            for _, body in self.request(codec.SUBSYS | codec.GET, codec.question(family, which), DUMP):
                self.entries += 1
                yield codec.decode(body)
        except NetlinkError as err:
            raise _refused(err) from err

    def delete(self, flows: Sequence[Flow]) -> list[Flow]:
        """Delete these entries, many in one batch. Returns the entries that still existed. Raises OSError."""
        gone: list[Flow] = []
        for first in range(0, len(flows), AT_ONCE):
            part = flows[first : first + AT_ONCE]
            kind = codec.SUBSYS | codec.DELETE
            refusals = self.batch([message(kind, 0, codec.question(flow.family, flow.ident)) for flow in part])
            for err in refusals:
                if err.errno != errno.ENOENT:
                    raise _refused(err)
            absent = {err.seq for err in refusals}
            gone += [flow for at, flow in enumerate(part) if at not in absent]
        return gone


class Heard(NamedTuple):
    """The events since the last read. overruns: how often the kernel dropped events because the queue was full
    (ENOBUFS). If overruns is not 0, only a dump shows the present state.
    """

    events: list[Event]
    overruns: int = 0


class Events:
    """A subscription to conntrack's notifications. `fileno` is for a selector or an event loop."""

    def __init__(
        self,
        ns_fd: int | None = None,
        *,
        kinds: Collection[Kind] = ("new", "update", "destroy"),
        room: int = MANY_ANSWERS,
    ) -> None:
        """room: the size of the receive buffer in bytes. Raises OSError."""
        self._sock = open_socket(NETFILTER, ns_fd, room=room, groups=[codec.GROUPS[kind] for kind in kinds])
        self._sock.setblocking(False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        self._sock.close()

    def read(self) -> Heard:
        """Returns the waiting events. One call reads a limited number; if more are waiting, the descriptor stays
        readable. Raises OSError.
        """
        events, overruns = list[Event](), 0
        for data in islice(waiting(self._sock), AT_A_LOOK):
            if data is None:
                overruns += 1
                continue
            for kind, flags, _, _, body in split(data):
                if (event := codec.decode_event(kind, flags, body)) is not None:
                    events.append(event)
        return Heard(events, overruns)
