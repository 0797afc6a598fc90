"""Bootstrap tokens: who they are, what they sign, when they end; and the tokens in Secrets of ServiceAccounts."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from podwire_base.kube.meta import Object
from podwire_base.kube.times import timestamp
from podwire_base.patience import patient

from ..certificates import bootstrap, requests
from ..server import auth, identity, pki
from ..server.accountsecrets import AccountSecrets
from ..server.app import AUTHORIZER
from ..server.bootstraptokens import Bootstrapping, documents
from ..server.certificates import Certificates
from ..server.identities import Identities
from ..server.join import Addresses
from ..testing.servers import AUTHORITY, Server

SECRETS = "/api/v1/namespaces/kube-system/secrets"
INFO = "/api/v1/namespaces/kube-public/configmaps/cluster-info"
REQUESTS = "/apis/certificates.k8s.io/v1/certificatesigningrequests"
REVIEW = "/apis/authentication.k8s.io/v1/selfsubjectreviews"


class Bootstrapped(Server):
    async def _start(self) -> None:
        await super()._start()
        self.identities = Identities(self.store)
        await self.identities.start()
        signing = Certificates(
            self.objects, self._runner.app[AUTHORIZER], self.identities, lambda: pki.Authority(AUTHORITY.pair)
        )
        workers = (signing, Bootstrapping(self.objects), AccountSecrets(self.objects, self.accounts, "PEM"))
        self._tasks = [asyncio.create_task(worker.run()) for worker in workers]

    async def _leave(self) -> None:
        for task in self._tasks:
            task.cancel()
        await super()._leave()


@pytest.fixture(scope="module")
def server() -> Iterator[Bootstrapped]:
    with Bootstrapped() as made:
        made.good("POST", "/api/v1/namespaces", {"metadata": {"name": "kube-public"}})
        info, _ = documents("https://10.0.0.1:6443", AUTHORITY.certificate, Addresses())
        made.good("POST", INFO.rpartition("/")[0], info)
        yield made


def until(found: Callable[[], Any]) -> Any:
    """Return the first result that counts as true."""
    end = time.monotonic() + patient(20)
    while not (got := found()):
        assert time.monotonic() < end
        time.sleep(0.01)
    return got


def secret(own: str, seconds: float = 3600, node: str = "", **data: str) -> Object:
    token = bootstrap.Token(own, own[:4] * 4, node=node)
    made = bootstrap.secret_of(token, timestamp(time.time() + seconds), "for a test")
    made["data"] |= {key.replace("_", "-"): base64.b64encode(value.encode()).decode() for key, value in data.items()}
    return made


def text(own: str) -> str:
    return f"{own}.{own[:4] * 4}"


def who(server: Server, token: str) -> Object | None:
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
    code, answer = server.ask("POST", REVIEW, body, token=token)
    assert code in (201, 401), answer
    return answer["status"]["userInfo"] if code == 201 else None


# ---- pure


def test_the_signature_is_that_of_kubeadm() -> None:
    """The form of bootstrap/token/jws: compact, detached, the id as the key's id."""
    head, middle, tail = bootstrap.signature("content", ("abcdef", "0123456789abcdef")).split(".")
    assert (head, middle) == ("eyJhbGciOiJIUzI1NiIsImtpZCI6ImFiY2RlZiJ9", "") and len(tail) == 43
    info = {"data": {"kubeconfig": "content"}}
    data = bootstrap.signed(info, {"abcdef": "0123456789abcdef"})
    assert data is not None and bootstrap.signed({"data": data}, {"abcdef": "0123456789abcdef"}) is None
    assert bootstrap.trusted({"data": data}, ("abcdef", "0123456789abcdef")) == "content"
    assert bootstrap.trusted({"data": data}, ("abcdef", "0123456789abcdeF")) is None
    assert bootstrap.trusted({"data": {**data, "kubeconfig": "other"}}, ("abcdef", "0123456789abcdef")) is None
    assert bootstrap.signed({"data": data}, {}) == {"kubeconfig": "content"}


@pytest.mark.parametrize(
    "change",
    [
        {"type": "Opaque"},
        {"metadata": {"name": "bootstrap-token-other1"}},
        {"data": {"token-id": "YQ=="}},
        {"data": {**secret("abcd00")["data"], "auth-extra-groups": base64.b64encode(b"system:masters").decode()}},
    ],
    ids=("type", "name", "id", "group"),
)
def test_what_is_no_token(change: Object) -> None:
    assert bootstrap.of_secret(secret("abcd00")) is not None
    assert bootstrap.of_secret({**secret("abcd00"), **change}) is None


def test_a_damaged_expiration_is_past() -> None:
    found = bootstrap.of_secret(secret("abcd00", expiration="tomorrow"))
    assert found is not None and found.expires == 0.0


# ---- in the server


def test_a_token_authenticates_until_it_is_deleted(server: Bootstrapped) -> None:
    assert who(server, text("aaaa01")) is None
    server.good("POST", SECRETS, secret("aaaa01", auth_extra_groups="system:bootstrappers:team"))
    found = who(server, text("aaaa01"))
    assert found is not None and found["username"] == "system:bootstrap:aaaa01"
    assert found["groups"] == ["system:bootstrappers", "system:bootstrappers:team", auth.AUTHENTICATED]
    assert who(server, text("aaaa01")[:-1] + "x") is None
    server.good("DELETE", f"{SECRETS}/bootstrap-token-aaaa01")
    assert who(server, text("aaaa01")) is None


def test_a_token_without_the_use_authenticates_nobody(server: Bootstrapped) -> None:
    server.good("POST", SECRETS, secret("aaaa02", usage_bootstrap_authentication="false"))
    assert who(server, text("aaaa02")) is None


def test_an_expired_token_is_nobody_and_is_deleted(server: Bootstrapped) -> None:
    server.good("POST", SECRETS, secret("aaaa03", seconds=-1))
    assert who(server, text("aaaa03")) is None
    until(lambda: server.ask("GET", f"{SECRETS}/bootstrap-token-aaaa03")[0] == 404)


def test_cluster_info_is_signed_for_anybody(server: Bootstrapped) -> None:
    server.good("POST", SECRETS, secret("aaaa04"))
    pair = ("aaaa04", "aaaa" * 4)
    config = until(lambda: bootstrap.trusted(server.good("GET", INFO, token=None), pair))
    assert "https://10.0.0.1:6443" in config
    server.good("DELETE", f"{SECRETS}/bootstrap-token-aaaa04")
    until(lambda: "jws-kubeconfig-aaaa04" not in server.good("GET", INFO)["data"])
    assert server.ask("GET", INFO.rpartition("/")[0], token=None)[0] == 403


def _request(node: str, key: str = "") -> Object:
    made, _ = pki.signing_request(identity.USER + node, key, [auth.NODES])
    spec = {"request": base64.b64encode(made.encode()).decode(), "signerName": requests.KUBELET_CLIENT}
    return {"metadata": {"generateName": "node-"}, "spec": {**spec, "usages": ["digital signature", "client auth"]}}


def _outcome(server: Server, node: str, token: str, key: str = "") -> tuple[str, Object]:
    """Return (reason of the last condition, the request) once it has a certificate or has failed."""
    own = server.good("POST", REQUESTS, _request(node, key), token=token)["metadata"]["name"]

    def done() -> Object | None:
        found = server.good("GET", f"{REQUESTS}/{own}", token=token)
        status = found.get("status") or {}
        failed = any(c["type"] == "Failed" for c in status.get("conditions") or [])
        return found if failed or status.get("certificate") else None

    found = until(done)
    return found["status"]["conditions"][-1]["reason"], found


def test_a_machine_gets_the_certificate_of_a_new_name_only(server: Bootstrapped) -> None:
    server.good("POST", SECRETS, secret("aaaa05"))
    key = pki.new_key()
    why, found = _outcome(server, "w1", text("aaaa05"), key)
    assert why == "AutoApproved" and found["status"]["certificate"]
    assert _outcome(server, "w1", text("aaaa05"), key)[0] == "AutoApproved"  # its answer was lost
    assert _outcome(server, "w1", text("aaaa05"))[0] == "NodeNameTaken"
    server.good("POST", SECRETS, secret("aaaa06", node="w1"))
    assert _outcome(server, "w2", text("aaaa06"))[0] == "NodeNameTaken"
    assert _outcome(server, "w1", text("aaaa06"))[0] == "AutoApproved"  # bound to the name


# ---- tokens of ServiceAccounts in Secrets


def test_a_secret_gets_a_token_and_ends_with_its_account(server: Bootstrapped) -> None:
    base = "/api/v1/namespaces/default"
    server.good("POST", f"{base}/serviceaccounts", {"metadata": {"name": "robot"}})
    notes = {"kubernetes.io/service-account.name": "robot"}
    body = {"metadata": {"name": "robot", "annotations": notes}, "type": "kubernetes.io/service-account-token"}
    server.good("POST", f"{base}/secrets", body)
    filled = until(
        lambda: (found := server.good("GET", f"{base}/secrets/robot")) and found.get("data", {}).get("token") and found
    )
    data = {key: base64.b64decode(value).decode() for key, value in filled["data"].items()}
    assert (data["namespace"], data["ca.crt"]) == ("default", "PEM")
    found = who(server, data["token"])
    assert found is not None and found["username"] == "system:serviceaccount:default:robot"
    changed = {**filled, "data": {**filled["data"], "ca.crt": "eA=="}}
    server.good("PUT", f"{base}/secrets/robot", changed)
    until(lambda: server.good("GET", f"{base}/secrets/robot")["data"] == filled["data"])
    server.good("DELETE", f"{base}/serviceaccounts/robot")
    until(lambda: server.ask("GET", f"{base}/secrets/robot")[0] == 404)
    assert who(server, data["token"]) is None


def test_a_secret_of_no_account_is_deleted(server: Bootstrapped) -> None:
    base = "/api/v1/namespaces/default/secrets"
    notes = {"kubernetes.io/service-account.name": "nobody-at-all"}
    body = {"metadata": {"name": "stray", "annotations": notes}, "type": "kubernetes.io/service-account-token"}
    server.good("POST", base, body)
    until(lambda: server.ask("GET", f"{base}/stray")[0] == 404)
