"""Explains in words the effect of a kernel's rules on a packet. Pure: the input was read from the kernel."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from podwire_base.kernel.reasons import Reason

from .backend import Live
from .decide import Packet, source
from .model import Destination, NodeInfo
from .verdict import PASS, Kind, Verdict, forward

Claims = Mapping[tuple[str, str, int], tuple[str, int, int]]  # (ip, protocol, port) -> (Service, endpoints, ready)
SHOWN = 5  # up to this number, the explanation lists all endpoints
_ORIGINS = {"pod": "a pod's address", "node": "this node itself", "outside": "outside the cluster"}


@dataclass(frozen=True, slots=True)
class Explanation:
    """The verdict of the rules on a packet, in words.

    verdict: None if the tracer does not understand the rules. to: (destination, whether the source is masqueraded) of
    each possible delivery, in the order of the rules.
    """

    verdict: Verdict | None
    lines: tuple[str, ...]
    to: tuple[tuple[Destination, bool], ...] = ()


def explain(
    live: Live | None, node: NodeInfo, packet: Packet, claims: Claims | None = None, absent: Iterable[str] = ()
) -> Explanation:
    """Traces the packet through the live rules.

    claims: the API's information about frontends, if the API was reachable. absent: the places that could have rules,
    for a `live` of None.
    """
    lines = [f"source       {packet.src}: {_ORIGINS[source(packet, node)]}"]
    claim = (claims or {}).get((packet.dst, packet.protocol, packet.port))
    if claim:
        lines.append(f"Service      {claim[0]}: {claim[2]} of {claim[1]} endpoints ready")
    if live is None:
        nothing = f"rules        here is no {', no '.join(absent)}: no proxy has run"
        return Explanation(PASS, (*lines, nothing, "verdict      pass: routed as it is"))
    try:
        traces = list(live.traces(packet, node))
    except NotImplementedError as err:
        return Explanation(None, (*lines, f"verdict      unknown: another program put a rule into {live.place}: {err}"))
    steps = list(
        dict.fromkeys(text for trace in traces[:SHOWN] for text in trace.steps)
    )  # the explanation lists common steps of all paths once
    lines += [f"{'' if index else 'rules':<12} {text}" for index, text in enumerate(steps)]
    if len(traces) > SHOWN:
        lines.append(f"{'':<12} ... and {len(traces) - SHOWN} more endpoints, each as likely")
    refused = next((trace.verdict for trace in traces if trace.verdict.kind in (Kind.REJECT, Kind.DROP)), None)
    if refused:
        return Explanation(
            refused, (*lines, f"verdict      {refused.kind}: {_why(refused.reason, packet, node, claim)}")
        )
    to = tuple(dict.fromkeys(delivery for trace in traces for delivery in trace.verdict.to))
    if not to:
        why = "no Service has this address"
        if claim:  # an externalIP of a node without endpoints, or one that is refused
            why = (
                f"{claim[0]} is not served here, its Events say why"
                if claim[2]
                else "the Service has no ready endpoint"
            )
        return Explanation(PASS, (*lines, f"verdict      pass: {why}; routed as it is"))
    for destination, masquerade in to[:SHOWN]:
        lines.append(
            f"{'NAT':<12} to {destination.ip}:{destination.port}, "
            f"{'from the address of the outgoing interface (masqueraded)' if masquerade else 'source kept'}"
        )
    told = f"verdict      forward: to one of {len(to)} endpoint{'s' * (len(to) > 1)}"
    return Explanation(forward(to), (*lines, told), to)


def _why(reason: Reason | None, packet: Packet, node: NodeInfo, claim: tuple[str, int, int] | None) -> str:
    """Returns the reason of the deciding rule, in words."""
    match reason:
        case Reason.SOURCE_RANGE:
            return f"{packet.src} is in none of the Service's loadBalancerSourceRanges"
        case Reason.NO_LOCAL_ENDPOINTS:
            return f"its traffic policy is Local, and no ready endpoint is on node {node.name or 'this node'}"
        case Reason.NO_ENDPOINTS:
            return "the Service has no ready endpoint" + (f" ({claim[1]} in all)" if claim else "")
        case Reason.LOOPBACK_MARTIAN:
            return "a loopback address is not valid on the wire"
        case Reason.UNALLOCATED_ADDRESS:
            return "no Service has this address, though it is in the Service range"
        case Reason.WRONG_PORT:
            return f"the Service has no port {packet.port}/{packet.protocol}"
        case Reason.SLOT_MISSING:
            return "the chosen endpoint is gone; the client's next attempt chooses another one"
        case None:
            return "a rule that is not the proxy's, or one that changed, decides"
    return reason.value.replace("-", " ")
