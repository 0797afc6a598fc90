"""The roles and bindings that every cluster has (data/roles.txt), and how they are kept. Pure.

An object with the annotation AUTOUPDATE "false" is left alone. Otherwise what is missing is added, and what an
administrator added stays, as kube-apiserver reconciles at its start.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterable, Iterator, Mapping
from functools import cache

from podwire_base.kube.meta import Object, annotations_of, labels
from podwire_base.kube.selectors import label_selector

from .index import GROUP
from .rules import Rule, rules_of, uncovered

AUTOUPDATE = "rbac.authorization.kubernetes.io/autoupdate"
_AGGREGATE = "rbac.authorization.k8s.io/"
_WORDS = {
    "read": ("get", "list", "watch"),
    "write": ("create", "delete", "deletecollection", "patch", "update"),
}
_CONTROLLER = "system:controller:"


@cache
def objects() -> tuple[Object, ...]:
    """Return the default objects: roles before the bindings to them."""
    raw = pkgutil.get_data("podwire_controlplane", "data/roles.txt")
    assert raw is not None  # package data: part of the program
    made = list(_read(raw.decode().splitlines()))
    _aggregate(made)
    return tuple(sorted(made, key=lambda obj: obj["kind"].endswith("Binding")))


def _read(lines: Iterable[str]) -> Iterator[Object]:
    role: Object = {}
    for line in lines:
        words = line.split()
        if not words or line.startswith("#"):
            continue
        if line.startswith("  "):
            role["rules"].append(_rule(words).to_object())
        elif words[0] == "bind":
            yield _bound(words[1:])
        else:
            role = _role(words)
            yield role
            if words[0] == "controller":
                yield _bound([role["metadata"]["name"], f"sa:kube-system/{words[1]}"])


def _object(kind: str, name: str, space: str = "", extra: Mapping[str, str] | None = None) -> Object:
    metadata: Object = {"name": name, **({"namespace": space} if space else {})}
    metadata["labels"] = {"kubernetes.io/bootstrapping": "rbac-defaults", **(extra or {})}
    metadata["annotations"] = {AUTOUPDATE: "true"}
    return {"kind": kind, "apiVersion": f"{GROUP}/v1", "metadata": metadata}


def _role(words: list[str]) -> Object:
    if words[0] == "in":
        return {**_object("Role", words[2], words[1]), "rules": []}
    own = _CONTROLLER + words[1] if words[0] == "controller" else words[1]
    extra = {_AGGREGATE + word[1:]: "true" for word in words if word.startswith("+")}
    role = {**_object("ClusterRole", own, extra=extra), "rules": list[Object]()}
    if "collects" in words:
        collected = {"matchLabels": {_AGGREGATE + words[words.index("collects") + 1]: "true"}}
        role["aggregationRule"] = {"clusterRoleSelectors": [collected]}
    return role


def _verbs(text: str) -> tuple[str, ...]:
    return tuple(sorted(verb for word in text.split(",") for verb in _WORDS.get(word, (word,))))


def _rule(words: list[str]) -> Rule:
    if words[1].startswith("/"):
        return Rule(_verbs(words[0]), urls=tuple(sorted("*" if word == "/*" else word for word in words[1:])))
    groups = tuple("" if group == "core" else group for group in words[1].split(","))
    names = tuple(words[3].split(",")) if len(words) > 3 else ()
    return Rule(_verbs(words[0]), groups, tuple(sorted(words[2].split(","))), names)


def _subject(word: str) -> Object:
    kind, _, own = word.partition(":")
    if kind == "sa":
        space, _, own = own.partition("/")
        return {"kind": "ServiceAccount", "name": own, "namespace": space}
    return {"kind": {"user": "User", "group": "Group"}[kind], "apiGroup": GROUP, "name": own}


def _bound(words: list[str]) -> Object:
    space, words = (words[1], words[2:]) if words[0] == "in" else ("", words)
    role, _, own = words[0].partition("=")
    made = _object("RoleBinding" if space else "ClusterRoleBinding", own or role, space)
    if len(words) > 1:
        made["subjects"] = [_subject(word) for word in words[1:]]
    kind = "Role" if space else "ClusterRole"
    return {**made, "roleRef": {"apiGroup": GROUP, "kind": kind, "name": role}}


# ---- aggregation


def aggregated(role: Object, roles: Iterable[Object]) -> list[Object]:
    """Return the rules that a ClusterRole with an aggregationRule collects: those of the selected roles by name, each
    rule once (clusterrole-aggregation-controller).
    """
    chosen = dict[str, Object]()
    for selector in (role.get("aggregationRule") or {}).get("clusterRoleSelectors") or ():
        selects = label_selector(selector)
        for other in roles:
            if other["metadata"]["name"] != role["metadata"]["name"] and selects(labels(other)):
                chosen[other["metadata"]["name"]] = other
    rules = dict.fromkeys(rule for _, other in sorted(chosen.items()) for rule in rules_of(other))
    return [rule.to_object() for rule in rules]


def _aggregate(made: list[Object]) -> None:
    """Fill the aggregated roles, so that they count before any controller runs."""
    roles = [obj for obj in made if obj["kind"] == "ClusterRole"]
    for _ in range(3):  # view is in edit, and edit in admin
        for role in roles:
            if role.get("aggregationRule"):
                role["rules"] = aggregated(role, roles)


# ---- reconciliation


def reconciled(wanted: Object, found: Object) -> Object | None:
    """Return the default object as it should be stored in the place of `found`, None if nothing is missing in it."""
    if annotations_of(found).get(AUTOUPDATE) == "false":
        return None
    after = {**found, "metadata": {**found["metadata"]}}
    for field in ("labels", "annotations"):
        after["metadata"][field] = {**wanted["metadata"][field], **(found["metadata"].get(field) or {})}
    if wanted["kind"].endswith("Binding"):
        held = found.get("subjects") or []
        more = [one for one in wanted.get("subjects") or [] if one not in held]
        if more:
            after["subjects"] = [*held, *more]
        if found.get("roleRef") != wanted["roleRef"]:
            after["roleRef"] = wanted["roleRef"]
    elif not wanted.get("aggregationRule"):
        missing = uncovered(rules_of(found), rules_of(wanted))
        if missing:
            after["rules"] = [*(found.get("rules") or []), *(rule.to_object() for rule in missing)]
    elif not found.get("aggregationRule"):
        after["aggregationRule"] = wanted["aggregationRule"]
    return None if after == found else after
