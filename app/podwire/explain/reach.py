"""How the reader's half reaches the nodes: by their network namespaces on this machine. I/O.

Reach is the interface; `exec.py` has the one for the agents' pods of a cluster elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple, Protocol

from podwire_base.kernel.ip import Family
from podwire_base.kernel.netns import call_in

from . import onnode
from .packets import Asked
from .steps import Unreachable, Walk, from_json
from .tracing import Followed, Tracer


class Looked(NamedTuple):
    """A node's answer. node: what it says of itself, see onnode.answer."""

    walks: list[Walk]
    node: Mapping[str, Any]


class Reach(Protocol):
    """Asks nodes by name; "": the node on which the reader is. Raises Unreachable."""

    def look(self, node: str, asks: Sequence[Asked]) -> Looked: ...


def request_of(asks: Sequence[Asked]) -> dict[str, Any]:
    return {"version": onnode.VERSION, "asks": [asdict(one) for one in asks]}


def read(node: str, answer: Mapping[str, Any]) -> Looked:
    """Reads a node's answer. Raises Unreachable."""
    try:
        if answer["version"] != onnode.VERSION:
            raise Unreachable(f"node {node} answers version {answer['version']}, this command asks {onnode.VERSION}")
        return Looked([from_json(one) for one in answer["walks"]], answer["node"])
    except (KeyError, TypeError) as err:
        raise Unreachable(f"node {node} answers in another form ({err!r}): use one version of podwire") from err


class Local:
    """Nodes that are network namespaces of this machine. find: a node's name -> its place."""

    def __init__(self, find: Callable[[str], onnode.Place]) -> None:
        self._find = find

    def space(self, node: str, ip: str) -> str:
        """Returns the path of the namespace on the node that can send from an address, "" if it has none such."""
        return onnode.space(self._find(node), ip)

    def trace(self, node: str, family: Family, flows: list[Followed]) -> Tracer:
        """Begins to follow packets on a node. Raises Unreachable, OSError."""
        return call_in(self._find(node).path, lambda: Tracer(node, family, flows))

    def look(self, node: str, asks: Sequence[Asked]) -> Looked:
        place = self._find(node)
        try:
            return read(node, onnode.answer(place, request_of(asks)))
        except PermissionError as err:
            raise Unreachable(f"{place.path}: {err.strerror}; this needs root") from err
        except OSError as err:
            raise Unreachable(f"node {node or 'here'} cannot be read: {err.strerror or err}") from err
