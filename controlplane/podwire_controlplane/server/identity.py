"""Who may hold a node's certificate. `decide` is the whole policy, as one function without I/O. The join endpoint uses
it, and so can every other signer of node certificates.

A node's name belongs to the first machine that asks for it. The reservation of the name is a record in the store. It
outlives the Node object, so that nobody takes the name of a node that was deleted. The record lists the certificates
of the name that are still valid, by serial number (RFC 5280 section 4.1.2.2).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

LAYOUT = 1  # of a record in the store
PREFIX = "/podwire.io/identities/"  # of the store keys; a kind's keys begin with its group, and no kind has this group
USER = "system:node:"
MAX_NAME = 64 - len(USER)  # a common name has at most 64 characters (RFC 5280, ub-common-name)
_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_NAME = re.compile(rf"{_LABEL}(\.{_LABEL})*")


class NewerLayout(ValueError):
    """A later version of podwire wrote the record."""


@dataclass(frozen=True)
class Record:
    """The reservation of one name. present: the serial number of the newest certificate, "" if none is valid. key: the
    SHA-256 of that certificate's public key. issued: serial number -> end of the certificate's life (seconds since
    1970). closed: only certificates in `issued` are accepted; without it, certificates of unknown serial numbers are
    accepted too (earlier versions kept no records).
    """

    node: str
    present: str = ""
    key: str = ""
    issued: Mapping[str, float] = field(default_factory=dict)
    closed: bool = False


@dataclass(frozen=True)
class Claim:
    """A request for a certificate. key: the SHA-256 of the public key that it is for; the request's own signature
    proves that the sender has the private key. signer: the serial number of the certificate of this very node that
    authenticated the request, "" if none did. token: what the join token is for: a node's name, "" for any new name,
    None if there is no valid token.
    """

    node: str
    key: str
    signer: str = ""
    token: str | None = None


@dataclass(frozen=True)
class Issued:
    """A certificate that was made. until: the end of its life in seconds since 1970."""

    serial: str
    key: str
    until: float


@dataclass(frozen=True)
class Grant:
    """The claim is right. revokes: all earlier certificates of the name end with it."""

    revokes: bool = False


@dataclass(frozen=True)
class Refusal:
    """The claim is refused, with the code, reason and message of a Status."""

    code: int
    reason: str
    message: str


def bad_name(node: str) -> str:
    """Return what is wrong with a node's name, "" if it is a DNS subdomain (RFC 1123) that a certificate can carry."""
    if not _NAME.fullmatch(node):
        return f"{node[:80]!r} is not a name: labels of lower-case letters, digits and '-', separated by '.'"
    if len(node) > MAX_NAME:
        return f"{node[:80]!r} has {len(node)} characters; a certificate has room for {MAX_NAME}"
    return ""


def accepts(record: Record | None, serial: str) -> bool:
    """Whether a certificate of the record's name counts that a trusted authority signed and that has not expired."""
    return record is None or not record.closed or serial in record.issued


def decide(claim: Claim, record: Record | None, *, exists: bool) -> Grant | Refusal:
    """Whether to give the claimed certificate. record: the reservation of the name. exists: there is a Node of the
    name. A certificate is given

    1. to a request that the node's present certificate signed (a renewal);
    2. for a token that an administrator bound to exactly this name: all earlier certificates end;
    3. for a token for new names, while there is neither a reservation nor a Node of the name;
    4. again for the same key as the present certificate, to a holder of the earlier certificate or of a token: the
       answer to the first request was lost.

    Everything else is refused. Rules 1 and 4 do not apply to a revoked certificate, because a revocation leaves no
    present certificate and no key.
    """
    again = record is not None and bool(record.key) and record.key == claim.key
    proven = bool(claim.signer) and accepts(record, claim.signer)
    if proven and (record is None or again or claim.signer == record.present):
        return Grant()
    if claim.token is not None:
        if claim.token == claim.node:
            return Grant(revokes=True)
        if claim.token:
            return Refusal(403, "Forbidden", f"the join token is for node {claim.token!r}, not for {claim.node!r}")
        if again or (record is None and not exists):
            return Grant()
        why = "there is a Node of this name" if record is None else "it was given a certificate before"
        return Refusal(
            409,
            "AlreadyExists",
            f"the name {claim.node!r} is taken: {why}. Run `podwire token {claim.node}` on the first machine, and join "
            "with the token that it prints; or choose another --node-name",
        )
    if claim.signer:
        return Refusal(
            403, "Forbidden", f"this is not the present certificate of node {claim.node!r}; join with a token for it"
        )
    return Refusal(401, "Unauthorized", "send the node's present certificate or a join token")


def granted(record: Record | None, claim: Claim, grant: Grant, made: Issued, now: float) -> Record:
    """Return the record after the certificate `made` was given. Expired certificates leave the list."""
    old = {} if record is None or grant.revokes else {s: end for s, end in record.issued.items() if end > now}
    closed = grant.revokes or (record is not None and record.closed)
    return Record(claim.node, made.serial, made.key, {**old, made.serial: made.until}, closed)


def revoked(record: Record | None, node: str) -> Record:
    """Return the record after every certificate of the name was revoked. The name stays reserved."""
    return replace(record or Record(node), present="", key="", issued={}, closed=True)


def encode(record: Record) -> bytes:
    body = {
        "layout": LAYOUT,
        "node": record.node,
        "present": record.present,
        "key": record.key,
        "issued": dict(record.issued),
        "closed": record.closed,
    }
    return json.dumps(body).encode()


def parse(raw: bytes) -> Record:
    """Read a record. Raises NewerLayout, and ValueError for a damaged record."""
    try:
        body = json.loads(raw)
        if (layout := int(body["layout"])) > LAYOUT:
            raise NewerLayout(
                f"the reservation of node {body.get('node')!r} has layout {layout}, and this version reads up to "
                f"{LAYOUT}: start the version of podwire that wrote it"
            )
        issued = {str(serial): float(until) for serial, until in body["issued"].items()}
        return Record(
            str(body["node"]), str(body["present"]), str(body["key"]), issued, closed=bool(body.get("closed", True))
        )
    except (KeyError, TypeError, AttributeError) as err:
        raise ValueError(f"a reservation cannot be read: {err!r}") from err


def renewal_time(start: float, end: float) -> float:
    """Return the moment at which a certificate that is valid from `start` to `end` is renewed: two thirds of its
    life.
    """
    return start + (end - start) * 2 / 3
