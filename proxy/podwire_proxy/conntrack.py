"""Which conntrack entries keep packets away from where they belong. Pure; ctnetlink.py reads and deletes them.

Only UDP: a flow without a handshake goes on for ever with the translation it began with. An entry is stale when its original
destination is a frontend that has backends and its answers come from none of them: the backend went away, or the flow
began before any translation existed (then its answers would come from the Service address itself). TCP is left alone:
established connections to a removed endpoint end in their own time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from .dataplane import Key
from .model import Backend


@dataclass(frozen=True, slots=True)
class Flow:
    """A UDP conntrack entry. destination: what the client dialled; answers: where its replies come from.

    source: client address and port. ident: the kernel's own description of the entry, for deleting exactly this one.
    """

    destination: Key
    answers: Backend
    source: tuple[str, int]
    ident: bytes = b""


def stale(flows: Iterable[Flow], serving: Mapping[Key, frozenset[Backend]]) -> Iterator[Flow]:
    """Entries of `serving`'s frontends that lead nowhere. Frontends without backends must not be in `serving`."""
    for flow in flows:
        backends = serving.get(flow.destination)
        if backends and flow.answers not in backends:
            yield flow
