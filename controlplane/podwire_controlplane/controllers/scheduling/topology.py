"""Rules about other pods in the same topology domain: pod affinity, anti-affinity, and spread. Pure.

Source: core/v1 PodAffinityTerm, TopologySpreadConstraint; Kubernetes' documentation "Inter-pod affinity and
anti-affinity" and "Pod Topology Spread Constraints".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from podwire_base.kube.meta import Object, deleting, labels, namespace
from podwire_base.kube.selectors import label_selector

from .. import affinity
from ..taints import untolerated
from .places import Place, taints

REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"
_SPREAD = "node(s) didn't match pod topology spread constraints"
_AFFINITY = "node(s) didn't match pod affinity rules"
# Reasons that stay whichever pods leave.
FINAL = frozenset({f"{_SPREAD} (missing required label)", _AFFINITY})
Why = Callable[[Place], str]  # "": nothing speaks against the node


@dataclass(frozen=True, slots=True)
class Facts:
    """spaces: the labels of each namespace, for namespaceSelectors."""

    spaces: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Term:
    """A PodAffinityTerm of a pod, ready to be asked. space: of the pod."""

    body: Object
    space: str
    weight: int = 0

    @property
    def domain(self) -> str:
        return str(self.body.get("topologyKey") or "")

    def covers(self, other: Object, facts: Facts) -> bool:
        """Whether the term is about another pod. A term without a labelSelector is about none."""
        selector = self.body.get("labelSelector")
        if selector is None or not self._space(namespace(other), facts):
            return False
        return label_selector(selector)(labels(other))

    def _space(self, own: str, facts: Facts) -> bool:
        names, chosen = self.body.get("namespaces") or [], self.body.get("namespaceSelector")
        if chosen is not None and label_selector(chosen)(facts.spaces.get(own, {})):
            return True
        return own in names if names or chosen is not None else own == self.space


def terms(pod: Object, which: str) -> list[Term]:
    """Return the required terms. which: podAffinity or podAntiAffinity."""
    part = (pod["spec"].get("affinity") or {}).get(which) or {}
    return [Term(row, namespace(pod)) for row in part.get(REQUIRED) or []]


def preferred(pod: Object, which: str) -> list[Term]:
    part = (pod["spec"].get("affinity") or {}).get(which) or {}
    return [Term(r["podAffinityTerm"], namespace(pod), int(r.get("weight") or 0)) for r in part.get(PREFERRED) or []]


def neighbours(places: Iterable[Place]) -> Iterator[tuple[Place, Object]]:
    for place in places:
        for pod in place.pods:
            yield place, pod


def together(pod: Object, places: Sequence[Place], facts: Facts) -> Why:
    """Return what required affinity and anti-affinity, the pod's own and that of others, say about a node."""
    wanted, hated = terms(pod, "podAffinity"), terms(pod, "podAntiAffinity")
    near: Counter[tuple[int, str]] = Counter()  # (number of the term, its domain)
    far, refused = set[tuple[str, str]](), set[tuple[str, str]]()
    for place, other in neighbours(places):
        if wanted and all(term.covers(other, facts) for term in wanted):
            near.update((n, place.labels[t.domain]) for n, t in enumerate(wanted) if t.domain in place.labels)
        if hated:
            far.update(_domains(place, [term for term in hated if term.covers(other, facts)]))
        if other["spec"].get("affinity"):
            theirs = [term for term in terms(other, "podAntiAffinity") if term.covers(pod, facts)]
            refused.update(_domains(place, theirs))
    # The first pod of a group that wants to be together has nobody to join.
    alone = not near and all(term.covers(pod, facts) for term in wanted)

    def why(place: Place) -> str:
        held = place.labels
        for n, term in enumerate(wanted):
            if term.domain not in held or not (alone or near[(n, held[term.domain])]):
                return _AFFINITY
        if any(held.get(key) == value for key, value in far):
            return "node(s) didn't match pod anti-affinity rules"
        if any(held.get(key) == value for key, value in refused):
            return "node(s) didn't satisfy existing pods anti-affinity rules"
        return ""

    return why


def _domains(place: Place, rows: Iterable[Term]) -> Iterator[tuple[str, str]]:
    for term in rows:
        if term.domain in place.labels:
            yield term.domain, place.labels[term.domain]


def constraints(pod: Object, action: str) -> list[Object]:
    rows = pod["spec"].get("topologySpreadConstraints") or []
    return [row for row in rows if row.get("whenUnsatisfiable", "DoNotSchedule") == action]


def counted(pod: Object, constraint: Object, places: Sequence[Place]) -> dict[str, int]:
    """Return domain -> pods of the constraint in it, for the domains that the constraint is about: those of nodes that
    the pod's own rules allow.
    """
    key, found = str(constraint["topologyKey"]), dict[str, int]()
    test = label_selector(constraint.get("labelSelector") or {})
    some = constraint.get("labelSelector") is not None
    for place in places:
        if key not in place.labels or not _eligible(pod, constraint, place):
            continue
        mine = sum(
            some and namespace(other) == namespace(pod) and not deleting(other) and test(labels(other))
            for other in place.pods
        )
        found[place.labels[key]] = found.get(place.labels[key], 0) + mine
    return found


def _eligible(pod: Object, constraint: Object, place: Place) -> bool:
    if constraint.get("nodeAffinityPolicy") != "Ignore" and not affinity.wants(pod["spec"], place.node):
        return False
    honour = constraint.get("nodeTaintsPolicy") == "Honor"
    return not (honour and untolerated(taints(place.node), pod["spec"].get("tolerations") or []))


def own(pod: Object, constraint: Object) -> int:
    """Return 1 if the pod itself is one of those that the constraint counts."""
    selector = constraint.get("labelSelector")
    return int(selector is not None and label_selector(selector)(labels(pod)))


def spread(pod: Object, places: Sequence[Place]) -> Why:
    """Return what the constraints with DoNotSchedule say about a node."""
    rows = [(row, counted(pod, row, places)) for row in constraints(pod, "DoNotSchedule")]

    def why(place: Place) -> str:
        for row, found in rows:
            here = place.labels.get(str(row["topologyKey"]))
            if here is None:
                return f"{_SPREAD} (missing required label)"
            few = len(found) < int(row.get("minDomains") or 1)
            least = 0 if few or not found else min(found.values())
            if found.get(here, 0) + own(pod, row) - least > int(row["maxSkew"]):
                return _SPREAD
        return ""

    return why
