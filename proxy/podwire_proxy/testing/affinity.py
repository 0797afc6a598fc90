"""Rows of the conformance table: sessionAffinity ClientIP."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from podwire_base.kube import meta

from ..decide import Packet
from ..model import NodeInfo
from ..verdict import PASS
from .builders import endpoint, endpoint_slice, port, service
from .table import (
    BOTH,
    FRONTENDS,
    INFO,
    NODE,
    OUT,
    POD,
    POD_A,
    PORT,
    SELF,
    TARGET,
    VIP,
    Scenario,
    everything,
    packet,
    rows,
    some_slice,
)


@dataclass(frozen=True)
class Affinity:
    """Packets of one client. All of `same` go where the first one went; those of `apart` are independent of it."""

    name: str
    objects: tuple[meta.Object, ...]
    same: tuple[Packet, ...]
    apart: tuple[Packet, ...] = ()
    node: NodeInfo = field(default=INFO)

    def scenario(self) -> Scenario:
        return Scenario(self.name, self.objects, dict.fromkeys((*self.same, *self.apart), PASS), self.node)

    def v6(self) -> Affinity:
        changed = self.scenario().v6()
        sent = tuple(changed.expect)
        return Affinity(changed.name, changed.objects, sent[: len(self.same)], sent[len(self.same) :], changed.node)


def affinity() -> list[Affinity]:
    """sessionAffinity ClientIP: by client address and Service port, over all its frontends."""
    sticky: dict[str, Any] = {"sessionAffinity": "ClientIP"}
    brief: dict[str, Any] = {**sticky, "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 30}}}

    def everywhere(source: str, protocol: str = "TCP") -> tuple[Packet, ...]:
        return tuple(rows(source, PASS, PASS, protocol))

    two = service("my-service", VIP, [port(PORT, "TCP", "t"), port(PORT, "UDP", "u")], **sticky)
    both = endpoint_slice("my-service", BOTH, [("t", "TCP", TARGET), ("u", "UDP", TARGET)])
    return [
        Affinity("affinity: a pod, every frontend", (everything(**sticky), some_slice(*BOTH)), everywhere(POD)),
        Affinity("affinity: this node", (everything(**brief), some_slice(*BOTH)), everywhere(SELF)),
        Affinity(
            "affinity: outside, UDP",
            (everything(**sticky, protocol="UDP"), some_slice(*BOTH, protocol="UDP")),
            everywhere(OUT, "UDP"),
        ),
        Affinity(
            "affinity: another port of the Service", (two, both), (packet(POD, VIP),), (packet(POD, VIP, PORT, "UDP"),)
        ),
        Affinity(
            "affinity: another client",
            (everything(**sticky), some_slice(*BOTH)),
            (packet(POD, VIP),),
            (packet(OUT, VIP),),
        ),
        Affinity(
            "affinity: externalTrafficPolicy Local, a pod",
            (everything(**sticky, externalTrafficPolicy="Local"), some_slice(*BOTH)),
            everywhere(POD),
        ),
        Affinity(
            "affinity: externalTrafficPolicy Local, outside",
            (everything(**sticky, externalTrafficPolicy="Local"), some_slice(*BOTH, endpoint(POD_A, NODE))),
            tuple(packet(OUT, ip, n) for ip, n in FRONTENDS),
            (packet(OUT, VIP),),
        ),
        Affinity(
            "affinity: internalTrafficPolicy Local",
            (everything(**sticky, internalTrafficPolicy="Local"), some_slice(*BOTH, endpoint(POD_A, NODE))),
            (packet(OUT, VIP),),
            tuple(packet(OUT, ip, n) for ip, n in FRONTENDS),
        ),
    ]
