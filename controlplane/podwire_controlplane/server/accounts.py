"""ServiceAccounts: tokens are given out (TokenRequest), read, and refused as soon as the ServiceAccount or the object
that they are bound to is gone.
"""

from __future__ import annotations

import base64
import uuid
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from podwire_base.kube import codec, errors
from podwire_base.kube.meta import Object, deleting, uid
from podwire_base.kube.registry import of
from podwire_base.kube.times import parse_time, timestamp
from podwire_base.role import files

from ..rbac import nodes
from ..store.base import Store
from . import accountclaims, accountkeys, auth
from .accountclaims import Grant, Reference

ISSUER = "https://kubernetes.default.svc.cluster.local"
KEY_FILE = "sa-key.pem"
LEEWAY = 60.0  # seconds that a token counts after the deletion of its object began, as upstream
Reader = tuple[auth.User, tuple[str, ...]]


def load_keys(data: Path) -> accountkeys.AccountKeys:
    """Return the signing key of a cluster, which is beside its authority. It is made at the first start. Raises OSError
    and ValueError.
    """
    path = data / KEY_FILE
    if not path.exists():
        files.write(path, accountkeys.new_key(), mode=0o600, sync=True)
    try:
        return accountkeys.AccountKeys(path.read_text())
    except (ValueError, TypeError) as err:
        raise ValueError(f"{path}: {err}") from err


class Accounts:
    """make: returns the signing key; it is called when a token is first signed or read."""

    def __init__(
        self,
        store: Store,
        clock: Callable[[], float],
        make: Callable[[], accountkeys.AccountKeys],
        issuer: str = ISSUER,
        server: str = ISSUER,
    ) -> None:
        self.store, self.clock, self.issuer, self.server = store, clock, issuer, server
        self._make, self._made = make, list[accountkeys.AccountKeys]()
        self._grant = lru_cache(1024)(self._verified)  # signature and claims; the rest is checked each time

    @property
    def keys(self) -> accountkeys.AccountKeys:
        if not self._made:
            self._made.append(self._make())
        return self._made[0]

    @property
    def audiences(self) -> tuple[str, ...]:
        return (self.issuer,)

    def pages(self) -> dict[str, Callable[[], tuple[Any, str]]]:
        """Return path -> (document, its media type): what others need to verify tokens."""
        return {
            ".well-known/openid-configuration": lambda: (
                accountkeys.discovery(self.issuer, self.server),
                "application/json",
            ),
            "openid/v1/jwks": lambda: (self.keys.jwks(), "application/jwk-set+json"),
        }

    # ---- reading

    def _verified(self, token: str) -> Grant | None:
        found = self.keys.claims(token)
        return None if found is None else accountclaims.grant(found, self.issuer)

    async def read(self, token: str, audiences: tuple[str, ...] = ()) -> Reader | None:
        """Return the user of a token and its audiences among the wanted ones, None if it does not count. audiences: ()
        for those of the API server.
        """
        grant = self._grant(token) if token.count(".") == 2 else None
        now = self.clock()
        if grant is None or not grant.start <= now < grant.until:
            return None
        wanted = audiences or self.audiences
        legacy = not grant.audiences
        both = tuple(a for a in wanted if a in (self.audiences if legacy else grant.audiences))
        if not both:
            return None
        for need in grant.needs:
            if not await self._there(need, now, token if legacy else ""):
                return None
        return auth.authenticated(grant.user), both

    async def _there(self, need: Reference, now: float, token: str) -> bool:
        """Whether an object that a token needs is still there. token: that a Secret must hold, "" for any."""
        item = await self.store.get(of(need.kind).key(need.namespace, need.name))
        if item is None:
            return False
        obj = codec.decode(item.value)
        if need.uid and uid(obj) != need.uid:
            return False
        if token and need.kind == "Secret":
            held = (obj.get("data") or {}).get("token") or ""
            if base64.b64decode(held) != token.encode():
                return False
        return not deleting(obj) or now < parse_time(obj["metadata"]["deletionTimestamp"]).timestamp() + LEEWAY

    # ---- giving out

    async def request(self, space: str, own: str, asked: Object, node: str = "") -> Object:
        """Return the TokenRequest with a token. node: that asks. Raises a StatusError."""
        metadata = asked["metadata"]
        for field, value in (("name", own), ("namespace", space)):
            if metadata.get(field) not in (None, "", value):
                raise errors.bad_request(
                    f"the {field} of the provided object does not match the {field} of the request"
                )
        account = await self._object("ServiceAccount", space, own)
        spec = {**(asked.get("spec") or {})}
        spec["audiences"] = list(spec.get("audiences") or self.audiences)
        spec["expirationSeconds"] = spec.get("expirationSeconds") or accountclaims.DEFAULT_SECONDS
        spec["boundObjectRef"] = spec.get("boundObjectRef")
        accountclaims.check_spec(spec)
        bound = await self._bound(space, own, spec["boundObjectRef"])
        if node and (why := nodes.token_refusal(node, spec, bound, self.issuer)):
            raise nodes.refused(of("ServiceAccount"), own, why)
        now = int(self.clock())
        seconds = int(spec["expirationSeconds"])
        made = accountclaims.claims(self.issuer, account, spec["audiences"], seconds, bound, now, str(uuid.uuid4()))
        status = {"token": self.keys.sign(made), "expirationTimestamp": timestamp(now + seconds)}
        stamp = {"name": own, "namespace": space, "uid": str(uuid.uuid4()), "creationTimestamp": timestamp(now)}
        return {**asked, "metadata": stamp, "spec": spec, "status": status}

    async def _object(self, kind: str, space: str, own: str) -> Object:
        item = await self.store.get(of(kind).key(space, own))
        if item is None:
            raise errors.not_found(of(kind), own)
        obj: Object = codec.decode(item.value)
        return obj

    async def _bound(self, space: str, own: str, ref: Object | None) -> list[Object]:
        """Return the object that a token is to be bound to, and the node of a pod. Raises a StatusError."""
        if not ref:
            return []
        kind = str(ref.get("kind") or "")
        if kind not in accountclaims.BOUND or ref.get("apiVersion") not in ("v1", None, ""):
            raise errors.bad_request(f"cannot bind token to object of type {ref.get('apiVersion') or ''}/{kind}")
        found = await self._object(kind, "" if kind == "Node" else space, str(ref.get("name") or ""))
        accountclaims.check_bound(own, {**ref, "kind": kind}, found)
        node = (found.get("spec") or {}).get("nodeName") if kind == "Pod" else ""
        if node and (item := await self.store.get(of("Node").key("", node))):
            return [found, codec.decode(item.value)]
        return [found]
