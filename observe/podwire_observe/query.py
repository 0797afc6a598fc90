"""What a reader asks a node, and the node's answer, as JSON lines. Pure.

    {"version": 1, "what": "flows", "last": 20, "since": 0, "until": null, "filters": {...}, "follow": true}
    -> {"head": {...}} {"flow": {...}} ... {"end": true}

With "what": "sums" the rows are {"row": {...}}, by pair; with "slots" {"row": {...}, "slot": N}, by ten seconds and
pair. A reader that follows gets {"flow": {...}} as connections open and as their verdicts change, {"lost": N} after
losses, and {"beat": SECONDS} when nothing else came for a while.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from . import filters
from .filters import Filters
from .fold import Fold
from .record import VERSION, Ends, Flow
from .sums import Pair, rows, total

MOST_LINES = 20_000


class BadQuery(ValueError):
    """The message names the part of the request, and what it may be."""


@dataclass(frozen=True, slots=True)
class Query:
    """last: at most so many connections, the latest ones; None: all that are kept. since, until: seconds since 1970."""

    what: str = "flows"
    last: int | None = None
    since: float = 0.0
    until: float | None = None
    filters: Filters = field(default_factory=Filters)
    follow: bool = False

    def to_json(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "what": self.what,
            "last": self.last,
            "since": self.since,
            "until": self.until,
            "filters": self.filters.to_json(),
            "follow": self.follow,
        }


def parse(data: Any) -> Query:
    """Raises BadQuery."""
    if not isinstance(data, dict):
        raise BadQuery("the request is not a JSON object")
    if data.get("version") != VERSION:
        raise BadQuery(
            f"version {data.get('version')!r}: this node answers version {VERSION}; use one version of podwire"
        )
    what = data.get("what", "flows")
    if what not in ("flows", "sums", "slots"):
        raise BadQuery(f"what: {what!r}: flows, sums or slots")
    try:
        last, until = data.get("last"), data.get("until")
        wanted = Query(
            what,
            None if last is None else max(0, int(last)),
            float(data.get("since") or 0.0),
            None if until is None else float(until),
            filters.from_json(data.get("filters") or {}),
            bool(data.get("follow")),
        )
    except filters.BadFilter as err:
        raise BadQuery(str(err)) from err
    except (TypeError, ValueError) as err:
        raise BadQuery(f"last, since, until: {err}") from err
    for name in (*wanted.filters.allow, *wanted.filters.deny) if what != "flows" else ():
        if name in filters.OF_CONNECTIONS:
            raise BadQuery(f"{name}: sums do not have it; leave --by out")
    return wanted


def head(fold: Fold, query: Query, mode: str, now: float) -> dict[str, Any]:
    """Returns what a reader must know to judge the answer. since: from when on events are complete. lost, unshown: in
    the time asked for, of events that the kernel dropped and of refused packets that were counted but not logged.
    """
    slots = fold.window.between(query.since, now if query.until is None else query.until)
    return {
        "version": VERSION,
        "node": fold.node,
        "now": now,
        "mode": mode,
        "since": fold.since,
        "lost": sum(slot.lost for slot in slots),
        "unshown": sum(slot.unshown for slot in slots),
    }


def wanted(flow: Flow, query: Query) -> bool:
    """Whether a connection was there in the time asked for and passes the filters."""
    if flow.changed < query.since or (query.until is not None and flow.started > query.until):
        return False
    return query.filters.wants(flow)


def flows(fold: Fold, query: Query) -> list[Flow]:
    """Returns the connections that a query wants, in the order in which they began."""
    found: dict[int, Flow] = {}
    most = MOST_LINES if query.last is None else min(query.last, MOST_LINES)
    for flow in reversed(fold.shown):
        if len(found) >= most:
            break
        if wanted(flow, query):
            found[flow.number] = flow
    if query.last is None and len(fold.shown) == fold.shown.maxlen:  # open ones that were shown long ago
        for flow in fold.live():
            if len(found) < MOST_LINES and wanted(flow, query):
                found.setdefault(flow.number, flow)
    return sorted(found.values(), key=lambda flow: (flow.started, flow.number))


def sums(fold: Fold, query: Query, now: float) -> Iterator[dict[str, Any]]:
    found = total(fold.window.between(query.since, now if query.until is None else query.until))
    return rows({pair: one for pair, one in found.items() if query.filters.wants(_as_flow(fold.node, pair))})


def slots(fold: Fold, query: Query, now: float) -> Iterator[dict[str, Any]]:
    """Yields the sums of each ten seconds, and which ones they are: seconds since 1970 // SLOT_SECONDS."""
    for slot in fold.window.between(query.since, now if query.until is None else query.until):
        kept = {pair: one for pair, one in slot.pairs.items() if query.filters.wants(_as_flow(fold.node, pair))}
        yield from ({"slot": slot.number, "row": row} for row in rows(kept))


def _as_flow(node: str, pair: Pair) -> Flow:
    return Flow(
        0, node, 0.0, 0.0, pair.protocol, "", 0, "", 0, "", 0,
        Ends(pair.source, pair.target, pair.service, pair.probe), pair.verdict, pair.reason,
    )  # fmt: skip


def answer(fold: Fold, query: Query, mode: str, now: float) -> Iterator[Mapping[str, Any]]:
    """Yields the lines of an answer, without an end for a reader that follows."""
    yield {"head": head(fold, query, mode, now)}
    if query.what == "sums":
        yield from ({"row": row} for row in sums(fold, query, now))
    elif query.what == "slots":
        yield from slots(fold, query, now)
    else:
        yield from ({"flow": flow.to_json()} for flow in flows(fold, query))
    if not query.follow:
        yield {"end": True}
