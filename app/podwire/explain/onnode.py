"""The node's half of `podwire explain`: reads the node once and walks the packets that it is asked about. I/O.

    {"version": 1, "asks": [packet ...]} -> {"version": 1, "walks": [walk ...], "node": {...}}

With `"send": [source, destination, port, protocol]` it sends instead, for `--send`, and answers `"sent"`.

It runs where the node's network is: called in the node's namespace on a laptop, by `podwire agent`'s pod on a stock
cluster. Without `send` it changes nothing and sends nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from podwire_base.kernel.addresses import local_addresses
from podwire_base.kernel.netns import call_in
from podwire_base.role import hostports

from .observe import HERE, Pods, facts
from .packets import Asked
from .walk import walk

VERSION = 1


class Misshapen(Exception):
    """A request is not one of this version. The message says what is wrong."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a node is. path: its network namespace. run_dir: its agent's, None without one. extra: address -> path of
    further pods' namespaces.
    """

    path: str = HERE
    name: str = ""
    run_dir: Path | None = None
    extra: Mapping[str, str] = field(default_factory=dict)


def packet_of(data: Mapping[str, Any]) -> Asked:
    """Raises Misshapen."""
    try:
        claim = data.get("claim")
        return Asked(**{**data, "claim": tuple(claim) if claim else None})
    except TypeError as err:
        raise Misshapen(f"not a packet: {err}") from err


def answer(place: Place, request: Mapping[str, Any]) -> dict[str, Any]:
    """Answers a request. Raises Misshapen, and OSError if the node cannot be read."""
    if request.get("version") != VERSION:
        raise Misshapen(f"version {request.get('version')!r}: this node answers version {VERSION}; use one version")
    if (data := request.get("send")) is not None:
        return {"version": VERSION, "sent": _send(place, data)}
    asks = [packet_of(one) for one in request.get("asks") or []]
    found = facts(place.path, place.name, place.run_dir, place.extra)
    ports = ""
    if place.run_dir is not None:
        try:
            ports = hostports.path(place.run_dir).read_text()
        except OSError:
            ports = ""  # no pod of the node has a hostPort
    return {
        "version": VERSION,
        "walks": [walk(found, asked).to_json() for asked in asks],
        "node": {
            "name": place.name,
            "addresses": list(found.addresses),
            "podCIDRs": list(found.info.pod_cidrs),
            "serviceCIDRs": list(found.info.service_cidrs),
            "rules": found.live.place if found.live else "",
            "roles": dict(found.roles),
            "hostPorts": ports,
            "notes": list(found.notes),
        },
    }


def space(place: Place, ip: str) -> str:
    """Returns the path of the namespace on the node that can send from an address, "" if it has none such."""
    if ip in map(str, call_in(place.path, local_addresses)):
        return place.path
    return place.extra.get(ip, "") or Pods(place.run_dir, {}).path(ip)


def _send(place: Place, data: Any) -> dict[str, Any]:
    from .sending import CannotSend, on_node

    if not isinstance(data, list) or len(data) != 4:
        raise Misshapen(f"send: {data!r} is not [source, destination, port, protocol]")
    path = space(place, str(data[0]))
    if not path:
        raise Misshapen(f"send: {data[0]} is not an address of this node or of one of its pods")
    try:
        return on_node(path, place.path, place.name, data)
    except CannotSend as err:
        raise Misshapen(str(err)) from err
