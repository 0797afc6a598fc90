"""Joining: a machine becomes a node of the cluster. The join token authenticates the server and the machine to each
other.

GET /podwire/v1/ca returns the cluster's CA certificate and a MAC of this certificate. The MAC's key is the token, so
only a holder of the token can compute the MAC (as in kubeadm's signed cluster-info). The machine then sends the token,
its node name and a certificate signing request to POST /podwire/v1/join. The answer is the node's client certificate
(CN system:node:NAME) and the cluster's addresses. The node's private key never leaves the node.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aiohttp import web

from podwire_base.kube.errors import StatusError
from podwire_base.role import logs

from . import auth, pki

log = logs.get("apiserver")
CA_PATH, JOIN_PATH = auth.JOIN_PATHS
MIN_TOKEN = 32  # characters: the MAC is public, so the token must resist a brute-force search
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")


@dataclass(frozen=True)
class Addresses:
    """The addresses that every role of the cluster needs. `podwire init` writes them beside the certificates."""

    cluster_cidr: str = "10.244.0.0/16"
    service_cidr: str = "10.96.0.0/16"
    dns_address: str = "10.96.0.10"
    cluster_domain: str = "cluster.local"


def read_addresses(data: Path) -> Addresses | None:
    """Return the addresses that `podwire init` wrote, None if it did not run here. Raises ValueError or TypeError for a
    malformed file.
    """
    try:
        return Addresses(**json.loads((data / "cluster.json").read_text()))
    except FileNotFoundError:
        return None


def mac(token: str, authority: str) -> str:
    return hmac.new(token.encode(), authority.encode(), hashlib.sha256).hexdigest()


class Joining:
    """data: the directory with ca.pem, ca-key.pem, cluster.json and join.json ({"token", "expires"}). Each request
    reads join.json, so a new token takes effect while the server runs.
    """

    def __init__(self, data: Path) -> None:
        self.data = data

    def token(self) -> str:
        """Return the current token. Raises a StatusError 404 if there is no valid token."""
        try:
            found = json.loads((self.data / "join.json").read_text())
            if float(found["expires"]) > time.time() and len(found["token"]) >= MIN_TOKEN:
                return str(found["token"])
        except (OSError, ValueError, LookupError, TypeError):
            pass
        raise StatusError(
            404, "NotFound", "no join token is valid now; run `podwire init` on the first machine to make one"
        )

    async def authority(self, _request: web.Request) -> web.StreamResponse:
        text = (self.data / "ca.pem").read_text()
        return web.json_response({"ca": text, "mac": mac(self.token(), text)})

    async def join(self, request: web.Request) -> web.StreamResponse:
        kind, _, given = request.headers.get("Authorization", "").partition(" ")
        if kind.lower() != "bearer" or not hmac.compare_digest(
            given.strip().encode(errors="replace"), self.token().encode()
        ):
            log.warn("join request refused", remote=request.remote, why="wrong token")
            raise StatusError(
                401, "Unauthorized", "the join token belongs to another cluster, or a newer token replaced it"
            )
        node, answer = self.answer(await request.text())
        log.info("a machine joined", node=node, remote=request.remote)
        return web.json_response(answer)

    def answer(self, text: str) -> tuple[str, dict[str, Any]]:
        """Return (name of the node, the answer to its request). Raises a StatusError 400 or 422."""
        try:
            asked = json.loads(text)
            node, request = asked["node"], asked["request"]
        except (ValueError, LookupError, TypeError):
            raise StatusError(400, "BadRequest", 'expected {"node": NAME, "request": PEM}') from None
        if not isinstance(node, str) or not _NAME.fullmatch(node):
            raise StatusError(
                422, "Invalid", f"node: {str(node)[:80]!r} is not a name: lower-case letters, digits, '-' and '.'"
            )
        pair = pki.Pair((self.data / "ca.pem").read_text(), (self.data / "ca-key.pem").read_text())
        try:
            certificate = pki.Authority(pair).sign_client(str(request), f"system:node:{node}", [auth.NODES])
        except ValueError as err:
            raise StatusError(422, "Invalid", f"request: not a usable signing request: {err}") from err
        return node, {"certificate": certificate, "addresses": asdict(read_addresses(self.data) or Addresses())}


def routes(data: Path) -> list[web.RouteDef]:
    """Return the routes for joining. There are none without ca-key.pem, the CA key that `podwire init` writes."""
    joining = Joining(data)
    if not (data / "ca-key.pem").exists():
        return []
    return [web.get(CA_PATH, joining.authority), web.post(JOIN_PATH, joining.join)]
