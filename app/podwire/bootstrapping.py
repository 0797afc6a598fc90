"""The node's side of joining by a bootstrap token: Kubernetes' own way (cluster-info, CertificateSigningRequest).

The ConfigMap cluster-info is signed with the token, so a machine that has the token knows the authority of the cluster
before it sends anything. Then it asks for the certificate of its name, which the token's rights approve.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import secrets
import ssl
import string
import time
from collections.abc import Callable
from typing import Any

import yaml

from podwire_base.kube.client.config import ClientConfig
from podwire_base.kube.client.http import ApiClient
from podwire_base.kube.errors import BadAnswer, Refused
from podwire_base.kube.meta import Object, name
from podwire_base.kube.registry import of
from podwire_base.kube.times import timestamp
from podwire_controlplane.certificates import bootstrap
from podwire_controlplane.server import auth, identity, pki
from podwire_controlplane.server import join as server_join

_SIGNER = "kubernetes.io/kube-apiserver-client-kubelet"
_USAGES = ["digital signature", "client auth"]
CLUSTER = "podwire-cluster"
_LOOK_SECONDS = 0.2
_CHARACTERS = string.ascii_lowercase + string.digits


class Distrusted(Exception):
    """The server does not know the token, so the machine neither trusts it nor sends the token."""


def _authority(text: str) -> str:
    """Return the authority (PEM) in the kubeconfig of cluster-info. Raises BadAnswer."""
    try:
        cluster = yaml.safe_load(text)["clusters"][0]["cluster"]
        return base64.b64decode(cluster["certificate-authority-data"], validate=True).decode()
    except (yaml.YAMLError, LookupError, TypeError, binascii.Error, ValueError) as err:
        raise BadAnswer(f"cluster-info: no kubeconfig with an authority: {err!r}") from err


async def ask(
    server: str, token: tuple[str, str], node: str, key: Callable[[], str], seconds: float
) -> tuple[str, pki.Pair, server_join.Addresses]:
    """Join the cluster at `server`: return (CA, the node's certificate and key, the cluster's addresses). token: (id,
    secret). key: returns the private key (PEM); it is called when the server is trusted. seconds: how long an approval
    is waited for. Raises ApiError and Distrusted.
    """
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE  # the token's signature authenticates it
    async with ApiClient(ClientConfig(server, "", trusting)) as api:
        info = await api.get(of("ConfigMap").path(bootstrap.INFO_SPACE, bootstrap.INFO))
    config = bootstrap.trusted(info, token)
    if config is None:
        raise Distrusted(
            f"{server} does not know the bootstrap token {token[0]}: it has expired or is another cluster's"
        )
    authority = _authority(config)
    context = ssl.create_default_context(cadata=authority)
    async with ApiClient(ClientConfig(server, ".".join(token), context)) as api:
        addresses = await _addresses(api)
        pair = await _certificate(api, node, key(), seconds)
    return authority, pair, addresses


async def _addresses(api: ApiClient) -> server_join.Addresses:
    found = await api.get(of("ConfigMap").path(bootstrap.INFO_SPACE, CLUSTER))
    try:
        return server_join.Addresses(**json.loads(found["data"]["addresses"]))
    except (LookupError, TypeError, ValueError) as err:
        raise BadAnswer(f"the ConfigMap {bootstrap.INFO_SPACE}/{CLUSTER} has no addresses: {err!r}") from err


async def _certificate(api: ApiClient, node: str, key: str, seconds: float) -> pki.Pair:
    text, key = pki.signing_request(identity.USER + node, key, [auth.NODES])
    spec: dict[str, Any] = {"request": base64.b64encode(text.encode()).decode(), "signerName": _SIGNER}
    kind = of("CertificateSigningRequest")
    body = {"metadata": {"generateName": "podwire-join-"}, "spec": {**spec, "usages": _USAGES}}
    own = name(await api.create(kind.path(), body))
    end = time.monotonic() + seconds
    while True:
        found = await api.get(kind.path("", own))
        if encoded := (found.get("status") or {}).get("certificate"):
            return _pair(own, node, str(encoded), key)
        _check(found)
        if time.monotonic() > end:
            raise BadAnswer(
                f"the request {own} is still pending: an administrator approves it with `kubectl certificate approve "
                f"{own}`"
            )
        await asyncio.sleep(_LOOK_SECONDS)


def _check(found: Object) -> None:
    """Raise a Refused for a request that was denied or that failed."""
    for one in (found.get("status") or {}).get("conditions") or []:
        if one.get("type") in ("Denied", "Failed"):
            code = 409 if one.get("reason") == "NodeNameTaken" else 403
            raise Refused(
                code, str(one.get("reason") or ""), str(one.get("message") or f"it was {one['type'].lower()}")
            )


def _pair(own: str, node: str, encoded: str, key: str) -> pki.Pair:
    try:
        pair = pki.Pair(base64.b64decode(encoded, validate=True).decode(), key)
        made = pki.facts(pair.certificate)
    except (binascii.Error, ValueError) as err:
        raise BadAnswer(f"the request {own} has no certificate: {err}") from err
    if (made.user, made.key) != (identity.USER + node, pki.public_fingerprint(key)):
        raise BadAnswer(f"the certificate of {own} is for {made.user!r} or for another key")
    return pair


# ---- making a token


async def make(api: ApiClient, node: str, hours: float) -> str:
    """Store a new bootstrap token and return it. node: the only name that it admits, "" for any new name. Raises
    ApiError.
    """

    def drawn(count: int) -> str:
        return "".join(secrets.choice(_CHARACTERS) for _ in range(count))

    token = bootstrap.Token(drawn(6), drawn(16), node=node)
    told = f"podwire token for node {node}" if node else "podwire token for new nodes"
    secret = bootstrap.secret_of(token, timestamp(time.time() + hours * 3600), told)
    await api.create(of("Secret").path(bootstrap.SPACE), secret)
    return token.text
