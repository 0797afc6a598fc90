"""The page /metrics of the role. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from podwire_base.kernel.reasons import Reason
from podwire_base.role.metrics import Page, ProcessFigures

from .counted import Row


@dataclass(frozen=True, slots=True)
class Figures:
    """policies: tier -> policies in force. staged: policies that are not. unusable: policies of which something is
    unusable. isolated: pods of the node that a policy in force isolates.
    """

    policies: dict[str, int]
    staged: int
    unusable: int
    isolated: int
    commits: int
    ended: int


def page(drops: Iterable[tuple[Row, int]], figures: Figures, process: ProcessFigures) -> str:
    """Returns the page in Prometheus' text format."""
    made, rows = Page(), list(drops)
    for name, reason, text in (
        ("dropped", Reason.POLICY, "First packets that policies of this node dropped."),
        ("staged", Reason.STAGED, "First packets that policies which are not in force would have dropped."),
    ):
        samples = (
            ({"direction": row.direction, "policy": row.policy, "rule": row.rule}, float(count))
            for row, count in rows
            if row.reason is reason
        )
        made.family(f"podwire_policy_{name}_packets_total", "counter", text, samples)
    made.family(
        "podwire_policy_policies",
        "gauge",
        "Policies in force, by tier.",
        [({"tier": tier}, float(count)) for tier, count in figures.policies.items()],
    )
    for name, kind, text, value in (
        ("staged_policies", "gauge", "Policies that are not in force.", figures.staged),
        ("unusable_policies", "gauge", "Policies of which something is unusable.", figures.unusable),
        ("isolated_pods", "gauge", "Pods of this node that a policy isolates.", figures.isolated),
        ("commits_total", "counter", "Changes of the rules that were written.", figures.commits),
        ("flows_ended_total", "counter", "Open flows that a change of policies ended.", figures.ended),
    ):
        made.family(f"podwire_policy_{name}", kind, text, [({}, float(value))])
    made.process(process)
    return made.text()
