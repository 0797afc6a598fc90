"""The Lease in which an agent publishes where its roles stand: what fits, what is read, and the role that writes it."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire_base.kube import statuslease
from podwire_base.kube.client.http import ApiClient
from podwire_base.kube.errors import Refused
from podwire_base.kube.meta import Object
from podwire_base.role.reporter import Reporter, ReporterConfig
from podwire_base.role.standing import Standing

NOW = 1_800_000_000.25
ROLE = Standing(False, "NoProgress", "no progress for 4 s", 71, 2, 4.2, 0.0, "815", "812", {"services": 3})


def test_what_is_written_is_read_back() -> None:
    made = statuslease.lease("n1", "podwire-x7k2p", {"proxy": ROLE}, NOW, "9")
    assert (made["metadata"]["name"], made["metadata"]["resourceVersion"]) == ("podwire-n1", "9")
    claim = statuslease.read(made, NOW + 4)
    assert claim is not None and (claim.node, claim.holder, round(claim.age)) == ("n1", "podwire-x7k2p", 4)
    assert claim.roles == {"proxy": ROLE} and not claim.problem
    assert "resourceVersion" not in statuslease.lease("n1", "h", {}, NOW)["metadata"]


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=12),
        st.builds(Standing, st.booleans(), st.text(max_size=60), st.text(max_size=3000), figures=st.just({"n": 1})),
        max_size=8,
    )
)
def test_it_fits_always_and_keeps_every_role(roles: dict[str, Standing]) -> None:
    text = statuslease.text_of(roles)
    assert len(text.encode()) + len(statuslease.ANNOTATION) <= statuslease.MOST
    assert json.loads(text)["roles"].keys() == roles.keys()


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"version":1,"roles":[]}', '{"version":1,"roles":{"a":{}}}', '{"version":7,"roles":{}}'],
)
def test_a_misshapen_lease_is_a_claim_with_a_problem(text: str) -> None:
    made = statuslease.lease("n1", "h", {}, NOW)
    made["metadata"]["annotations"] = {statuslease.ANNOTATION: text}
    claim = statuslease.read(made, NOW)
    assert claim is not None and claim.problem and not claim.roles


@pytest.mark.parametrize(
    "change", [{"spec": None}, {"spec": {"renewTime": "yesterday"}}, {"spec": {"renewTime": 7, "holderIdentity": []}}]
)
def test_a_lease_without_a_date(change: dict[str, Any]) -> None:
    claim = statuslease.read({**statuslease.lease("n1", "h", {"proxy": ROLE}, NOW), **change}, NOW)
    assert claim is not None and claim.problem


def test_other_leases_are_not_ours() -> None:
    assert statuslease.read({"metadata": {"name": "kube-scheduler"}}, NOW) is None
    assert statuslease.read({"metadata": {"name": "podwire-n1"}, "spec": {}}, NOW) is None


class Leases:
    """An API server with Leases. fails: the codes of the next answers."""

    def __init__(self) -> None:
        self.held: dict[str, Object] = {}
        self.fails: list[int] = []
        self.calls: list[str] = []
        self.version = 1

    def _store(self, obj: Object) -> Object:
        self.version += 1
        obj["metadata"]["resourceVersion"] = str(self.version)
        self.held[obj["metadata"]["name"]] = obj
        return obj

    def _called(self, verb: str) -> None:
        self.calls.append(verb)
        if self.fails and (code := self.fails.pop(0)):
            raise Refused(code, "Reason", "refused")

    async def get(self, path: str) -> Object:
        self._called("get")
        own = path.rpartition("/")[2]
        if own not in self.held:
            raise Refused(404, "NotFound", "none")
        return self.held[own]

    async def create(self, _path: str, obj: Object) -> Object:
        self._called("create")
        return self._store(obj)

    async def update(self, path: str, obj: Object) -> Object:
        self._called("update")
        held = self.held.get(path.rpartition("/")[2])
        if held is None:
            raise Refused(404, "NotFound", "none")
        if held["metadata"]["resourceVersion"] != obj["metadata"]["resourceVersion"]:
            raise Refused(409, "Conflict", "changed")
        return self._store(obj)


def made(api: Leases, folder: Path) -> Reporter:
    return Reporter(cast(ApiClient, api), ReporterConfig("n1", None, folder, "pod"))


def test_create_update_conflict_and_deletion(tmp_path: Path) -> None:
    api = Leases()
    own = made(api, tmp_path)
    for _ in range(2):
        asyncio.run(own.write({"proxy": ROLE}))
    assert api.calls == ["get", "create", "update"]
    api.held["podwire-n1"]["metadata"]["resourceVersion"] = "77"  # a forger, or the agent before
    asyncio.run(own.write({"proxy": ROLE}))
    assert api.calls[3:] == ["update", "get", "update"]
    del api.held["podwire-n1"]
    asyncio.run(own.write({"proxy": ROLE}))
    assert api.calls[6:] == ["update", "create"] and api.held
    api.fails = [403]
    with pytest.raises(Refused):
        asyncio.run(own.write({"proxy": ROLE}))


def test_news_are_told_at_once_and_the_rest_every_ten_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    api, now = Leases(), [1000.0]
    own = made(api, tmp_path)
    (tmp_path / "status").mkdir()
    (tmp_path / "agent.json").write_text(
        json.dumps({"roles": {"proxy": {"pid": 1, "restarts": 3}, "status": {"pid": 2, "restarts": 0}}})
    )

    def say(message: str) -> None:
        row = {"pid": os.getpid(), "ready": True, "reason": "Ready", "message": message, "figures": {}}
        (tmp_path / "status" / "proxy.json").write_text(json.dumps(row))

    turns: list[int] = []

    async def sleep(seconds: float) -> None:
        turns.append(len([c for c in api.calls if c != "get"]))
        now[0] += seconds
        if len(turns) == 62:
            say("4 Services")  # a number is no news
        if len(turns) == 70:
            say("the kernel refuses")
        if len(turns) == 100:
            raise asyncio.CancelledError

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(asyncio, "sleep", sleep)
    say("3 Services")
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(own.run())
    assert turns[0] == 1 and turns[18] == 1 and turns[21] == 2, "every ten seconds"
    assert turns[69] == turns[60] == 4 and turns[70] == turns[88] == 5 and turns[90] == 6
    claim = statuslease.read(api.held["podwire-n1"], NOW)
    assert claim is not None and claim.roles["proxy"].restarts == 3 and set(claim.roles) == {"proxy"}
