"""Where packets were last seen, from what the kernel told of them on each node. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from podwire_base.kernel.nft.trace import Traced

OURS = "podwire-trace"


class Sight(NamedTuple):
    """What one node told. links: index -> name."""

    node: str
    told: Sequence[Traced]
    links: Mapping[int, str]


class _Last(NamedTuple):
    """The last message about a packet. out: the last link that it was to leave by."""

    node: str
    message: Traced
    out: str
    hooks: tuple[str, ...]


def last_seen(sights: Iterable[Sight], client: str, behind: Iterable[str] = ()) -> tuple[str, list[str]]:
    """Returns (where the packet was last seen, a line for each node with the hooks that it passed).

    sights: the nodes in the order of the way. client: the source; behind: what it is translated to. What comes to one
    of them is an answer, and an answer was seen later than every packet of the client.
    """
    back = {client, *behind}
    forth: list[_Last] = []
    answers: list[_Last] = []
    lines = []
    for node, told, links in sights:
        for answered, found in ((False, forth), (True, answers)):
            packets = _packets(told, back, answered=answered)
            if not packets:
                continue
            last = _last(node, packets, links)
            found.append(last)
            what = "answer" if answered else "packet"
            lines.append(f"{node or 'this node'}: {what} passed {', '.join(last.hooks) or 'no hook'}")
    dropped = next((one for one in (*forth, *answers) if one.message.verdict == "drop"), None)
    if dropped is not None:
        return _words(dropped, "the answer" if dropped in answers else "the packet"), lines
    if answers:
        return _words(answers[0], "the answer"), lines  # the first node is the last that an answer meets
    if forth:
        return _words(forth[-1], "the packet"), lines
    return (
        "no node's rules saw the packet: it ended before, at the sender itself or where no conntrack or nft looks",
        lines,
    )


def _packets(told: Sequence[Traced], back: set[str], *, answered: bool) -> list[Traced]:
    """Returns the messages about the packets of one direction."""
    direction: dict[int, bool] = {}
    for one in told:
        if one.dst and one.ident not in direction:
            direction[one.ident] = one.dst in back and one.src not in back
    return [one for one in told if direction.get(one.ident) is answered]


def _last(node: str, told: Sequence[Traced], links: Mapping[int, str]) -> _Last:
    ended = next((one for one in told if one.verdict == "drop"), told[-1])
    out = next((links.get(one.oif, "") for one in reversed(told) if one.oif), "")
    hooks = [one.chain.partition("-")[0] for one in told if one.table == OURS and one.kind == "policy"]
    return _Last(node, ended, out, tuple(dict.fromkeys(hooks)))


def _words(last: _Last, what: str) -> str:
    node, message = f"on {last.node or 'this node'}", last.message
    if message.verdict == "drop":
        by = f"the rule with handle {message.handle}" if message.kind == "rule" else "the chain's policy"
        return f"{what}, {node}: {by} of table {message.table}, chain {message.chain}, ended it"
    where = last.hooks[-1] if last.hooks else ""
    if where == "input":
        return f"{what}, {node}: handed to its sockets"
    if where == "postrouting":
        return f"{what}, {node}: left by {last.out or 'a link'}"
    return f"{what}, {node}: behind {where or message.chain}, and not after: no route, or the kernel itself dropped it"
