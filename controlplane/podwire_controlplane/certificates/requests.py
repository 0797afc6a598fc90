"""What a CertificateSigningRequest asks for, and what each of Kubernetes' signers gives. Pure.

Source: Kubernetes' documentation "Certificates and Certificate Signing Requests" (Kubernetes signers), and the checks
of kube-controller-manager's signers.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.x509.oid import NameOID

from podwire_base.kube.meta import Object

from .usages import CLIENT_AUTH, ENCIPHERMENT, SERVER_AUTH, SIGNATURE

NODES, NODE_USER = "system:nodes", "system:node:"
CLIENT = "kubernetes.io/kube-apiserver-client"
KUBELET_CLIENT = "kubernetes.io/kube-apiserver-client-kubelet"
KUBELET_SERVING = "kubernetes.io/kubelet-serving"
LEGACY = "kubernetes.io/legacy-unknown"
APPROVED, DENIED, FAILED = "Approved", "Denied", "Failed"
_BEGIN = "-----BEGIN "
_LABEL = "CERTIFICATE REQUEST"


@dataclass(frozen=True)
class Asked:
    """A PKCS #10 request (RFC 2986). organizations, common_name: of its subject; the last common name counts. dns,
    ips, emails, uris: its subject alternative names.
    """

    request: x509.CertificateSigningRequest
    common_name: str
    organizations: tuple[str, ...]
    dns: tuple[str, ...] = ()
    ips: tuple[str, ...] = ()
    emails: tuple[str, ...] = ()
    uris: tuple[str, ...] = ()

    @property
    def node(self) -> str:
        """The node whose client certificate this would be, "" for another subject."""
        named = NODES in self.organizations and self.common_name.startswith(NODE_USER)
        return self.common_name.removeprefix(NODE_USER) if named else ""


def parse(encoded: Any) -> Asked:
    """Read `spec.request`: PEM in base64. Raises ValueError for what is no request that its own key signed."""
    try:
        pem = base64.b64decode(str(encoded or "").encode(), validate=True)
    except (binascii.Error, ValueError) as err:
        raise ValueError(f"it is not base64: {err}") from None
    return read(pem)


def read(pem: bytes) -> Asked:
    """Read a PEM request. Raises ValueError."""
    label = pem.partition(_BEGIN.encode())[2].partition(b"-----")[0]
    if label != _LABEL.encode():
        raise ValueError("PEM block type must be CERTIFICATE REQUEST")
    try:
        request = x509.load_pem_x509_csr(pem)
        if not request.is_signature_valid:
            raise ValueError("the signature of the request is not that of its own key")
        return _asked(request)
    except (UnsupportedAlgorithm, InvalidSignature, TypeError, x509.InvalidVersion) as err:
        raise ValueError(f"the request cannot be read: {err}") from None


def _asked(request: x509.CertificateSigningRequest) -> Asked:
    def values(oid: x509.ObjectIdentifier) -> tuple[str, ...]:
        return tuple(str(one.value) for one in request.subject.get_attributes_for_oid(oid))

    names = values(NameOID.COMMON_NAME)
    found = alternatives(request)

    def of(kind: type[x509.GeneralName]) -> tuple[str, ...]:
        return tuple(str(one.value) for one in found if isinstance(one, kind))

    return Asked(
        request,
        names[-1] if names else "",
        values(NameOID.ORGANIZATION_NAME),
        of(x509.DNSName),
        of(x509.IPAddress),
        of(x509.RFC822Name),
        of(x509.UniformResourceIdentifier),
    )


def alternatives(request: x509.CertificateSigningRequest) -> list[x509.GeneralName]:
    """Return the subject alternative names of a request of the four kinds that a signer copies. Raises ValueError."""
    copied = (x509.DNSName, x509.IPAddress, x509.RFC822Name, x509.UniformResourceIdentifier)
    for extension in request.extensions:
        if isinstance(extension.value, x509.SubjectAlternativeName):
            return [one for one in extension.value if isinstance(one, copied)]
    return []


# ---- the signers


def _kubelet(asked: Asked, usages: Collection[str], needed: str) -> Iterator[str]:
    """Yield what a node's certificate of either kind may not be. needed: server auth or client auth."""
    if asked.organizations != (NODES,):
        yield f"subject organization is not {NODES}"
    if asked.emails:
        yield "Email subjectAltNames are not allowed"
    if asked.uris:
        yield "URI subjectAltNames are not allowed"
    if set(usages) - {ENCIPHERMENT} != {SIGNATURE, needed}:
        yield f"usages did not match [{SIGNATURE} {ENCIPHERMENT} {needed}]"
    if not asked.common_name.startswith(NODE_USER):
        yield f"subject common name does not begin with {NODE_USER}"


def kubelet_client(asked: Asked, usages: Collection[str]) -> Iterator[str]:
    if asked.dns:
        yield "DNS subjectAltNames are not allowed"
    if asked.ips:
        yield "IP subjectAltNames are not allowed"
    yield from _kubelet(asked, usages, CLIENT_AUTH)


def kubelet_serving(asked: Asked, usages: Collection[str]) -> Iterator[str]:
    if not asked.dns and not asked.ips:
        yield "DNS or IP subjectAltName is required"
    yield from _kubelet(asked, usages, SERVER_AUTH)


def client(_asked: Asked, usages: Collection[str]) -> Iterator[str]:
    for usage in usages:
        if usage not in (SIGNATURE, ENCIPHERMENT, CLIENT_AUTH):
            yield f"invalid usage for client certificate: {usage}"
    if CLIENT_AUTH not in usages:
        yield f"missing required usage for client certificate: {CLIENT_AUTH}"


def _anything(_asked: Asked, _usages: Collection[str]) -> Iterator[str]:
    yield from ()


# signer -> what it refuses to sign
SIGNERS: dict[str, Callable[[Asked, Collection[str]], Iterator[str]]] = {
    CLIENT: client,
    KUBELET_CLIENT: kubelet_client,
    KUBELET_SERVING: kubelet_serving,
    LEGACY: _anything,  # v1 refuses to create such a request; what an older version stored is signed
}


def refusal(signer: str, asked: Asked, usages: Collection[str]) -> str:
    """Return why one of SIGNERS does not sign a request, "" if it does."""
    return next(SIGNERS[signer](asked, usages), "")


# ---- the status of a request


def conditions(obj: Object) -> list[Object]:
    return list((obj.get("status") or {}).get("conditions") or [])


def has(obj: Object, kind: str) -> bool:
    return any(one.get("type") == kind for one in conditions(obj))
