"""Authentication of clients (certificate or bearer token) and authorisation of their requests. The only I/O is reading
the token file.
"""

from __future__ import annotations

import functools
import hmac
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from ..rbac.rules import Attributes

CONTROLLERS = "system:kube-controller-manager"  # the user of the controllers; its rights are default roles
ADMINS, NODES, READERS = "system:masters", "system:nodes", "podwire:readers"
NODE_USER = "system:node:"
AUTHENTICATED, UNAUTHENTICATED = "system:authenticated", "system:unauthenticated"
CREDENTIAL = "authentication.kubernetes.io/credential-id"  # key of UserInfo.extra (KEP-4193)
SERIAL = "podwire.io/certificate-serial"  # key of UserInfo.extra: which certificate a node has sent
BOUND_NODE = "podwire.io/bootstrap-node"  # key of UserInfo.extra: the only name that a bootstrap token admits
OPEN_PATHS = ("/healthz", "/livez", "/readyz", "/version")  # for the anonymous, by the role system:public-info-viewer
JOIN_PATHS = (
    "/podwire/v1/ca",
    "/podwire/v1/join",
)  # paths without authentication, for machines that are not nodes yet: join.py checks the join token
REVOKE_PATH = "/podwire/v1/revoke"
_REACHING = ("exec", "attach", "portforward", "proxy")  # subresources whose "get" does more than read


@dataclass(frozen=True, slots=True)
class User:
    """serial: the serial number of the client certificate in hexadecimal digits, "" for a token. until: the end of the
    certificate's life in seconds since 1970. uid, extra: see authentication.k8s.io/v1 UserInfo.
    """

    name: str
    groups: Collection[str]
    serial: str = ""
    until: float = math.inf
    uid: str = ""
    extra: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @property
    def node(self) -> str:
        """The name of the node whose credential this is (CN system:node:NAME), "" for other credentials."""
        return self.name.removeprefix(NODE_USER) if NODES in self.groups and self.name.startswith(NODE_USER) else ""


ANONYMOUS = User("system:anonymous", (UNAUTHENTICATED,))


def authenticated(user: User) -> User:
    """Return the user with the group that every user has who is known."""
    if AUTHENTICATED in user.groups:
        return user
    return replace(user, groups=(*user.groups, AUTHENTICATED))


def from_certificate(peer: Mapping[str, Any] | None) -> User | None:
    """Return the user of a verified client certificate: CN is the user name and each O is a group (Kubernetes' X.509
    authentication). Returns None if there is no certificate or no CN. peer: as ssl.SSLSocket.getpeercert returns it.
    """
    if not peer:
        return None
    pairs = [pair for rdn in peer.get("subject", ()) for pair in rdn]
    common = next((value for field, value in pairs if field == "commonName"), "")
    groups = tuple(value for field, value in pairs if field == "organizationName")
    serial = format(int(str(peer.get("serialNumber") or "0"), 16), "x")
    return User(common, groups, serial, _seconds(str(peer.get("notAfter", "")))) if common else None


@functools.lru_cache(maxsize=4096)  # each request asks for it, and a cluster has a few hundred certificates
def _seconds(text: str) -> float:
    """Return seconds since 1970 for the time of a certificate, such as "Jan  5 09:34:43 2027 GMT"."""
    try:
        return datetime.strptime(text, "%b %d %H:%M:%S %Y GMT").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return 0.0


def from_token(header: str, tokens: Mapping[str, User]) -> User | None:
    """Return the user of the header `Authorization: Bearer TOKEN`, None if the token is unknown. Each comparison takes
    constant time.
    """
    kind, _, given = header.partition(" ")
    if kind.lower() != "bearer":
        return None
    found = None
    for token, user in tokens.items():
        if hmac.compare_digest(token.encode(), given.strip().encode(errors="surrogateescape")):
            found = user
    return found


def is_bearer(header: str) -> bool:
    """Whether the header Authorization has a bearer token. Nothing else counts as credentials, as upstream."""
    kind, _, given = header.partition(" ")
    return kind.lower() == "bearer" and bool(given.strip())


def reads(user: User, request: Attributes) -> bool:
    """Whether the group podwire:readers allows a request: it reads everything but Secrets, also custom resources. No
    Role can say "all but". A reader runs nothing in pods and reaches nothing through them.
    """
    if READERS not in user.groups or request.verb not in ("get", "list", "watch") or request.path is not None:
        return False
    return (request.group, request.resource) != ("", "secrets") and request.sub not in _REACHING
