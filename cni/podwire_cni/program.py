"""Encodes steps as one program for native/attach.c. The format is described in attach.c. Pure.

A program contains the netlink messages of every batch in order. It also contains the offsets at which attach.c inserts
the indices of links that earlier batches created.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator, Sequence

from podwire_base.kernel.netlink import rtnetlink as nl

from .encode import encode
from .ops import Announce, CreateIfb, CreateVeth, EnableIPv6, JoinBridge, Op, Place

INDEX, BATCH = 1, 2
_PLACES: dict[Place, int] = {"node": 0, "pod": 1}
_HEAD = struct.Struct("=3I")
_PATCH = struct.Struct("=2I")
# Two sets of made-up link indices. The messages are encoded with both sets; an index is at every offset where the two
# encodings differ.
_MARKS = (0x5DA13700, 0x2EC6B900)
_CREATES = (CreateVeth, CreateIfb)


def batches(ops: Sequence[Op]) -> Iterator[tuple[Place, bool, list[Op]]]:
    """Yields (namespace, whether the batch creates links, steps) for each group of steps that can be sent at once as
    netlink messages.
    """
    quiet = [op for op in ops if not isinstance(op, (Announce, EnableIPv6))]
    for (place, created), group in itertools.groupby(quiet, key=lambda op: (op.place, isinstance(op, _CREATES))):
        yield place, created, list(group)


def watched(batch: Sequence[Op]) -> list[str]:
    """Returns the links of the node that must carry packets after the batch. The bridge is one of them: it has no
    carrier, and its queue drops every packet, until the node has its first pod.
    """
    return [name for op in batch if isinstance(op, JoinBridge) for name in (op.link, op.bridge)]


def peers(ops: Sequence[Op]) -> list[str]:
    """Returns the links of the pod that must carry packets at the end."""
    return [op.peer for op in ops if isinstance(op, CreateVeth)]


class _Slots:
    """Made-up link indices of one namespace while a batch is encoded. It records each requested index."""

    def __init__(self, place: Place, mark: int, slots: dict[tuple[Place, str], int]) -> None:
        self.place, self.mark, self.slots = place, mark, slots

    def __getitem__(self, name: str) -> int:
        return 1 if name == "lo" else self.mark + self.slots.setdefault((self.place, name), len(self.slots))


def _record(kind: int, place: Place, body: bytes) -> bytes:
    return _HEAD.pack(kind, _PLACES[place], _HEAD.size + len(body)) + body


def _messages(batch: Sequence[Op], watches: Sequence[str], index: _Slots, pod_fd: int) -> list[bytes]:
    return [
        *(message for op in batch for message in encode(op, index, pod_fd)),
        *(nl.get_link(index[name]) for name in watches),
    ]


def program(ops: Sequence[Op], pod_fd: int) -> tuple[bytes, int]:
    """Returns the program, and the number of its messages to the node's socket. The program ends with a query of the
    pod's links.
    """
    slots, known, records, count = dict[tuple[Place, str], int](), 0, list[bytes](), 0
    steps: list[tuple[Place, Sequence[Op], list[str]]] = [
        (place, batch, watched(batch)) for place, _, batch in batches(ops)
    ]
    steps.append(("pod", (), peers(ops)))
    for place, batch, watches in steps:
        one, other = ([*_messages(batch, watches, _Slots(place, mark, slots), pod_fd)] for mark in _MARKS)
        count += len(one) if place == "node" else 0
        records += [
            _record(INDEX, where, struct.pack("=I16s", slot, name.encode()))
            for (where, name), slot in itertools.islice(slots.items(), known, None)
        ]
        known = len(slots)
        patches = [_PATCH.pack(at, slot) for at, slot in _places(b"".join(one), b"".join(other), known)]
        records.append(_record(BATCH, place, struct.pack("=I", len(patches)) + b"".join(patches) + b"".join(one)))
    return b"".join(records), count


def _places(one: bytes, other: bytes, slots: int) -> Iterator[tuple[int, int]]:
    """Yields (offset, slot) of every index in a batch that was encoded with both sets of marks."""
    for at in range(0, len(one) - 3, 4):  # netlink aligns all numbers
        if one[at : at + 4] != other[at : at + 4]:
            slot = struct.unpack_from("=I", one, at)[0] - _MARKS[0]
            assert 0 <= slot < slots, "only indices differ"
            yield at, slot
