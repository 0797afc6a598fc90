"""`podwire init` and `podwire join` against a real API server process over TLS: only a holder of the token can join."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography import x509

from podwire import joining
from podwire.deploy import plan
from podwire.main import cli
from podwire_base.kube.client import config as client_config
from podwire_base.kube.client.config import ClientConfig
from podwire_base.kube.client.http import ApiClient
from podwire_base.kube.errors import Refused
from podwire_base.kube.meta import Object
from podwire_base.patience import patient
from podwire_base.testing.builders import run
from podwire_base.testing.scripted import Link, Request, Scripted
from podwire_controlplane.server import join as server_join
from podwire_controlplane.server import pki

TOKEN = "t" * server_join.MIN_TOKEN


def call(*words: str) -> Result:
    return CliRunner().invoke(cli, list(words))


def init(data: Path, port: int, *words: str) -> Result:
    return call("init", "--advertise", f"192.0.2.1:{port}", "--data-dir", str(data), *words)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int]]:
    """A data directory and the port at which `podwire apiserver` serves it."""
    data = tmp_path_factory.mktemp("data")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    services, pods = "10.97.0.0/16,fd00:97::/112", "10.200.0.0/16,fd00:200::/56"
    ranges = ("--service-cidr", services, "--cluster-cidr", pods)
    assert init(data, port, "--token", TOKEN, *ranges).exit_code == 0
    server = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "podwire.main",
            "apiserver",
            "--data",
            str(data / "api"),
            "--listen",
            f"127.0.0.1:{port}",
            "--advertise",
            f"192.0.2.1:{port}",
        ],
        stderr=subprocess.DEVNULL,
    )
    end = time.monotonic() + patient(20)
    while time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            break
        except OSError:
            time.sleep(0.05)
    yield data, port
    server.terminate()
    assert server.wait(patient(10)) == 0


def join(root: Path, port: int, *words: str, token: str = TOKEN) -> Result:
    where = ("--root", str(root), "--node-name", "n2", "--wait", "5")
    return call("join", f"https://127.0.0.1:{port}", "--token", token, *where, *words)


def ask(kubeconfig: Path, path: str) -> Object:
    async def body() -> Object:
        async with ApiClient(client_config.load(kubeconfig)) as api:
            return await api.get(path)

    return run(body())


def test_a_machine_joins(made: tuple[Path, int], tmp_path: Path) -> None:
    data, port = made
    done = join(tmp_path, port)
    assert done.exit_code == 0, done.output
    kubeconfig = tmp_path / "etc/podwire/node.kubeconfig"
    assert kubeconfig.stat().st_mode & 0o077 == 0
    assert ask(kubeconfig, "/api/v1/nodes")["items"] == []
    with pytest.raises(Refused) as caught:
        ask(kubeconfig, "/api/v1/secrets")
    assert caught.value.code in (403, 404), "a node's rights, not an admin's"
    settings = plan.read_settings((tmp_path / "etc/podwire/agent.env").read_text())
    assert settings == {
        "PODWIRE_KUBECONFIG": "/etc/podwire/node.kubeconfig",
        "PODWIRE_NODE_NAME": "n2",
        "PODWIRE_CLUSTER_CIDR": "10.200.0.0/16,fd00:200::/56",
        "PODWIRE_SERVICE_CIDR": "10.97.0.0/16,fd00:97::/112",
        "PODWIRE_DNS_ADDRESS": "10.97.0.10",
        "PODWIRE_CLUSTER_DOMAIN": "cluster.local",
    }
    before = kubeconfig.read_text()
    assert "joined already" in join(tmp_path, port).output and kubeconfig.read_text() == before
    assert join(tmp_path, port, "--again").exit_code == 0 and kubeconfig.read_text() != before
    listed = ask(data / "api/controllers.kubeconfig", "/api/v1/services")["items"]
    assert {(s["metadata"]["name"], s["spec"]["clusterIP"]) for s in listed} == {
        ("kubernetes", "10.97.0.1"),
        ("kube-dns", "10.97.0.10"),
    }


def test_a_machine_joins_by_a_bootstrap_token(made: tuple[Path, int], tmp_path: Path) -> None:
    """Kubernetes' own way: cluster-info signed with the token, then a CertificateSigningRequest."""
    data, port = made
    here = tmp_path / "data"  # as the command finds it, with an address that this machine has
    (here / "api").mkdir(parents=True)
    for file in ("admin.kubeconfig", "api/made-for.json"):
        (here / file).write_text((data / file).read_text().replace("192.0.2.1", "127.0.0.1"))

    def token(node: str = "") -> str:
        asked = CliRunner().invoke(cli, ["token", *([node] if node else []), "--bootstrap", "--data-dir", str(here)])
        assert asked.exit_code == 0, asked.output
        words = asked.output.split()
        assert words[:2] == ["podwire", "join"] and words[3] == "--token", "the whole command for the new machine"
        assert words[5:] == (["--node-name", node, "--again"] if node else [])
        assert re.fullmatch(r"[a-z0-9]{6}\.[a-z0-9]{16}", words[4])
        return words[4]

    first = token()
    done = join(tmp_path / "b1", port, "--node-name", "b1", token=first)
    assert done.exit_code == 0, done.output
    kubeconfig = tmp_path / "b1/etc/podwire/node.kubeconfig"
    assert joining.present(kubeconfig).user == "system:node:b1"
    assert ask(kubeconfig, "/api/v1/nodes")["items"] == []
    settings = plan.read_settings((tmp_path / "b1/etc/podwire/agent.env").read_text())
    assert settings["PODWIRE_CLUSTER_CIDR"] == "10.200.0.0/16,fd00:200::/56"
    assert join(tmp_path / "b1", port, "--node-name", "b1", "--again", token="").exit_code == 0, "a renewal"
    taken = join(tmp_path / "other", port, "--node-name", "b1", token=first)
    assert taken.exit_code == 1 and "is taken" in taken.output, taken.output
    bound = join(tmp_path / "other", port, "--node-name", "b1", token=token("b1"))
    assert bound.exit_code == 0, bound.output
    unknown = join(tmp_path / "b3", port, "--node-name", "b3", token="abcdef.0123456789abcdef")
    assert unknown.exit_code == 1 and "does not know the bootstrap token abcdef" in unknown.output


def test_without_the_token_nobody_joins(made: tuple[Path, int], tmp_path: Path) -> None:
    _, port = made
    done = join(tmp_path, port, token="x" * 40)
    assert done.exit_code == 1 and "does not know this join token" in done.output and list(tmp_path.iterdir()) == []
    authority = ssl.create_default_context(cafile=str(made[0] / "api/ca.pem"))
    for token, code in (("", 401), ("x" * 40, 401)):

        async def body(token: str = token) -> None:
            async with ApiClient(ClientConfig(f"https://127.0.0.1:{port}", token, authority)) as api:
                await api.create(server_join.JOIN_PATH, {"node": "n", "request": pki.signing_request("n")[0]})

        with pytest.raises(Refused) as caught:
            run(body())
        assert caught.value.code == code


@pytest.mark.parametrize(
    ("body", "code", "says"),
    [
        (b"{", 400, "expected"),
        (b"[]", 400, "expected"),
        ({"node": "N 1", "request": ""}, 422, "node"),
        ({"node": "../x", "request": ""}, 422, "node"),
        ({"node": 3, "request": ""}, 422, "node"),
        ({"node": "n", "request": "no PEM"}, 422, "request"),
        ({"node": "n", "request": None}, 422, "request"),
    ],
)
def test_bad_requests_are_named(made: tuple[Path, int], body: object, code: int, says: str) -> None:
    async def work() -> None:
        authority = ssl.create_default_context(cafile=str(made[0] / "api/ca.pem"))
        async with ApiClient(ClientConfig(f"https://127.0.0.1:{made[1]}", TOKEN, authority)) as api:
            await api.request("POST", server_join.JOIN_PATH, body)

    with pytest.raises(Refused) as caught:
        run(work())
    assert caught.value.code == code and says in caught.value.message


def test_a_false_server_gets_neither_the_token_nor_a_node(tmp_path: Path) -> None:
    """An attacker between the node and the server has a CA of its own but not the token."""
    theirs = pki.Authority()
    server = theirs.server(["x"], ["127.0.0.1"])
    (tmp_path / "pem").write_text(server.certificate + server.key)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "pem")

    async def handler(_asked: Request, link: Link) -> None:
        await link.answer(200, {"ca": theirs.certificate, "mac": server_join.mac("guess", theirs.certificate)})

    async def body() -> list[Request]:
        async with Scripted(handler, context) as scripted:
            done = await asyncio.to_thread(join, tmp_path / "root", scripted.port)
            assert done.exit_code == 1 and "does not know" in done.output
            return scripted.asked

    asked = run(body())
    assert [a.path for a in asked] == [server_join.CA_PATH] and TOKEN not in str(asked)


def test_tokens_end_and_are_made_anew(tmp_path: Path) -> None:
    assert init(tmp_path, 6443).exit_code == 0
    api = tmp_path / "api"

    def present(node: str = "") -> str:
        (found,) = [token.secret for token in server_join.read_tokens(api) if token.node == node]
        return found

    first = present()
    assert init(tmp_path, 6443).exit_code == 0 and present() == first, "the token stays while it is valid"
    bound = call("token", "n3", "--data-dir", str(tmp_path)).output
    assert f"--token {present('n3')} --node-name n3" in bound and "192.0.2.1:6443" in bound
    assert init(tmp_path, 6443, "--new-token").exit_code == 0 and present() != first and present("n3") in bound
    assert present("n3") not in call("token", "n3", "--data-dir", str(tmp_path)).output, "one token for each name"
    assert call("token", "--data-dir", str(tmp_path)).output.split()[-1] == present()
    now = time.time()
    for broken in (
        json.dumps({"token": first, "expires": now - 1}),
        json.dumps({"token": first, "expires": now + 9e6, "made": now - 25 * 3600}),
        "{",
        '{"token": "short", "expires": 9e12}',
        "[]",
        '{"bound": [{"token": "' + first + '", "expires": 9e12}]}',
    ):
        (api / "join.json").write_text(broken)
        assert server_join.read_tokens(api) == []
    (api / "join.json").unlink()
    assert server_join.read_tokens(api) == []


def test_a_token_of_a_year_from_an_older_version_ends_after_a_day(tmp_path: Path) -> None:
    """Version 0.2 wrote no time of making: the file's own time counts."""
    path = tmp_path / "join.json"
    path.write_text(json.dumps({"token": TOKEN, "expires": time.time() + 8760 * 3600}))
    assert [token.secret for token in server_join.read_tokens(tmp_path)] == [TOKEN]
    os.utime(path, (time.time() - 25 * 3600,) * 2)
    assert server_join.read_tokens(tmp_path) == []


def test_init_twice_keeps_the_ca_and_follows_addresses(tmp_path: Path) -> None:
    api = tmp_path / "api"
    assert "made certificates" in init(tmp_path, 6443).output
    kept = {p.name: p.read_text() for p in api.iterdir() if p.name != "join.json"}
    assert "kept certificates" in init(tmp_path, 6443).output
    assert {p.name: p.read_text() for p in api.iterdir() if p.name != "join.json"} == kept
    assert init(tmp_path, 6443, "--also", "192.0.2.7").exit_code == 0
    assert (api / "ca.pem").read_text() == kept["ca.pem"], "nodes that joined still trust the CA"
    names = (
        x509.load_pem_x509_certificate((api / "server.pem").read_bytes())
        .extensions.get_extension_for_class(x509.SubjectAlternativeName)
        .value
    )
    assert {"192.0.2.7", "127.0.0.1", "10.96.0.1"} <= {str(a) for a in names.get_values_for_type(x509.IPAddress)}
    assert all(p.stat().st_mode & 0o077 == 0 for p in [*api.iterdir(), tmp_path / "admin.kubeconfig"])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--advertise", "host"], "--advertise"),
        (["--advertise", "192.0.2.1:99999"], "--advertise"),
        (["--advertise", "127.0.0.1"], "cannot reach"),
        (["--token", "short"], "--token"),
        (["--token-hours", "25"], "--token-hours"),
        (["--service-cidr", "10.244.1.0/24"], "overlap"),
        (["--service-cidr", "10.96.0.0/16,10.97.0.0/16"], "IPv6 range after a comma"),
        (["--service-cidr", "10.96.0.0/16,fd00::/112"], "only where pods do"),
        (["--service-cidr", "10.96.0.0/16,fd00::/112", "--cluster-cidr", "10.8.0.0/16,fd00::/56"], "overlap"),
        (["--dns-address", "x"], "--dns-address"),
        (["--also", "x"], "--also"),
        (["--data-dir", "/proc/no"], "/proc/no"),
    ],
)
def test_what_init_cannot_do(tmp_path: Path, words: list[str], says: str) -> None:
    done = init(tmp_path, 6443, *words)
    assert done.exit_code in (1, 2) and says in done.output and list(tmp_path.iterdir()) == []


def test_parts_say_what_they_miss(tmp_path: Path) -> None:
    assert "--kubeconfig or --data" in call("controllers").output
    (tmp_path / "cluster.json").write_text("[")
    for words in (["controllers", "--data", str(tmp_path)], ["apiserver", "--data", str(tmp_path)]):
        assert "cluster.json" in call(*words).output
    assert "https://HOST:PORT" in call("join", "192.0.2.1", "--token", TOKEN, "--root", str(tmp_path)).output
