"""The protocol, judged by recorded answers of kube-apiserver 1.36.2."""

from __future__ import annotations

import json
import ssl
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..testing.recordings import replay_shape
from ..testing.replay import Connection
from ..testing.servers import AUTHORITY, Server
from ..testing.widgets import CRDS, definition

GROUPS = (
    "accept",
    "auth",
    "content",
    "continue",
    "delete",
    "eviction",
    "fields",
    "get",
    "gzip",
    "impersonation",
    "labels",
    "limit",
    "list",
    "path",
    "review",
    "token",
    "verb",
    "write",
)
# records that differ, and why
DIFFERS = {
    "list-027": "the history is younger than five minutes, so nothing is compacted",
    "verb-014": "aiohttp's parser refuses methods that it does not know, with 400",
}
UNSERVED = ("/bindings", "/binding")  # what needs them


def _records() -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in (Path(__file__).parent / "records/protocol.jsonl").read_text().splitlines():
        record = json.loads(line)
        if not any(word in json.dumps(record["request"]) for word in UNSERVED):
            found[record["group"]].append(record)
    return found


RECORDS = _records()


@pytest.fixture(scope="module")
def link() -> Iterator[Connection]:
    with Server() as server:
        for space in ("team-a", "team-b", "team-p"):
            server.good("POST", "/api/v1/namespaces", {"metadata": {"name": space}})
            server.good("POST", f"/api/v1/namespaces/{space}/serviceaccounts", {"metadata": {"name": "default"}})
        server.good("POST", CRDS, definition())
        client = Connection(server.port, ssl.create_default_context(cadata=AUTHORITY.certificate), "admin-token")
        yield client
        client.close()


@pytest.mark.parametrize("group", GROUPS)
def test_answers_are_those_of_kube_apiserver(link: Connection, group: str) -> None:
    assert RECORDS[group]
    wrong = {r["id"]: found for r in RECORDS[group] if (found := replay_shape(link, r))}
    assert {own: why for own, why in wrong.items() if own not in DIFFERS} == {}
