"""The one handler of requests on objects. It finds the resource, authorises, negotiates the form of the answer, reads
the body, calls `Objects`, and answers. No body is read before its sender is authorised.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from aiohttp import web

from podwire_base.kube import codec
from podwire_base.kube import patch as patches
from podwire_base.kube.errors import StatusError
from podwire_base.kube.meta import Object, name
from podwire_base.kube.registry import Resource, of
from podwire_base.kube.selectors import field_terms
from podwire_base.role import logs

from .. import convert
from ..apply.scale import scale_of
from ..rbac.rules import Attributes
from ..store.base import Item
from ..strategies.certificates import requested_by
from . import answers, auth, bodies, deprecated, lists, media, preparing, streams, subresources
from .accounts import Accounts
from .answers import View
from .authorizer import Authorizer
from .evictions import evict
from .objects import Objects
from .paths import Target
from .query import BadVersion, ListOptions, boolean, list_options, version
from .query import parse as parse_query
from .reviews import Review, Reviews, user_info
from .selection import selection
from .tonode import ToNode
from .watch import Hub, WatchRequest, reach
from .writes import Scope, WriteOptions, Written, load, wire

log = logs.get("apiserver")
USER = web.RequestKey("user", auth.User)
SERVED: web.RequestKey[tuple[str, str]] = web.RequestKey("served", tuple)  # verb and resource, for the metrics
REFUSED = web.RequestKey("refused", str)  # why the client's certificate does not count, on paths without authentication
MAX_WATCH = 3600.0
SERVED_SUBS = ("status", "scale", "finalize", "binding", "approval", "ephemeralcontainers", "resize")
WATCH_SECONDS = 1800  # of a watch without timeoutSeconds
RETURNED = (
    "Pod",
    "Service",
    "PersistentVolume",
    "PersistentVolumeClaim",
    "PodTemplate",
    "ResourceQuota",
    "ServiceAccount",
)
TOKEN_REQUEST = Resource("authentication.k8s.io", "v1", "TokenRequest", "tokenrequests", verbs=("create",))
_COLLECTION = {"GET": "list", "POST": "create", "DELETE": "deletecollection"}
_ONE = {"GET": "get", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


@dataclass(frozen=True, slots=True)
class Call:
    """One request on objects, after its path, query and form are known."""

    http: web.Request
    scope: Scope
    verb: str
    query: dict[str, str]
    view: View
    user: auth.User
    begun: Callable[[], None]


def page_not_found() -> web.Response:
    """Return what Go's HTTP server answers for a path without a handler."""
    return web.Response(text="404 page not found\n", status=404)


def _unknown_resource() -> StatusError:
    return StatusError(404, "NotFound", "the server could not find the requested resource")


def not_allowed(method: str) -> StatusError:
    return StatusError(405, "MethodNotAllowed", f"{method} is not supported by this path")


def sub_verbs(resource: Resource, sub: str) -> tuple[str, ...]:
    """Return the verbs of a subresource, () if the resource does not have it."""
    found = resource.sub(sub)
    return found.verbs if found else ()


def _verb(method: str, target: Target, query: dict[str, str]) -> str:
    """Return the verb of a request, "" for a method that no path has."""
    if target.watched:
        return "watch" if method == "GET" else ""
    if target.name:
        return "create" if method == "POST" and target.sub else _ONE.get(method, "")
    verb = _COLLECTION.get(method, "")
    return "watch" if verb == "list" and boolean(query, "watch") else verb


class Handlers:
    """Serves all requests on the objects of one `Objects` instance."""

    def __init__(
        self, objects: Objects, authorizer: Authorizer, reviews: Reviews, accounts: Accounts, nodes: ToNode
    ) -> None:
        self.objects, self.authorizer, self.accounts, self.nodes = objects, authorizer, accounts, nodes
        self.reviews = reviews.answers
        self.hub = Hub(objects.store)
        self._verbs: dict[str, Callable[[Call], Awaitable[web.StreamResponse]]] = {
            "get": self._get,
            "list": self._list,
            "watch": self._watch,
            "create": self._create,
            "update": self._update,
            "patch": self._patch,
            "delete": self._delete,
            "deletecollection": self._delete_collection,
        }

    # ---- the request

    async def handle(
        self, http: web.Request, target: Target, query: str, begun: Callable[[], None] = lambda: None
    ) -> web.StreamResponse:
        """Answer one request. query: percent-encoded. begun: called when a watch has begun, which can last for hours.
        Raises a StatusError.
        """
        user, method = http[USER], http.method
        resource = self.objects.registry.by_path.get((target.group, target.version, target.plural))
        fields = parse_query(query)
        verb = _verb(method, target, fields)
        self.authorizer.check(user, _attributes(verb or method.lower(), target, fields))
        if resource is None:
            return self._no_resource(target)
        http[SERVED] = (verb.upper(), resource.plural)
        scope = self._scope(resource, target)
        self._check_verb(method, verb, resource, target)
        custom = resource.custom
        offered = media.ALL if custom is None else media.PLAIN
        form = media.negotiate(http.headers.get("Accept", ""), offered, strict=custom is None)
        if fields.get("pretty") and fields["pretty"] not in ("0", "false"):
            form = replace(form, pretty=True)
        view = View(resource, form, fields.get("includeObject", "Metadata"))
        call = Call(http, scope, verb, fields, view, user, begun)
        if told := deprecated.warning(resource):
            http[answers.WARNED] = told
        if target.watched and target.name:
            fields["fieldSelector"] = f"metadata.name={target.name}"
            call = replace(call, scope=replace(scope, name=""))
        if scope.sub in streams.SUBS:
            return await self._stream(call)
        answer = await self._verbs[verb](call)
        if custom is not None and custom.warning and not answer.prepared:
            answers.warn(answer, [custom.warning])
        return answer

    def _no_resource(self, target: Target) -> web.Response:
        rows = self.objects.registry.resources
        if target.group and not any(row.group == target.group and row.custom is None for row in rows):
            return page_not_found()  # as upstream, which asks definitions last
        raise _unknown_resource()

    def _scope(self, resource: Resource, target: Target) -> Scope:
        wrong = (target.rest and target.sub != "proxy") or (target.sub and not sub_verbs(resource, target.sub))
        misplaced = bool(target.namespace) > resource.namespaced
        homeless = resource.namespaced and target.name and not target.namespace
        if wrong or misplaced or homeless:
            raise _unknown_resource()
        return Scope(resource, target.namespace, target.name, target.sub)

    def _check_verb(self, method: str, verb: str, resource: Resource, target: Target) -> None:
        offered = sub_verbs(resource, target.sub) if target.sub else resource.verbs
        everywhere = resource.namespaced and not target.namespace and not target.name
        if verb not in offered or (everywhere and verb not in ("list", "watch")):
            raise not_allowed(method)

    # ---- answers

    def _answer(self, call: Call, raw: bytes, status: int = 200, warnings: tuple[str, ...] = ()) -> web.Response:
        """Answer one stored object in wire form."""
        if not call.view.plain:
            raw = answers.encode(call.view.form, answers.one(call.view, codec.decode(raw)))
        answer = answers.response(call.http, raw, call.view.form.media, status)
        answers.warn(answer, warnings)
        return answer

    def _made(self, call: Call, body: Object, status: int = 200) -> web.Response:
        """Answer an object that is not stored: a Status, a Scale, a list."""
        return answers.response(call.http, answers.encode(call.view.form, body), call.view.form.media, status)

    def _written(self, call: Call, written: Written) -> web.Response:
        return self._answer(call, written.raw, 201 if written.created else 200, written.warnings)

    # ---- one object

    async def _get(self, call: Call) -> web.StreamResponse:
        try:
            wanted = version(call.query.get("resourceVersion", ""))
        except BadVersion as err:
            raise StatusError(500, "", str(err)) from None
        if wanted:
            await reach(self.objects.store, wanted)
        _unserved(call)
        if call.scope.sub == "scale":
            return self._made(call, scale_of(call.scope.resource, await self.objects.get(call.scope)))
        return self._answer(call, wire(await self.objects.item(call.scope), call.scope.resource))

    async def _stream(self, call: Call) -> web.StreamResponse:
        """Answer a subresource that reaches into a node."""
        scope, upgrades = call.scope, "upgrade" in call.http.headers.get("Connection", "").lower()

        async def get(resource: Resource, namespace: str, name: str) -> Object:
            return await self.objects.get(Scope(resource, namespace, name))

        found = await streams.answer(
            scope.resource, scope.namespace, scope.name, scope.sub, call.query, upgrades=upgrades, get=get
        )
        if isinstance(found, streams.Reach):
            return await self.nodes.log(call.http, found, call.query, call.begun)
        return web.Response(text=found, content_type="text/plain")

    async def _body(self, call: Call, kind: str, repeated: list[str]) -> Any:
        raw, resource = await bodies.read(call.http), call.scope.resource
        return await bodies.decode(raw, kind, resource.api_version, resource.kind, repeated)

    async def _create(self, call: Call) -> web.StreamResponse:
        if call.scope.sub == "binding" or call.scope.resource.plural == "bindings":
            return await self._bind(call)
        if review := self.reviews.get((call.scope.resource.group, call.scope.resource.plural)):
            return await self._review(call, review)
        if (call.scope.resource.kind, call.scope.sub) == ("ServiceAccount", "token"):
            return await self._token(call)
        if (call.scope.resource.kind, call.scope.sub) == ("Pod", "eviction"):
            return await self._evict(call)
        _unserved(call)
        kind = bodies.media_of(call.http)
        repeated: list[str] = []
        obj = await self._body(call, kind, repeated)
        options = _options(call, "CreateOptions", repeated)
        _new(call, obj)
        return self._written(call, await self.objects.create(call.scope, obj, options))

    async def _review(self, call: Call, review: Review) -> web.StreamResponse:
        repeated: list[str] = []
        body = await self._body(call, bodies.media_of(call.http), repeated)
        asked, warnings = preparing.shape(call.scope.resource, body, _options(call, "CreateOptions", repeated))
        answer = self._made(replace_view(call), await review(call.http, call.user, asked, call.scope.namespace), 201)
        answers.warn(answer, warnings)
        return answer

    async def _token(self, call: Call) -> web.StreamResponse:
        """Answer a TokenRequest."""
        options = _options(call, "CreateOptions")
        kind = bodies.media_of(call.http)
        body = await bodies.decode(await bodies.read(call.http), kind, TOKEN_REQUEST.api_version, TOKEN_REQUEST.kind)
        asked, warnings = preparing.shape(TOKEN_REQUEST, body, options)
        made = await self.accounts.request(call.scope.namespace, call.scope.name, asked, call.user.node)
        answer = self._made(replace_view(call), made, 201)
        answers.warn(answer, warnings)
        return answer

    async def _evict(self, call: Call) -> web.StreamResponse:
        options = _options(call, "CreateOptions")
        kind = bodies.media_of(call.http)
        body = await bodies.decode(await bodies.read(call.http), kind, "policy/v1", "Eviction")
        await evict(self.objects, call.scope, body, options)
        done = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}
        return self._made(replace_view(call), done, 201)

    async def _bind(self, call: Call) -> web.StreamResponse:
        """Assign a pod to a node: pods/NAME/binding, or the collection `bindings` with the pod's name in the body."""
        kind = bodies.media_of(call.http)
        body = await bodies.decode(await bodies.read(call.http), kind, "v1", "Binding")
        options = _options(call, "CreateOptions")
        pod = call.scope.name or (
            name(body) if isinstance(body, dict) and isinstance(body.get("metadata"), dict) else ""
        )
        await subresources.bind(self.objects, Scope(of("Pod"), call.scope.namespace, pod), body, options)
        done = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}
        return self._made(replace_view(call), done, 201)

    async def _update(self, call: Call) -> web.StreamResponse:
        _unserved(call)
        kind = bodies.media_of(call.http)
        options, repeated = _options(call, "UpdateOptions"), list[str]()
        obj = await self._body(call, kind, repeated)
        options = replace(options, repeated=tuple(repeated))
        if call.scope.sub == "finalize":
            return self._written(call, await subresources.finalize(self.objects, call.scope.name, obj))
        if call.scope.sub == "scale":
            return self._scaled(call, await subresources.change_scale(self.objects, call.scope, "", obj, options))
        return self._written(call, await self.objects.update(call.scope, obj, options))

    async def _patch(self, call: Call) -> web.StreamResponse:
        _unserved(call)
        custom = call.scope.resource.custom is not None  # a custom kind has no strategic merge patch
        kind = bodies.media_of(call.http, (*patches.TYPES[custom:], patches.APPLY_PATCH))
        applies = kind == patches.APPLY_PATCH
        options, repeated = _options(call, "PatchOptions", apply=applies), list[str]()
        form = media.YAML if applies else media.JSON
        body = await bodies.decode(await bodies.read(call.http), form, repeated=repeated)
        options = replace(options, repeated=tuple(repeated))
        scope = call.scope
        if scope.sub == "scale":
            return self._scaled(call, await subresources.change_scale(self.objects, scope, kind, body, options))
        if applies:
            return self._written(call, await self.objects.apply(scope, body, options, partial(_new, call)))
        return self._written(call, await self.objects.patch(scope, kind, body, options))

    def _scaled(self, call: Call, written: Written) -> web.Response:
        answer = self._made(call, codec.decode(written.raw))
        answers.warn(answer, written.warnings)
        return answer

    async def _delete_options(self, call: Call) -> Object:
        kind = bodies.media_of(call.http)
        raw = await bodies.read(call.http)
        body = await bodies.decode(raw, kind, "v1", "DeleteOptions") if raw else {}
        return bodies.delete_options(body, call.query)

    async def _delete(self, call: Call) -> web.StreamResponse:
        options = await self._delete_options(call)
        scope, dry = call.scope, "All" in (options.get("dryRun") or [])
        raw, gone = await self.objects.delete(scope, options, dry_run=dry, user=call.user)
        if not gone or (scope.resource.kind in RETURNED and scope.resource.custom is None):
            return self._answer(call, raw)
        details = {"name": scope.name, "group": scope.resource.group, "kind": scope.resource.plural}
        details["uid"] = codec.decode(raw)["metadata"]["uid"]
        return self._made(
            replace_view(call),
            {
                "kind": "Status",
                "apiVersion": "v1",
                "metadata": {},
                "status": "Success",
                "details": {k: v for k, v in details.items() if v},
            },
        )

    # ---- collections

    async def _list(self, call: Call) -> web.StreamResponse:
        options = list_options(call.query)
        page = await self._page(call, options)
        return self._answer_list(call, page)

    async def _page(self, call: Call, options: ListOptions) -> lists.Page:
        scope = call.scope
        chosen = selection(scope.resource, options.labels, options.fields)
        return await lists.read(self.objects.store, scope.resource, scope.namespace, options, chosen)

    def _answer_list(self, call: Call, page: lists.Page) -> web.Response:
        metadata: Object = {"resourceVersion": str(page.revision)}
        if page.token:
            metadata["continue"] = page.token
        if page.remaining:
            metadata["remainingItemCount"] = page.remaining
        resource, form = call.scope.resource, call.view.form
        if call.view.plain and not convert.differs(resource):
            head = {"kind": resource.kind + "List", "apiVersion": resource.api_version, "metadata": metadata}
            tail = codec.tail(resource.kind, resource.api_version)
            items = b",".join([codec.bare(item.value, item.revision, tail) for item in page.items])
            raw = b'%s,"items":[%s]}\n' % (codec.dumps(head)[:-1], items)
        else:
            shown = [convert.served(resource, load(item)) for item in page.items]
            raw = answers.encode(form, answers.many(call.view, shown, metadata))
        return answers.response(call.http, raw, form.media, compress=True)

    async def _delete_collection(self, call: Call) -> web.StreamResponse:
        options = await self._delete_options(call)
        page = await self._page(call, list_options(call.query))
        dry, removed = "All" in (options.get("dryRun") or []), list[Item]()
        for item in page.items:
            obj = load(item)
            one = Scope(call.scope.resource, obj["metadata"].get("namespace", ""), name(obj))
            try:
                await self.objects.delete(one, options, dry_run=dry, user=call.user)
                removed.append(item)
            except StatusError as err:
                if err.code != 404:  # not an error if another client has already deleted the object
                    raise
        return self._answer_list(call, replace(page, items=removed))

    async def _watch(self, call: Call) -> web.StreamResponse:
        options = list_options({**call.query, "watch": "true"})
        request = self._watch_request(call, options)
        answer = web.StreamResponse(headers={"Content-Type": _stream_type(call.view)})
        if call.http.version >= (1, 1):
            answer.enable_chunked_encoding()
        try:
            await answer.prepare(call.http)
            call.begun()
            await self.hub.serve(call.http, answer, request)
        except (ConnectionError, OSError) as err:
            log.debug("a watch ended with its client", error=str(err))
        return answer

    def _watch_request(self, call: Call, options: ListOptions) -> WatchRequest:
        scope = call.scope
        chosen = selection(scope.resource, options.labels, options.fields)
        try:
            start = version(options.version)
        except BadVersion as err:
            raise StatusError(500, "", str(err)) from None
        prefix = scope.resource.prefix(scope.namespace)
        if chosen.one and (scope.namespace or not scope.resource.namespaced):
            prefix += chosen.one
        seconds = options.timeout if options.timeout and options.timeout > 0 else WATCH_SECONDS
        initial = options.send_initial is True
        return WatchRequest(
            prefix,
            chosen,
            call.view,
            None if initial or not start else start,
            initial_end=initial and options.bookmarks,
            bookmarks=options.bookmarks,
            timeout=min(seconds, MAX_WATCH),
            key=repr((options.labels, options.fields, call.view.form, call.view.include, scope.resource.version)),
            wait=start if initial else 0,
            silent=options.send_initial is False and not start,
        )


def _new(call: Call, obj: Any) -> None:
    """Write into an object that is about to be created what the request says of its sender."""
    if call.scope.resource.kind == "CertificateSigningRequest" and isinstance(obj, dict):
        requested_by(obj, user_info(call.http, call.user))


def _options(call: Call, kind: str, repeated: Sequence[str] = (), apply: bool = False) -> WriteOptions:
    """Return the options of a write. kind: CreateOptions, UpdateOptions or PatchOptions. repeated: keys that the body
    has twice. apply: it is a server-side apply. Raises a StatusError 422.
    """
    dry_run, validation = bodies.write_mode(kind, call.query)
    manager = bodies.manager_of(kind, call.query, call.http.headers.get("User-Agent", ""), apply)
    force = bool(boolean(call.query, "force"))
    return WriteOptions(dry_run, validation, tuple(repeated), call.user, manager, force)


def _attributes(verb: str, target: Target, query: dict[str, str]) -> Attributes:
    """Return what a request is authorised by. A list or watch of one name counts as a request for it."""
    name_, space = target.name, target.namespace
    if not name_ and verb in ("list", "watch"):
        name_ = _selected_name(query.get("fieldSelector", ""))
    if target.plural == "namespaces" and target.name:
        space = target.name  # a role in a namespace can give the right to read the namespace itself
    return Attributes(verb, target.group, target.plural, target.sub, space, name_)


def _selected_name(selector: str) -> str:
    if "metadata.name" not in selector:
        return ""
    try:
        terms = field_terms(selector)
    except StatusError:
        return ""  # it is refused when it is read
    return next((value for path, value, negated in terms if path == "metadata.name" and not negated), "")


def _unserved(call: Call) -> None:
    """Refuse what discovery lists and nothing serves yet: some subresources, and kinds that are only answered."""
    scope = call.scope
    if (scope.sub and scope.sub not in SERVED_SUBS) or not scope.resource.storable:
        raise StatusError(
            501, "NotImplemented", f"{scope.resource.qualified} {scope.sub}: not served yet".replace(" :", ":")
        )


def replace_view(call: Call) -> Call:
    """Return the call with an answer that is not converted: a Status is never a Table."""
    return replace(call, view=replace(call.view, form=replace(call.view.form, convert=None)))


def _stream_type(view: View) -> str:
    return media.JSON if view.form.media == media.JSON else f"{view.form.media};stream=watch"
