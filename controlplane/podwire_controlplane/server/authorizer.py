"""Authorisation: whether a user may make a request. It decides on the URL alone, before a body is read.

The first of these that allows a request decides: the group system:masters, the part of a node, the group
podwire:readers, and the roles and bindings in the store (RBAC).
"""

from __future__ import annotations

from collections.abc import Iterator

from podwire_base.kube import codec
from podwire_base.kube.errors import StatusError
from podwire_base.kube.registry import of

from ..rbac import nodes
from ..rbac.index import KINDS, Decision, Found, Index
from ..rbac.rules import Attributes, forbidden_text
from ..store.base import Item, Store, StoredChange
from . import auth
from .nodefacts import NodeFacts

_ALLOWED = Decision(True)


class Authorizer:
    """Follows the roles and bindings of a store. `await start()` before the first request."""

    def __init__(self, store: Store) -> None:
        self.store, self.index, self.facts = store, Index(), NodeFacts(store)
        self._kinds = {of(kind).prefix(): kind for kind in KINDS}
        self._heard: dict[str, bool] | None = {}  # keys that changed while start() reads the store

    async def start(self) -> None:
        await self.facts.start()
        self.store.subscribe(self._changed)
        for prefix, kind in self._kinds.items():
            for item in await self.store.scan(prefix):
                if self._heard is None or item.key not in self._heard:
                    self.index.observe(kind, None, codec.decode(item.value))
        self._heard = None

    def _changed(self, change: StoredChange) -> None:
        kind = self._kinds.get(change.key[: change.key.find("/", change.key.find("/", 1) + 1) + 1])
        if kind is None:
            return
        before = change.before
        if self._heard is not None:
            before = before if change.key in self._heard else None
            self._heard[change.key] = True
        self.index.observe(kind, _load(before), _load(change.item))

    def decide(self, user: auth.User, request: Attributes) -> Decision:
        if auth.ADMINS in user.groups or auth.reads(user, request):
            return _ALLOWED
        why = nodes.refusal(user.node, request, self.facts) if user.node else ""
        if why is None:
            return _ALLOWED
        found = self.index.decide(user.name, user.groups, request)
        return Decision(False, "\n".join(filter(None, (why, found.reason)))) if why and not found.allowed else found

    def rules(self, user: auth.User, namespace: str) -> Iterator[Found]:
        """Yield the rules of a user from roles and bindings."""
        return self.index.found(user.name, user.groups, namespace)

    def check(self, user: auth.User, request: Attributes) -> None:
        """Raise a StatusError 403 with kube-apiserver's words if the user may not make the request."""
        decision = self.decide(user, request)
        if not decision.allowed:
            raise forbidden(user, request, decision.reason)


def forbidden(user: auth.User, request: Attributes, reason: str = "") -> StatusError:
    text = forbidden_text(user.name, request) + (f": {reason}" if reason else "")
    if request.path is not None:
        return StatusError(403, "Forbidden", f"forbidden: {text}")
    qualified = f"{request.resource}.{request.group}" if request.group else request.resource
    named = f'{qualified} "{request.name}"' if request.name else qualified
    about = (request.group, request.resource)
    return StatusError(403, "Forbidden", f"{named} is forbidden: {text}", name=request.name, about=about)


def _load(item: Item | None) -> dict[str, object] | None:
    return None if item is None else codec.decode(item.value)
