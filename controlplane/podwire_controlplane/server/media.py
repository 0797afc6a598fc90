"""Content negotiation. Pure. Which form of answer a client accepts, and in which form a body is.

kube-apiserver negotiates twice, and so does this module. First go-restful compares the bare media types of the header
Accept with those of the path: only equal types and */* count. Then apimachinery orders the clauses by their quality and
takes the first one whose parameters (as, g, v, stream) can be served.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from podwire_base.kube.errors import StatusError

JSON, YAML, PROTOBUF = "application/json", "application/yaml", "application/vnd.kubernetes.protobuf"
ALL = (JSON, YAML, PROTOBUF)
PLAIN = (JSON, YAML)  # of custom resources: their types have no field numbers
DISCOVERY = ("apidiscovery.k8s.io", "v2", "APIGroupDiscoveryList")
_META_KINDS = ("Table", "PartialObjectMetadata", "PartialObjectMetadataList")
MAX_CLAUSES = 100


@dataclass(frozen=True, slots=True)
class Form:
    """The form of an answer. convert: (group, version, kind) if the client wants the objects as another kind."""

    media: str = JSON
    convert: tuple[str, str, str] | None = None
    pretty: bool = False

    @property
    def kind(self) -> str:
        return self.convert[2] if self.convert else ""


DEFAULT = Form()


@dataclass(frozen=True, slots=True)
class Clause:
    """One media range of the header Accept (RFC 9110 section 12.5.1)."""

    media: str
    parameters: dict[str, str] = field(default_factory=dict)
    quality: float = 1.0


_QUALITY = re.compile(r"[0-9]{1,5}(\.[0-9]{0,20})?", re.ASCII)


def clauses(header: str) -> list[Clause]:
    """Return the clauses of an Accept header, the best first. The order of equal ones stays, and wildcards are last."""
    found = []
    for text in header.split(",")[:MAX_CLAUSES]:
        media, *rest = text.split(";")
        media = media.strip() or "*/*"
        parameters: dict[str, str] = {}
        quality = 1.0
        for pair in rest:
            name, _, value = (part.strip() for part in pair.partition("="))
            if name == "q":
                quality = float(value) if _QUALITY.fullmatch(value) else 1.0
            else:
                parameters[name] = value
        found.append(Clause("*/*" if media == "*" else media, parameters, quality))
    return sorted(found, key=lambda c: (-c.quality, c.media.startswith("*/"), c.media.endswith("/*")))


def not_acceptable(offered: tuple[str, ...]) -> StatusError:
    return StatusError(406, "NotAcceptable", f"only the following media types are accepted: {', '.join(offered)}")


def _transforms(clause: Clause, media: str, *, converts: bool) -> tuple[bool, tuple[str, str, str] | None]:
    """Return (whether the clause's parameters can be served, the wanted kind)."""
    wanted = clause.parameters
    if wanted.get("stream", "watch") != "watch":
        return False, None
    if not any(name in wanted for name in ("as", "g", "v")):
        return True, None
    convert = (wanted.get("g", ""), wanted.get("v", ""), wanted.get("as", ""))
    group, version, kind = convert
    good = converts and group == "meta.k8s.io" and version in ("v1", "v1beta1") and kind in _META_KINDS
    return good and not (kind == "Table" and media == PROTOBUF), convert


def negotiate(header: str, offered: tuple[str, ...] = ALL, *, converts: bool = True, strict: bool = True) -> Form:
    """Return the form of an answer. offered: the media types of the path. converts: whether objects can be answered as
    Table and PartialObjectMetadata. strict: whether go-restful's rule holds too; it does not for custom resources.
    Raises a StatusError 406.
    """
    if not header or header == "*/*":
        return Form(offered[0])
    if header in offered:
        return Form(header)
    found = clauses(header)
    if strict and not any(c.media == "*/*" or c.media in offered for c in found):
        raise not_acceptable(offered)
    for clause in found:
        for media in offered:
            if clause.media in (media, "*/*") or clause.media == media.split("/")[0] + "/*":
                good, convert = _transforms(clause, media, converts=converts)
                if good:
                    return Form(media, convert, clause.parameters.get("pretty") == "1")
    raise not_acceptable(offered)


def bare(header: str, offered: tuple[str, ...]) -> Form:
    """Return the form of a document that go-restful's rule alone decides: parameters count for nothing. Raises a
    StatusError 406.
    """
    for clause in clauses(header) if header else [Clause("*/*")]:
        for media in offered:
            if clause.media in (media, "*/*"):
                return Form(media)
    raise StatusError(406, "NotAcceptable", f"406: Not Acceptable\n\nAvailable representations: {', '.join(offered)}")


def error_form(header: str) -> Form:
    """Return the form of an error: what the client accepts if that is possible, else JSON."""
    try:
        return Form(negotiate(header).media)
    except StatusError:
        return Form(next((c.media for c in clauses(header) if c.media in ALL), JSON))


def wants_discovery(header: str) -> bool:
    """Whether a client prefers aggregated discovery (KEP-3352) to the old documents."""
    if "APIGroupDiscoveryList" not in header:
        return False
    for clause in clauses(header):
        if clause.media not in (JSON, "*/*", "application/*"):
            continue
        wanted = tuple(clause.parameters.get(name, "") for name in ("g", "v", "as"))
        if wanted == DISCOVERY:
            return True
        if wanted == ("", "", ""):
            return False
    return False


def body_type(header: str) -> str:
    """Return the media type of a body, in lower case, without parameters; JSON if the client names none."""
    return header.partition(";")[0].strip().lower() or JSON


def gzips(header: str) -> bool:
    """Whether the header Accept-Encoding asks for gzip. kube-apiserver reads no qualities here."""
    return "gzip" in header and any(token.strip() == "gzip" for token in header.split(","))
