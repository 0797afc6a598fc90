"""ServiceAccounts: the tokens, their ends, and what reads them."""

from __future__ import annotations

import base64
import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from podwire_base.kube.meta import Object
from podwire_base.testing.builders import node, pod
from podwire_base.testing.counts import examples
from podwire_controlplane.controllers.accounts import controllers
from podwire_controlplane.controllers.base import Snapshot
from podwire_controlplane.server import accountclaims, accounts
from podwire_controlplane.server.accountkeys import AccountKeys, new_key

from ..testing.servers import Server

SPACE = "/api/v1/namespaces/default"
TOKEN = f"{SPACE}/serviceaccounts/robot/token"
USER = "system:serviceaccount:default:robot"
WHO = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
REVIEW = "/apis/authentication.k8s.io/v1/tokenreviews"


@pytest.fixture(scope="module")
def keys() -> AccountKeys:
    return AccountKeys(new_key())


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as own:
        own.good("POST", f"{SPACE}/serviceaccounts", {"metadata": {"name": "robot"}})
        yield own


def token(server: Server, **spec: Any) -> str:
    made: str = server.good("POST", TOKEN, {"spec": spec})["status"]["token"]
    return made


def bound(server: Server, kind: str, name: str) -> str:
    return token(server, boundObjectRef={"kind": kind, "apiVersion": "v1", "name": name})


def who(server: Server, sent: str) -> tuple[int, Object]:
    return server.ask("POST", WHO, {}, token=sent)


def claims(sent: str) -> Object:
    part = sent.split(".")[1]
    found: Object = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    return found


# ---- the signature


def test_a_token_is_verified_by_the_published_key_alone(keys: AccountKeys) -> None:
    sent = keys.sign({"a": 1})
    (row,) = keys.jwks()["keys"]

    def number(text: str) -> int:
        return int.from_bytes(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)), "big")

    public = rsa.RSAPublicNumbers(number(row["e"]), number(row["n"])).public_key()
    signed, _, signature = sent.rpartition(".")
    raw = base64.urlsafe_b64decode(signature + "=" * (-len(signature) % 4))
    public.verify(raw, signed.encode(), padding.PKCS1v15(), hashes.SHA256())
    assert keys.claims(sent) == {"a": 1}


@settings(max_examples=examples(25, 500), deadline=None)
@given(st.data())
def test_no_changed_token_counts(keys: AccountKeys, data: st.DataObject) -> None:
    sent = keys.sign({"sub": "x"})
    at = data.draw(st.integers(0, len(sent) - 1))
    letter = data.draw(st.sampled_from("ABab01-_.= \n"))
    changed = sent[:at] + letter + sent[at + 1 :]
    if keys.claims(changed) is not None:
        assert keys.claims(changed) == {"sub": "x"}, "only unused bits of the last letter may differ"
        assert changed[:-1] == sent[:-1] or at in (sent.index(".") - 1, sent.rindex(".") - 1)


def test_the_header_chooses_nothing(keys: AccountKeys) -> None:
    def part(value: Any) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    other = AccountKeys(new_key())
    body = part({"sub": "x"})
    for head in (
        {"alg": "none"},
        {"alg": "HS256", "kid": keys.kid},
        {"alg": "RS256", "kid": "other"},
        {"alg": "RS256"},
    ):
        assert keys.claims(f"{part(head)}.{body}.") is None
        assert keys.claims(f"{part(head)}.{body}.{other.sign({}).split('.')[2]}") is None
    assert keys.claims(other.sign({"sub": "x"})) is None
    for text in ("", "..", "a.b.c", "é.a.b", "x" * 100_000, f"{part([])}.{body}.AA", f"{'A' * 8}.{body}.AA"):
        assert keys.claims(text) is None


# ---- lives


def test_a_token_is_its_account(server: Server) -> None:
    sent = token(server)
    said = claims(sent)
    assert (said["iss"], said["aud"], said["sub"]) == (accounts.ISSUER, [accounts.ISSUER], USER)
    assert said["exp"] - said["iat"] == 3600 and said["nbf"] == said["iat"]
    code, answer = who(server, sent)
    info = answer["status"]["userInfo"]
    assert code == 201 and info["username"] == USER
    assert info["groups"] == ["system:serviceaccounts", "system:serviceaccounts:default", "system:authenticated"]
    assert info["extra"]["authentication.kubernetes.io/credential-id"] == [f"JTI={said['jti']}"]
    code, answer = server.ask("GET", f"{SPACE}/pods", token=sent)
    assert code == 403 and answer["message"].startswith(f'pods is forbidden: User "{USER}" cannot list resource "pods"')


def test_a_token_ends_with_its_time_and_audience(server: Server) -> None:
    clock = server.objects.clock
    sent = token(server, expirationSeconds=600)
    assert who(server, sent)[0] == 201
    server.accounts.clock = lambda: clock() + 601
    assert who(server, sent)[0] == 401
    server.accounts.clock = lambda: clock() - 60
    assert who(server, sent)[0] == 401, "not before its beginning"
    server.accounts.clock = clock
    assert who(server, token(server, audiences=["vault"]))[0] == 401, "the token of another service"


@pytest.mark.parametrize("gone", ["account", "recreated"])
def test_a_token_ends_with_its_account(server: Server, gone: str) -> None:
    sent = token(server)
    server.good("DELETE", f"{SPACE}/serviceaccounts/robot")
    if gone == "recreated":
        server.good("POST", f"{SPACE}/serviceaccounts", {"metadata": {"name": "robot"}})
    assert who(server, sent)[0] == 401


@pytest.mark.parametrize("kind", ["Pod", "Secret", "Node"])
def test_a_token_ends_with_the_object_that_it_is_bound_to(server: Server, kind: str) -> None:
    made = {
        "Pod": (f"{SPACE}/pods", pod("x", serviceAccountName="robot")),
        "Secret": (f"{SPACE}/secrets", {"metadata": {"name": "x"}}),
        "Node": ("/api/v1/nodes", node("x")),
    }
    path, body = made[kind]
    uid = server.good("POST", path, body)["metadata"]["uid"]
    sent = bound(server, kind, "x")
    code, answer = who(server, sent)
    assert code == 201
    extra = answer["status"]["userInfo"]["extra"]
    if kind != "Secret":
        assert extra[f"authentication.kubernetes.io/{kind.lower()}-uid"] == [uid]
    server.good("DELETE", f"{path}/x", {"gracePeriodSeconds": 0})
    assert who(server, sent)[0] == 401
    server.good("POST", path, body)
    assert who(server, sent)[0] == 401, "another object of the same name"
    review = server.good("POST", REVIEW, {"spec": {"token": sent}})["status"]
    assert review == {"user": {}, "error": "invalid bearer token"}


def test_a_pods_token_names_its_node(server: Server) -> None:
    server.good("POST", "/api/v1/nodes", node("n1"))
    server.good("POST", f"{SPACE}/pods", pod("p", serviceAccountName="robot", nodeName="n1"))
    extra = who(server, bound(server, "Pod", "p"))[1]["status"]["userInfo"]["extra"]
    assert extra["authentication.kubernetes.io/pod-name"] == ["p"]
    assert extra["authentication.kubernetes.io/node-name"] == ["n1"]


def test_what_a_token_cannot_be_bound_to(server: Server) -> None:
    server.good("POST", f"{SPACE}/serviceaccounts", {"metadata": {"name": "other"}})
    server.good("POST", f"{SPACE}/pods", pod("p", serviceAccountName="other"))
    server.good("POST", f"{SPACE}/secrets", {"metadata": {"name": "s"}})
    for ref, code in (
        ({"kind": "Pod", "name": "p"}, 400), ({"kind": "Pod", "name": "none"}, 404),
        ({"kind": "Job", "name": "p"}, 400), ({"kind": "Secret", "name": "s", "uid": "other"}, 409),
        ({"kind": "Node", "name": "none"}, 404),
    ):  # fmt: skip
        got, answer = server.ask("POST", TOKEN, {"spec": {"boundObjectRef": {"apiVersion": "v1", **ref}}})
        assert got == code, answer
    for seconds in (599, 1 << 33):
        code, answer = server.ask("POST", TOKEN, {"spec": {"expirationSeconds": seconds}})
        assert code == 422 and answer["details"]["causes"][0]["field"] == "spec.expirationSeconds"
    for field in ("name", "namespace"):
        assert server.ask("POST", TOKEN, {"metadata": {field: "other"}, "spec": {}})[0] == 400


def test_reviews_know_audiences(server: Server) -> None:
    sent = token(server, audiences=["a", "b"])

    def ask(*wanted: str) -> Object:
        found: Object = server.good("POST", REVIEW, {"spec": {"token": sent, "audiences": list(wanted)}})["status"]
        return found

    assert ask("b", "c")["audiences"] == ["b"] and ask("a", "b")["audiences"] == ["a", "b"]
    assert "authenticated" not in ask("c") and "authenticated" not in ask()
    admin = server.good("POST", REVIEW, {"spec": {"token": "admin-token"}})["status"]
    assert admin["user"]["username"] == "admin" and admin["audiences"] == [accounts.ISSUER]


def test_only_who_may_gets_a_token(server: Server) -> None:
    code, answer = server.ask("POST", TOKEN, {"spec": {}}, token="reader-token")
    assert code == 403 and 'cannot create resource "serviceaccounts/token"' in answer["message"]


# ---- the documents, the key


def test_the_issuer_is_discovered(server: Server) -> None:
    found = json.loads(server.text("/.well-known/openid-configuration"))
    assert found["issuer"] == accounts.ISSUER and found["jwks_uri"].endswith("/openid/v1/jwks")
    assert json.loads(server.text("/openid/v1/jwks"))["keys"][0]["kid"] == server.accounts.keys.kid
    sent = token(server)
    for path in ("/.well-known/openid-configuration", "/openid/v1/jwks"):
        assert server.ask("GET", path, token=None)[0] == 403
        with server.open("GET", path, token=sent) as answer:
            assert answer.status == 200 and "max-age" in answer.headers["Cache-Control"]


def test_the_key_outlives_a_restart(tmp_path: Path) -> None:
    first = accounts.load_keys(tmp_path)
    assert stat.S_IMODE((tmp_path / accounts.KEY_FILE).stat().st_mode) == 0o600
    assert accounts.load_keys(tmp_path).claims(first.sign({"a": 1})) == {"a": 1}
    (tmp_path / accounts.KEY_FILE).write_text("x")
    with pytest.raises(ValueError, match=accounts.KEY_FILE):
        accounts.load_keys(tmp_path)


# ---- what every namespace has


def test_every_namespace_gets_an_account_and_the_authority() -> None:
    spaces: dict[str, Object] = {"a": {"metadata": {"name": "a"}}}
    found: dict[str, Object] = {}
    maps: dict[str, Object] = {}
    snapshot = Snapshot({"Namespace": spaces, "ServiceAccount": found, "ConfigMap": maps})
    account, root = controllers("PEM")
    (made,) = account.reconcile("a", snapshot, 0.0)
    assert (made.verb, made.kind, made.namespace, made.name) == ("create", "ServiceAccount", "a", "default")
    (made,) = root.reconcile("a", snapshot, 0.0)
    assert (made.kind, made.name, made.obj["data"]) == ("ConfigMap", "kube-root-ca.crt", {"ca.crt": "PEM"})
    maps["a/kube-root-ca.crt"] = {
        "metadata": {**made.obj["metadata"], "namespace": "a", "uid": "u"},
        "data": {"x": "y"},
    }
    (mended,) = root.reconcile("a", snapshot, 0.0)
    assert (mended.verb, mended.obj["data"]) == ("patch", {"x": None, "ca.crt": "PEM"})
    maps["a/kube-root-ca.crt"]["data"] = made.obj["data"]
    assert root.reconcile("a", snapshot, 0.0) == []
    assert list(root.watches["ConfigMap"](maps.pop("a/kube-root-ca.crt"), snapshot)) == ["a"]
    assert controllers("")[1].reconcile("a", snapshot, 0.0) == [], "a client without an authority of its own"
    found["a/default"] = {"metadata": {"name": "default", "namespace": "a"}}
    assert account.reconcile("a", snapshot, 0.0) == []
    assert list(account.watches["ServiceAccount"](found.pop("a/default"), snapshot)) == ["a"]
    assert account.reconcile("a", snapshot, 0.0), "a deleted account comes back"
    spaces["a"]["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    for controller in (account, root):
        assert controller.reconcile("a", snapshot, 0.0) == controller.reconcile("none", snapshot, 0.0) == []


# ---- tokens in Secrets


def test_a_token_in_a_secret_lives_as_long_as_the_secret_holds_it(server: Server) -> None:
    account = server.good("GET", f"{SPACE}/serviceaccounts/robot")
    sent = server.accounts.keys.sign(accountclaims.legacy_claims(account, "s"))
    assert who(server, sent)[0] == 401
    secret = {"metadata": {"name": "s"}, "stringData": {"token": sent}}
    server.good("POST", f"{SPACE}/secrets", secret)
    assert who(server, sent)[1]["status"]["userInfo"]["username"] == USER
    server.good("PUT", f"{SPACE}/secrets/s", {"metadata": {"name": "s"}, "stringData": {"token": "other"}})
    assert who(server, sent)[0] == 401
    server.good("PUT", f"{SPACE}/secrets/s", secret)
    assert who(server, sent)[0] == 201
    server.good("DELETE", f"{SPACE}/secrets/s")
    assert who(server, sent)[0] == 401


@pytest.mark.parametrize(
    "change",
    [{"iss": "x"}, {"sub": "system:serviceaccount:default:admin"}, {"kubernetes.io": 1}, {"exp": "x"}, {"aud": None}],
    ids=["issuer", "subject", "private", "end", "audience"],
)
def test_strange_claims_count_for_nothing(change: Object) -> None:
    account = {"metadata": {"name": "robot", "namespace": "default", "uid": "1"}}
    made = accountclaims.claims("i", account, ["a"], 3600, [], 0, "id")
    assert accountclaims.grant(made, "i") is not None
    assert accountclaims.grant({**made, **change}, "i") is None
