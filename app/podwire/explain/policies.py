"""Adds to an answer which policies judge the packet, by which rule, in both directions. Pure.

The verdict is that of the nodes' rules, which the walk read. This says what the policies of the API mean for it, so a
node that has not learned of a policy yet shows too.
"""

from __future__ import annotations

from podwire_policy.model import PROTOCOLS
from podwire_policy.overview import Overview, trail_words

from .answer import Answer, End
from .catalogue import Catalogue
from .steps import Step

_NUMBERS = {**PROTOCOLS, "ICMP": 1}


def tell(answer: Answer, overview: Overview, catalogue: Catalogue) -> None:
    """Adds a step for each direction that a policy judges, to each end; and a warning where an end is reached that
    policies deny, or the reverse.
    """
    for end in answer.ends:
        if not answer.src or not end.ip or _own_node(answer, end, catalogue):
            continue
        judged = overview.judge(answer.src, end.ip, _NUMBERS[answer.protocol], end.port)
        for trail in judged.trails:
            if trail.isolated or trail.by or trail.staged:
                text = f"{trail.direction} of {trail.pod}: {trail_words(trail)}"
                end.steps.append((end.node, Step("policy", text, "" if trail.verdict == "allow" else "drop")))
        if end.verdict == "forward" and not judged.allowed:
            answer.warnings.append(f"the policies of the API deny what the nodes let pass to {end.at}")


def _own_node(answer: Answer, end: End, catalogue: Catalogue) -> bool:
    """Whether the packet is between a pod and its own node, or of nodes alone: nobody judges it."""
    src, dst = catalogue.pod_at(answer.src), catalogue.pod_at(end.ip)
    if src is None and dst is None:
        return True
    if dst is None:
        return end.node == answer.node != ""
    return src is None and catalogue.node_at(answer.src) == end.node != ""
