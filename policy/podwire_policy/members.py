"""Which addresses each selector has, kept up to date. Pure.

Pods with equal namespace and labels are one class: a selector is compared with classes, not with pods, and a pod that
comes costs one step for each selector that its class is in. An address belongs to one pod only, also while the API
still has an older pod that claims it (Pod.age), so nobody is taken for the pod whose address it got.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from .model import EVERYWHERE, Labels, Named, Pod, Pods, matches

Changed = dict[str, bool]  # address -> it came (True) or went


@dataclass(slots=True)
class Class:
    """Pods with equal namespace and labels. held: the selectors that select them."""

    namespace: str
    labels: Labels
    pods: set[str] = field(default_factory=set)
    held: set[Pods] = field(default_factory=set)


@dataclass(slots=True)
class Members:
    """The pods of the cluster, by selector. Only selectors that somebody uses are kept (`use`, `drop`)."""

    namespaces: dict[str, Labels] = field(default_factory=dict)
    pods: dict[str, Pod] = field(default_factory=dict)
    owners: dict[str, str] = field(default_factory=dict)  # address -> key of its pod
    selected: dict[Pods, set[str]] = field(default_factory=dict)  # selector -> addresses
    changed: dict[Pods, Changed] = field(default_factory=dict)  # since `take`
    _uses: dict[Pods, int] = field(default_factory=dict)
    _classes: dict[tuple[str, Labels], Class] = field(default_factory=dict)
    _by_namespace: defaultdict[str, set[tuple[str, Labels]]] = field(default_factory=lambda: defaultdict(set))
    _claims: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    def namespace(self, name: str, labels: Labels | None) -> bool:
        """Notes a namespace, or None for one that went. Returns whether that changed anything."""
        if self.namespaces.get(name) == labels:
            return False
        if labels is None:
            del self.namespaces[name]
        else:
            self.namespaces[name] = labels
        for key in self._by_namespace.get(name, ()):
            one = self._classes[key]
            for selector in list(self.selected):
                self._place(one, selector)
        return True

    def pod(self, key: str, pod: Pod | None) -> set[str]:
        """Notes a pod, or None for one that went. Returns the keys of all pods whose addresses are others than before:
        its own, and those with which it shares an address.
        """
        before = self.pods.get(key)
        if before == pod:
            return set()
        addresses = {*(before.ips if before else ()), *(pod.ips if pod else ())}
        beside = {key, *(owner for ip in addresses for owner in self._claims.get(ip, ()))}
        for one in beside & self.pods.keys():
            self._leave(self.pods[one])
        for ip in before.ips if before else ():
            self._claims[ip].discard(key)
            if not self._claims[ip]:
                del self._claims[ip]
        if pod is None:
            self.pods.pop(key, None)
        else:
            self.pods[key] = pod
            for ip in pod.ips:
                self._claims[ip].add(key)
        for ip in addresses:
            claims = self._claims.get(ip)
            if claims:
                self.owners[ip] = max(claims, key=lambda one: self.pods[one].age)
            else:
                self.owners.pop(ip, None)
        for one in beside & self.pods.keys():
            self._enter(self.pods[one])
        return beside

    def addresses(self, pod: Pod) -> tuple[str, ...]:
        """Returns the addresses of the pod that no younger pod claims."""
        return tuple(ip for ip in pod.ips if self.owners[ip] == pod.key)

    def covers(self, selector: Pods, namespace: str, labels: Labels) -> bool:
        """Whether the selector selects pods of this namespace with these labels (whatever ports they have)."""
        if selector.namespace == EVERYWHERE:
            return matches(selector.pods, labels)
        if selector.namespace is not None:
            return selector.namespace == namespace and matches(selector.pods, labels)
        there = self.namespaces.get(namespace)  # of an unknown namespace nobody knows the labels
        return there is not None and matches(selector.namespaces, there) and matches(selector.pods, labels)

    def numbers(self, selector: Pods, named: Named) -> tuple[int, ...]:
        """Returns the numbers that the port `named` has in the selected pods, in order."""
        found = {
            number
            for one in self._within(selector)
            if matches(selector.pods, one.labels)
            for key in one.pods
            for name, number in self.pods[key].ports
            if name == named and self.addresses(self.pods[key])
        }
        return tuple(sorted(found))

    def use(self, selector: Pods) -> None:
        """Keeps the selector's members from now on. Each `use` needs its `drop`."""
        self._uses[selector] = self._uses.get(selector, 0) + 1
        if self._uses[selector] == 1:
            self.selected[selector] = set()
            for one in self._within(selector):
                self._place(one, selector)

    def _within(self, selector: Pods) -> Iterator[Class]:
        """Yields the classes of the namespaces that the selector selects."""
        for name, keys in self._by_namespace.items():
            if selector.namespace is None:
                there = self.namespaces.get(name)
                if there is None or not matches(selector.namespaces, there):
                    continue
            elif selector.namespace not in (EVERYWHERE, name):
                continue
            yield from map(self._classes.__getitem__, keys)

    def drop(self, selector: Pods) -> None:
        self._uses[selector] -= 1
        if not self._uses[selector]:
            del self._uses[selector], self.selected[selector]
            self.changed.pop(selector, None)
            for one in self._within(selector):
                one.held.discard(selector)

    def take(self) -> dict[Pods, Changed]:
        """Returns what changed since the last time: the net difference of each selector."""
        taken, self.changed = self.changed, {}
        return {selector: change for selector, change in taken.items() if change}

    # One pod, one class

    def _enter(self, pod: Pod) -> None:
        at = (pod.namespace, pod.labels)
        one = self._classes.get(at)
        if one is None:
            one = self._classes[at] = Class(*at)
            self._by_namespace[pod.namespace].add(at)
            one.held = {selector for selector in self.selected if self.covers(selector, *at)}
        one.pods.add(pod.key)
        for selector in one.held:
            self._move(selector, pod, come=True)

    def _leave(self, pod: Pod) -> None:
        at = (pod.namespace, pod.labels)
        one = self._classes[at]
        one.pods.discard(pod.key)
        for selector in one.held:
            self._move(selector, pod, come=False)
        if not one.pods:
            del self._classes[at]
            self._by_namespace[pod.namespace].discard(at)
            if not self._by_namespace[pod.namespace]:
                del self._by_namespace[pod.namespace]

    def _place(self, one: Class, selector: Pods) -> None:
        """Puts a class into a selector or takes it out, as the labels say."""
        covered = self.covers(selector, one.namespace, one.labels)
        if covered == (selector in one.held):
            return
        (one.held.add if covered else one.held.discard)(selector)
        for key in one.pods:
            self._move(selector, self.pods[key], come=covered)

    def _move(self, selector: Pods, pod: Pod, *, come: bool) -> None:
        if selector.port is not None and selector.port not in pod.ports:
            return
        held, change = self.selected[selector], self.changed.setdefault(selector, {})
        for ip in pod.ips:
            if come and self.owners.get(ip) != pod.key:
                continue
            if come == (ip in held) or (selector.block is not None and not selector.block.has(ip)):
                continue
            (held.add if come else held.discard)(ip)
            if change.get(ip) is (not come):
                del change[ip]
            else:
                change[ip] = come
