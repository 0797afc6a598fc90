"""Approves, signs and deletes CertificateSigningRequests. It runs in the API server, because the key of the authority
is there, and a node's certificate is entered in the reservation of the node's name before it is given out.

The signers are Kubernetes' own four (certificates/requests.py). A request of another signer is left to that signer.
"""

from __future__ import annotations

import asyncio
import base64
import sqlite3
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path

from podwire_base.kube import codec
from podwire_base.kube.errors import StatusError
from podwire_base.kube.meta import Object, deleting, name
from podwire_base.kube.registry import of
from podwire_base.role import logs

from ..certificates import bootstrap, requests, verdicts
from ..rbac.rules import Attributes
from ..store.base import StoredChange
from . import auth, identity, pki
from .authorizer import Authorizer
from .identities import Identities
from .objects import Objects
from .worker import Worker
from .writes import Scope, WriteOptions, load

log = logs.get("certificates")
LIFE = 365 * 24 * 3600.0  # seconds; the longest life of a certificate that is signed here
_SHORTEST = 600.0
CLEAN_SECONDS = 600.0
_KIND = of("CertificateSigningRequest")
_WRITER = WriteOptions(manager="podwire-certificates")


def authority(data: Path) -> Callable[[], pki.Authority] | None:
    """Return what reads the authority of a cluster, None if its key is not here. The reading raises OSError and
    ValueError.
    """
    if not (data / "ca-key.pem").exists():
        return None
    return lambda: pki.Authority(pki.Pair((data / "ca.pem").read_text(), (data / "ca-key.pem").read_text()))


class Certificates:
    """authority: returns the cluster's authority, None where its key is elsewhere: then nothing is signed."""

    def __init__(
        self,
        objects: Objects,
        authorizer: Authorizer,
        identities: Identities,
        authority: Callable[[], pki.Authority] | None,
    ) -> None:
        self.objects, self.authorizer, self.identities, self.authority = objects, authorizer, identities, authority
        self._worker = Worker("certificates", objects.store, self._touched, self.handle, self._first)

    async def run(self) -> None:
        """Follow the requests forever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._cleaning())
            tasks.create_task(self._worker.run())

    @staticmethod
    def _touched(change: StoredChange) -> Iterable[str]:
        if change.item is not None and change.key.startswith(_KIND.prefix()):
            yield change.key.removeprefix(_KIND.prefix())

    async def _first(self) -> Iterable[str]:
        return [item.key.removeprefix(_KIND.prefix()) for item in await self.objects.store.scan(_KIND.prefix())]

    async def handle(self, own: str) -> None:
        """Take the next step of a request. Raises StatusError, OSError and ValueError."""
        scope = Scope(_KIND, "", own)
        item = await self.objects.store.get(scope.key)
        obj = load(item) if item else None
        if obj is None or deleting(obj) or obj["spec"].get("signerName") not in requests.SIGNERS:
            return
        try:
            asked = requests.parse(obj["spec"].get("request"))
        except ValueError:
            return  # an older version accepted it; nothing can be signed
        if verdicts.waits(obj):
            await self._sign(obj, asked)
        elif right := self._right(obj, asked):
            condition = {"type": requests.APPROVED, "status": "True", "reason": verdicts.AUTO, "message": right.message}
            await self._conclude(obj, "approval", condition)

    def _right(self, obj: Object, asked: requests.Asked) -> verdicts.Right | None:
        """Return the right by which a pending request is approved, None if its sender has none."""
        spec = obj["spec"]
        extra = tuple((key, tuple(values)) for key, values in (spec.get("extra") or {}).items())
        user = auth.User(spec.get("username") or "", tuple(spec.get("groups") or ()), extra=extra)
        for right in verdicts.rights(obj, asked):
            wanted = Attributes("create", _KIND.group, _KIND.plural, right.sub)
            if self.authorizer.decide(user, wanted).allowed:
                return right
        return None

    async def _conclude(self, obj: Object, sub: str, condition: Object) -> None:
        status = {**(obj.get("status") or {}), "conditions": [*requests.conditions(obj), condition]}
        await self._write(sub, {**obj, "status": status})
        log.info("request", request=name(obj), now=condition["type"], why=condition["message"])

    async def _write(self, sub: str, obj: Object) -> None:
        try:
            await self.objects.update(Scope(_KIND, "", name(obj), sub), obj, _WRITER)
        except StatusError as err:
            if err.reason not in ("Conflict", "NotFound"):  # a change of the request comes here again
                raise

    # ---- signing

    async def _sign(self, obj: Object, asked: requests.Asked) -> None:
        if self.authority is None:
            return
        spec = obj["spec"]
        why = requests.refusal(spec["signerName"], asked, spec.get("usages") or ())
        if why:
            await self._fail(obj, "SignerValidationFailure", why)
            return
        ca, wanted = self.authority(), spec.get("expirationSeconds")
        life = LIFE if wanted is None else min(LIFE, max(_SHORTEST, float(wanted)))

        def sign() -> tuple[str, identity.Issued]:
            now = datetime.fromtimestamp(self.objects.clock(), UTC)
            made = ca.certify(asked, spec.get("usages") or (), life, now)
            facts = pki.facts(made)
            return made, identity.Issued(facts.serial, facts.key, facts.end)

        try:
            if asked.node and spec["signerName"] != requests.KUBELET_SERVING:
                certificate = await self.identities.claim(_claim(obj, asked), sign, self.objects.clock())
            else:
                certificate, _ = sign()
        except StatusError as err:
            if err.code not in (401, 403, 409):
                raise
            await self._fail(obj, "NodeNameTaken", err.message)
            return
        except ValueError as err:
            await self._fail(obj, "SignerValidationFailure", str(err))
            return
        encoded = base64.b64encode(certificate.encode()).decode()
        await self._write("status", {**obj, "status": {**(obj.get("status") or {}), "certificate": encoded}})
        log.info("certificate signed", request=name(obj), signer=spec["signerName"], subject=asked.common_name)

    async def _fail(self, obj: Object, reason: str, why: str) -> None:
        await self._conclude(
            obj, "status", {"type": requests.FAILED, "status": "True", "reason": reason, "message": why}
        )

    # ---- cleaning

    async def _cleaning(self) -> None:
        while True:
            try:
                await self.clean()
            except (StatusError, OSError, sqlite3.Error) as err:
                log.warn("old requests cannot be deleted", error=str(err))
            await asyncio.sleep(CLEAN_SECONDS)

    async def clean(self) -> int:
        """Delete the requests that are over. Returns how many."""
        ended = 0
        for item in await self.objects.store.scan(_KIND.prefix()):
            obj: Object = codec.decode(item.value)
            if deleting(obj) or not (why := verdicts.over(obj, self.objects.clock(), _end_of)):
                continue
            try:
                await self.objects.delete(
                    Scope(_KIND, "", name(obj)), {"preconditions": {"uid": obj["metadata"]["uid"]}}
                )
            except StatusError as err:
                if err.code not in (404, 409):
                    raise
            else:
                ended += 1
                log.info("request deleted", request=name(obj), why=why)
        return ended


def _claim(obj: Object, asked: requests.Asked) -> identity.Claim:
    """Return the claim of a node's name that a request is. What a person approves is given for exactly this name; what
    the rights of the sender approve, to the node itself or for a name that is free.
    """
    spec = obj["spec"]
    key = pki.fingerprint(asked.request.public_key())
    serials = (spec.get("extra") or {}).get(auth.SERIAL) or [""]
    signer = serials[0] if spec.get("username") == asked.common_name else ""
    if not verdicts.automatic(obj):
        return identity.Claim(asked.node, key, signer, asked.node)
    bound = (spec.get("extra") or {}).get(auth.BOUND_NODE) or [""]
    new = bootstrap.GROUP in (spec.get("groups") or ())
    return identity.Claim(asked.node, key, signer, bound[0] if new else None)


def _end_of(encoded: str) -> float:
    try:
        return pki.facts(base64.b64decode(encoded).decode()).end
    except ValueError:
        return float("inf")
