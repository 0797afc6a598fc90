"""Reviews: objects that are answered and not stored. A client asks who a user is, or what a user may do.

Source: the API reference of authentication.k8s.io/v1 and authorization.k8s.io/v1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from podwire_base.kube import errors
from podwire_base.kube.errors import Cause, StatusError
from podwire_base.kube.meta import Object
from podwire_base.kube.times import timestamp

from ..rbac.rules import Attributes
from . import auth
from .authorizer import Authorizer

ACTING = web.RequestKey("acting", bool)  # the client impersonates another user
# (token, audiences that the client accepts) -> (user, those of the token's audiences), None if the token is unknown
TokenReader = Callable[[str, tuple[str, ...]], Awaitable[tuple[auth.User, tuple[str, ...]] | None]]
Review = Callable[[web.Request, auth.User, Object, str], Awaitable[Object]]


def user_info(http: web.Request, user: auth.User) -> Object:
    """Return a user as authentication.k8s.io/v1 UserInfo, with the id of the credential that the client sent."""
    extra = {key: list(values) for key, values in user.extra}
    if not http.get(ACTING) and user.name != auth.ANONYMOUS.name and auth.CREDENTIAL not in extra:
        extra[auth.CREDENTIAL] = [_credential(http)]
    if user.node and user.serial:
        extra[auth.SERIAL] = [user.serial]  # a node's certificate is renewed by a request with the present one
    info: Object = {"username": user.name, "uid": user.uid, "groups": list(user.groups), "extra": extra}
    return {field: value for field, value in info.items() if value}


def _credential(http: web.Request) -> str:
    tls = http.transport.get_extra_info("ssl_object") if http.transport else None
    if tls is not None and (raw := tls.getpeercert(binary_form=True)):
        return "X509SHA256=" + hashlib.sha256(raw).hexdigest()
    # a part of the hash of a long random token names it and does not help to guess it
    return "TOKENSHA256=" + hashlib.sha256(http.headers.get("Authorization", "").encode()).hexdigest()[:16]


def _texts(user: Object) -> tuple[str, ...]:
    return tuple(user.get("groups") or ())


class Reviews:
    """clock: seconds since 1970. tokens: reads bearer tokens. `answer` by (group, plural)."""

    def __init__(self, authorizer: Authorizer, tokens: TokenReader, clock: Callable[[], float]) -> None:
        self.authorizer, self.tokens, self.clock = authorizer, tokens, clock
        self.answers: dict[tuple[str, str], Review] = {
            ("authentication.k8s.io", "selfsubjectreviews"): self._self,
            ("authentication.k8s.io", "tokenreviews"): self._token,
            ("authorization.k8s.io", "selfsubjectaccessreviews"): self._self_access,
            ("authorization.k8s.io", "subjectaccessreviews"): self._access,
            ("authorization.k8s.io", "localsubjectaccessreviews"): self._local_access,
            ("authorization.k8s.io", "selfsubjectrulesreviews"): self._rules,
        }

    # ---- who

    async def _self(self, http: web.Request, user: auth.User, review: Object, _space: str) -> Object:
        review["metadata"] = {"creationTimestamp": timestamp(self.clock())}
        review["status"] = {"userInfo": user_info(http, user)}
        return review

    async def _token(self, _http: web.Request, _user: auth.User, review: Object, _space: str) -> Object:
        spec = review.get("spec") or {}
        if not spec.get("token"):
            raise errors.bad_request("token is required for TokenReview in authentication")
        found = await self.tokens(spec["token"], tuple(spec.get("audiences") or ()))
        if found is None:
            review["status"] = {"user": {}, "error": "invalid bearer token"}
            return review
        user, audiences = found
        info: Object = {"username": user.name, "uid": user.uid, "groups": list(user.groups)}
        info["extra"] = {key: list(values) for key, values in user.extra}
        known = {field: value for field, value in info.items() if value}
        review["status"] = {"authenticated": True, "user": known, "audiences": list(audiences)}
        return review

    # ---- what

    async def _self_access(self, _http: web.Request, user: auth.User, review: Object, _space: str) -> Object:
        self._valid(review, review["metadata"], [])
        return self._decided(review, user)

    async def _access(self, _http: web.Request, _user: auth.User, review: Object, _space: str) -> Object:
        self._valid(review, review["metadata"], _subject(review))
        return self._decided(review, _reviewed(review))

    async def _local_access(self, _http: web.Request, _user: auth.User, review: Object, space: str) -> Object:
        spec, given = review.get("spec") or {}, review["metadata"].get("namespace") or ""
        causes = _subject(review)
        if (wanted := spec.get("resourceAttributes")) is not None and (wanted.get("namespace") or "") != given:
            causes.append(Cause("spec.resourceAttributes.namespace", "must match metadata.namespace"))
        if spec.get("nonResourceAttributes") is not None:
            causes.append(Cause("spec.nonResourceAttributes", "disallowed on this kind of request"))
        self._valid(review, {k: v for k, v in review["metadata"].items() if k != "namespace"}, causes)
        if spec["resourceAttributes"].get("namespace") != space:
            raise errors.bad_request(f"spec.resourceAttributes.namespace must match namespace: {space}")
        return self._decided(review, _reviewed(review))

    def _valid(self, review: Object, metadata: Object, causes: list[Cause]) -> None:
        """Raise a StatusError 422 for a review that asks nothing or two things."""
        spec, found = review.get("spec") or {}, list[Cause]()
        asked = spec.get("resourceAttributes") is not None, spec.get("nonResourceAttributes") is not None
        if all(asked):
            text = "cannot be specified in combination with resourceAttributes"
            found.append(Cause("spec.nonResourceAttributes", text))
        elif not any(asked):
            text = "exactly one of nonResourceAttributes or resourceAttributes must be specified"
            found.append(Cause("spec.resourceAttributes", text))
        if any(v for k, v in metadata.items() if k not in ("managedFields", "creationTimestamp")):
            found.append(Cause("metadata", "must be empty"))
        if found := [*found, *causes]:
            rows = "; ".join(f"{c.field}: {c.message}" for c in found)
            about = ("authorization.k8s.io", review["kind"])
            text = f'{review["kind"]}.authorization.k8s.io "" is invalid: {rows}'
            raise StatusError(422, "Invalid", text, causes=found, about=about)

    def _decided(self, review: Object, user: auth.User) -> Object:
        decision = self.authorizer.decide(user, _attributes(review["spec"]))
        review["status"] = {"allowed": decision.allowed, **({"reason": decision.reason} if decision.reason else {})}
        return review

    async def _rules(self, _http: web.Request, user: auth.User, review: Object, _space: str) -> Object:
        space = (review.pop("spec", None) or {}).get("namespace")
        if not space:
            raise errors.bad_request("no namespace on request")
        resources, paths = list[Object](), list[Object]()
        for found in self.authorizer.rules(user, space):
            if found.rule is not None:
                (paths if found.rule.urls else resources).append(found.rule.to_object())
        status: Object = {"resourceRules": resources, "nonResourceRules": paths, "incomplete": False}
        head = {field: review[field] for field in ("kind", "apiVersion", "metadata")}
        return {**head, "spec": {}, "status": status}


def _subject(review: Object) -> list[Cause]:
    spec = review.get("spec") or {}
    if spec.get("user") or spec.get("groups"):
        return []
    return [Cause("spec.user", "at least one of user or group must be specified")]


def _reviewed(review: Object) -> auth.User:
    spec = review["spec"]
    return auth.User(spec.get("user") or "", _texts(spec), uid=spec.get("uid") or "")


def _attributes(spec: Object) -> Attributes:
    """Return the request that a review asks about."""

    def text(part: dict[str, Any], field: str) -> str:
        return str(part.get(field) or "")

    if (on := spec.get("resourceAttributes")) is not None:
        fields = ("verb", "group", "resource", "subresource", "namespace", "name")
        return Attributes(*(text(on, field) for field in fields))
    path = spec["nonResourceAttributes"]
    return Attributes(text(path, "verb"), path=text(path, "path"))
