"""The HTTP application: one handler for all paths, authentication, and errors as Status objects."""

from __future__ import annotations

import time
import traceback
import uuid
from asyncio import BaseTransport
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from urllib.parse import unquote

from aiohttp import web
from aiohttp.typedefs import Middleware

from podwire_base.kube.errors import StatusError
from podwire_base.role import logs, process

from ..rbac.rules import Attributes
from . import answers, auth, bootstraptokens, impersonation, paths
from .accountkeys import AccountKeys, new_key
from .accounts import Accounts
from .authorizer import Authorizer
from .bodies import MAX_BODY
from .documents import Documents
from .fairness import Fairness
from .figures import Figures, Gauge
from .gate import Gate
from .handlers import REFUSED, SERVED, USER, Handlers
from .identities import Identities
from .objects import Objects
from .query import parse as parse_query
from .reviews import ACTING, Reviews, TokenReader
from .tonode import ToNode

log = logs.get("apiserver")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
MAX_PATH = 1000  # characters of a path that are looked at, and shown in a refusal
AUTHORIZER = web.AppKey("authorizer", Authorizer)
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")
Settled = Callable[[BaseTransport | None], object]
# the flow schema and priority level of API priority and fairness; there is one of each here
_FLOW = {
    "X-Kubernetes-Pf-Flowschema-Uid": str(uuid.uuid5(uuid.NAMESPACE_DNS, "flowschema.podwire")),
    "X-Kubernetes-Pf-Prioritylevel-Uid": str(uuid.uuid5(uuid.NAMESPACE_DNS, "prioritylevel.podwire")),
}


async def _headers(request: web.Request, answer: web.StreamResponse) -> None:
    """Add the headers that every answer has: kube-apiserver's audit ID, its flow control, and no caching."""
    headers = answer.headers
    asked = request.headers.get("Audit-Id", "")[:64]
    headers["Audit-Id"] = asked if asked.isascii() and asked.isprintable() and asked else str(uuid.uuid4())
    headers.setdefault("Cache-Control", "no-cache, private")
    headers.update(_FLOW)
    headers.popall("Server", None)
    if told := request.get(answers.WARNED):
        answers.warn(answer, (told,))


@web.middleware
async def errors_as_status(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except StatusError as err:
        return answers.error(request, err)
    except RecursionError:
        return answers.error(request, StatusError(400, "BadRequest", "the body is nested too deeply"))
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
        return answers.error(
            request,
            StatusError(500, "InternalError", f"{type(err).__name__} in the API server; its log has the details"),
        )


def token_reader(tokens: Mapping[str, auth.User], accounts: Accounts) -> TokenReader:
    """Return what reads bearer tokens: those of the file, bootstrap tokens, and those of ServiceAccounts."""

    async def read(token: str, audiences: tuple[str, ...]) -> tuple[auth.User, tuple[str, ...]] | None:
        if found := auth.from_token(f"Bearer {token}", tokens):
            both = tuple(a for a in audiences or accounts.audiences if a in accounts.audiences)
            return (auth.authenticated(found), both) if both else None
        if booting := await bootstraptokens.authenticate(accounts.store, token, accounts.clock()):
            return (auth.authenticated(booting), accounts.audiences) if audiences in ((), accounts.audiences) else None
        return await accounts.read(token, audiences)

    return read


async def _bearer(header: str, read: TokenReader) -> auth.User | None:
    if not auth.is_bearer(header):
        return None
    found = await read(header.partition(" ")[2].strip(), ())
    return found[0] if found else None


def authenticator(read: TokenReader, identities: Identities, settled: Settled) -> Middleware:
    @web.middleware
    async def authenticate(request: web.Request, handler: Handler) -> web.StreamResponse:
        peer = request.transport.get_extra_info("peercert") if request.transport else None
        header = request.headers.get("Authorization", "")
        user = auth.from_certificate(peer) or await _bearer(header, read)
        known = user is not None and identities.admits(user, time.time())
        joins = request.path in auth.JOIN_PATHS
        if not known and not joins and (user is not None or auth.is_bearer(header)):
            raise StatusError(401, "Unauthorized", _unknown(user))
        if user is not None and not known:
            request[REFUSED] = _unknown(user)
        if user is not None and known:
            request[USER] = auth.authenticated(user)
            settled(request.transport)
            if not joins:  # its answer may be the certificate that replaces this one
                identities.opened(user, request.transport)
        elif not joins:
            request[USER] = auth.ANONYMOUS
        return await handler(request)

    return authenticate


def impersonator(authorizer: Authorizer) -> Middleware:
    @web.middleware
    async def impersonate(request: web.Request, handler: Handler) -> web.StreamResponse:
        who = impersonation.wanted(request.headers.items())
        if who is not None and USER in request:
            for needed in impersonation.checks(who):
                authorizer.check(request[USER], needed)
            request[USER], request[ACTING] = impersonation.acting(who), True
        return await handler(request)

    return impersonate


def _unknown(user: auth.User | None) -> str:
    if user is None:
        return "send a client certificate or a bearer token of this cluster"
    why = f"certificate {user.serial}" if user.serial else "the bearer token"
    return f"{why} of {user.name!r} has expired, was revoked or was replaced; a node joins again with `podwire join`"


def catch_all(handlers: Handlers, authorizer: Authorizer, documents: Documents, fairness: Fairness) -> Handler:
    """Return the handler of all paths."""

    async def handle(request: web.Request) -> web.StreamResponse:
        path, query = paths.split(request.raw_path)
        target = paths.parse(path)
        user = request[USER]
        if target.plural:
            async with fairness.seat(user.name) as seat:
                return await handlers.handle(request, target, query, seat.leave)
        authorizer.check(user, Attributes(request.method.lower(), path=unquote(path)[:MAX_PATH]))
        return documents.answer(request, target.path, parse_query(query))

    return handle


def _counting(figures: Figures, handlers: Handlers) -> Middleware:
    @web.middleware
    async def counting(request: web.Request, handler: Handler) -> web.StreamResponse:
        start = time.monotonic()
        answer = await handler(request)
        verb, resource = request.get(SERVED, (request.method if request.method in _METHODS else "OTHER", ""))
        figures.served(verb, resource, answer.status, time.monotonic() - start)
        return answer

    return counting


def _gauges(fairness: Fairness, handlers: Handlers) -> list[Gauge]:
    return [
        ("apiserver_current_inflight_requests", "gauge", "Requests that are served now.", lambda: fairness.busy),
        ("apiserver_current_inqueue_requests", "gauge", "Requests that wait for a seat.", lambda: fairness.waiting),
        ("apiserver_longrunning_requests", "gauge", "Open watches.", lambda: len(handlers.hub)),
        (
            "apiserver_flowcontrol_rejected_requests_total",
            "counter",
            "Requests refused with 429.",
            lambda: fairness.refused,
        ),
    ]


def make_app(
    objects: Objects,
    tokens: Mapping[str, auth.User],
    identities: Identities | None = None,
    settled: Settled = lambda transport: None,
    documents: Documents | None = None,
    fairness: Fairness | None = None,
    accounts: Accounts | None = None,
    nodes: Path | None = None,
) -> web.Application:
    """Return an aiohttp application that serves the whole API. tokens: bearer token -> user. identities: the
    reservations of node names; default: those in the store of `objects`. settled: called with the transport of each
    request whose user is known. documents: health checks and metrics. fairness: the seats of requests. accounts: the
    tokens of ServiceAccounts; default: with a key of their own, which nothing keeps. nodes: the run directories of the
    nodes of this machine.
    """
    known = identities or Identities(objects.store)
    authorizer = Authorizer(objects.store)
    objects.gate = Gate(authorizer)
    accounts = accounts or Accounts(objects.store, objects.clock, lambda: AccountKeys(new_key()))
    read = token_reader(tokens, accounts)
    middlewares = [errors_as_status, authenticator(read, known, settled), impersonator(authorizer)]
    app = web.Application(client_max_size=MAX_BODY, middlewares=middlewares)

    async def follow(_app: web.Application) -> None:
        await known.start()
        await authorizer.start()

    app[AUTHORIZER] = authorizer
    app.on_startup.append(follow)
    app.on_response_prepare.append(_headers)

    reviews = Reviews(authorizer, read, objects.clock)
    fairness, figures = fairness or Fairness(), Figures()
    handlers = Handlers(objects, authorizer, reviews, accounts, ToNode(nodes))
    figures.gauges += _gauges(fairness, handlers)
    documents = documents or Documents(objects.registry)
    documents.pages = accounts.pages()
    documents.metrics = lambda: figures.page(process.figures())
    app.middlewares.insert(0, _counting(figures, handlers))
    app.router.add_route("*", "/{path:.*}", catch_all(handlers, authorizer, documents, fairness))
    return app
