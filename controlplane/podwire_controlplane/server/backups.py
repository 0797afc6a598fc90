"""GET /podwire/v1/store returns a backup of the store, for administrators only: it holds all Secrets."""

from __future__ import annotations

import asyncio
import tempfile
from functools import partial
from pathlib import Path

from aiohttp import web

from podwire_base.kube.errors import StatusError
from podwire_base.role import logs

from ..store.sqlite import SqliteStore
from . import auth
from .handlers import USER

log = logs.get("apiserver")
PATH = "/podwire/v1/store"
_CHUNK = 1 << 20


async def _backup(store: SqliteStore, request: web.Request) -> web.StreamResponse:
    user = request[USER]
    if auth.ADMINS not in user.groups:
        raise StatusError(403, "Forbidden", f'User "{user.name}" cannot back the store up')
    with tempfile.TemporaryDirectory(dir=store.path.parent) as folder:
        copy = Path(folder) / "store.db"
        revision = await store.backup(copy)
        answer = web.StreamResponse(headers={"Content-Type": "application/vnd.sqlite3"})
        answer.content_length = copy.stat().st_size
        answer.headers["X-Podwire-Revision"] = str(revision)
        await answer.prepare(request)
        with copy.open("rb") as file:
            while chunk := await asyncio.to_thread(file.read, _CHUNK):
                await answer.write(chunk)
        log.info("the store was backed up", revision=revision, bytes=answer.content_length, user=user.name)
        return answer


def routes(store: SqliteStore) -> list[web.RouteDef]:
    return [web.get(PATH, partial(_backup, store), allow_head=False)]
