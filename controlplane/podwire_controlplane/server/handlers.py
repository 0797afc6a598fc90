"""The handlers of HTTP requests on objects. A handler parses and authorises the request, calls `Objects`, and answers
in a form that the client accepts.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from podwire_base.kube import codec, errors, table, yamltext
from podwire_base.kube import patch as patches
from podwire_base.kube.errors import StatusError
from podwire_base.kube.meta import Object, name
from podwire_base.kube.registry import BY_PATH, Resource
from podwire_base.kube.selectors import both, field_query, label_query
from podwire_base.role import logs

from .. import convert, fieldlabels
from ..store.base import Compacted, Item
from ..validation import MAX_GRACE
from . import auth
from .objects import Objects, Scope, WriteOptions, Written, load, wire
from .watch import WatchRequest, parse_version, stream

log = logs.get("apiserver")
USER = web.RequestKey("user", auth.User)
REFUSED = web.RequestKey("refused", str)  # why the client's certificate does not count, on paths without authentication
MAX_WATCH = 3600.0
SERVED_SUBS = ("status", "scale", "finalize")


def resource_of(request: web.Request) -> Resource:
    info = request.match_info
    found = BY_PATH.get((info.get("group", ""), info["version"], info["plural"]))
    if found is None:
        raise StatusError(404, "NotFound", f"the server has no resource {request.path}")
    return found


def scope_of(request: web.Request) -> Scope:
    """Return the object or collection that the URL names. A client may list a namespaced kind in all namespaces."""
    resource, info = resource_of(request), request.match_info
    namespace, target = info.get("namespace", ""), info.get("name", "")
    if bool(namespace) and not resource.namespaced:
        raise StatusError(404, "NotFound", f"{resource.qualified} are not namespaced")
    if resource.namespaced and target and not namespace:
        raise StatusError(404, "NotFound", f"{resource.qualified} are namespaced: name a namespace in the URL")
    sub = info.get("sub", "")
    if sub and not (resource.sub(sub) and sub in SERVED_SUBS):
        raise StatusError(404, "NotFound", f"{resource.qualified} have no subresource {sub!r} here")
    return Scope(resource, namespace, target, sub)


def write_options(query: Mapping[str, str]) -> WriteOptions:
    mode = query.get("fieldValidation") or "Warn"
    if mode not in ("Strict", "Warn", "Ignore"):
        raise errors.bad_request(f"fieldValidation: {mode!r} is not supported; one of Strict, Warn, Ignore")
    dry = query.get("dryRun", "")
    if dry not in ("", "All"):
        raise errors.bad_request(f"dryRun: {dry!r} is not supported; expected All")
    return WriteOptions(dry == "All", mode)


async def body_of(request: web.Request) -> Any:
    """Return the decoded body (JSON or YAML), {} for an empty body. Raises a StatusError 415 for protobuf."""
    kind = request.content_type
    raw = await request.read()
    if not raw.strip():
        return {}
    if raw.startswith(b"k8s\0") or "protobuf" in kind:
        raise StatusError(
            415,
            "UnsupportedMediaType",
            "protobuf bodies are not supported; send application/json "
            "(kubectl apply does; `kubectl create` and `run` of 1.32 and later do not)",
        )
    try:
        if "yaml" in kind:
            return next(yamltext.documents(raw, aliases=False), {})
        return codec.decode(raw)
    except ValueError as err:
        raise errors.bad_request(f"the body is not {'YAML' if 'yaml' in kind else 'JSON'}: {err}") from err


class Handlers:
    """The request handlers of one `Objects` instance. `app.py` binds the methods to routes."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects

    # ---- authorisation

    async def authorise(self, request: web.Request, scope: Scope, verb: str) -> None:
        user = request[USER]
        stored = None
        if user.node and scope.resource.plural == "pods" and scope.name:
            item = await self.objects.store.get(scope.key)
            stored = load(item) if item else None
        if not auth.allowed(user, verb, scope.resource.plural, scope.sub, scope.name, stored):
            text = auth.describe(user, verb, scope.resource.qualified, scope.sub, scope.name)
            raise StatusError(403, "Forbidden", text, resource=scope.resource, name=scope.name)

    # ---- answers

    def _answer(
        self, request: web.Request, scope: Scope, raw: bytes, status: int = 200, warnings: tuple[str, ...] = ()
    ) -> web.Response:
        if wants_table(request):
            raw = codec.dumps(
                table.table(
                    scope.resource,
                    [codec.decode(raw)],
                    datetime.now(UTC),
                    include=request.query.get("includeObject", "Metadata"),
                )
            )
        answer = web.Response(body=raw, status=status, content_type="application/json")
        for warning in warnings:
            answer.headers.add("Warning", '299 - "' + warning.replace('"', '\\"') + '"')
        return answer

    def _written(self, request: web.Request, scope: Scope, written: Written) -> web.Response:
        return self._answer(request, scope, written.raw, 201 if written.created else 200, written.warnings)

    # ---- one object

    async def get(self, request: web.Request) -> web.StreamResponse:
        scope = scope_of(request)
        await self.authorise(request, scope, "get")
        if scope.sub == "scale":
            return web.json_response(_scale(await self.objects.get(scope)))
        return self._answer(request, scope, wire(await self.objects.item(scope), scope.resource))

    async def create(self, request: web.Request) -> web.StreamResponse:
        scope = scope_of(request)
        obj = await body_of(request)
        named = name(obj) if isinstance(obj, dict) and isinstance(obj.get("metadata"), dict) else ""
        await self.authorise(request, Scope(scope.resource, scope.namespace, named), "create")
        if scope.resource.namespaced and not scope.namespace:
            raise errors.bad_request("name the namespace in the URL to create a namespaced object")
        return self._written(request, scope, await self.objects.create(scope, obj, write_options(request.query)))

    async def update(self, request: web.Request) -> web.StreamResponse:
        scope = scope_of(request)
        await self.authorise(request, scope, "update")
        obj = await body_of(request)
        if scope.sub == "finalize":
            return self._written(request, scope, await self.objects.finalize(scope.name, obj))
        if scope.sub == "scale":
            return await self._write_scale(request, scope, obj)
        return self._written(request, scope, await self.objects.update(scope, obj, write_options(request.query)))

    async def patch(self, request: web.Request) -> web.StreamResponse:
        scope = scope_of(request)
        await self.authorise(request, scope, "patch")
        kind = request.content_type
        if kind not in patches.TYPES:
            hint = "; drop --server-side" if "apply-patch" in kind else ""
            raise StatusError(
                415,
                "UnsupportedMediaType",
                f"patch type {kind!r} is not supported; one of {', '.join(patches.TYPES)}{hint}",
            )
        body = await body_of(request)
        if scope.sub == "scale":
            return await self._write_scale(
                request, scope, patches.apply(kind, _scale(await self.objects.get(scope)), body)
            )
        return self._written(request, scope, await self.objects.patch(scope, kind, body, write_options(request.query)))

    async def _write_scale(self, request: web.Request, scope: Scope, scale: Any) -> web.StreamResponse:
        spec = (scale.get("spec") or {}) if isinstance(scale, dict) else None
        if not isinstance(spec, dict):
            raise errors.bad_request("expected an autoscaling/v1 Scale with spec.replicas")
        replicas = spec.get("replicas", 0)
        whole = Scope(scope.resource, scope.namespace, scope.name)
        await self.objects.patch(
            whole, patches.MERGE_PATCH, {"spec": {"replicas": replicas}}, write_options(request.query)
        )
        return web.json_response(_scale(await self.objects.get(whole)))

    async def delete(self, request: web.Request) -> web.StreamResponse:
        scope = scope_of(request)
        await self.authorise(request, scope, "delete")
        options = await _delete_options(request)
        raw, gone = await self.objects.delete(scope, options, dry_run=_dry(request, options))
        if not gone:
            return self._answer(request, scope, raw)
        obj = codec.decode(raw)
        return web.json_response(
            {
                "kind": "Status",
                "apiVersion": "v1",
                "metadata": {},
                "status": "Success",
                "details": {
                    "name": scope.name,
                    "group": scope.resource.group,
                    "kind": scope.resource.plural,
                    "uid": obj["metadata"]["uid"],
                },
            }
        )

    # ---- collections

    def _view(self, request: web.Request, resource: Resource) -> Any:
        query = request.query
        return both(
            label_query(query.get("labelSelector", "")),
            field_query(query.get("fieldSelector", ""), lambda path: path in fieldlabels.of(resource)),
        )

    async def list_or_watch(self, request: web.Request) -> web.StreamResponse:
        scope = scope_of(request)
        if request.query.get("watch") in ("true", "1"):
            return await self.watch(request, scope)
        await self.authorise(request, scope, "list")
        items, revision, more = await self._page(request, scope)
        metadata: Object = {"resourceVersion": str(revision)}
        if more:
            metadata["continue"] = more
        if wants_table(request):
            answer = table.table(
                scope.resource,
                (convert.served(scope.resource, load(i)) for i in items),
                datetime.now(UTC),
                revision=str(revision),
                include=request.query.get("includeObject", "Metadata"),
            )
            answer["metadata"] |= metadata
            return web.Response(body=codec.dumps(answer), content_type="application/json")
        head = codec.dumps(
            {"kind": scope.resource.kind + "List", "apiVersion": scope.resource.api_version, "metadata": metadata}
        )
        body = b'%s,"items":[%s]}' % (head[:-1], b",".join(wire(i, scope.resource) for i in items))
        return web.Response(body=body, content_type="application/json")

    async def _page(self, request: web.Request, scope: Scope) -> tuple[list[Item], int, str]:
        """Return (items, revision of the list, continue token). All pages of a list have the same revision (API
        concepts: limit/continue).
        """
        store, query = self.objects.store, request.query
        revision, after = await store.revision(), ""
        limit = parse_version(query.get("limit"), "limit") or 0
        if token := query.get("continue"):
            try:
                text = base64.urlsafe_b64decode(token).decode()
                revision, after = int(text.split("\n")[0]), text.split("\n")[1]
            except (ValueError, IndexError):
                raise errors.bad_request("continue: this is not a token of this server; list from the start") from None
        try:
            items = await store.scan(scope.resource.prefix(scope.namespace), at=revision if token else None)
        except Compacted:
            raise errors.expired("the continue token is too old; list from the start") from None
        matches = self._view(request, scope.resource)
        found = [
            i
            for i in items
            if i.key > after and (matches is None or matches(convert.served(scope.resource, codec.decode(i.value))))
        ]
        if not limit or len(found) <= limit:
            return found, revision, ""
        page = found[:limit]
        return page, revision, base64.urlsafe_b64encode(f"{revision}\n{page[-1].key}".encode()).decode()

    async def delete_collection(self, request: web.Request) -> web.StreamResponse:
        scope = scope_of(request)
        await self.authorise(request, scope, "deletecollection")
        options = await _delete_options(request)
        items, revision, _ = await self._page(request, scope)
        for item in items:
            obj = load(item)
            try:
                one = Scope(scope.resource, obj["metadata"].get("namespace", ""), name(obj))
                await self.objects.delete(one, options, dry_run=_dry(request, options))
            except StatusError as err:
                if err.code != 404:  # not an error if another client has already deleted the object
                    raise
        return web.json_response(
            {
                "kind": scope.resource.kind + "List",
                "apiVersion": scope.resource.api_version,
                "metadata": {"resourceVersion": str(revision)},
                "items": [],
            }
        )

    async def watch(self, request: web.Request, scope: Scope) -> web.StreamResponse:
        await self.authorise(request, scope, "watch")
        query = request.query
        initial = query.get("sendInitialEvents") == "true"
        if initial and query.get("resourceVersionMatch") != "NotOlderThan":
            raise errors.bad_request("sendInitialEvents: needs resourceVersionMatch=NotOlderThan")
        version = parse_version(query.get("resourceVersion"))
        seconds = parse_version(query.get("timeoutSeconds"), "timeoutSeconds") or 1800
        view = WatchRequest(
            scope.resource.prefix(scope.namespace),
            self._view(request, scope.resource),
            version,
            initial or version in (None, 0),
            initial,
            query.get("allowWatchBookmarks") == "true",
            min(seconds, MAX_WATCH),
            scope.resource.kind,
            scope.resource.api_version,
        )
        frames = stream(self.objects.store, view, _shaper(request, scope.resource))
        answer = web.StreamResponse(headers={"Content-Type": "application/json", "Cache-Control": "no-cache"})
        try:
            first = await anext(frames, None) if version not in (None, 0) and await self._old(view) else None
            await answer.prepare(request)
            if first is not None:
                await answer.write(first)
            async for chunk in frames:
                await answer.write(chunk)
        except (ConnectionError, OSError):
            pass  # the client disconnected
        finally:
            await frames.aclose()  # type: ignore[attr-defined]  # an async generator, seen as its protocol
        return answer

    async def _old(self, view: WatchRequest) -> bool:
        """Whether the stream would refuse the start revision. In this case the error must be sent before the 200."""
        try:
            if (view.start or 0) > await self.objects.store.revision() and not view.send_initial:
                return True
            await self.objects.store.since(view.prefix, view.start or 0)
        except Compacted:
            return True
        return False


def wants_table(request: web.Request) -> bool:
    return "as=Table" in request.headers.get("Accept", "")


def _shaper(request: web.Request, resource: Resource) -> Callable[[bytes], bytes]:
    """Return the function that encodes a watched object: unchanged, or as a Table of one row if the client wants
    Tables. Only the first Table has the column definitions.
    """
    if not wants_table(request):
        return lambda raw: convert.served_bytes(resource, raw)
    include, first = request.query.get("includeObject", "Metadata"), True

    def shape(raw: bytes) -> bytes:
        nonlocal first
        obj = convert.served(resource, codec.decode(raw))
        made = table.table(
            resource, [obj], datetime.now(UTC), revision=obj["metadata"]["resourceVersion"], include=include, head=first
        )
        first = False
        return codec.dumps(made)

    return shape


def _scale(obj: Object) -> Object:
    """Return the autoscaling/v1 Scale of a Deployment or ReplicaSet."""
    meta = obj["metadata"]
    selector = ",".join(f"{k}={v}" for k, v in (obj["spec"]["selector"].get("matchLabels") or {}).items())
    carried = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {k: meta[k] for k in carried if k in meta},
        "spec": {"replicas": obj["spec"].get("replicas", 1)},
        "status": {"replicas": obj.get("status", {}).get("replicas", 0), "selector": selector},
    }


async def _delete_options(request: web.Request) -> Object:
    options = await body_of(request)
    if not isinstance(options, dict):
        raise errors.bad_request("expected a DeleteOptions object")
    if "gracePeriodSeconds" in request.query:
        options["gracePeriodSeconds"] = parse_version(request.query["gracePeriodSeconds"], "gracePeriodSeconds")
    grace = options.get("gracePeriodSeconds")
    if grace is not None and (not isinstance(grace, int) or isinstance(grace, bool) or not 0 <= grace <= MAX_GRACE):
        raise errors.bad_request(f"gracePeriodSeconds: {grace!r}: expected 0 to {MAX_GRACE}")
    for field, kind, what in (("preconditions", dict, "an object"), ("dryRun", list, "a list")):
        if not isinstance(options.get(field) or kind(), kind):
            raise errors.bad_request(f"{field}: expected {what}")
    return options


def _dry(request: web.Request, options: Object) -> bool:
    return request.query.get("dryRun") == "All" or "All" in (options.get("dryRun") or [])
