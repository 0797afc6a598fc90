"""The answers on paths that name no objects: discovery, OpenAPI, health, version, metrics."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from aiohttp import web

from podwire_base.kube import codec
from podwire_base.kube.errors import StatusError
from podwire_base.kube.meta import Object
from podwire_base.kube.registry import BUILTIN, Registry

from .. import openapi, openapiproto
from . import answers, discovery, media
from .handlers import not_allowed, page_not_found

HEALTH = ("healthz", "livez", "readyz")
_DISCOVERY_TYPE = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
_TEXT, _METRICS_TYPE = "text/plain; charset=utf-8", "text/plain; version=0.0.4; charset=utf-8; escaping=underscores"
Check = Callable[[], str]


@dataclass
class Documents:
    """checks: name -> a function that returns why the server is not well, "" if it is. metrics: returns Prometheus
    text. pages: path -> a function that returns a document and its media type.
    """

    registry: Registry = BUILTIN
    checks: dict[str, Check] = field(default_factory=lambda: {"ping": str})
    metrics: Callable[[], str] = str
    pages: Mapping[str, Callable[[], tuple[Any, str]]] = field(default_factory=dict)

    def answer(self, request: web.Request, path: str, query: dict[str, str]) -> web.Response:
        """Answer a path without a slash at its end. Raises a StatusError."""
        parts = path.split("/")[1:]
        found = self._find(request, parts, query)
        if found is None:
            return page_not_found()
        if request.method not in ("GET", "HEAD") or (request.method == "HEAD" and parts[0] not in HEALTH):
            raise not_allowed(request.method)
        return found()

    def _find(self, request: web.Request, parts: list[str], query: dict[str, str]) -> Callable[[], web.Response] | None:
        first, rest = parts[0], parts[1:]
        if first in HEALTH and len(rest) <= 1:
            if rest and rest[0] not in self.checks:
                return None
            return lambda: self._health(first, rest, query)
        if first in ("api", "apis") and len(rest) <= (1 if first == "api" else 2):
            return lambda: self._discovery(request, first, rest)
        if first == "openapi":
            return lambda: self._openapi(request, rest)
        if page := self.pages.get("/".join(parts)):
            return lambda: self._page(request, *page())
        if rest:
            return None
        plain: dict[str, Callable[[], web.Response]] = {
            "version": lambda: self._json(request, discovery.version_document(), (media.JSON,)),
            "": lambda: self._index(request),
            "index.html": lambda: self._index(request),
            "metrics": lambda: answers.response(request, self.metrics().encode(), _METRICS_TYPE),
        }
        return plain.get(first)

    # ---- one document each

    def _json(self, request: web.Request, body: Object, offered: tuple[str, ...] = media.ALL) -> web.Response:
        form = media.bare(request.headers.get("Accept", ""), offered)
        return answers.response(request, answers.encode(form, body), form.media, compress=True)

    def _page(self, request: web.Request, body: Any, media_type: str) -> web.Response:
        answer = answers.response(request, codec.dumps(body), media_type)
        answer.headers["Cache-Control"] = "public, max-age=3600"
        return answer

    def _index(self, request: web.Request) -> web.Response:
        paths = ["/api", "/api/v1", "/apis"]
        for row in discovery.groups(self.registry)["groups"]:
            paths += [f"/apis/{row['name']}", *(f"/apis/{v['groupVersion']}" for v in row["versions"])]
        paths += [f"/{name}" for name in HEALTH] + [f"/{h}/{name}" for h in HEALTH for name in self.checks]
        return self._json(request, {"paths": sorted([*paths, "/metrics", "/openapi/v3", "/version"])}, (media.JSON,))

    def _health(self, which: str, rest: list[str], query: dict[str, str]) -> web.Response:
        """Answer as Kubernetes' health checks do: "ok", or with ?verbose a line for each check."""
        wanted = rest or [name for name in self.checks if name != query.get("exclude")]
        found = {name: self.checks[name]() for name in wanted}
        bad = any(found.values())
        lines = [f"[-]{name} failed: {why}" if why else f"[+]{name} ok" for name, why in found.items()]
        if bad:
            text = "\n".join([*lines, f"{which} check failed", ""])
        elif "verbose" in query:
            text = "\n".join([*lines, f"{which} check passed", ""])
        else:
            text = "ok"
        headers = {"X-Content-Type-Options": "nosniff"}
        return web.Response(body=text.encode(), status=500 if bad else 200, headers={"Content-Type": _TEXT, **headers})

    def _discovery(self, request: web.Request, first: str, rest: list[str]) -> web.Response:
        made: Object | None
        if not rest:
            if media.wants_discovery(request.headers.get("Accept", "")):
                raw = codec.dumps(discovery.aggregated(self.registry, first == "api"))
                return _tagged(request, raw, _DISCOVERY_TYPE)
            made = discovery.api_versions() if first == "api" else discovery.groups(self.registry)
        elif first == "apis" and len(rest) == 1:
            made = discovery.group(self.registry, rest[0])
        else:
            group, version = ("", rest[0]) if first == "api" else (rest[0], rest[1])
            made = discovery.resources(self.registry, group, version)
        if made is None:
            if first == "apis" and discovery.group(self.registry, rest[0]) is None:
                return page_not_found()
            raise StatusError(404, "NotFound", "the server could not find the requested resource")
        return self._json(request, made)

    def _openapi(self, request: web.Request, rest: list[str]) -> web.Response:
        made: Object | None = None
        if rest == ["v3"]:
            return _tagged(request, codec.dumps(openapi.index(self.registry)), _TEXT)
        if rest == ["v2"]:
            return self._openapi_v2(request)
        if rest[:2] == ["v3", "api"] and len(rest) == 3:
            made = openapi.v3(self.registry, "", rest[2])
        elif rest[:2] == ["v3", "apis"] and len(rest) == 4:
            made = openapi.v3(self.registry, rest[2], rest[3])
        if made is None:
            return page_not_found()
        return _tagged(request, codec.dumps(made), media.JSON)

    def _openapi_v2(self, request: web.Request) -> web.Response:
        """Answer in JSON or protobuf, as kube-openapi negotiates: the first media type that it has."""
        offered = {"*/*": media.JSON, media.JSON: media.JSON, **dict.fromkeys(openapiproto.ASKED, openapiproto.MEDIA)}
        accepted = [clause.media for clause in media.clauses(request.headers.get("Accept", "") or "*/*")]
        form = next((offered[one] for one in accepted if one in offered), None)
        if form is None:
            return web.Response(status=406)
        raw = codec.dumps(openapi.v2(self.registry))
        return _tagged(request, raw if form == media.JSON else _protobuf(raw), form)


@lru_cache(maxsize=2)  # a quarter of a second for all of Kubernetes' kinds
def _protobuf(raw: bytes) -> bytes:
    return openapiproto.encode(codec.decode(raw))


@lru_cache(maxsize=64)
def _tag(raw: bytes) -> str:
    return f'"{hashlib.sha512(raw).hexdigest().upper()}"'


def _tagged(request: web.Request, raw: bytes, content_type: str) -> web.Response:
    """Return a document with its ETag, or 304 if the client has it (RFC 9110 section 13.1.2)."""
    tag = _tag(raw)
    headers = {"ETag": tag, "Vary": "Accept", "Cache-Control": "public"}
    if tag in [one.strip() for one in request.headers.get("If-None-Match", "").split(",")]:
        return web.Response(status=304, headers=headers)
    return answers.response(request, raw, content_type, compress=True, headers=headers)
