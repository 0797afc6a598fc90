"""Joining: a machine becomes a node of the cluster. The join token authenticates the server and the machine to each
other.

GET /podwire/v1/ca returns the cluster's CA certificate and a MAC of this certificate for each valid token. The MAC's
key is the token, so only a holder of the token can compute the MAC (as in kubeadm's signed cluster-info). The machine
then sends the token, its node name and a certificate signing request to POST /podwire/v1/join. A node renews its
certificate with the same request; there the TLS handshake with the present certificate takes the place of the token.
The answer is the node's client certificate (CN system:node:NAME) and the cluster's addresses. The node's private key
never leaves the node. `identity.decide` says which requests are granted.

POST /podwire/v1/revoke with {"node": NAME} ends every certificate of a node. Only administrators may send it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from aiohttp import web

from podwire_base.kube.errors import StatusError
from podwire_base.role import logs

from . import auth, identity, pki
from . import tokens as join_tokens
from .handlers import REFUSED, USER
from .identities import Identities

log = logs.get("apiserver")
CA_PATH, JOIN_PATH = auth.JOIN_PATHS
MIN_TOKEN = join_tokens.MIN_TOKEN


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


def read_tokens(data: Path) -> list[join_tokens.Token]:
    """Return the tokens of join.json that are valid now."""
    path, now = data / "join.json", time.time()
    try:
        found = join_tokens.parse(path.read_text(), path.stat().st_mtime)
    except (OSError, ValueError):
        return []
    return [token for token in found if token.valid(now)]


class Joining:
    """data: the directory with ca.pem, ca-key.pem, cluster.json and join.json (tokens.py). Each request reads
    join.json, so a new token takes effect while the server runs.
    """

    def __init__(self, data: Path, identities: Identities) -> None:
        self.data, self.identities = data, identities

    def tokens(self) -> list[join_tokens.Token]:
        """Return the valid tokens. Raises a StatusError 404 if there is none."""
        if found := read_tokens(self.data):
            return found
        raise StatusError(
            404,
            "NotFound",
            "no join token is valid now; run `podwire token` on the first machine to make one for a day",
        )

    async def authority(self, _request: web.Request) -> web.StreamResponse:
        text = (self.data / "ca.pem").read_text()
        found = self.tokens()
        macs = [mac(token.secret, text) for token in found]
        first = next((m for m, token in zip(macs, found, strict=True) if not token.node), "")
        return web.json_response({"ca": text, "mac": first, "macs": macs})  # machines of version 0.2 read "mac"

    async def join(self, request: web.Request) -> web.StreamResponse:
        user, token = request.get(USER), None
        kind, _, given = request.headers.get("Authorization", "").partition(" ")
        if kind.lower() == "bearer":
            token = join_tokens.find(self.tokens(), given.strip(), time.time())
            if token is None:
                log.warn("join request refused", remote=request.remote, why="wrong token")
                raise StatusError(
                    401, "Unauthorized", "the join token belongs to another cluster, or a newer token replaced it"
                )
        elif REFUSED in request:
            raise StatusError(401, "Unauthorized", request[REFUSED])
        node, answer = await self.answer(await request.text(), user, token)
        log.info("a machine joined" if token else "a node's certificate was renewed", node=node, remote=request.remote)
        return web.json_response(answer)

    async def answer(
        self, text: str, user: auth.User | None, token: join_tokens.Token | None
    ) -> tuple[str, dict[str, Any]]:
        """Return (name of the node, the answer to its request). user: the sender by its certificate. Raises a
        StatusError.
        """
        try:
            asked = json.loads(text)
            node, request = asked["node"], asked["request"]
        except (ValueError, LookupError, TypeError):
            raise StatusError(400, "BadRequest", 'expected {"node": NAME, "request": PEM}') from None
        if why := identity.bad_name(node) if isinstance(node, str) else f"{str(node)[:80]!r} is not text":
            raise StatusError(422, "Invalid", f"node: {why}")
        try:
            key = pki.fingerprint(pki.requested_key(str(request)))
        except ValueError as err:
            raise StatusError(422, "Invalid", f"request: not a usable signing request: {err}") from err
        claim = identity.Claim(
            node,
            key,
            user.serial if user is not None and user.node == node else "",
            None if token is None else token.node,
        )
        certificate = await self.identities.claim(claim, partial(self._sign, node, str(request)), time.time())
        return node, {"certificate": certificate, "addresses": asdict(read_addresses(self.data) or Addresses())}

    def _sign(self, node: str, request: str) -> tuple[str, identity.Issued]:
        pair = pki.Pair((self.data / "ca.pem").read_text(), (self.data / "ca-key.pem").read_text())
        certificate = pki.Authority(pair).sign_client(request, identity.USER + node, [auth.NODES])
        made = pki.facts(certificate)
        return certificate, identity.Issued(made.serial, made.key, made.end)


async def _revoke(identities: Identities, request: web.Request) -> web.StreamResponse:
    user = request[USER]
    if auth.ADMINS not in user.groups:
        raise StatusError(403, "Forbidden", f'User "{user.name}" cannot revoke the certificates of nodes')
    try:
        node = json.loads(await request.text())["node"]
    except (ValueError, LookupError, TypeError):
        raise StatusError(400, "BadRequest", 'expected {"node": NAME}') from None
    if why := identity.bad_name(node) if isinstance(node, str) else f"{str(node)[:80]!r} is not text":
        raise StatusError(422, "Invalid", f"node: {why}")
    before = await identities.revoke(node)
    return web.json_response(
        {"node": node, "known": before is not None, "serials": sorted(before.issued if before else ())}
    )


def routes(data: Path, identities: Identities) -> list[web.RouteDef]:
    """Return the routes for joining and revoking. Nobody can join without ca-key.pem, the CA key that `podwire init`
    writes.
    """
    rows = [web.post(auth.REVOKE_PATH, partial(_revoke, identities))]
    if (data / "ca-key.pem").exists():
        joining = Joining(data, identities)
        rows += [web.get(CA_PATH, joining.authority), web.post(JOIN_PATH, joining.join)]
    return rows
