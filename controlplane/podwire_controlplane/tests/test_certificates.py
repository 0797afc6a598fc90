"""CertificateSigningRequests: who asked, who approves, who signs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from podwire_base.kube.meta import Object

from ..testing.servers import AUTHORITY, Server

PATH = "/apis/certificates.k8s.io/v1/certificatesigningrequests"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as made:
        yield made


def request(own: str) -> Object:
    spec = {"request": "YQ==", "signerName": "example.com/signer", "usages": ["client auth"], "username": "forged"}
    return {"metadata": {"name": own}, "spec": {**spec, "groups": ["system:masters"], "extra": {"a": ["b"]}}}


def test_the_server_writes_who_asked(server: Server) -> None:
    made = server.good("POST", PATH, request("a"))
    assert made["spec"]["username"] == "admin" and "a" not in made["spec"]["extra"]
    (credential,) = made["spec"]["extra"]["authentication.kubernetes.io/credential-id"]
    assert credential.startswith("TOKENSHA256=")
    pair = AUTHORITY.client("ann", ["system:masters"])
    made = server.good("POST", PATH, request("b"), token=None, cert=pair)
    assert made["spec"]["username"] == "ann" and "X509SHA256=" in str(made["spec"]["extra"])
    changed = server.good("PUT", f"{PATH}/b", {**made, "spec": {**made["spec"], "username": "bob"}})
    assert changed["spec"]["username"] == "ann"


def test_each_subresource_writes_its_part(server: Server) -> None:
    made = server.good("POST", PATH, request("c"))
    approved = {"type": "Approved", "status": "True", "reason": "Checked", "message": ""}
    made["status"] = {"conditions": [approved], "certificate": "YQ=="}
    assert (
        "conditions"
        not in server.good("PUT", f"{PATH}/c/status", {**made, "status": {"conditions": [approved]}})["status"]
    )
    made["metadata"].pop("resourceVersion")
    told = server.good("PUT", f"{PATH}/c/approval", made)
    assert [c["type"] for c in told["status"]["conditions"]] == ["Approved"] and "certificate" not in told["status"]
    signed = server.good("PUT", f"{PATH}/c/status", {**told, "status": {"certificate": "YQ=="}})
    assert signed["status"]["certificate"] == "YQ==" and signed["status"]["conditions"][0]["type"] == "Approved"
    both = {**signed, "status": {"conditions": [approved, {**approved, "type": "Denied"}]}}
    assert server.ask("PUT", f"{PATH}/c/approval", both)[0] == 422
    assert server.ask("PUT", f"{PATH}/c/approval", {**signed, "status": {}})[0] == 422
