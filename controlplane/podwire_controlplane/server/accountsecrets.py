"""Secrets of the type kubernetes.io/service-account-token: they get a token of their ServiceAccount, and end with it
(kube-controller-manager's tokens-controller). It runs in the API server, beside the key that signs the tokens.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable

from podwire_base.kube import codec
from podwire_base.kube.errors import StatusError
from podwire_base.kube.meta import Object, annotations_of, deleting, name, namespace, uid
from podwire_base.kube.registry import of
from podwire_base.role import logs

from ..store.base import StoredChange
from .accountclaims import NAME_NOTE, SECRET_TYPE, UID_NOTE, legacy_claims
from .accounts import Accounts
from .objects import Objects
from .worker import Worker
from .writes import Scope, WriteOptions, load

log = logs.get("apiserver")
_SECRETS, _ACCOUNTS = of("Secret"), of("ServiceAccount")
_WRITER = WriteOptions(manager="podwire-account-tokens")
_MARK = SECRET_TYPE.encode()  # a look at the bytes spares the decoding of most Secrets


def _encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


class AccountSecrets:
    """authority: the certificates by which clients know the API server, as PEM; "" where there are none."""

    def __init__(self, objects: Objects, accounts: Accounts, authority: str) -> None:
        self.objects, self.accounts, self.authority = objects, accounts, authority
        self._worker = Worker("account tokens", objects.store, self._touched, self.handle, self._first)

    async def run(self) -> None:
        await self._worker.run()

    async def _first(self) -> Iterable[str]:
        return [item.key for item in await self.objects.store.scan(_SECRETS.prefix()) if _MARK in item.value]

    @staticmethod
    def _touched(change: StoredChange) -> Iterable[str]:
        if change.key.startswith(_SECRETS.prefix()):
            return (change.key,) if change.item is not None and _MARK in change.item.value else ()
        return (change.key,) if change.key.startswith(_ACCOUNTS.prefix()) else ()

    async def handle(self, key: str) -> None:
        """Take the next step for the Secret of a key, or for those of the account of a key. Raises StatusError."""
        if key.startswith(_SECRETS.prefix()):
            if (item := await self.objects.store.get(key)) is not None:
                await self._fill(load(item))
            return
        space, _, own = key.removeprefix(_ACCOUNTS.prefix()).partition("/")
        for item in await self.objects.store.scan(_SECRETS.prefix(space)):
            if _MARK in item.value and annotations_of(codec.decode(item.value)).get(NAME_NOTE) == own:
                await self._fill(load(item))

    async def _fill(self, secret: Object) -> None:
        own = annotations_of(secret).get(NAME_NOTE)
        if secret.get("type") != SECRET_TYPE or not own or deleting(secret):
            return
        space = namespace(secret)
        item = await self.objects.store.get(_ACCOUNTS.key(space, own))
        account: Object | None = None if item is None else load(item)
        wanted = annotations_of(secret).get(UID_NOTE)
        if account is None or (wanted and wanted != uid(account)):
            await self._end(secret, own)
            return
        data = dict(secret.get("data") or {})
        if self.authority:
            data["ca.crt"] = _encoded(self.authority)
        data["namespace"] = _encoded(space)
        if not data.get("token"):
            data["token"] = _encoded(self.accounts.keys.sign(legacy_claims(account, name(secret))))
        if data == (secret.get("data") or {}) and wanted:
            return
        notes = {**annotations_of(secret), UID_NOTE: uid(account)}
        made = {**secret, "metadata": {**secret["metadata"], "annotations": notes}, "data": data}
        try:
            await self.objects.update(Scope(_SECRETS, space, name(secret)), made, _WRITER)
        except StatusError as err:
            if err.reason not in ("Conflict", "NotFound"):  # a change comes here again
                raise

    async def _end(self, secret: Object, account: str) -> None:
        try:
            options = {"preconditions": {"uid": uid(secret)}}
            await self.objects.delete(Scope(_SECRETS, namespace(secret), name(secret)), options)
            log.info("account token deleted", secret=f"{namespace(secret)}/{name(secret)}", gone=account)
        except StatusError as err:
            if err.code not in (404, 409):
                raise
