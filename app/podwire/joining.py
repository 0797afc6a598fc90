"""The node's side of joining: its certificate, from the first request to every renewal. The private key is on disk
before the request is sent, so a request whose answer was lost can be repeated with the same key.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hmac
import ssl
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from podwire_base.kube.client import config as client_config
from podwire_base.kube.client.config import ClientConfig
from podwire_base.kube.client.http import ApiClient
from podwire_base.kube.errors import ApiError, BadAnswer, Refused
from podwire_base.role import files
from podwire_controlplane.certificates import bootstrap
from podwire_controlplane.server import identity, pki
from podwire_controlplane.server import join as server_join

from . import bootstrapping
from .bootstrapping import Distrusted
from .settings import JOINED

KUBECONFIG = "etc/podwire/node.kubeconfig"
LAYOUT = 1


def pending_key(kubeconfig: Path) -> str:
    """Return the private key (PEM) for the next request. It is kept in a file until the certificate is written. Raises
    OSError.
    """
    path = _pending(kubeconfig)
    with contextlib.suppress(OSError, ValueError):
        kept = path.read_text()
        pki.public_fingerprint(kept)  # raises if the file is damaged
        return kept
    key = pki.new_key()
    files.write(path, key, mode=0o600, sync=True)
    return key


def _pending(kubeconfig: Path) -> Path:
    return kubeconfig.with_name(f".{kubeconfig.name}.key")


async def ask(
    server: str, token: str, node: str, key: Callable[[], str]
) -> tuple[str, pki.Pair, server_join.Addresses]:
    """Join the cluster at `server` and return (CA, the node's certificate and key, the cluster's addresses). key:
    returns the private key (PEM); it is called when the server is trusted. Raises ApiError and Distrusted.
    """
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = (
        False,
        ssl.CERT_NONE,
    )  # the MAC authenticates the answer, and this request does not contain the token
    async with ApiClient(ClientConfig(server, "", trusting)) as api:
        first = await api.get(server_join.CA_PATH)
    authority, wanted = str(first.get("ca", "")), server_join.mac(token, str(first.get("ca", "")))
    given = [first.get("mac", ""), *(first.get("macs") or [])]
    if not any(hmac.compare_digest(str(each).encode(), wanted.encode()) for each in given):
        raise Distrusted(
            f"{server} does not know this join token: it belongs to another cluster, or a newer token replaced it"
        )
    context = ssl.create_default_context(cadata=authority)
    async with ApiClient(ClientConfig(server, token, context)) as api:
        pair, answer = await _request(api, node, key())
    return authority, pair, server_join.Addresses(**answer["addresses"])


async def _request(api: ApiClient, node: str, key: str) -> tuple[pki.Pair, Mapping[str, Any]]:
    request, key = pki.signing_request(identity.USER + node, key)
    answer: Mapping[str, Any] = await api.create(server_join.JOIN_PATH, {"node": node, "request": request})
    pair = pki.Pair(str(answer.get("certificate", "")), key)
    try:
        made = pki.facts(pair.certificate)
    except ValueError as err:
        raise BadAnswer(f"{server_join.JOIN_PATH}: the answer has no certificate: {err}") from err
    if (made.user, made.key) != (identity.USER + node, pki.public_fingerprint(key)):
        raise BadAnswer(f"{server_join.JOIN_PATH}: the certificate is for {made.user!r} or for another key")
    return pair, answer


async def patiently(
    server: str, token: str, node: str, key: Callable[[], str], seconds: float
) -> tuple[str, pki.Pair, server_join.Addresses]:
    """Call `ask` until the server answers or `seconds` have passed. All machines may start at the same time."""
    end = time.monotonic() + seconds
    while True:
        try:
            if pair := bootstrap.split(token):
                return await bootstrapping.ask(server, pair, node, key, max(1.0, end - time.monotonic()))
            return await ask(server, token, node, key)
        except ApiError as error:
            if isinstance(error, Refused) or time.monotonic() > end:
                raise
            await asyncio.sleep(1)


# ---- the kubeconfig


def write(kubeconfig: Path, server: str, authority: str, node: str, pair: pki.Pair) -> None:
    """Write the node's kubeconfig, and forget the pending key. Raises OSError."""
    body = yaml.safe_load(pki.kubeconfig("podwire", server, authority, identity.USER + node, pair))
    body["extensions"] = [{"name": JOINED, "extension": {"layout": LAYOUT}}]
    _put(kubeconfig, body)


def _put(kubeconfig: Path, body: Mapping[str, Any]) -> None:
    files.write(kubeconfig, yaml.safe_dump(body, sort_keys=False), mode=0o600, sync=True)
    _pending(kubeconfig).unlink(missing_ok=True)


def _user(body: Any) -> dict[str, Any]:
    """Return the first user's credentials. A kubeconfig of `podwire join` has one user."""
    user: dict[str, Any] = body["users"][0]["user"]
    return user


def present(kubeconfig: Path) -> pki.Facts:
    """Return the facts of the certificate in a node's kubeconfig. Raises OSError, and ValueError if there is none."""
    try:
        body = yaml.safe_load(kubeconfig.read_text())
        return pki.facts(base64.b64decode(_user(body)["client-certificate-data"]).decode())
    except (yaml.YAMLError, LookupError, TypeError) as err:
        raise ValueError(f"{kubeconfig}: no user with client-certificate-data: {err!r}") from err


async def renew(kubeconfig: Path) -> pki.Facts:
    """Ask for a new certificate with the present one, and write it into the kubeconfig. Every client in this process
    and in others reads the file again when it changes. Raises ApiError, ConfigError, OSError and ValueError.
    """
    node = present(kubeconfig).user.removeprefix(identity.USER)
    async with ApiClient(client_config.load(str(kubeconfig))) as api:
        pair, _ = await _request(api, node, pending_key(kubeconfig))
    body = yaml.safe_load(kubeconfig.read_text())
    encoded = [base64.b64encode(text.encode()).decode() for text in (pair.certificate, pair.key)]
    _user(body).update({"client-certificate-data": encoded[0], "client-key-data": encoded[1]})
    if JOINED not in str(body.get("extensions")):
        body["extensions"] = [*(body.get("extensions") or []), {"name": JOINED, "extension": {"layout": LAYOUT}}]
    _put(kubeconfig, body)
    return pki.facts(pair.certificate)


ERRORS = (ApiError, aiohttp.ClientError, OSError, ValueError)
