"""The conditions of a Node that tell where the roles of its agent stand. Pure.

The node agent of podwire writes them with the rest of its Node's status. An agent with a kubelet's credentials writes
them too: Kubernetes lets a kubelet write the status of its own Node, but no Lease other than its own in
kube-node-lease (admission plugin NodeRestriction, KEP-279). Each write of a Node goes to everybody who watches Nodes,
so these reports are as rare as a kubelet's (nodeStatusReportFrequency).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..role.standing import Standing
from .conditions import condition
from .meta import Object
from .times import parse_time, timestamp

ROLES = {
    "wiring": "PodwireWiring",
    "proxy": "PodwireProxy",
    "dns-feeder": "PodwireDnsFeeder",
    "dns": "PodwireDns",
    "lb": "PodwireLoadBalancer",
    "policy": "PodwirePolicy",
    "observe": "PodwireObserve",
}
EVERY = 300.0  # seconds between two writes of an agent that has no news
LATE = EVERY + 30.0  # seconds after which a report is too old to be believed


def patch(node: Object, roles: Mapping[str, Standing], now: float) -> Object:
    """Return the strategic merge patch of a Node's status. Conditions of other writers stay; one of a role that the
    agent does not run any more goes. A transition time changes only with the status.
    """
    rows: list[Object] = []
    for role, kind in ROLES.items():
        before = condition(node, kind)
        if role not in roles:
            rows += [{"$patch": "delete", "type": kind}] if before else []
            continue
        stands = roles[role]
        text = str(stands.ready)
        rows.append(
            {
                "type": kind,
                "status": text,
                "reason": stands.reason or "Unknown",
                "message": stands.message,
                "lastHeartbeatTime": timestamp(now),
                "lastTransitionTime": before["lastTransitionTime"]
                if before.get("status") == text and before.get("lastTransitionTime")
                else timestamp(now),
            }
        )
    return {"status": {"conditions": rows}}


def age(conditions: Iterable[Object], now: float) -> float:
    """Return the seconds since the newest report of conditions; 0 where none has a time that can be read."""
    times = []
    for row in conditions:
        try:
            times.append(parse_time(str(row["lastHeartbeatTime"])).timestamp())
        except (KeyError, ValueError):
            continue
    return max(0.0, now - max(times)) if times else 0.0
