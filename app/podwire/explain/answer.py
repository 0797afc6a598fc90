"""The answer of `podwire explain`: a verdict, its reason and the steps that led there, as data and as text. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from .steps import Step

SHOWN = 5  # endpoints that are listed one by one; the others of a kind are counted
_NAMES = re.compile(r"pod \S+")
_ADDRESS = re.compile(r"\d+\.\d+\.\d+\.\d+|[0-9a-f:]*:[0-9a-f:]+")


@dataclass(slots=True)
class End:
    """One possible destination and what becomes of the packet there. node: where it is. verdict: "forward" (delivered),
    "reject", "drop", "pass" (leaves the cluster) or "unknown".
    """

    ip: str
    port: int
    verdict: str
    reason: str = ""
    cause: str = ""
    node: str = ""
    pod: str = ""
    masquerade: bool = False
    translated: bool = False
    src: str = ""
    route: str = ""
    steps: list[tuple[str, Step]] = field(default_factory=list)  # (node, step)

    @property
    def at(self) -> str:
        return f"[{self.ip}]:{self.port}" if ":" in self.ip else f"{self.ip}:{self.port}"


@dataclass(slots=True)
class Answer:
    """verdict: "forward" (to an endpoint, or to a server), "reject" (refused at once), "drop" (silence), "pass" (no
    Service; it leaves the cluster) or "unknown". reason: a code of kernel/reasons.py or of steps.fault, "" where all is
    well. cause: one sentence for people. warnings: what does not stop this packet, but another one. doubts: what could
    not be judged. sent: the outcome of --send in words, "" without it. seen: the nodes that
    saw its packets; last_seen: where.
    """

    source: str
    destination: str
    protocol: str
    src: str = ""
    dst: str = ""
    port: int = 0
    node: str = ""
    service: str = ""
    verdict: str = "unknown"
    reason: str = ""
    cause: str = ""
    heads: list[Step] = field(default_factory=list)
    steps: list[tuple[str, Step]] = field(default_factory=list)
    ends: list[End] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    sent: str = ""
    agrees: bool | None = None
    last_seen: str = ""
    seen: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return self.verdict in ("forward", "pass") and not self.reason

    def to_json(self) -> dict[str, Any]:
        return {
            "source": {"name": self.source, "ip": self.src, "node": self.node},
            "destination": {"name": self.destination, "ip": self.dst, "port": self.port, "service": self.service},
            "protocol": self.protocol,
            "verdict": self.verdict,
            "reason": self.reason,
            "cause": self.cause,
            "steps": [
                {"node": node, "stage": step.stage, "text": step.text, "verdict": step.verdict}
                for node, step in self._all()
            ],
            "endpoints": [
                {
                    "ip": end.ip, "port": end.port, "node": end.node, "pod": end.pod, "verdict": end.verdict,
                    "reason": end.reason, "cause": end.cause, "masqueraded": end.masquerade, "route": end.route,
                }
                for end in self.ends
            ],
            "warnings": self.warnings,
            "doubts": self.doubts,
            **({"sent": self._sent()} if self.sent else {}),
        }  # fmt: skip

    def _sent(self) -> dict[str, Any]:
        return {"result": self.sent, "asExplained": self.agrees, "lastSeen": self.last_seen, "seen": self.seen}

    def _all(self) -> Iterator[tuple[str, Step]]:
        yield from ((self.node, step) for step in self.heads)
        yield from self.steps
        for end in self.ends:
            yield from end.steps

    def lines(self) -> Iterator[str]:
        """Yields the text for people. Endpoints of one kind are told once."""
        at = f"[{self.dst}]" if ":" in self.dst and self.port else self.dst
        to = f"{at}{f':{self.port}' if self.port else ''}/{self.protocol.lower()}"
        if self.dst:
            yield f"packet       {self.src} -> {to}{f', on node {self.node}' if self.node else ''}"
        yield from _titled(self.heads)
        yield from _titled(step for _, step in self.steps)
        yield from self._nat()
        yield from self._endings()
        for doubt in self.doubts:
            yield f"doubt        {doubt}"
        for warning in self.warnings:
            yield f"warning      {warning}"
        yield f"verdict      {self.verdict}: {self.cause}"
        if self.sent:
            yield f"sent         {self.sent}: {'as explained' if self.agrees else 'NOT as explained'}"
        yield from (f"seen         {line}" for line in self.seen)
        if self.last_seen:
            yield f"last seen    {self.last_seen}"

    def _nat(self) -> Iterator[str]:
        translated = [end for end in self.ends if end.translated]
        for end in translated[:SHOWN]:
            kept = "from the address of the outgoing interface (masqueraded)" if end.masquerade else "source kept"
            yield f"NAT          to {end.at}, {kept}"
        if len(translated) > SHOWN:
            yield f"NAT          ... and to {len(translated) - SHOWN} more endpoints"

    def _endings(self) -> Iterator[str]:
        """Yields a block for each kind of end: the endpoints, their route, their steps, what becomes of the packet."""
        kinds: dict[tuple[Any, ...], list[End]] = {}
        for end in self.ends:
            told = tuple((node, step.stage, _alike(step.text)) for node, step in end.steps)
            kind = (end.route, end.node, end.verdict, end.reason, _alike(end.cause), told)
            kinds.setdefault(kind, []).append(end)
        for ends in kinds.values():
            if ends[0].route:
                yield f"route        {_listed(end.ip for end in ends)}: {ends[0].route}"
            more = f" (and {len(ends) - 1} more alike)" if len(ends) > 1 else ""
            steps = [
                Step(
                    step.stage,
                    (f"{node}: " if node and node != self.node else "") + step.text + more * (step.stage == "endpoint"),
                )
                for node, step in ends[0].steps
            ]
            yield from _titled(steps)
            if ends[0].reason and len(self.ends) > 1:
                yield f"{'endpoint':<12} {_listed(end.at for end in ends)}: {ends[0].verdict}: {ends[0].cause}"


def _alike(text: str) -> str:
    """Returns the text without what differs between endpoints of one kind."""
    return _NAMES.sub("pod *", _ADDRESS.sub("*", text))


def _listed(words: Iterable[str]) -> str:
    found = list(dict.fromkeys(words))
    rest = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return ", ".join(found[:SHOWN]) + rest


def _titled(steps: Iterable[Step]) -> Iterator[str]:
    """Yields the steps with the name of each stage in front of its first line."""
    before = ""
    for stage, text, _ in steps:
        yield f"{stage if stage != before else '':<12} {text}"
        before = stage
