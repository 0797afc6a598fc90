"""Bootstrap tokens in the API server: they authenticate, they sign the ConfigMap cluster-info, and they are deleted
when they have expired (kube-controller-manager's bootstrap-signer and token-cleaner).
"""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Iterable
from dataclasses import asdict

import yaml

from podwire_base.kube import codec
from podwire_base.kube.errors import StatusError
from podwire_base.kube.meta import Object, deleting, name
from podwire_base.kube.registry import of
from podwire_base.role import logs

from ..certificates import bootstrap
from ..certificates.bootstrap import Token
from ..store.base import Store, StoredChange
from . import auth
from .join import Addresses
from .objects import Objects
from .worker import Worker
from .writes import Scope, WriteOptions, load

log = logs.get("apiserver")
CLUSTER = "podwire-cluster"  # the ConfigMap beside cluster-info with the addresses that every role needs
_SECRETS, _MAPS = of("Secret"), of("ConfigMap")
_TOKENS = _SECRETS.key(bootstrap.SPACE, bootstrap.PREFIX)
_INFO = Scope(_MAPS, bootstrap.INFO_SPACE, bootstrap.INFO)
_WRITER = WriteOptions(manager="podwire-bootstrap")
_ALL = "all"


async def authenticate(store: Store, text: str, now: float) -> auth.User | None:
    """Return the user of a bootstrap token, None if it is none or does not count."""
    pair = bootstrap.split(text)
    item = await store.get(_TOKENS + pair[0]) if pair else None
    if pair is None or item is None:
        return None
    secret: Object = codec.decode(item.value)
    token = None if deleting(secret) else bootstrap.of_secret(secret)
    if token is None or not hmac.compare_digest(token.secret, pair[1]) or not token.authenticates:
        return None
    if token.expires <= now:
        return None
    extra = ((auth.BOUND_NODE, (token.node,)),) if token.node else ()
    return auth.User(bootstrap.USER + token.id, token.groups, extra=extra)


def documents(server: str, authority: str, addresses: Addresses) -> tuple[Object, Object]:
    """Return the ConfigMaps by which a machine joins: cluster-info (server and authority), and the addresses."""
    from base64 import b64encode

    cluster = {"certificate-authority-data": b64encode(authority.encode()).decode(), "server": server}
    config: Object = {
        "apiVersion": "v1",
        "clusters": [{"cluster": cluster, "name": ""}],
        "contexts": None,
        "current-context": "",
        "kind": "Config",
        "preferences": {},
        "users": None,
    }
    return (
        {"metadata": {"name": bootstrap.INFO}, "data": {bootstrap.KUBECONFIG: yaml.safe_dump(config)}},
        {"metadata": {"name": CLUSTER}, "data": {"addresses": json.dumps(asdict(addresses))}},
    )


class Bootstrapping:
    """Signs and cleans whenever a token or cluster-info changes, and when the next token expires."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects
        self._worker = Worker("bootstrap tokens", objects.store, self._touched, self._handle, self._first)
        self._timer: asyncio.TimerHandle | None = None

    async def run(self) -> None:
        await self._worker.run()

    @staticmethod
    async def _first() -> Iterable[str]:
        return (_ALL,)

    @staticmethod
    def _touched(change: StoredChange) -> Iterable[str]:
        return (_ALL,) if change.key.startswith(_TOKENS) or change.key == _INFO.key else ()

    async def _handle(self, _key: str) -> None:
        await self.look()

    async def look(self) -> None:
        """Delete the tokens that have expired, and sign cluster-info with the others."""
        now, good = self.objects.clock(), list[Token]()
        for item in await self.objects.store.scan(_TOKENS):
            secret: Object = codec.decode(item.value)
            token = bootstrap.of_secret(secret)
            if token is None or deleting(secret):
                continue
            if token.expires <= now:
                await self._end(secret)
            else:
                good.append(token)
        await self._sign({token.id: token.secret for token in good if token.signs})
        self._again(min((token.expires for token in good), default=float("inf")) - now)

    def _again(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        wait = min(max(seconds, 0.1), 3600.0)  # the clock may be set
        self._timer = asyncio.get_running_loop().call_later(wait, self._worker.enqueue, _ALL)

    async def _end(self, secret: Object) -> None:
        try:
            options = {"preconditions": {"uid": secret["metadata"]["uid"]}}
            await self.objects.delete(Scope(_SECRETS, bootstrap.SPACE, name(secret)), options)
            log.info("bootstrap token deleted", secret=name(secret), why="it has expired")
        except StatusError as err:
            if err.code not in (404, 409):
                raise

    async def _sign(self, tokens: dict[str, str]) -> None:
        item = await self.objects.store.get(_INFO.key)
        if item is None:
            return
        info = load(item)
        data = bootstrap.signed(info, tokens)
        if data is None:
            return
        try:
            await self.objects.update(_INFO, {**info, "data": data}, _WRITER)
        except StatusError as err:
            if err.reason not in ("Conflict", "NotFound"):  # a change comes here again
                raise
