"""Reads collections: resourceVersion and its match, pages, selectors (API concepts: resource versions, limit and
continue). The rules are those of kube-apiserver's storage (etcd3 store and watch cache).
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass

from podwire_base.kube import errors
from podwire_base.kube.registry import Resource

from ..store.base import Compacted, Item, Store
from .query import BadVersion, ListOptions, version
from .selection import Selection
from .watch import reach

_TOKEN_VERSION = "meta.k8s.io/v1"
_INCONSISTENT = -1  # the revision in a token that goes on at the present state


@dataclass(frozen=True, slots=True)
class Page:
    """items: those that match. remaining: how many follow, None if that is not known without reading them."""

    items: list[Item]
    revision: int
    token: str = ""
    remaining: int | None = None


def make_token(revision: int, start: str) -> str:
    """start: the key, without the collection's prefix, at which the next page begins."""
    body = {"v": _TOKEN_VERSION, "rv": revision, "start": start}
    return base64.urlsafe_b64encode(json.dumps(body, separators=(",", ":")).encode()).decode().rstrip("=")


def read_token(token: str) -> tuple[int, str]:
    """Return (revision, start). Raises a StatusError 400."""
    try:
        body = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        if body["v"] != _TOKEN_VERSION or not isinstance(body["start"], str) or type(body["rv"]) is not int:
            raise ValueError(body["v"])
        return body["rv"], body["start"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise errors.bad_request("continue: this is not a token of this server; list from the start") from None


async def read(store: Store, resource: Resource, namespace: str, options: ListOptions, selection: Selection) -> Page:
    """Return one page of a collection. Raises a StatusError 400, 410 or 504."""
    try:
        wanted = version(options.version)
    except BadVersion as err:
        raise errors.bad_request(str(err)) from None
    prefix, limit = resource.prefix(namespace), options.limit if options.version != "0" else 0
    at: int | None = None
    start = ""
    if options.token:
        if wanted:
            raise errors.bad_request("specifying resource version is not allowed when using continue")
        at, start = read_token(options.token)
        at = None if at == _INCONSISTENT else at
    elif wanted:
        await reach(store, wanted)
        at = wanted if options.match == "Exact" or options.legacy_exact else None
    revision = await store.revision()
    if at is not None and at > revision:
        raise errors.too_large(at, revision)
    try:
        items = await _items(store, prefix, at, selection, single=bool(namespace) or not resource.namespaced)
    except Compacted as err:
        again = make_token(_INCONSISTENT, start) if options.token else ""
        raise errors.expired(
            f"The provided {'continue parameter' if options.token else 'resource version'} is too old: the oldest is "
            f"{err.oldest}. List again"
            + (", or go on at the present state with the token of this answer" if again else ""),
            again,
        ) from None
    return _cut(items, prefix + start, prefix, revision if at is None else at, limit, selection)


async def _items(store: Store, prefix: str, at: int | None, selection: Selection, *, single: bool) -> list[Item]:
    if at is None and selection.one and single:
        item = await store.get(prefix + selection.one)
        return [item] if item else []
    return await store.scan(prefix, at=at)


def _cut(items: list[Item], start: str, prefix: str, revision: int, limit: int, selection: Selection) -> Page:
    if selection.everything:
        found = [i for i in items if i.key >= start] if start != prefix else items
    else:
        found = []
        for item in items:
            if item.key >= start and selection.takes(item.value):
                found.append(item)
                if limit and len(found) > limit:
                    break
    if not limit or len(found) <= limit:
        return Page(found, revision)
    page = found[:limit]
    after = page[-1].key[len(prefix) :] + "\0"
    return Page(page, revision, make_token(revision, after), len(found) - limit if selection.everything else None)
