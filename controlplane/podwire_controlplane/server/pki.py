"""The embedded cluster's certificates: one CA, a server certificate, and one client certificate for each component
(ECDSA P-256). They pass the strict RFC 5280 verification that Python does since 3.13.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ..certificates.requests import Asked, alternatives
from ..certificates.usages import EXTENDED, KEY

# a certificate begins before its signature, for clocks that are behind; one of a short life does not, as upstream
_BACKDATE, _SHORT = timedelta(minutes=5), 8 * 3600.0
_YEARS = timedelta(days=3650)
NODE_LIFE = timedelta(days=365)  # of a node's certificate; the node renews it at two thirds


def write_private(path: Path, text: str) -> None:
    """Write a file with mode 0600. A new file has this mode from its creation."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its private key, as PEM text."""

    certificate: str
    key: str


def _pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


class Authority:
    """A certificate authority: a new one if `pair` is None, else the one in `pair`. Raises ValueError if `pair` is
    invalid.
    """

    def __init__(self, pair: Pair | None = None) -> None:
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "podwire-ca")])
        if pair is not None:
            key = serialization.load_pem_private_key(pair.key.encode(), None)
            if not isinstance(key, ec.EllipticCurvePrivateKey):
                raise ValueError("the authority's key is not an elliptic curve key")
            self._key, self._certificate = key, x509.load_pem_x509_certificate(pair.certificate.encode())
            return
        self._key = ec.generate_private_key(ec.SECP256R1())
        builder = self._builder(self._name, self._key.public_key()).add_extension(
            x509.BasicConstraints(ca=True, path_length=0), True
        )
        self._certificate = builder.add_extension(_key_usage(signs=True), True).sign(self._key, hashes.SHA256())

    def _builder(
        self, subject: x509.Name, key: CertificatePublicKeyTypes, life: timedelta = _YEARS
    ) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=5))
            .not_valid_after(now + life)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), False)
        )

    @property
    def certificate(self) -> str:
        return self._certificate.public_bytes(serialization.Encoding.PEM).decode()

    @property
    def pair(self) -> Pair:
        """Return the CA's certificate and private key, as `Authority` accepts them. A holder of this pair can sign any
        identity.
        """
        return Pair(self.certificate, _pem(self._key))

    def _sign(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePublicKey,
        usage: x509.ObjectIdentifier,
        names: list[x509.GeneralName],
        life: timedelta = _YEARS,
    ) -> str:
        builder = self._builder(subject, key, life)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
        builder = builder.add_extension(_key_usage(signs=False), True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), False)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), False)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()

    def _issue(self, subject: x509.Name, usage: x509.ObjectIdentifier, names: list[x509.GeneralName]) -> Pair:
        key = ec.generate_private_key(ec.SECP256R1())
        return Pair(self._sign(subject, key.public_key(), usage, names), _pem(key))

    def server(self, names: Iterable[str], addresses: Iterable[str]) -> Pair:
        alternatives: list[x509.GeneralName] = [x509.DNSName(n) for n in names]
        alternatives += [x509.IPAddress(ipaddress.ip_address(a)) for a in addresses]
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "podwire-apiserver")])
        return self._issue(subject, ExtendedKeyUsageOID.SERVER_AUTH, alternatives)

    def client(self, user: str, groups: Iterable[str]) -> Pair:
        """Return a new client certificate with CN `user` and one O field for each of `groups`, and its key."""
        return self._issue(_user(user, groups), ExtendedKeyUsageOID.CLIENT_AUTH, [])

    def certify(self, asked: Asked, usages: Collection[str], seconds: float, now: datetime) -> str:
        """Return a certificate as a request asks for it: its subject, its alternative names, the usages of its object.
        seconds: the life. It ends with the authority's own at the latest. Raises ValueError for a request that no
        certificate can hold.
        """
        end = min(now + timedelta(seconds=seconds), self._certificate.not_valid_after_utc)
        if end <= now:
            raise ValueError(f"the authority's certificate has ended on {end}")
        start = now - (_BACKDATE if seconds >= _SHORT else timedelta())
        key, common = asked.request.public_key(), NameOID.COMMON_NAME
        rest = [one for one in asked.request.subject if one.oid != common]
        own = [x509.NameAttribute(common, asked.common_name)] if asked.common_name else []
        builder = (
            x509.CertificateBuilder(not_valid_before=start, not_valid_after=end)
            .subject_name(x509.Name([*rest, *own]))
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), False)
        )
        fields = {KEY[usage] for usage in usages if usage in KEY}
        if fields:
            builder = builder.add_extension(_usage(fields), True)
        if extended := dict.fromkeys(EXTENDED[usage] for usage in usages if usage in EXTENDED):
            oids = [x509.ObjectIdentifier(oid) for oid in extended]
            builder = builder.add_extension(x509.ExtendedKeyUsage(oids), False)
        if names := alternatives(asked.request):
            builder = builder.add_extension(x509.SubjectAlternativeName(names), not (rest or own))
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()

    def sign_client(self, request: str, user: str, groups: Iterable[str], life: timedelta = NODE_LIFE) -> str:
        """Return a client certificate for the public key in a PEM signing request. The subject comes from `user` and
        `groups`, not from the request. Raises ValueError for an invalid request.
        """
        key = requested_key(request)
        return self._sign(_user(user, groups), key, ExtendedKeyUsageOID.CLIENT_AUTH, [], life)


def requested_key(request: str) -> ec.EllipticCurvePublicKey:
    """Return the public key of a PEM signing request. Raises ValueError for an invalid request."""
    asked = x509.load_pem_x509_csr(request.encode())
    key = asked.public_key()
    if not asked.is_signature_valid or not isinstance(key, ec.EllipticCurvePublicKey):
        raise ValueError("it is not signed by its own elliptic curve key")
    return key


def fingerprint(key: CertificatePublicKeyTypes) -> str:
    """Return the SHA-256 of a public key (SubjectPublicKeyInfo, DER) in hexadecimal digits."""
    info = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(info).hexdigest()


@dataclass(frozen=True, slots=True)
class Facts:
    """What a certificate says. serial: hexadecimal digits. key: the fingerprint of the public key. start, end: seconds
    since 1970.
    """

    serial: str
    user: str
    key: str
    start: float
    end: float


def facts(certificate: str) -> Facts:
    """Read a PEM certificate. Raises ValueError if it is none."""
    found = x509.load_pem_x509_certificate(certificate.encode())
    key = found.public_key()
    names = found.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return Facts(
        format(found.serial_number, "x"),
        str(names[0].value) if names else "",
        fingerprint(key),
        found.not_valid_before_utc.timestamp(),
        found.not_valid_after_utc.timestamp(),
    )


def _usage(fields: Collection[str]) -> x509.KeyUsage:
    """Return the KeyUsage extension with these of its bits. Without key agreement, two of them mean nothing (RFC
    5280).
    """
    agrees = "key_agreement" in fields
    return x509.KeyUsage(
        digital_signature="digital_signature" in fields,
        content_commitment="content_commitment" in fields,
        key_encipherment="key_encipherment" in fields,
        data_encipherment="data_encipherment" in fields,
        key_agreement=agrees,
        key_cert_sign="key_cert_sign" in fields,
        crl_sign="crl_sign" in fields,
        encipher_only=agrees and "encipher_only" in fields,
        decipher_only=agrees and "decipher_only" in fields,
    )


def _key_usage(*, signs: bool) -> x509.KeyUsage:
    """Return the KeyUsage extension. signs: the key may sign certificates. Every key may sign TLS handshakes."""
    return _usage(("digital_signature", *(("key_cert_sign", "crl_sign") if signs else ())))


def _user(user: str, groups: Iterable[str]) -> x509.Name:
    return x509.Name(
        [
            *(x509.NameAttribute(NameOID.ORGANIZATION_NAME, g) for g in groups),
            x509.NameAttribute(NameOID.COMMON_NAME, user),
        ]
    )


def new_key() -> str:
    """Return a new private key as PEM."""
    return _pem(ec.generate_private_key(ec.SECP256R1()))


def _private(key: str) -> ec.EllipticCurvePrivateKey:
    own = serialization.load_pem_private_key(key.encode(), None)
    if not isinstance(own, ec.EllipticCurvePrivateKey):
        raise ValueError("the key is not an elliptic curve key")
    return own


def public_fingerprint(key: str) -> str:
    """Return the fingerprint of the public key that belongs to a PEM private key. Raises ValueError."""
    return fingerprint(_private(key).public_key())


def signing_request(user: str, key: str = "", groups: Iterable[str] = ()) -> tuple[str, str]:
    """Return (PEM signing request, PEM private key). key: the private key; default: a new key. Only the request is sent
    to the server. Raises ValueError if `key` is no elliptic curve key.
    """
    own = _private(key or new_key())
    request = x509.CertificateSigningRequestBuilder().subject_name(_user(user, groups)).sign(own, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM).decode(), _pem(own)


def kubeconfig(cluster: str, server: str, ca: str, user: str, pair: Pair, context: str = "") -> str:
    """Return the text of a kubeconfig that embeds the CA, the client certificate and its key. cluster, user, context:
    names of the entries (default of the last one: `cluster`).
    """
    context = context or cluster

    def b64(text: str) -> str:
        return base64.b64encode(text.encode()).decode()

    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": context,
            "preferences": {},
            "clusters": [{"name": cluster, "cluster": {"server": server, "certificate-authority-data": b64(ca)}}],
            "contexts": [{"name": context, "context": {"cluster": cluster, "user": user}}],
            "users": [
                {
                    "name": user,
                    "user": {"client-certificate-data": b64(pair.certificate), "client-key-data": b64(pair.key)},
                }
            ],
        },
        sort_keys=False,
    )


def acts_as(path: Path, user: str, groups: Iterable[str]) -> bool:
    """Whether a kubeconfig of `kubeconfig` is there, and its certificate is that of this user and these groups."""
    try:
        raw = yaml.safe_load(path.read_text())["users"][0]["user"]["client-certificate-data"]
        subject = x509.load_pem_x509_certificate(base64.b64decode(raw)).subject
    except (OSError, ValueError, TypeError, LookupError, yaml.YAMLError):
        return False
    return subject == _user(user, groups)
