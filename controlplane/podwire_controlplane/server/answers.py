"""The form of answers: JSON, YAML, protobuf, Tables, PartialObjectMetadata, gzip. Pure but for the clock of Tables."""

from __future__ import annotations

import gzip
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec
import yaml
from aiohttp import web

from podwire_base.kube import codec, table
from podwire_base.kube.errors import StatusError
from podwire_base.kube.meta import Object
from podwire_base.kube.registry import Resource

from .. import protobuf
from . import media
from .media import JSON, PROTOBUF, YAML, Form

GZIP_FROM = 128 * 1024  # bytes, as upstream
_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


@dataclass(frozen=True, slots=True)
class View:
    """What a client wants to see of objects. include: the parameter `includeObject` of Tables."""

    resource: Resource
    form: Form = media.DEFAULT
    include: str = "Metadata"

    @property
    def plain(self) -> bool:
        """Whether an answer is the stored JSON."""
        return self.form.media == JSON and self.form.convert is None and not self.form.pretty


def encode(form: Form, body: Object) -> bytes:
    """Return an object in the wanted media type. Raises a StatusError 406 if it has no form in protobuf."""
    if form.media == YAML:
        text: str = yaml.dump(body, Dumper=_DUMPER, default_flow_style=False, allow_unicode=True, width=10**6)
        return text.encode()
    if form.media == PROTOBUF:
        try:
            return protobuf.builtin().encode(body)
        except protobuf.BadProtobuf:
            raise media.not_acceptable((JSON, YAML)) from None
    raw = codec.dumps(body)
    return msgspec.json.format(raw, indent=2) + b"\n" if form.pretty else raw


def partial(obj: Object, version: str) -> Object:
    return {"kind": "PartialObjectMetadata", "apiVersion": f"meta.k8s.io/{version}", "metadata": obj["metadata"]}


def one(view: View, obj: Object, *, revision: str = "", head: bool = True) -> Object:
    """Return one object as the kind that the client wants. Raises a StatusError 406."""
    if view.form.convert is None:
        return obj
    version = view.form.convert[1]
    if view.form.kind == "Table":
        revision = revision or str(obj["metadata"].get("resourceVersion", ""))
        return _table(view, [obj], {"resourceVersion": revision}, head=head)
    if view.form.kind == "PartialObjectMetadata":
        return partial(obj, version)
    raise StatusError(406, "NotAcceptable", "a single object is answered as PartialObjectMetadata, not as its list")


def many(view: View, objects: Sequence[Object], metadata: Object) -> Object:
    """Return a list as the kind that the client wants. Raises a StatusError 406."""
    if view.form.convert is None:
        resource = view.resource
        bare = [{k: v for k, v in obj.items() if k not in ("kind", "apiVersion")} for obj in objects]
        bare = list(objects) if resource.custom is not None else bare  # as upstream: custom objects keep their kind
        return {
            "kind": resource.list_kind,
            "apiVersion": resource.api_version,
            "metadata": metadata,
            "items": bare,
        }
    version = view.form.convert[1]
    if view.form.kind == "Table":
        return _table(view, objects, metadata)
    if view.form.kind == "PartialObjectMetadataList":
        return {
            "kind": "PartialObjectMetadataList",
            "apiVersion": f"meta.k8s.io/{version}",
            "metadata": metadata,
            "items": [partial(obj, version) for obj in objects] or None,  # as Go writes a list that was never filled
        }
    raise StatusError(406, "NotAcceptable", "a list is answered as PartialObjectMetadataList, not as a single object")


def _table(view: View, objects: Sequence[Object], metadata: Object, *, head: bool = True) -> Object:
    made = table.table(view.resource, objects, datetime.now(UTC), include=view.include, head=head)
    made["metadata"] = metadata
    assert view.form.convert is not None
    made["apiVersion"] = f"meta.k8s.io/{view.form.convert[1]}"
    return made


def response(
    request: web.Request,
    raw: bytes,
    content_type: str = JSON,
    status: int = 200,
    *,
    compress: bool = False,
    headers: dict[str, str] | None = None,
) -> web.Response:
    """Return a response. compress: whether a large body is compressed if the client accepts that (lists are)."""
    sent = {"Content-Type": content_type, **(headers or {})}
    if compress and len(raw) > GZIP_FROM and media.gzips(request.headers.get("Accept-Encoding", "")):
        raw = gzip.compress(raw, 1)
        sent |= {"Content-Encoding": "gzip", "Vary": "Accept-Encoding"}
    return web.Response(body=raw, status=status, headers=sent)


def error(request: web.Request, err: StatusError) -> web.Response:
    """Return an error as a Status, in a media type that the client accepts."""
    form = media.error_form(request.headers.get("Accept", ""))
    headers = {"Retry-After": str(err.retry_after)} if err.retry_after else {}
    answer = response(request, encode(form, err.body()), form.media, err.code, headers=headers)
    warn(answer, err.warnings)
    return answer


def warn(answer: web.StreamResponse, warnings: Iterable[str]) -> None:
    """Add a header Warning (RFC 7234 section 5.5, code 299) for each warning. One with a control character, as a name
    in a client's object may have, is left out: no header can say it. Upstream does the same.
    """
    for warning in warnings:
        if any(unicodedata.category(c) == "Cc" for c in warning):
            continue
        answer.headers.add("Warning", '299 - "' + warning.replace("\\", "\\\\").replace('"', '\\"') + '"')


# what every answer on a resource says, from before its head is written
WARNED: web.RequestKey[str] = web.RequestKey("warned", str)


def watch_event(kind: str, obj: bytes) -> bytes:
    """Return a meta/v1 WatchEvent in protobuf: 1 = type, 2 = object (runtime.RawExtension: 1 = raw)."""
    return protobuf.message((1, kind.encode()), (2, protobuf.message((1, obj))))
