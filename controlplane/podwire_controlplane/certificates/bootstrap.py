"""Bootstrap tokens: Secrets by which machines that are not nodes yet know the cluster, and are known to it. Pure.

Source: Kubernetes' documentation "Authenticating with Bootstrap Tokens", and the signature of the ConfigMap
cluster-info (JSON Web Signature, RFC 7515, with a detached payload, appendix F).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from podwire_base.kube.meta import Object
from podwire_base.kube.times import parse_time

SPACE, PREFIX, TYPE = "kube-system", "bootstrap-token-", "bootstrap.kubernetes.io/token"
GROUP, USER = "system:bootstrappers", "system:bootstrap:"
INFO_SPACE, INFO, KUBECONFIG = "kube-public", "cluster-info", "kubeconfig"
SIGNATURE = "jws-kubeconfig-"  # of the keys in the ConfigMap; the token's id follows
NODE_KEY = "podwire-node"  # key of the Secret: the only node's name that the token admits
_FORM = re.compile(r"([a-z0-9]{6})\.([a-z0-9]{16})")
_EXTRA_GROUP = re.compile(r"system:bootstrappers:[a-z0-9:-]{0,255}[a-z0-9]")


@dataclass(frozen=True)
class Token:
    """expires: seconds since 1970. authenticates, signs: what it may be used for. groups: of its user. node: the only
    name that it admits, "" for any new name.
    """

    id: str
    secret: str
    expires: float = float("inf")
    authenticates: bool = False
    signs: bool = False
    groups: tuple[str, ...] = (GROUP,)
    node: str = ""

    @property
    def text(self) -> str:
        return f"{self.id}.{self.secret}"


def split(text: str) -> tuple[str, str] | None:
    """Return (id, secret) of a bootstrap token, None if the text is none."""
    found = _FORM.fullmatch(text)
    return (found[1], found[2]) if found else None


def of_secret(secret: Object) -> Token | None:
    """Read a Secret; None if it holds no usable token. A damaged expiration counts as past."""
    if secret.get("type") != TYPE:
        return None
    data = {key: _text(value) for key, value in (secret.get("data") or {}).items()}
    own, hidden = data.get("token-id", ""), data.get("token-secret", "")
    if split(f"{own}.{hidden}") is None or secret["metadata"].get("name") != PREFIX + own:
        return None
    extra = [group for group in data.get("auth-extra-groups", "").split(",") if group]
    if any(not _EXTRA_GROUP.fullmatch(group) for group in extra):
        return None
    return Token(
        own,
        hidden,
        _end(data.get("expiration", "")),
        data.get("usage-bootstrap-authentication") == "true",
        data.get("usage-bootstrap-signing") == "true",
        (GROUP, *dict.fromkeys(extra)),
        data.get(NODE_KEY, ""),
    )


def _text(encoded: object) -> str:
    try:
        return base64.b64decode(str(encoded)).decode()
    except (binascii.Error, ValueError):
        return ""


def _end(text: str) -> float:
    if not text:
        return float("inf")
    try:
        return parse_time(text).timestamp()
    except (ValueError, OverflowError):
        return 0.0


def secret_of(token: Token, expires: str, description: str) -> Object:
    """Return the Secret of a new token. expires: a timestamp."""
    values = {
        "token-id": token.id,
        "token-secret": token.secret,
        "expiration": expires,
        "usage-bootstrap-authentication": "true",
        "usage-bootstrap-signing": "true",
        "description": description,
        **({NODE_KEY: token.node} if token.node else {}),
    }
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": PREFIX + token.id, "namespace": SPACE},
        "type": TYPE,
        "data": {key: base64.b64encode(value.encode()).decode() for key, value in values.items()},
    }


# ---- cluster-info


def signature(content: str, token: tuple[str, str]) -> str:
    """Return the detached signature of a text by a token (id, secret): HMAC with SHA-256."""

    def b64(raw: bytes) -> str:
        return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()

    head = b64(json.dumps({"alg": "HS256", "kid": token[0]}, separators=(",", ":")).encode())
    signed = f"{head}.{b64(content.encode())}"
    return f"{head}..{b64(hmac.new(token[1].encode(), signed.encode(), hashlib.sha256).digest())}"


def signed(info: Object, tokens: Mapping[str, str]) -> Object | None:
    """Return the data that the ConfigMap cluster-info should have, None if it has it. tokens: id -> secret of all that
    sign.
    """
    data = dict(info.get("data") or {})
    content = data.get(KUBECONFIG)
    wanted = {key: value for key, value in data.items() if not key.startswith(SIGNATURE)}
    if content is not None:
        wanted |= {SIGNATURE + own: signature(content, (own, secret)) for own, secret in sorted(tokens.items())}
    return None if wanted == data else wanted


def trusted(info: Object, token: tuple[str, str]) -> str | None:
    """Return the kubeconfig of cluster-info if the token has signed it, else None."""
    data = info.get("data") or {}
    content, given = str(data.get(KUBECONFIG) or ""), str(data.get(SIGNATURE + token[0]) or "")
    return content if hmac.compare_digest(given.encode(), signature(content, token).encode()) else None
