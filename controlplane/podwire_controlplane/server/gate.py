"""What a user may write into objects, beyond the request itself: nobody grants rights that he does not have, and a node
writes what is its own (NodeRestriction). Pure but for the authorizer, which knows the roles of the cluster.

Source: Kubernetes' documentation "Privilege escalation prevention and bootstrapping".
"""

from __future__ import annotations

from collections.abc import Callable

from podwire_base.kube import errors
from podwire_base.kube.errors import StatusError
from podwire_base.kube.meta import Object, name
from podwire_base.kube.registry import Resource, of

from ..certificates import requests
from ..rbac import nodes
from ..rbac.index import GROUP
from ..rbac.rules import Attributes, Rule, quoted, rules_of, uncovered
from . import auth
from .authorizer import Authorizer

_EVERYTHING = (Rule(("*",), ("*",), ("*",)), Rule(("*",), urls=("*",)))
Check = Callable[["Gate", auth.User, Resource, Object, Object | None], None]


class Gate:
    """Judges the writes of users. The server's own writes have no user and are not judged."""

    def __init__(self, authorizer: Authorizer) -> None:
        self.authorizer = authorizer

    def may_create(self, user: auth.User | None, resource: Resource, namespace: str, name_: str) -> None:
        """Raise a StatusError 403 if a user may not create an object, where another verb creates it."""
        if user is not None:
            self.authorizer.check(
                user, Attributes("create", resource.group, resource.plural, namespace=namespace, name=name_)
            )

    def written(
        self, user: auth.User | None, resource: Resource, sub: str, after: Object, before: Object | None
    ) -> None:
        """Judge a creation (before: None) or a change of an object. Raises a StatusError 403."""
        if user is None:
            return
        facts = self.authorizer.facts
        if user.node and (refused := nodes.written(user.node, resource, sub, after, before, facts)):
            raise refused
        if part := _PARTS.get((resource.qualified, sub)):
            part(self, user, resource, after, before)
        check = _CHECKS.get((resource.group, resource.kind))
        if check is None or sub or auth.ADMINS in user.groups:
            return
        if before is not None and _same(after, before):
            return
        check(self, user, resource, after, before)

    def deleted(self, user: auth.User | None, resource: Resource, obj: Object) -> None:
        """Judge the deletion of an object. Raises a StatusError 403."""
        if user is not None and user.node and (refused := nodes.deleted(user.node, resource, obj)):
            raise refused

    def grants(self, user: auth.User, resource: Resource, obj: Object, wanted: tuple[Rule, ...]) -> None:
        """Raise a StatusError 403 if `wanted` has rights that the user does not have in the object's namespace."""
        space = obj["metadata"].get("namespace") or ""
        found = list(self.authorizer.rules(user, space))
        missing = uncovered([f.rule for f in found if f.rule is not None], wanted)
        if not missing:
            return
        rows = "\n".join(str(rule) for rule in missing)
        text = f'user "{user.name}" (groups={quoted(user.groups)}) is attempting to grant RBAC permissions not '
        text += f"currently held:\n{rows}"
        if broken := [f.error for f in found if f.rule is None]:
            text += f"; resolution errors: [{', '.join(broken)}]"
        message = f'{resource.qualified} "{name(obj)}" is forbidden: {text}'
        raise StatusError(403, "Forbidden", message, resource=resource, name=name(obj))

    def has_verb(self, user: auth.User, verb: str, plural: str, namespace: str, name_: str) -> bool:
        request = Attributes(verb, GROUP, plural, namespace=namespace, name=name_)
        return self.authorizer.decide(user, request).allowed


def _same(after: Object, before: Object) -> bool:
    """Whether an update changes only what an object's deletion needs."""

    def rest(obj: Object) -> Object:
        metadata = {k: v for k, v in obj["metadata"].items() if k not in _DELETION}
        return {**obj, "metadata": metadata}

    return rest(after) == rest(before)


_DELETION = ("finalizers", "ownerReferences", "managedFields", "resourceVersion")


def _role(gate: Gate, user: auth.User, resource: Resource, after: Object, before: Object | None) -> None:
    space = after["metadata"].get("namespace") or ""
    if gate.has_verb(user, "escalate", resource.plural, space, name(after)):
        return
    gate.grants(user, resource, after, rules_of(after))
    if after.get("aggregationRule") or (before or {}).get("aggregationRule"):
        gate.grants(user, resource, after, _EVERYTHING)  # such a role can collect whatever there is


def _binding(gate: Gate, user: auth.User, resource: Resource, after: Object, _before: Object | None) -> None:
    space, ref = after["metadata"].get("namespace") or "", after.get("roleRef") or {}
    kind, wanted = ref.get("kind") or "", ref.get("name") or ""
    if kind not in ("Role", "ClusterRole"):
        return  # validation refuses it
    if gate.has_verb(user, "bind", of(kind).plural, space, wanted):
        return
    rules = gate.authorizer.index.rules_of_role((kind, space if kind == "Role" else "", wanted))
    if rules is None:
        raise errors.not_found(of(kind), wanted)
    gate.grants(user, resource, after, rules)


def _requested(_gate: Gate, _user: auth.User, resource: Resource, after: Object, before: Object | None) -> None:
    """Nobody becomes an administrator by a signed certificate (admission plugin CertificateSubjectRestriction)."""
    spec = after.get("spec") or {}
    if before is not None or spec.get("signerName") != requests.CLIENT:
        return
    try:
        asked = requests.parse(spec.get("request"))
    except ValueError:
        return  # validation refuses it
    if auth.ADMINS in asked.organizations:
        why = f"use of {requests.CLIENT} signer with {auth.ADMINS} group is not allowed"
        raise nodes.refused(resource, name(after), why)


def _signs(verb: str, changes: Callable[[Object, Object], bool]) -> Check:
    """Return the check of a right on signers. changes: whether an update needs it."""

    def check(gate: Gate, user: auth.User, resource: Resource, after: Object, before: Object | None) -> None:
        signer = str((before or after)["spec"].get("signerName") or "")
        if before is None or not changes(after, before):
            return
        for wanted in (signer, f"{signer.partition('/')[0]}/*"):
            request = Attributes(verb, resource.group, "signers", name=wanted)
            if gate.authorizer.decide(user, request).allowed:
                return
        raise nodes.refused(resource, name(after), f'user not permitted to {verb} requests with signerName "{signer}"')

    return check


def _signed(after: Object, before: Object) -> bool:
    new, old = (one.get("status") or {} for one in (after, before))
    return any((new.get(field) or None) != (old.get(field) or None) for field in ("certificate", "conditions"))


_REQUESTS = "certificatesigningrequests.certificates.k8s.io"
_PARTS: dict[tuple[str, str], Check] = {  # by kind and subresource; for administrators too
    (_REQUESTS, ""): _requested,
    (_REQUESTS, "approval"): _signs("approve", lambda after, before: True),
    (_REQUESTS, "status"): _signs("sign", _signed),
}
_CHECKS: dict[tuple[str, str], Check] = {
    (GROUP, "Role"): _role,
    (GROUP, "ClusterRole"): _role,
    (GROUP, "RoleBinding"): _binding,
    (GROUP, "ClusterRoleBinding"): _binding,
}
