"""The roles and bindings of a cluster, indexed by subject: a request looks at the bindings of its user and groups in
its namespace, and at no others. Pure: `observe` takes each change of an object.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from podwire_base.kube.meta import Object

from .rules import Attributes, Rule, rules_of

GROUP = "rbac.authorization.k8s.io"
KINDS = ("Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding")
ACCOUNT = "system:serviceaccount:"
Subject = tuple[str, str, str]  # kind, namespace ("" for users and groups), name
Place = tuple[str, str]  # namespace ("" for the cluster), name


@dataclass(frozen=True, slots=True)
class Binding:
    """One binding of one subject, which is shown with it. role: (kind, namespace, name) of what it refers to."""

    place: Place
    role: tuple[str, str, str]
    subject: Subject

    def __str__(self) -> str:
        space, own = self.place
        kind, _, role = self.role
        who = f"{self.subject[2]}/{self.subject[1]}" if self.subject[1] else self.subject[2]
        named = f'RoleBinding "{own}/{space}"' if space else f'ClusterRoleBinding "{own}"'
        return f'{named} of {kind} "{role}" to {self.subject[0]} "{who}"'


@dataclass(frozen=True, slots=True)
class Found:
    """One rule that a user has, or why the role of a binding has none."""

    binding: Binding
    rule: Rule | None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    allowed: bool
    reason: str = ""


def account_of(user: str) -> Place | None:
    """Return (namespace, name) of the ServiceAccount whose user name this is, None for other users."""
    if not user.startswith(ACCOUNT):
        return None
    space, colon, own = user.removeprefix(ACCOUNT).partition(":")
    return (space, own) if colon and space and own and ":" not in own else None


def subjects(user: str, groups: Collection[str]) -> list[Subject]:
    """Return the subjects of bindings that mean this user."""
    found: list[Subject] = [("User", "", user), *(("Group", "", group) for group in groups)]
    if account := account_of(user):
        found.append(("ServiceAccount", *account))
    return found


class Index:
    """looked: how many bindings and rules were looked at so far, for tests and figures."""

    def __init__(self) -> None:
        self.roles: dict[tuple[str, str, str], tuple[Rule, ...]] = {}
        self._bindings: defaultdict[tuple[Subject, str], dict[Place, Binding]] = defaultdict(dict)
        self.looked = 0

    def observe(self, kind: str, before: Object | None, after: Object | None) -> None:
        """Take one change of an object of KINDS."""
        if kind in ("Role", "ClusterRole"):
            if before is not None:
                self.roles.pop((kind, *_place(before)), None)
            if after is not None:
                self.roles[(kind, *_place(after))] = rules_of(after)
            return
        for binding in _bindings(before):
            held = self._bindings[binding.subject, binding.place[0]]
            held.pop(binding.place, None)
            if not held:
                del self._bindings[binding.subject, binding.place[0]]
        for binding in _bindings(after):
            self._bindings[binding.subject, binding.place[0]][binding.place] = binding

    def rules_of_role(self, role: tuple[str, str, str]) -> tuple[Rule, ...] | None:
        return self.roles.get(role)

    def found(self, user: str, groups: Collection[str], namespace: str) -> Iterator[Found]:
        """Yield every rule of a user: those for the whole cluster, and those of a namespace."""
        who = subjects(user, groups)
        for place in ("", namespace) if namespace else ("",):
            for subject in who:
                for binding in self._bindings.get((subject, place), {}).values():
                    yield from self._of(binding)

    def _of(self, binding: Binding) -> Iterator[Found]:
        rules = self.roles.get(binding.role)
        self.looked += 1
        if rules is None:
            yield Found(binding, None, f'{binding.role[0].lower()}.{GROUP} "{binding.role[2]}" not found')
            return
        for rule in rules:
            self.looked += 1
            yield Found(binding, rule)

    def decide(self, user: str, groups: Collection[str], request: Attributes) -> Decision:
        """Return whether a rule of the user allows a request, and which, or which roles are missing."""
        missing = list[str]()
        for found in self.found(user, groups, request.namespace):
            if found.rule is None:
                missing.append(found.error)
            elif found.rule.allows(request):
                return Decision(True, f"RBAC: allowed by {found.binding}")
        return Decision(False, f"RBAC: {_joined(missing)}" if missing else "")


def _joined(texts: list[str]) -> str:
    """Return errors as kube-apiserver joins them."""
    different = list(dict.fromkeys(texts))
    return different[0] if len(different) == 1 else "[" + ", ".join(different) + "]"


def _place(obj: Object) -> Place:
    return obj["metadata"].get("namespace") or "", obj["metadata"].get("name") or ""


def _bindings(obj: Object | None) -> Iterator[Binding]:
    """Yield one Binding for each subject of a RoleBinding or ClusterRoleBinding."""
    if obj is None:
        return
    place, ref = _place(obj), obj.get("roleRef") or {}
    kind = ref.get("kind") or ""
    role = (kind, place[0] if kind == "Role" else "", ref.get("name") or "")
    for subject in obj.get("subjects") or ():
        space = (subject.get("namespace") or place[0]) if subject.get("kind") == "ServiceAccount" else ""
        yield Binding(place, role, (subject.get("kind") or "", space, subject.get("name") or ""))
