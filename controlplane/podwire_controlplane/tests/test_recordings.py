"""Recorded answers of kube-apiserver 1.36.2: defaults, refusals, patches and steps of
server-side apply. KNOWN has what still differs.

The records of the protocol replay in test_records.py.
"""

from __future__ import annotations

import fnmatch
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..testing.recordings import read, replay, replay_steps
from ..testing.replay import Connection
from ..testing.servers import AUTHORITY, Server
from ..testing.widgets import CRDS, definition

RECORDS = Path(__file__).parent / "records"
# file -> {pattern of ids: why they differ}
KNOWN: dict[str, dict[str, str]] = {
    "defaults": {
        "selfsubjectreview-*": "the recording client had a certificate, this one has a token",
        "certificatesigningrequest-*": "the recording client had a certificate, this one has a token",
    },
    "refusals": {},
    "patches": {
        "deployment-150": "upstream validates the key of this annotation once more",
    },
    "apply": {"empties": "an applied null of a custom resource is pruned, upstream refuses it"},
}
SHARE = {"defaults": 0.9, "refusals": 0.9, "patches": 0.9, "apply": 0.97}  # at least so many agree
REPLAY = {"apply": replay_steps}


@pytest.fixture(scope="module")
def link() -> Iterator[Connection]:
    with Server() as server:
        for space in ("team-a", "team-b", "team-p"):
            server.good("POST", "/api/v1/namespaces", {"metadata": {"name": space}})
            path = f"/api/v1/namespaces/{space}/serviceaccounts"
            server.good("POST", path, {"metadata": {"name": "default"}})
        server.good("POST", CRDS, definition())
        context = ssl.create_default_context(cadata=AUTHORITY.certificate)
        connection = Connection(server.port, context, "admin-token")
        yield connection
        connection.close()


@pytest.mark.parametrize("file", SHARE)
def test_answers_are_those_of_kube_apiserver(link: Connection, file: str) -> None:
    records = read(RECORDS / f"{file}.jsonl")
    differ = {record["id"]: found for record in records if (found := REPLAY.get(file, replay)(link, record))}
    new = {own: why for own, why in differ.items() if not any(fnmatch.fnmatch(own, p) for p in KNOWN.get(file, {}))}
    assert not new, "\n".join(f"{own}: {why}" for own, why in new.items())
    assert len(records) - len(differ) >= SHARE[file] * len(records), f"{len(differ)} of {len(records)} differ"
