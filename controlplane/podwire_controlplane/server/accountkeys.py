"""The key that signs the tokens of ServiceAccounts: JWS with RS256 (RFC 7515, RFC 7518 section 3.3), and the documents
by which others verify them (RFC 7517).

It uses `cryptography`, which signs the certificates too, and no JWT library: one algorithm, one form of header, and no
header field that chooses a key or an algorithm, which is where JWT libraries have had their holes.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

_BITS = 2048
MAX_TOKEN = 16 * 1024  # bytes


def new_key() -> str:
    """Return a new private key as PEM."""
    key = rsa.generate_private_key(65537, _BITS)
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return key.private_bytes(*form).decode()


def _b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _unb64(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)


def _number(value: int) -> str:
    return _b64(value.to_bytes((value.bit_length() + 7) // 8, "big"))


class AccountKeys:
    """pem: the private key. Raises ValueError if it is no RSA key."""

    def __init__(self, pem: str) -> None:
        key = serialization.load_pem_private_key(pem.encode(), None)
        if not isinstance(key, rsa.RSAPrivateKey):
            raise ValueError("the key for the tokens of ServiceAccounts is not an RSA key")
        self._key, self._public = key, key.public_key()
        info = self._public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        self.kid = _b64(hashlib.sha256(info).digest())

    def sign(self, claims: dict[str, Any]) -> str:
        head = _b64(json.dumps({"alg": "RS256", "kid": self.kid}, separators=(",", ":")).encode())
        signed = f"{head}.{_b64(json.dumps(claims, separators=(',', ':')).encode())}"
        return f"{signed}.{_b64(self._key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256()))}"

    def claims(self, token: str) -> dict[str, Any] | None:
        """Return the claims of a token that this key signed, None for every other text. Nothing else is checked."""
        parts = token.split(".")
        if len(parts) != 3 or len(token) > MAX_TOKEN or not token.isascii():
            return None
        try:
            head, signature = json.loads(_unb64(parts[0])), _unb64(parts[2])
            if not isinstance(head, dict) or head.get("alg") != "RS256" or head.get("kid") not in (None, self.kid):
                return None
            signed = f"{parts[0]}.{parts[1]}".encode()
            self._public.verify(signature, signed, padding.PKCS1v15(), hashes.SHA256())
            claims = json.loads(_unb64(parts[1]))
        except (InvalidSignature, binascii.Error, ValueError, RecursionError):
            return None
        return claims if isinstance(claims, dict) else None

    def jwks(self) -> dict[str, Any]:
        """Return the public key as a JSON Web Key Set."""
        numbers = self._public.public_numbers()
        row = {"use": "sig", "kty": "RSA", "kid": self.kid, "alg": "RS256"}
        return {"keys": [{**row, "n": _number(numbers.n), "e": _number(numbers.e)}]}


def discovery(issuer: str, server: str) -> dict[str, Any]:
    """Return the OpenID Provider configuration (OpenID Connect Discovery 1.0) as kube-apiserver has it. server: the URL
    at which the key set is.
    """
    return {
        "issuer": issuer,
        "jwks_uri": f"{server}/openid/v1/jwks",
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["RS256"],
    }
