"""Which endpoints a Service uses: the cases of Kubernetes' own test (TestCategorizeEndpoints of 1.36), as facts.

Each case names the set for traffic that may go anywhere and the set of a Local policy; the verdicts on packets follow
from the Service's policies. Endpoints "b" and "a" are on this node (zone-a), "c" and "h" elsewhere.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..decide import Packet
from ..model import Destination
from ..verdict import NO_ENDPOINTS, NO_LOCAL_ENDPOINTS, Verdict
from .builders import endpoint
from .table import (
    HOST,
    INFO,
    NODE,
    NODE_IP,
    NODE_PORT,
    OUT,
    POD_A,
    POD_B,
    POD_C,
    SELF,
    TARGET,
    VIP,
    Scenario,
    everything,
    packet,
    some_slice,
    to,
)

PLACES = {"a": (POD_A, NODE), "b": (POD_B, NODE), "c": (POD_C, "n2"), "h": (HOST, "n3")}
READY: dict[str, Any] = {}
UNREADY: dict[str, Any] = {"ready": False, "serving": False}
ENDING: dict[str, Any] = {"ready": False, "serving": True, "terminating": True}
ITP, ETP = {"internalTrafficPolicy": "Local"}, {"externalTrafficPolicy": "Local"}


def zones(*names: str, **conditions: bool) -> dict[str, Any]:
    return {**conditions, "hints": {"forZones": [{"name": name} for name in names]}}


def nodes(node: str, *zone: str) -> dict[str, Any]:
    hints = {"forNodes": [{"name": node}]}
    return {"hints": {**hints, "forZones": [{"name": name} for name in zone]} if zone else hints}


def _case(
    name: str,
    found: dict[str, dict[str, Any]],
    cluster: str,
    local: str,
    policy: dict[str, str] | None = None,
    *,
    zone: str = "zone-a",
) -> Scenario:
    """Returns one case. cluster, local: the letters of the endpoints in each set."""
    spec = policy or {}
    everywhere, here = ([Destination(PLACES[letter][0], TARGET) for letter in letters] for letters in (cluster, local))
    none = NO_LOCAL_ENDPOINTS if everywhere or here else NO_ENDPOINTS

    def verdict(backends: list[Destination], masquerade: bool) -> Verdict:
        return to(backends, masquerade) if backends else none

    expect: dict[Packet, Verdict] = {
        packet(OUT, VIP): verdict(here if spec.get("internalTrafficPolicy") else everywhere, True),
        packet(OUT, NODE_IP, NODE_PORT): verdict(here, False)
        if spec.get("externalTrafficPolicy")
        else verdict(everywhere, True),
    }
    if "h" not in cluster:  # the node's packets are masqueraded to its own address: a server cannot see it
        expect[packet(SELF, NODE_IP, NODE_PORT)] = verdict(everywhere, True)
    made = [endpoint(*PLACES[letter], **flags) for letter, flags in found.items()]
    return Scenario(f"selection: {name}", (everything(**spec), some_slice(*made)), expect, replace(INFO, zone=zone))


def selection() -> list[Scenario]:
    """Returns the 32 cases."""
    spread = {"b": zones("zone-a"), "a": zones("zone-b"), "c": zones("zone-c"), "h": zones("zone-a")}
    near = {"b": zones("zone-a"), "a": zones("zone-b"), "c": zones("zone-a"), "h": zones("zone-b")}
    both = {"b": READY, "c": READY}
    away = {"c": READY, "h": READY}
    mixed = {"c": READY, "a": UNREADY, "b": ENDING, "h": ENDING}
    return [
        _case("zone hints", spread, "bh", "ab"),
        _case("zone hints do not touch the Local set of externalTrafficPolicy", spread, "bh", "ab", ETP),
        _case("zone hints do not touch the Local set of internalTrafficPolicy", spread, "bh", "ab", ITP),
        _case("node without labels", {"b": zones("zone-a")}, "b", "b", zone=""),
        _case("zone hints, node without a zone", spread, "abch", "ab", zone=""),
        _case("zone hints, none for the node's zone", {"b": zones("zone-a")}, "b", "b", zone="zone-b"),
        _case(
            "zone hints, an endpoint of the zone is not ready", {**spread, "h": zones("zone-a", ready=False)}, "b", "ab"
        ),
        _case(
            "zone hints, no endpoint of the zone is ready",
            {**spread, "b": zones("zone-a", ready=False), "h": zones("zone-a", ready=False)},
            "ac",
            "a",
        ),
        _case("zone hints, one endpoint has none", {**spread, "c": READY}, "abch", "ab"),
        _case(
            "zone hints, several zones each",
            {
                "b": zones("zone-a", "zone-b", "zone-c"),
                "a": zones("zone-b", "zone-c"),
                "c": zones("zone-b", "zone-d"),
                "h": zones("zone-c"),
            },
            "abh",
            "ab",
            zone="zone-c",
        ),
        _case("zone hints against externalTrafficPolicy Local: both sets", near, "bc", "ab", ETP),
        _case("internalTrafficPolicy Local, no endpoints", {}, "", "", ITP),
        _case("internalTrafficPolicy Local, all elsewhere", away, "ch", "", ITP),
        _case("internalTrafficPolicy Local, all here", {"b": READY, "a": READY}, "ab", "ab", ITP),
        _case("internalTrafficPolicy Local, some here", both, "bc", "b", ITP),
        _case("none ready", {"b": UNREADY, "c": UNREADY}, "", ""),
        _case("some ready", {"b": UNREADY, "c": READY}, "c", ""),
        _case("all terminating", {"b": ENDING, "c": ENDING}, "bc", "b"),
        _case("internal Local, external Cluster", both, "bc", "b", ITP),
        _case("internal Cluster, external Local", both, "bc", "b", ETP),
        _case("both Local, some here", both, "bc", "b", ITP | ETP),
        _case("both Local, all elsewhere", away, "ch", "", ITP | ETP),
        _case("both Local, all elsewhere and terminating", {"c": ENDING, "h": ENDING}, "ch", "", ITP | ETP),
        _case("external Local, terminating ones here, ready ones elsewhere", mixed, "c", "b", ETP),
        _case("external Local, ready here, terminating elsewhere", {"b": READY, "h": ENDING}, "b", "b", ETP),
        _case("all terminating and none serving", {"b": UNREADY | {"terminating": True}, "c": UNREADY}, "", ""),
        _case("node hints name this node", {"b": nodes(NODE), "a": nodes("n2"), "c": nodes("n3")}, "b", "ab"),
        _case(
            "node hints before zone hints",
            {"b": nodes("n9", "zone-a"), "a": nodes(NODE, "zone-b"), "c": nodes("n2", "zone-a")},
            "a",
            "ab",
        ),
        _case(
            "node hints for others only: the zone decides",
            {"b": nodes("n9", "zone-a"), "c": nodes("n2", "zone-b")},
            "b",
            "b",
        ),
        _case("node hints for others only, no zone hints", {"b": nodes("n9"), "c": nodes("n2")}, "bc", "b"),
        _case(
            "node hints, one endpoint has none: the zone decides",
            {"b": nodes(NODE, "zone-b"), "c": zones("zone-a")},
            "c",
            "b",
        ),
        _case("node hints do not touch the Local set", {"b": nodes("n2"), "c": nodes(NODE)}, "c", "b", ITP | ETP),
    ]
