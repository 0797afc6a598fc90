"""A node's certificate over its life, against a real API server process: names are taken once, the present certificate
renews itself, an administrator gives a name away, and a revocation ends open connections.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import Result

from podwire import agent, joining, renewal
from podwire.agent import AgentConfig
from podwire_base.kube.client import config as client_config
from podwire_base.kube.client.http import ApiClient
from podwire_base.kube.errors import ApiError, Refused
from podwire_base.patience import patient
from podwire_base.testing.builders import run
from podwire_controlplane.server import join as server_join
from podwire_controlplane.server import pki

from .test_join import TOKEN, call, made

__all__ = ["made"]  # the server: a fixture
NODES = "/api/v1/nodes"


def join(root: Path, port: int, node: str, *words: str, token: str = TOKEN) -> Result:
    given = ("--token", token) if token else ()
    return call(
        "join", f"https://127.0.0.1:{port}", *given, "--root", str(root), "--node-name", node, "--wait", "5", *words
    )


def kubeconfig(root: Path) -> Path:
    return root / joining.KUBECONFIG


def works(path: Path) -> bool:
    async def body() -> bool:
        async with ApiClient(client_config.load(str(path))) as api:
            try:
                await api.get(NODES)
            except Refused as err:
                assert err.code == 401 and "podwire join" in err.message
                return False
            return True

    return run(body())


def bound(data: Path, node: str) -> str:
    return call("token", node, "--data-dir", str(data)).output.split("--token ")[1].split()[0]


def revoke(data: Path, port: int, node: str, *, user: str = "admin.kubeconfig") -> Result:
    return call("revoke", node, "--kubeconfig", str(at(data, port, user)))


def at(data: Path, port: int, user: str) -> Path:
    """Return a kubeconfig of the data directory that leads to the server of the test."""
    path = data / f"test-{Path(user).name}"
    path.write_text((data / user).read_text().replace("192.0.2.1", "127.0.0.1"))
    return path


@pytest.fixture
def machine(made: tuple[Path, int], tmp_path: Path) -> Iterator[tuple[Path, int, Path]]:
    yield (*made, tmp_path)


def test_a_name_is_taken_once(machine: tuple[Path, int, Path]) -> None:
    data, port, tmp = machine
    assert join(tmp / "one", port, "taken").exit_code == 0
    second = join(tmp / "two", port, "taken")
    assert second.exit_code == 1 and "podwire token taken" in second.output and not kubeconfig(tmp / "two").exists()
    assert works(kubeconfig(tmp / "one"))
    third = join(tmp / "three", port, "taken", token=bound(data, "taken"))
    assert third.exit_code == 0, third.output
    assert works(kubeconfig(tmp / "three")) and not works(kubeconfig(tmp / "one")), "the old serial number is revoked"
    lost = join(tmp / "one", port, "taken", "--again", token="")
    assert lost.exit_code == 1 and "revoked" in lost.output


def test_a_node_that_exists_keeps_its_name(machine: tuple[Path, int, Path]) -> None:
    """A Node without a reservation: an older version of podwire, or an administrator, made it."""
    data, port, tmp = machine

    async def body() -> None:
        async with ApiClient(client_config.load(str(at(data, port, "admin.kubeconfig")))) as api:
            await api.create(NODES, {"metadata": {"name": "elder"}})

    run(body())
    done = join(tmp, port, "elder")
    assert done.exit_code == 1 and "there is a Node of this name" in done.output
    pair = pki.Pair(*((data / "api" / name).read_text() for name in ("ca.pem", "ca-key.pem")))
    authority = pki.Authority(pair)
    old = authority.client("system:node:elder", ["system:nodes"])  # as version 0.2 gave it: no record of it
    joining.write(kubeconfig(tmp), f"https://127.0.0.1:{port}", authority.certificate, "elder", old)
    assert works(kubeconfig(tmp))
    done = join(tmp, port, "elder", "--again", token="")
    assert done.exit_code == 0, done.output
    assert joining.present(kubeconfig(tmp)).end < time.time() + 366 * 86400, "a year, and renewals from now on"
    joining.write(kubeconfig(tmp / "copy"), f"https://127.0.0.1:{port}", authority.certificate, "elder", old)
    assert works(kubeconfig(tmp / "copy"))
    assert revoke(data, port, "elder").exit_code == 0
    assert not works(kubeconfig(tmp)) and not works(kubeconfig(tmp / "copy")), "also serial numbers without a record"


def test_a_token_for_one_name_admits_no_other(machine: tuple[Path, int, Path]) -> None:
    data, port, tmp = machine
    done = join(tmp, port, "other", token=bound(data, "one"))
    assert done.exit_code == 1 and "is for node 'one'" in done.output
    assert join(tmp, port, "one", token=bound(data, "one")).exit_code == 0, "a new name too"


@pytest.mark.parametrize("node", ["a..b", "-a", "a-.b", "x" * 53, "A"])
def test_bad_names_are_refused_on_both_sides(machine: tuple[Path, int, Path], node: str) -> None:
    _, port, tmp = machine
    assert "--node-name" in join(tmp, port, node).output
    trusted = ssl.create_default_context(cafile=str(machine[0] / "api/ca.pem"))

    async def body() -> None:
        async with ApiClient(client_config.ClientConfig(f"https://127.0.0.1:{port}", TOKEN, trusted)) as api:
            await api.create(server_join.JOIN_PATH, {"node": node, "request": pki.signing_request("x")[0]})

    with pytest.raises(Refused) as caught:
        run(body())
    assert caught.value.code == 422 and caught.value.message.startswith("node:")


def test_an_answer_that_was_lost_is_given_again(
    machine: tuple[Path, int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine dies after the request: the next `podwire join` has the same key. Another key is refused."""
    _, port, tmp = machine
    with monkeypatch.context() as patch:
        patch.setattr(joining, "write", lambda *_: (_ for _ in ()).throw(OSError("power failure")))
        assert join(tmp, port, "lost").exit_code == 1 and not kubeconfig(tmp).exists()
    assert "is taken" in join(tmp / "else", port, "lost").output
    assert join(tmp, port, "lost").exit_code == 0 and works(kubeconfig(tmp))
    before = joining.present(kubeconfig(tmp))
    with monkeypatch.context() as patch:
        patch.setattr(joining, "_put", lambda *_: (_ for _ in ()).throw(OSError("power failure")))
        with pytest.raises(OSError, match="power"):
            run(joining.renew(kubeconfig(tmp)))
    assert joining.present(kubeconfig(tmp)) == before
    run(joining.renew(kubeconfig(tmp)))
    assert joining.present(kubeconfig(tmp)).serial != before.serial and works(kubeconfig(tmp))


def test_only_the_present_certificate_renews(machine: tuple[Path, int, Path]) -> None:
    data, port, tmp = machine
    assert join(tmp, port, "fresh").exit_code == 0
    (tmp / "copy").mkdir()
    (tmp / "copy/old").write_text(kubeconfig(tmp).read_text())
    run(joining.renew(kubeconfig(tmp)))
    with pytest.raises(Refused, match="not the present certificate"):
        run(joining.renew(tmp / "copy/old"))
    with pytest.raises(ApiError):
        run(joining.renew(at(data, port, "admin.kubeconfig")))  # an administrator is no node


def test_a_revocation_ends_open_connections(machine: tuple[Path, int, Path]) -> None:
    data, port, tmp = machine
    assert join(tmp, port, "bad").exit_code == 0 and join(tmp / "good", port, "good").exit_code == 0
    links = {}
    for own, root in (("bad", tmp), ("good", tmp / "good")):
        context = client_config.load(str(kubeconfig(root))).ssl
        assert context is not None
        for kind in ("idle", "watch"):
            link = http.client.HTTPSConnection("127.0.0.1", port, timeout=patient(5), context=context)
            link.request("GET", NODES + ("?watch=true&resourceVersion=0" if kind == "watch" else ""))
            answer = link.getresponse()
            assert answer.status == 200
            if kind == "idle":
                answer.read()
            links[own, kind] = (link, answer)
    refused = revoke(data, port, "bad", user="admin.kubeconfig")
    assert refused.exit_code == 0 and joining.present(kubeconfig(tmp)).serial in refused.output
    end = time.monotonic() + patient(1)
    with pytest.raises((OSError, http.client.HTTPException)):
        links["bad", "watch"][1].read()
    assert time.monotonic() < end, "at once"
    with pytest.raises((OSError, http.client.HTTPException)):
        links["bad", "idle"][0].request("GET", NODES)
        links["bad", "idle"][0].getresponse()
    assert not works(kubeconfig(tmp))
    link = links["good", "idle"][0]
    link.request("GET", NODES)
    assert link.getresponse().status == 200
    taken = join(tmp, port, "bad", "--again")
    assert taken.exit_code == 1 and "revoked" in taken.output, "the name stays reserved"
    assert join(tmp, port, "bad", "--again", token=bound(data, "bad")).exit_code == 0 and works(kubeconfig(tmp))


def test_only_an_administrator_revokes(machine: tuple[Path, int, Path]) -> None:
    data, port, tmp = machine
    assert join(tmp, port, "user").exit_code == 0
    refused = call("revoke", "good", "--kubeconfig", str(kubeconfig(tmp)))
    assert refused.exit_code == 1 and "cannot revoke" in refused.output
    assert "node:" in revoke(data, port, "../x").output
    unknown = revoke(data, port, "nobody")
    assert unknown.exit_code == 0 and "no machine joined as nobody" in unknown.output


def test_the_agent_renews_at_two_thirds(machine: tuple[Path, int, Path]) -> None:
    data, port, tmp = machine
    assert join(tmp, port, "aging").exit_code == 0
    path = kubeconfig(tmp)

    def role_names(where: str | None) -> list[str]:
        return [role.name for role in agent.roles(AgentConfig("aging", where, tmp, "192.0.2.9"))]

    assert "identity" in role_names(str(path))
    assert "identity" not in role_names(str(data / "admin.kubeconfig")) + role_names(None), "not ours to renew"
    config = renewal.IdentityConfig("aging", str(path), tmp)

    async def turn() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(renewal.keep(config), patient(0.5))

    first = joining.present(path)
    run(turn())
    assert joining.present(path) == first, "two thirds of the year are not over"
    told = json.loads((tmp / "status/identity.json").read_text())
    assert told["ready"] and "renewed on" in told["message"]
    later = first.start + (first.end - first.start) * 0.7
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(renewal, "now", lambda: later)
        run(turn())
    assert joining.present(path).serial != first.serial and works(path)
    assert path.stat().st_mode & 0o777 == 0o600 and [p.name for p in path.parent.iterdir() if ".key" in p.name] == []
    revoke(data, port, "aging")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(renewal, "now", lambda: later)
        run(turn())
    told = json.loads((tmp / "status/identity.json").read_text())
    assert not told["ready"] and told["reason"] == "NotRenewed" and "revoked" in told["message"]
