"""What the rules in a kernel do with a packet, in words. Pure: it is given what was read back from the kernel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .backend import Live, Trace
from .decide import Packet, source
from .model import Destination, NodeInfo, covers

Claims = Mapping[tuple[str, str, int], tuple[str, int, int]]  # (ip, protocol, port) -> (Service, endpoints, ready ones)
SHOWN = 5  # endpoints told in full
_ORIGINS = {"pod": "a pod's address", "node": "this node itself", "outside": "outside the cluster"}


@dataclass(frozen=True, slots=True)
class Explanation:
    """verdict: "forward", "pass", "reject" or "drop". to: possible deliveries, each with whether the source is
    masqueraded."""

    verdict: str
    to: tuple[tuple[Destination, bool], ...]
    lines: tuple[str, ...]


def explain(live: Live | None, node: NodeInfo, packet: Packet, claims: Claims | None = None) -> Explanation:
    """Trace the packet through the live rules. claims: what the API says of frontends, where it could be asked."""
    lines = [f"source       {packet.src}: {_ORIGINS[source(packet, node)]}"]
    claim = (claims or {}).get((packet.dst, packet.protocol, packet.port))
    if claim:
        lines.append(f"Service      {claim[0]}: {claim[2]} of {claim[1]} endpoints ready")
    if live is None:
        nothing = "rules        there is no table podwire here, and no chains PODWIRE-*: no proxy has run"
        return Explanation("pass", (), (*lines, nothing, "verdict      pass: routed as it is"))
    try:
        traces = list(live.traces(packet, node))
    except NotImplementedError as err:
        return Explanation(
            "unknown", (), (*lines, f"verdict      unknown: somebody put a rule into {live.place}: {err}")
        )
    verdicts = {trace.verdict for trace in traces}
    steps = list(
        dict.fromkeys(text for trace in traces[:SHOWN] for text in trace.steps)
    )  # what all ways share is told once
    lines += [f"{'' if index else 'rules':<12} {text}" for index, text in enumerate(steps)]
    if len(traces) > SHOWN:
        lines.append(f"{'':<12} ... and {len(traces) - SHOWN} more endpoints, each as likely")
    if verdicts != {"accept"}:
        verdict = "reject" if "reject" in verdicts else "drop"
        return Explanation(verdict, (), (*lines, f"verdict      {verdict}: {_why(traces[0], packet, node, claim)}"))
    to = tuple(dict.fromkeys((trace.to, trace.masquerade) for trace in traces if trace.to))
    if not to:
        return Explanation("pass", (), (*lines, "verdict      pass: no Service has this address; routed as it is"))
    for destination, masquerade in to[:SHOWN]:
        lines.append(
            f"{'NAT':<12} to {destination.ip}:{destination.port}, "
            f"{'from the address of the outgoing interface (masqueraded)' if masquerade else 'source kept'}"
        )
    return Explanation(
        "forward", to, (*lines, f"verdict      forward: to one of {len(to)} endpoint{'s' * (len(to) > 1)}")
    )


def _why(trace: Trace, packet: Packet, node: NodeInfo, claim: tuple[str, int, int] | None) -> str:
    steps = " ".join(trace.steps)
    if trace.steps and (trace.steps[-1].startswith("rule sources-") or "not in the source ranges" in trace.steps[-1]):
        return f"{packet.src} is in none of the Service's loadBalancerSourceRanges"
    if "no-local-endpoint" in steps or "Local traffic policy" in steps:
        return f"its traffic policy is Local, and no ready endpoint is on node {node.name or 'this node'}"
    if "map services" in steps or "map outside" in steps or " --dport " in steps:
        return "the Service has no ready endpoint" + (f" ({claim[1]} in all)" if claim else "")
    if "loopback" in steps:
        return "a loopback address cannot come from the wire"
    if "unallocated" in steps:
        return "no Service has this address, though it is in the Service range"
    if "other ports" in steps or covers(node.service_cidrs, packet.dst):
        return f"the Service has no port {packet.port}/{packet.protocol}"
    return "a rule that is not the proxy's, or one that changed, decides"
