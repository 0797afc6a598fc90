"""What the tokens of ServiceAccounts say. Pure.

Sources: KEP-1205 (bound tokens), KEP-4193 (node and token id), and the documentation "Managing Service Accounts". A
token names its ServiceAccount and the object that it is bound to by uid. Both must still exist whenever it is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from podwire_base.kube import errors
from podwire_base.kube.errors import Cause, StatusError
from podwire_base.kube.meta import Object, name, namespace, uid

from ..rbac.index import ACCOUNT
from . import auth
from .impersonation import account_groups

LEGACY = "kubernetes/serviceaccount"  # issuer of the tokens in Secrets
SECRET_TYPE = "kubernetes.io/service-account-token"
NAME_NOTE, UID_NOTE = "kubernetes.io/service-account.name", "kubernetes.io/service-account.uid"
DEFAULT_SECONDS, LEAST_SECONDS, MOST_SECONDS = 3600, 600, 1 << 32
BOUND = {"Pod": "pods", "Node": "nodes", "Secret": "secrets"}  # kinds that a token can be bound to
_PRIVATE = "kubernetes.io"
_EXTRA = "authentication.kubernetes.io/"


@dataclass(frozen=True, slots=True)
class Reference:
    """One object that must exist for a token to count. uid: "" for any."""

    kind: str
    namespace: str
    name: str
    uid: str


@dataclass(frozen=True, slots=True)
class Grant:
    """What a valid token gives, once its objects are found. until: its end in seconds since 1970."""

    user: auth.User
    needs: tuple[Reference, ...]
    audiences: tuple[str, ...]
    start: float
    until: float


def check_spec(spec: Object) -> None:
    """Raise a StatusError 422 for a lifetime that no token has."""
    seconds, text = spec["expirationSeconds"], ""
    if seconds < LEAST_SECONDS:
        text = "may not specify a duration less than 10 minutes"
    elif seconds > MOST_SECONDS:
        text = "may not specify a duration larger than 2^32 seconds"
    if text:
        cause = Cause("spec.expirationSeconds", text)
        about = ("authentication.k8s.io", "TokenRequest")
        what = f"spec.expirationSeconds: Invalid value: {seconds}: {text}"
        what = f'TokenRequest.authentication.k8s.io "" is invalid: {what}'
        raise StatusError(422, "Invalid", what, causes=[cause], about=about)


def check_bound(account: str, ref: Object, found: Object) -> None:
    """Raise a StatusError 400 or 409 if a token of the account cannot be bound to the object."""
    if ref["kind"] == "Pod" and (found.get("spec") or {}).get("serviceAccountName") != account:
        raise errors.bad_request(
            f'cannot bind token for serviceaccount "{account}" to pod running with different serviceaccount name.'
        )
    if ref.get("uid") and ref["uid"] != uid(found):
        raise StatusError(
            409,
            "Conflict",
            f'Operation cannot be fulfilled on {BOUND[ref["kind"]]} "{ref.get("name")}": the UID in the bound object '
            f"reference ({ref['uid']}) does not match the UID in record. The object might have been deleted and then "
            "recreated",
            name=str(ref.get("name") or ""),
            about=("", BOUND[ref["kind"]]),
        )


def claims(
    issuer: str,
    account: Object,
    audiences: Sequence[str],
    seconds: int,
    bound: Sequence[Object],
    now: int,
    token_id: str,
) -> dict[str, Any]:
    """Return the claims of a token. bound: the object that it is bound to, and the node of a pod."""
    own: dict[str, Any] = {
        "namespace": namespace(account),
        "serviceaccount": {"name": name(account), "uid": uid(account)},
    }
    for obj in bound:
        own[obj["kind"].lower()] = {"name": name(obj), "uid": uid(obj)}
    return {
        "aud": list(audiences),
        "exp": now + seconds,
        "iat": now,
        "iss": issuer,
        "jti": token_id,
        _PRIVATE: own,
        "nbf": now,
        "sub": f"{ACCOUNT}{namespace(account)}:{name(account)}",
    }


def legacy_claims(account: Object, secret: str) -> dict[str, Any]:
    """Return the claims of a token in a Secret. It has no end."""
    prefix = LEGACY
    return {
        "iss": LEGACY,
        f"{prefix}/namespace": namespace(account),
        f"{prefix}/secret.name": secret,
        f"{prefix}/service-account.name": name(account),
        f"{prefix}/service-account.uid": uid(account),
        "sub": f"{ACCOUNT}{namespace(account)}:{name(account)}",
    }


def grant(found: Mapping[str, Any], issuer: str) -> Grant | None:
    """Return what the claims of a token give, None if they are not those of a token for ServiceAccounts."""
    try:
        if found["iss"] == LEGACY:
            return _legacy(found)
        return _bound(found) if found["iss"] == issuer else None
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _account(space: str, own: str, account_uid: str, extra: tuple[tuple[str, tuple[str, ...]], ...]) -> auth.User:
    return auth.User(f"{ACCOUNT}{space}:{own}", account_groups(space), uid=account_uid, extra=extra)


def _bound(found: Mapping[str, Any]) -> Grant | None:
    own, space = found[_PRIVATE], str(found[_PRIVATE]["namespace"])
    account = own["serviceaccount"]
    needs = [Reference("ServiceAccount", space, str(account["name"]), str(account["uid"]))]
    extra = [(auth.CREDENTIAL, (f"JTI={found['jti']}",))] if found.get("jti") else []
    for kind in BOUND:
        if ref := own.get(kind.lower()):
            needs.append(Reference(kind, "" if kind == "Node" else space, str(ref["name"]), str(ref["uid"])))
            if kind != "Secret":
                extra += [(f"{_EXTRA}{kind.lower()}-{field}", (str(ref[field]),)) for field in ("name", "uid")]
    user = _account(space, str(account["name"]), str(account["uid"]), tuple(extra))
    if found["sub"] != user.name:
        return None
    audiences = (found["aud"],) if isinstance(found["aud"], str) else tuple(map(str, found["aud"]))
    return Grant(user, tuple(needs), audiences, float(found["nbf"]), float(found["exp"]))


def _legacy(found: Mapping[str, Any]) -> Grant | None:
    space, own = str(found[f"{LEGACY}/namespace"]), str(found[f"{LEGACY}/service-account.name"])
    account_uid, secret = str(found[f"{LEGACY}/service-account.uid"]), str(found[f"{LEGACY}/secret.name"])
    user = _account(space, own, account_uid, ())
    if found["sub"] != user.name:
        return None
    needs = (Reference("ServiceAccount", space, own, account_uid), Reference("Secret", space, secret, ""))
    return Grant(user, needs, (), 0.0, float("inf"))
