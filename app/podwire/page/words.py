"""The words of `podwire explain` and `podwire flows` for a pair of the page. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from podwire_base.kernel.reasons import Reason
from podwire_base.role.logtext import printable
from podwire_observe.filters import Filters
from podwire_observe.query import Query

from .view import Sample


def question(sample: Sample) -> Query:
    """Returns what asks for the latest connection of a pair."""
    allow = {"protocol": (sample.protocol,)} if sample.protocol else {}
    for side, end in (("from", sample.source), ("to", sample.target)):
        if end["kind"] == "pod":
            allow[f"{side}-exact"] = (f"{end['namespace']}/{end['name']}",)
        elif end["kind"] == "outside":
            allow[f"{side}-ip"] = (end["name"],)
    if sample.verdict:
        allow["verdict"] = (sample.verdict,)
    if sample.reason:
        allow["reason"] = (sample.reason,)
    if sample.service:
        allow["to-service"] = (f"{sample.service['namespace']}/{sample.service['name']}",)
    return Query("flows", 1, filters=Filters(allow))


def explaining(sample: Sample, flow: Mapping[str, Any] | None) -> tuple[str, ...] | None:
    """Returns the words of `podwire explain`, None if nobody knows which packet is meant. flow: the latest connection
    of the pair, as JSON.
    """
    source = _source(sample.source, flow)
    target = _target(sample, flow)
    if not source or not target:
        return None
    entering = ("--from-node", sample.node) if sample.source["kind"] == "outside" else ()
    return (*entering, "--", source, target)


def _source(end: Mapping[str, str], flow: Mapping[str, Any] | None) -> str:
    if end["kind"] == "pod":
        return f"{end['namespace']}/{end['name']}"
    if end["kind"] == "node":
        return f"node/{end['name']}"
    return str(flow["source_ip"]) if flow else end["name"] if end["kind"] == "outside" else ""


def _target(sample: Sample, flow: Mapping[str, Any] | None) -> str:
    tail = f"/{sample.protocol}" if sample.protocol not in ("tcp", "") else ""
    if sample.protocol in ("icmp", "icmpv6"):
        tail = "/icmp"
    service, port = sample.service, str(flow["port"]) if flow and flow["port"] else ""
    if service and not (flow and sample.reason == Reason.WRONG_PORT):  # explain takes names of ports that there are
        return f"{service['namespace']}/{service['name']}:{service['port']}{tail}"
    if flow:
        ip = str(flow["ip"])
        return f"{f'[{ip}]' if ':' in ip and port else ip}{f':{port}' if port else ''}{tail}"
    if sample.target["kind"] == "pod":
        return f"{sample.target['namespace']}/pod/{sample.target['name']}{tail}"
    return ""


def commands(sample: Sample, explained: tuple[str, ...] | None, cluster: tuple[str, ...] = ()) -> list[str]:
    """Returns the command lines that tell the same."""
    chosen: list[str] = []
    source, service, target = sample.source, sample.service, sample.target
    if source["kind"] == "pod":
        chosen += ["--from-pod", sample.caller]
    elif source["kind"] == "outside":
        chosen += ["--from-ip", source["name"]]
    if service:
        chosen += ["--to-service", f"{service['namespace']}/{service['name']}"]
    elif target["kind"] == "pod":
        chosen += ["--to-pod", f"{target['namespace']}/{target['name']}"]
    elif target["kind"] == "outside":
        chosen += ["--to-ip", target["name"]]
    if sample.verdict:
        chosen += ["--verdict", sample.verdict]
    found = [["podwire", "explain", *cluster, *(word for word in explained if word != "--")]] if explained else []
    return [printable(shlex.join(words)) for words in (*found, ["podwire", "flows", "-f", *cluster, *chosen])]
