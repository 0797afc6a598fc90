"""What the rules should do by the API's objects, and how that differs from what they do. Pure.

The proxy's own tracker and oracle work it out, for the node as the API and its rules describe it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from podwire_base.kube.conditions import is_true
from podwire_base.kube.meta import key, labels, name
from podwire_proxy.changes import Tracker
from podwire_proxy.decide import Packet, decide
from podwire_proxy.model import Claimable, NodeInfo
from podwire_proxy.settings import SERVICE_LABELS, SLICE_LABELS
from podwire_proxy.verdict import Verdict

from .catalogue import Catalogue, node_ips

_ZONE = "topology.kubernetes.io/zone"


def node_info(own: str, told: Mapping[str, Any], catalogue: Catalogue) -> NodeInfo:
    """Returns the node as its proxy knows it. told: what the node says of itself, see onnode.answer."""
    node = catalogue.find("Node", "", own)
    addresses = tuple(node_ips(node)) if node else tuple(told.get("addresses") or ())
    everybody = frozenset(ip for one in catalogue.of("Node") for ip in node_ips(one))
    return NodeInfo(
        own,
        addresses,
        labels(node).get(_ZONE, "") if node else "",
        tuple(told.get("podCIDRs") or ()),
        tuple(told.get("serviceCIDRs") or ()),
        claimable=Claimable(nodes=everybody),
    )


def expected(node: NodeInfo, packet: Packet, catalogue: Catalogue) -> Verdict | None:
    """Returns the verdict by the API's objects; None if they cannot be read or nothing of them concerns the packet."""
    if "Service" in catalogue.missing or "EndpointSlice" in catalogue.missing or packet.protocol == "ICMP":
        return None
    hidden, headless = SERVICE_LABELS.removeprefix("!"), SLICE_LABELS.removeprefix("!")
    tracker = Tracker(node)
    for service in catalogue.of("Service"):
        if hidden not in labels(service):
            tracker.service(key(service), service)
    for one in catalogue.of("EndpointSlice"):
        if headless not in labels(one):
            tracker.slice(key(one), one)
    tracker.flush()
    return decide(tracker.dataplane, packet)


def differs(wanted: Verdict, found: Verdict) -> str:
    """Returns how the rules differ from the API's objects, "" if they do not. Masquerading is not compared: it depends
    on settings that the API does not have.
    """
    want, have = {to for to, _ in wanted.to}, {to for to, _ in found.to}
    if wanted.kind == found.kind and want == have:
        return ""
    if want and have:
        gone = ", ".join(f"{to.ip}:{to.port}" for to in sorted(have - want)[:3])
        new = ", ".join(f"{to.ip}:{to.port}" for to in sorted(want - have)[:3])
        parts = [f"lead to {gone}, which the API no longer has"] * bool(gone)
        parts += [f"do not lead to {new}, which the API has"] * bool(new)
        return f"the rules {' and '.join(parts)}"
    if want:
        return f"the API has {len(want)} endpoint{'s' * (len(want) > 1)} for it, and the rules {_word(found)}"
    if have:
        return (
            f"the rules lead to {len(have)} endpoint{'s' * (len(have) > 1)}, and by the API they should {_word(wanted)}"
        )
    return f"the rules {_word(found)}, and by the API they should {_word(wanted)}"


def _word(verdict: Verdict) -> str:
    reason = f" ({str(verdict.reason).replace('-', ' ')})" if verdict.reason else ""
    words = {"pass": "do not serve the address", "reject": "refuse the packet", "drop": "drop the packet"}
    return words.get(str(verdict.kind), str(verdict.kind)) + reason


def proxy_state(told: Mapping[str, Any], own: str, catalogue: Catalogue) -> str:
    """Returns what the node's proxy says of itself."""
    role = (told.get("roles") or {}).get("proxy")
    node = catalogue.find("Node", "", own)
    ready = "" if node is None or is_true(node, "Ready") else f"; node {name(node)} is not Ready"
    if role is None:
        return f"no status of a proxy on {own or 'this node'}{ready}"
    word = "" if role.get("ready") else " (not ready)"
    return f"its proxy says{word}: {role.get('message') or 'nothing'}{ready}"
