"""What a rule of a Role allows, and whether rules cover others. Pure.

Source: the API reference of rbac.authorization.k8s.io/v1 (PolicyRule), and kube-apiserver's behaviour for escalation
(documentation: "Privilege escalation prevention and bootstrapping").
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from podwire_base.kube.meta import Object

ALL = "*"


@dataclass(frozen=True, slots=True)
class Attributes:
    """One request, in the form of its URL. resource: the plural. name: "" for a collection. path: of a request that
    names no objects, else None.
    """

    verb: str
    group: str = ""
    resource: str = ""
    sub: str = ""
    namespace: str = ""
    name: str = ""
    path: str | None = None

    @property
    def combined(self) -> str:
        return f"{self.resource}/{self.sub}" if self.sub else self.resource


@dataclass(frozen=True, slots=True)
class Rule:
    """A PolicyRule. names: () for every name. urls: paths; a rule has either them or resources."""

    verbs: tuple[str, ...]
    groups: tuple[str, ...] = ()
    resources: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    urls: tuple[str, ...] = ()

    def allows(self, request: Attributes) -> bool:
        if ALL not in self.verbs and request.verb not in self.verbs:
            return False
        if request.path is not None:
            return any(_path_matches(url, request.path) for url in self.urls)
        return (
            (ALL in self.groups or request.group in self.groups)
            and _resource_matches(self.resources, request)
            and (not self.names or request.name in self.names)
        )

    def to_object(self) -> Object:
        """Return the PolicyRule, in the order of Kubernetes' fields."""
        rows = (
            ("verbs", self.verbs),
            ("apiGroups", self.groups),
            ("resources", self.resources),
            ("resourceNames", self.names),
            ("nonResourceURLs", self.urls),
        )
        return {field: list(values) for field, values in rows if values}

    def __str__(self) -> str:
        """Return the rule as kube-apiserver shows it in a refusal."""
        rows = (
            ("APIGroups", self.groups),
            ("Resources", self.resources),
            ("NonResourceURLs", self.urls),
            ("ResourceNames", self.names),
            ("Verbs", self.verbs),
        )
        return "{" + ", ".join(f"{field}:{quoted(values)}" for field, values in rows if values) + "}"


def quoted(values: Iterable[str]) -> str:
    """Return texts as Go's %q shows a list of them."""
    return "[" + " ".join(f'"{value}"' for value in values) + "]"


def _path_matches(url: str, path: str) -> bool:
    return url in (ALL, path) or (url.endswith(ALL) and path.startswith(url.rstrip(ALL)))


def _resource_matches(resources: Sequence[str], request: Attributes) -> bool:
    wanted = request.combined
    return ALL in resources or wanted in resources or (bool(request.sub) and f"*/{request.sub}" in resources)


def rules_of(role: Object) -> tuple[Rule, ...]:
    """Return the rules of a Role or ClusterRole."""

    def texts(rule: Object, field: str) -> tuple[str, ...]:
        return tuple(rule.get(field) or ())

    fields = ("verbs", "apiGroups", "resources", "resourceNames", "nonResourceURLs")
    return tuple(Rule(*(texts(rule, field) for field in fields)) for rule in role.get("rules") or ())


def authorize(rules: Iterable[Rule], request: Attributes) -> Rule | None:
    """Return the first rule that allows the request, None if no rule does."""
    return next((rule for rule in rules if rule.allows(request)), None)


# ---- escalation


def uncovered(owned: Sequence[Rule], wanted: Iterable[Rule]) -> list[Rule]:
    """Return what `wanted` allows and `owned` does not, as rules with the verbs of one target together. A wanted rule
    is covered part by part: by one owned rule for each verb, group, resource and name.
    """
    missing = [part for rule in wanted for part in _parts(rule) if not any(_covers(own, part) for own in owned)]
    merged: dict[Rule, list[str]] = {}
    for part in missing:
        verbs = merged.setdefault(replace(part, verbs=()), [])
        if part.verbs[0] not in verbs:
            verbs.append(part.verbs[0])
    return sorted((replace(key, verbs=tuple(verbs)) for key, verbs in merged.items()), key=str)


def _parts(rule: Rule) -> Iterator[Rule]:
    for verb in rule.verbs:
        for url in rule.urls:
            yield Rule((verb,), urls=(url,))
        for group in rule.groups:
            for resource in rule.resources:
                for name in rule.names or ("",):
                    yield Rule((verb,), (group,), (resource,), (name,) if rule.names else ())


def _covers(own: Rule, part: Rule) -> bool:
    """Whether one rule allows all of a part. part: one verb, and one URL or one group, resource and name."""
    if ALL not in own.verbs and part.verbs[0] not in own.verbs:
        return False
    if part.urls:
        return any(_path_matches(url, part.urls[0]) for url in own.urls)
    resource = part.resources[0]
    _, slash, sub = resource.partition("/")
    return (
        (ALL in own.groups or part.groups[0] in own.groups)
        and (ALL in own.resources or resource in own.resources or (bool(slash) and f"*/{sub}" in own.resources))
        and (not own.names or (bool(part.names) and part.names[0] in own.names))
    )


# ---- what a client sees


def forbidden_text(user: str, request: Attributes) -> str:
    """Return kube-apiserver's words for a refusal of a request."""
    if request.path is not None:
        return f'User "{user}" cannot {request.verb} path "{request.path}"'
    where = f'in the namespace "{request.namespace}"' if request.namespace else "at the cluster scope"
    return f'User "{user}" cannot {request.verb} resource "{request.combined}" in API group "{request.group}" {where}'
