"""Impersonation: a client acts as another user, whom it names in the headers of a request. Pure.

Source: Kubernetes' documentation "User impersonation". Each part of the other identity needs the verb `impersonate` on
an object of its own: users, groups, serviceaccounts, uids and userextras.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from urllib.parse import unquote

from podwire_base.kube import errors

from ..rbac.index import account_of
from ..rbac.rules import Attributes
from . import auth

_USER, _GROUP, _UID, _EXTRA = "impersonate-user", "impersonate-group", "impersonate-uid", "impersonate-extra-"
_AUTHENTICATION = "authentication.k8s.io"


@dataclass(frozen=True, slots=True)
class Wanted:
    """The identity that a request names. extra: key -> values."""

    user: str
    groups: tuple[str, ...] = ()
    uid: str = ""
    extra: tuple[tuple[str, tuple[str, ...]], ...] = ()


def wanted(headers: Iterable[tuple[str, str]]) -> Wanted | None:
    """Return the identity that the headers of a request name, None if they name none. Raises a StatusError 400 if they
    name groups, an uid or extra fields and no user.
    """
    user, groups, uid, extra = "", list[str](), "", dict[str, list[str]]()
    for field, value in headers:
        low = field.lower()
        if low == _USER:
            user = user or value
        elif low == _GROUP:
            groups.append(value)
        elif low == _UID:
            uid = uid or value
        elif low.startswith(_EXTRA):
            extra.setdefault(unquote(low.removeprefix(_EXTRA)), []).append(value)
    if not user:
        if groups or uid or extra:
            raise errors.bad_request("requested impersonation of groups, a uid or extra fields without a user")
        return None
    return Wanted(user, tuple(groups), uid, tuple((key, tuple(values)) for key, values in extra.items()))


def checks(who: Wanted) -> Iterator[Attributes]:
    """Yield what the client must be allowed to do."""
    if account := account_of(who.user):
        yield Attributes("impersonate", "", "serviceaccounts", namespace=account[0], name=account[1])
    else:
        yield Attributes("impersonate", "", "users", name=who.user)
    for group in who.groups:
        yield Attributes("impersonate", "", "groups", name=group)
    if who.uid:
        yield Attributes("impersonate", _AUTHENTICATION, "uids", name=who.uid)
    for key, values in who.extra:
        for value in values:
            yield Attributes("impersonate", _AUTHENTICATION, "userextras", key, name=value)


def account_groups(namespace: str) -> tuple[str, str]:
    """Return the groups of every ServiceAccount of a namespace."""
    return "system:serviceaccounts", f"system:serviceaccounts:{namespace}"


def acting(who: Wanted) -> auth.User:
    """Return the user as whom the request is served."""
    groups, account = who.groups, account_of(who.user)
    if account and not groups:
        groups = account_groups(account[0])
    known = auth.UNAUTHENTICATED if who.user == auth.ANONYMOUS.name else auth.AUTHENTICATED
    if not {auth.AUTHENTICATED, auth.UNAUTHENTICATED} & set(groups):
        groups = (*groups, known)
    return auth.User(who.user, groups, uid=who.uid, extra=who.extra)
