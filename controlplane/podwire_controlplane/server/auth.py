"""Authentication of clients (certificate or bearer token) and authorisation of their requests. The only I/O is reading
the token file.
"""

from __future__ import annotations

import functools
import hmac
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from podwire_base.kube.meta import Object

ADMINS, NODES, READERS = "system:masters", "system:nodes", "podwire:readers"
OPEN_PATHS = ("/healthz", "/livez", "/readyz", "/version")
DISCOVERY_PATHS = ("/api", "/apis", "/openapi")  # for everybody who is known, with all paths below them
JOIN_PATHS = (
    "/podwire/v1/ca",
    "/podwire/v1/join",
)  # paths without authentication, for machines that are not nodes yet: join.py checks the join token
REVOKE_PATH = "/podwire/v1/revoke"


@dataclass(frozen=True, slots=True)
class User:
    """serial: the serial number of the client certificate in hexadecimal digits, "" for a token. until: the end of the
    certificate's life in seconds since 1970.
    """

    name: str
    groups: frozenset[str]
    serial: str = ""
    until: float = math.inf

    @property
    def node(self) -> str:
        """The name of the node whose credential this is (CN system:node:NAME), "" for other credentials."""
        return self.name.removeprefix("system:node:") if NODES in self.groups else ""


ANONYMOUS = User("system:anonymous", frozenset({"system:unauthenticated"}))


def from_certificate(peer: Mapping[str, Any] | None) -> User | None:
    """Return the user of a verified client certificate: CN is the user name and each O is a group (Kubernetes' X.509
    authentication). Returns None if there is no certificate or no CN. peer: as ssl.SSLSocket.getpeercert returns it.
    """
    if not peer:
        return None
    pairs = [pair for rdn in peer.get("subject", ()) for pair in rdn]
    common = next((value for field, value in pairs if field == "commonName"), "")
    groups = frozenset(value for field, value in pairs if field == "organizationName")
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


def may_read(user: User, path: str) -> bool:
    """Whether `user` may read a path that names no objects (upstream's roles system:discovery and
    system:public-info-viewer). path: without a slash at its end.
    """
    if ADMINS in user.groups or path in OPEN_PATHS:
        return True
    if user == ANONYMOUS:
        return False
    return path.startswith(tuple(f"{open_}/" for open_ in OPEN_PATHS[:3])) or any(
        path == base or path.startswith(base + "/") for base in DISCOVERY_PATHS
    )


def conceivable(user: User, verb: str, plural: str, sub: str) -> bool:
    """Whether there is an object with which `user` may do this. What is false here needs no look at the request's
    body.
    """
    mine: Object = {"spec": {"nodeName": user.node}}
    return allowed(user, verb, plural, sub, user.node, mine if user.node else None)


def allowed(user: User, verb: str, plural: str, sub: str, target: str, obj: Object | None) -> bool:
    """Whether `user` may make this request. verb: get, list, watch, create, update, patch, delete, deletecollection.

    target: the object's name; for a creation the name in the body. obj: the object as stored (None for a creation).
    Nodes read everything but Secrets. They write only their own Node and Lease, the status of their pods, deletions of
    their pods, and Events (after the NodeRestriction admission plugin).
    """
    if ADMINS in user.groups:
        return True
    if verb in ("get", "list", "watch"):
        return plural != "secrets" and bool(user.groups & {NODES, READERS})
    if not user.node:
        return False
    if plural == "nodes":
        return target == user.node and verb in ("create", "update", "patch")
    if plural == "leases":
        return target == user.node and verb in ("create", "update", "patch")
    if plural == "events":
        return verb in ("create", "patch")
    if plural == "pods":
        mine = obj is not None and obj.get("spec", {}).get("nodeName") == user.node
        return mine and (verb == "delete" or (sub == "status" and verb in ("update", "patch")))
    return False


def describe(user: User, verb: str, qualified: str, sub: str, target: str) -> str:
    """Return the message of a 403 answer."""
    what = f"{qualified}/{sub}" if sub else qualified
    return (
        f'{what} "{target}" is forbidden: User "{user.name}" cannot {verb} resource "{what}"'
        if target
        else f'{what} is forbidden: User "{user.name}" cannot {verb} resource "{what}"'
    )
