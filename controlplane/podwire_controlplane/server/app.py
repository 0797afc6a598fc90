"""The HTTP application: routes, authentication, and errors as Status objects."""

from __future__ import annotations

import time
import traceback
from asyncio import BaseTransport
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web
from aiohttp.typedefs import Middleware

from podwire_base.kube.errors import StatusError
from podwire_base.kube.meta import Object
from podwire_base.kube.registry import Registry
from podwire_base.role import logs

from .. import openapi
from . import auth, discovery
from .handlers import REFUSED, USER, Handlers
from .identities import Identities
from .objects import Objects

log = logs.get("apiserver")
MAX_BODY = 3 * 1024 * 1024
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def _status(err: StatusError) -> web.Response:
    headers = {"Retry-After": str(err.retry_after)} if err.retry_after else {}
    return web.json_response(err.body(), status=err.code, headers=headers)


@web.middleware
async def errors_as_status(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except StatusError as err:
        return _status(err)
    except web.HTTPRequestEntityTooLarge:
        return _status(StatusError(413, "RequestEntityTooLarge", f"the body is larger than {MAX_BODY} bytes"))
    except web.HTTPMethodNotAllowed as err:
        return _status(StatusError(405, "MethodNotAllowed", f"{err.method} is not supported on {request.path}"))
    except web.HTTPNotFound:
        return _status(StatusError(404, "NotFound", f"the server has no {request.path}"))
    except RecursionError:
        return _status(StatusError(400, "BadRequest", "the body is nested too deeply"))
    except (ConnectionError, web.HTTPException):
        raise
    except Exception as err:
        log.error(
            "request failed",
            method=request.method,
            path=request.path,
            error=repr(err),
            trace=traceback.format_exc(limit=-4),
        )
        return _status(
            StatusError(500, "InternalError", f"{type(err).__name__} in the API server; its log has the details")
        )


Settled = Callable[[BaseTransport | None], object]


def authenticator(tokens: Mapping[str, auth.User], identities: Identities, settled: Settled) -> Middleware:
    @web.middleware
    async def authenticate(request: web.Request, handler: Handler) -> web.StreamResponse:
        peer = request.transport.get_extra_info("peercert") if request.transport else None
        user = auth.from_certificate(peer) or auth.from_token(request.headers.get("Authorization", ""), tokens)
        known = user is not None and identities.admits(user, time.time())
        if not known and request.path not in (*auth.OPEN_PATHS, *auth.JOIN_PATHS):
            raise StatusError(401, "Unauthorized", _unknown(user))
        if user is not None and not known:
            request[REFUSED] = _unknown(user)
        if user is not None and known:
            request[USER] = user
            settled(request.transport)
            if request.path not in auth.JOIN_PATHS:  # its answer may be the certificate that replaces this one
                identities.opened(user, request.transport)
        return await handler(request)

    return authenticate


def _unknown(user: auth.User | None) -> str:
    if user is None:
        return "send a client certificate or a bearer token of this cluster"
    why = f"certificate {user.serial}" if user.serial else "the bearer token"
    return f"{why} of {user.name!r} has expired, was revoked or was replaced; a node joins again with `podwire join`"


def _document(make: Callable[..., Object | None], *fields: str) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        found = make(*(request.match_info.get(f, "") for f in fields))
        if found is None:
            raise StatusError(404, "NotFound", f"the server has no {request.path}")
        return web.json_response(found)

    return handler


async def _ok(_request: web.Request) -> web.StreamResponse:
    return web.Response(text="ok")


def _routes(handlers: Handlers, registry: Registry) -> list[web.RouteDef]:
    rows = [web.get(path, _ok) for path in ("/healthz", "/livez", "/readyz")]
    rows += [
        web.get("/version", _document(discovery.version_document)),
        web.get("/api", _document(discovery.api_versions)),
        web.get("/apis", _document(lambda: discovery.groups(registry))),
        web.get("/api/{version}", _document(lambda v: discovery.resources(registry, "", v), "version")),
        web.get("/apis/{group}", _document(lambda g: discovery.group(registry, g), "group")),
        web.get(
            "/apis/{group}/{version}", _document(lambda g, v: discovery.resources(registry, g, v), "group", "version")
        ),
        web.get("/openapi/v2", _document(lambda: openapi.v2(registry))),
        web.get("/openapi/v3", _document(lambda: openapi.index(registry))),
        web.get("/openapi/v3/api/{version}", _document(lambda v: openapi.v3(registry, "", v), "version")),
        web.get(
            "/openapi/v3/apis/{group}/{version}", _document(lambda g, v: openapi.v3(registry, g, v), "group", "version")
        ),
    ]
    # this route comes before /namespaces/NAMESPACE/PLURAL, which has the same form
    rows.append(
        web.get("/api/{version}/{plural:namespaces}/{name}/{sub:status|finalize}", handlers.get, allow_head=False)
    )
    for base in ("/api/{version}", "/apis/{group}/{version}"):
        for spot in ("/namespaces/{namespace}/{plural}", "/{plural}"):
            path = base + spot
            rows += [
                web.get(path, handlers.list_or_watch, allow_head=False),
                web.post(path, handlers.create),
                web.delete(path, handlers.delete_collection),
            ]
            for one in (path + "/{name}", path + "/{name}/{sub}"):
                rows += [
                    web.get(one, handlers.get, allow_head=False),
                    web.put(one, handlers.update),
                    web.patch(one, handlers.patch),
                ]
            rows.append(web.delete(path + "/{name}", handlers.delete))
    return rows


def make_app(
    objects: Objects,
    tokens: Mapping[str, auth.User],
    identities: Identities | None = None,
    settled: Settled = lambda transport: None,
) -> web.Application:
    """Return an aiohttp application that serves the whole API. tokens: bearer token -> user. identities: the
    reservations of node names; default: those in the store of `objects`. settled: called with the transport of each
    request whose user is known.
    """
    known = identities or Identities(objects.store)
    middlewares = [errors_as_status, authenticator(tokens, known, settled)]
    app = web.Application(client_max_size=MAX_BODY, middlewares=middlewares)

    async def follow(_app: web.Application) -> None:
        await known.start()

    app.on_startup.append(follow)
    app.add_routes(_routes(Handlers(objects), objects.registry))
    return app
