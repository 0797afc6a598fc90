"""Validation of CertificateSigningRequests (pkg/apis/certificates/validation)."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable

from podwire_base.kube.errors import Cause
from podwire_base.kube.meta import Object

from ..certificates import usages as known
from . import fields
from .fields import Causes, all_invalid, duplicate, forbidden, invalid, not_supported, required, too_long

LEGACY = "kubernetes.io/legacy-unknown"
SHORTEST = 600  # seconds
_VERDICTS = ("Approved", "Denied")
_LASTING = (*_VERDICTS, "Failed")
_DOMAIN_MAX = fields.SUBDOMAIN_MAX
_SIGNER_MAX = 2 * fields.SUBDOMAIN_MAX + fields.LABEL_MAX + 2
_BLOCK = re.compile(rb"-----BEGIN ([^-]*)-----\s(.*?)-----END \1-----", re.DOTALL)


def request(obj: Object) -> Causes:
    """Check a request that is created."""
    from ..certificates import requests  # the library of certificates is slow to load, and few processes need it

    spec = obj.get("spec") or {}
    try:
        requests.parse(spec.get("request"))
    except ValueError as err:
        yield invalid("spec.request", spec.get("request") or "", str(err))
    yield from _usages(spec.get("usages") or [])
    signer = spec.get("signerName") or ""
    if signer == LEGACY:
        yield invalid("spec.signerName", signer, "the legacy signerName is not allowed via this API version")
    else:
        yield from signer_name("spec.signerName", signer)
    seconds = spec.get("expirationSeconds")
    if seconds is not None and seconds < SHORTEST:
        why = f"may not specify a duration less than {SHORTEST} seconds (10 minutes)"
        yield invalid("spec.expirationSeconds", seconds, why)


def _usages(given: list[str]) -> Causes:
    if not given:
        yield required("spec.usages")
    for at, usage in enumerate(given):
        if usage not in known.ALL:
            yield not_supported(f"spec.usages[{at}]", usage, known.ALL)
        if usage in given[:at]:
            yield duplicate(f"spec.usages[{at}]", usage)


def signer_name(path: str, text: str) -> Causes:
    """Check the name of a signer: DOMAIN/PATH, where the domain has two labels or more."""
    if not text:
        yield required(path)
        return
    domain, slash, rest = text.partition("/")
    if not slash or "/" in rest:
        yield invalid(path, text, "must be a fully qualified domain and path of the form 'example.com/signer-name'")
        return
    if len(domain) > _DOMAIN_MAX:
        yield too_long(path, _DOMAIN_MAX)
    for whole, check in ((domain, fields.label), (rest, fields.subdomain)):
        for part in whole.split("."):
            if problems := check(part):
                yield from all_invalid(path, whole, [f'validating label "{part}": {why}' for why in problems])
                break
        if whole is domain and "." not in domain:
            yield invalid(path, domain, "should be a domain with at least two segments separated by dots")
    if len(text) > _SIGNER_MAX:
        yield too_long(path, _SIGNER_MAX)


# ---- the status


def _conditions(obj: Object) -> list[Object]:
    return list((obj.get("status") or {}).get("conditions") or [])


def _of(obj: Object, kind: str) -> list[Object]:
    return [one for one in _conditions(obj) if one.get("type") == kind]


def _forms(obj: Object) -> Causes:
    path, seen = "status.conditions", list[str]()
    for at, one in enumerate(_conditions(obj)):
        kind, status, where = one.get("type") or "", one.get("status") or "", f"{path}[{at}]"
        if not kind:
            yield required(f"{where}.type")
        allowed = ("True",) if kind in _LASTING else ("False", "True", "Unknown")
        if not status:
            yield required(f"{where}.status")
        elif status not in allowed:
            yield not_supported(f"{where}.status", status, allowed)
        if kind in seen:
            yield duplicate(f"{where}.type", kind)
        if kind in _VERDICTS and any(other in seen for other in _VERDICTS if other != kind):
            yield invalid(path, kind, "Approved and Denied conditions are mutually exclusive")
        seen.append(kind)


def _certificate(obj: Object) -> Causes:
    encoded = (obj.get("status") or {}).get("certificate")
    if encoded and (why := bad_chain(encoded)):
        yield invalid("status.certificate", "<certificate data>", why)


def bad_chain(encoded: str) -> str:
    """Return what is wrong with the certificates of a status: PEM in base64. "" if nothing is."""
    from cryptography import x509  # as above

    try:
        pem = base64.b64decode(encoded.encode(), validate=True)
    except (binascii.Error, ValueError):
        return "it is not base64"
    blocks = _BLOCK.findall(pem)
    if not blocks:
        return "must contain at least one CERTIFICATE PEM block"
    for label, body in blocks:
        if label != b"CERTIFICATE":
            return f'only CERTIFICATE PEM blocks are allowed, found "{label.decode(errors="replace")}"'
        if b":" in body:
            return "no PEM block headers are permitted"
        try:
            x509.load_der_x509_certificate(base64.b64decode(body))
        except (ValueError, binascii.Error) as err:
            return f"a CERTIFICATE PEM block cannot be read: {err}"
    return ""


def _new(found: Causes, old: Iterable[Cause]) -> Causes:
    """Yield what is wrong now and was not wrong before: an object of an older version can still be changed."""
    known_before = {(cause.field, cause.message) for cause in old}
    yield from (cause for cause in found if (cause.field, cause.message) not in known_before)


def _changed(obj: Object, before: Object, *, verdict: bool, failure: bool, certificate: bool) -> Causes:
    """Yield what an update changes in the status that it may not change. verdict, failure, certificate: what it may
    add.
    """
    yield from _new(_forms(obj), _forms(before))
    yield from _new(_certificate(obj), _certificate(before))
    for kind in _LASTING:
        new, old = _of(obj, kind), _of(before, kind)
        path = "status.conditions"
        if len(new) < len(old):
            yield forbidden(path, f'updates may not remove a condition of type "{kind}"')
        elif len(new) > len(old):
            if not (failure if kind == "Failed" else verdict):
                yield forbidden(path, f'updates may not add a condition of type "{kind}"')
        elif new != old:
            yield forbidden(path, f'updates may not modify a condition of type "{kind}"')
    signed, was = ((one.get("status") or {}).get("certificate") or "" for one in (obj, before))
    if signed != was:
        if not certificate:
            yield forbidden("status.certificate", "updates may not set certificate content")
        elif was:
            yield forbidden("status.certificate", "updates may not modify existing certificate content")


def update(obj: Object, before: Object) -> Causes:
    yield from _changed(obj, before, verdict=False, failure=False, certificate=False)


def update_status(obj: Object, before: Object) -> Causes:
    yield from _changed(obj, before, verdict=False, failure=True, certificate=True)


def update_approval(obj: Object, before: Object) -> Causes:
    yield from _changed(obj, before, verdict=True, failure=False, certificate=False)
