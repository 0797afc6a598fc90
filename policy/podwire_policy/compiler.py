"""Objects -> Compiled, kept up to date: a change costs what it touches. Pure."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from .cells import Group, group, named_peers
from .compiled import Compiled, Delta, Judged
from .members import Members
from .model import NODES, Labels, Named, Pod, Pods, Policy


@dataclass(slots=True)
class Compiler:
    """Takes objects one after another; `flush` works out what they mean for the pods of `node`. After any sequence of
    changes, `compiled` is equal to that of a new Compiler with the same objects.
    """

    node: str
    members: Members = field(default_factory=Members)
    policies: dict[str, Policy] = field(default_factory=dict)
    compiled: Compiled = field(init=False)
    _by_namespace: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    _dirty: set[str] = field(default_factory=set)  # keys of pods of this node
    _local: set[str] = field(default_factory=set)
    _held: dict[str, dict[str, Judged]] = field(default_factory=dict)  # pod -> address -> programs
    _uses: dict[Group, int] = field(default_factory=dict)
    _numbers: dict[tuple[Pods, Named], tuple[int, ...]] = field(default_factory=dict)  # that the programs rely on

    def __post_init__(self) -> None:
        self.compiled = Compiled(selected=self.members.selected)

    def namespace(self, name: str, labels: Labels | None) -> None:
        if self.members.namespace(name, labels):
            if self._by_namespace.get(""):  # policies that select pods by the labels of their namespaces
                self._dirty |= {
                    key for key in self._local & self.members.pods.keys() if self.members.pods[key].namespace == name
                }
            self._recheck()

    def pod(self, key: str, pod: Pod | None) -> None:
        touched = self.members.pod(key, pod)
        if not touched:
            return
        for one in touched:
            here = self.members.pods.get(one)
            if here is not None and here.node == self.node:
                self._local.add(one)
            if one in self._local:
                self._dirty.add(one)
        self._recheck()

    def policy(self, key: str, policy: Policy | None) -> None:
        before = self.policies.get(key)
        if before == policy:
            return
        if policy is None:
            del self.policies[key]
        else:
            self.policies[key] = policy
        for one, note in ((before, set.discard), (policy, set.add)):
            if one is not None:
                note(self._by_namespace[one.subject.namespace or ""], key)
        for pod in map(self.members.pods.__getitem__, self._local & self.members.pods.keys()):
            if any(p and self.members.covers(p.subject, pod.namespace, pod.labels) for p in (before, policy)):
                self._dirty.add(pod.key)

    def machine(self, name: str, node: Pod | None) -> None:
        """Notes a Node, a peer like a pod (NODES)."""
        self.pod(f"{NODES}/{name}", node)

    def closed(self, namespace: str) -> bool:
        """Whether a policy may select pods of a namespace."""
        return bool(self._by_namespace.get(namespace) or self._by_namespace.get(""))

    def known(self, namespace: str) -> bool:
        """Whether it is known which policies select pods of a namespace by its labels."""
        return namespace in self.members.namespaces or not self._by_namespace.get("")

    def _recheck(self) -> None:
        """Marks every pod of the node if a named port of an egress rule means other numbers than before."""
        if self._numbers and any(self.members.numbers(*asked) != was for asked, was in self._numbers.items()):
            self._dirty |= self._local

    def selecting(self, pod: Pod) -> list[Policy]:
        """Returns the policies that select a pod, by name."""
        keys = sorted({*self._by_namespace.get(pod.namespace, ()), *self._by_namespace.get("", ())})
        found = (self.policies[key] for key in keys)
        return [p for p in found if self.members.covers(p.subject, pod.namespace, pod.labels)]

    def flush(self) -> Delta:
        """Works out all noted changes."""
        delta, made = Delta(), dict[tuple[object, ...], tuple[Group | None, Group | None]]()
        old: list[Group] = []
        for key in sorted(self._dirty):
            before, after = self._held.pop(key, {}), self._judge(key, made)
            if after:
                self._held[key] = after
            if key not in self.members.pods or self.members.pods[key].node != self.node:
                self._local.discard(key)
            for judged in after.values():
                for one in (judged.ingress, judged.egress):
                    self._use(one, delta)
            old += [one for judged in before.values() for one in (judged.ingress, judged.egress) if one is not None]
            delta.addresses |= {ip for ip in before.keys() | after.keys() if before.get(ip) != after.get(ip)}
        for ip in delta.addresses:
            owner = self.members.owners.get(ip, "")
            found = self._held.get(owner, {}).get(ip)
            if found is not None:
                self.compiled.addresses[ip] = found
            else:
                self.compiled.addresses.pop(ip, None)
        for one in old:
            self._unuse(one, delta)
        self._dirty.clear()
        self._forget_numbers()
        delta.members = {s: c for s, c in self.members.take().items() if s not in delta.selectors_came}
        return delta

    def _judge(self, key: str, made: dict[tuple[object, ...], tuple[Group | None, Group | None]]) -> dict[str, Judged]:
        """Returns the programs of a pod's addresses. made: programs of this flush, shared by equal pods."""
        pod = self.members.pods.get(key)
        if pod is None or pod.node != self.node:
            return {}
        alike = (pod.namespace, pod.labels, pod.ports)
        if alike not in made:
            policies = self.selecting(pod)

            def own(named: Named) -> tuple[int, ...]:
                return tuple(number for name, number in pod.ports if name == named)

            made[alike] = (
                group(policies, "ingress", own, self._number),
                group(policies, "egress", own, self._number),
            )
        return {ip: Judged(key, *made[alike]) for ip in self.members.addresses(pod)}

    def _number(self, selector: Pods, named: Named) -> tuple[int, ...]:
        found = self.members.numbers(selector, named)
        self._numbers[selector, named] = found
        return found

    def _forget_numbers(self) -> None:
        if self._numbers:
            asked = {
                (peer, port)
                for policy in self.policies.values()
                for rule in policy.egress or ()
                for port in rule.ports or ()
                if isinstance(port, Named)
                for peer in named_peers(rule.peers)
            }
            self._numbers = {key: value for key, value in self._numbers.items() if key in asked}

    def _use(self, one: Group | None, delta: Delta) -> None:
        if one is None:
            return
        self._uses[one] = self._uses.get(one, 0) + 1
        if self._uses[one] > 1:
            return
        delta.groups_came.add(one)
        for selector in _selectors(one):
            if selector not in self.members.selected:
                delta.selectors_came.add(selector)
            self.members.use(selector)

    def _unuse(self, one: Group, delta: Delta) -> None:
        self._uses[one] -= 1
        if self._uses[one]:
            return
        del self._uses[one]
        for selector in _selectors(one):
            self.members.drop(selector)
            if selector not in self.members.selected:
                if selector in delta.selectors_came:
                    delta.selectors_came.discard(selector)
                else:
                    delta.selectors_went.add(selector)
        if one in delta.groups_came:
            delta.groups_came.discard(one)
        else:
            delta.groups_went.add(one)


def _selectors(one: Group) -> set[Pods]:
    return {step.peer for cell in one.cells() for step in cell.steps if isinstance(step.peer, Pods)}
