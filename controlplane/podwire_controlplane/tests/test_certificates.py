"""CertificateSigningRequests: who asked, who approves, who signs."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from podwire_base.kube.meta import Object
from podwire_base.patience import patient

from ..certificates import requests, verdicts
from ..rules import certificates as rules
from ..server import identity, pki
from ..server.app import AUTHORIZER
from ..server.certificates import Certificates
from ..server.identities import Identities
from ..testing.servers import AUTHORITY, Server

PATH = "/apis/certificates.k8s.io/v1/certificatesigningrequests"
KUBELET = ["digital signature", "client auth"]
SIGNER = "example.com/signer"


class Signing(Server):
    """A server that signs."""

    async def _start(self) -> None:
        await super()._start()
        self.identities = Identities(self.store)
        await self.identities.start()
        self.signing = Certificates(
            self.objects, self._runner.app[AUTHORIZER], self.identities, lambda: pki.Authority(AUTHORITY.pair)
        )
        self._task = asyncio.create_task(self.signing.run())

    async def _leave(self) -> None:
        self._task.cancel()
        await super()._leave()

    def settled(self, own: str, field: str = "certificate") -> Object:
        """Return a request that has a certificate, or a condition of the type `field`."""
        end = time.monotonic() + patient(20)
        while True:
            found = self.good("GET", f"{PATH}/{own}")
            status = found.get("status") or {}
            if status.get(field) or any(c["type"] == field for c in status.get("conditions") or []):
                return found
            assert time.monotonic() < end, found
            time.sleep(0.01)


@pytest.fixture(scope="module")
def server() -> Iterator[Signing]:
    with Signing() as made:
        yield made


def pem(user: str = "ann", groups: tuple[str, ...] = (), dns: tuple[str, ...] = (), key: Any = None) -> str:
    """Return a request as `spec.request` holds it."""
    names = [*(x509.NameAttribute(NameOID.ORGANIZATION_NAME, g) for g in groups)]
    names += [x509.NameAttribute(NameOID.COMMON_NAME, user)]
    made = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(names))
    if dns:
        made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName(one) for one in dns]), False)
    signed = made.sign(key or ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    return base64.b64encode(signed.public_bytes(serialization.Encoding.PEM)).decode()


def request(own: str, signer: str = SIGNER, encoded: str = "", usages: list[str] | None = None, **more: Any) -> Object:
    usages = ["client auth"] if usages is None else usages
    return {
        "metadata": {"name": own},
        "spec": {"request": encoded or pem(), "signerName": signer, "usages": usages, **more},
    }


def approve(server: Server, own: str, verdict: str = "Approved", **more: Any) -> tuple[int, Object]:
    found = server.good("GET", f"{PATH}/{own}")
    found["status"] = {"conditions": [{"type": verdict, "status": "True", "reason": "Checked", "message": ""}]}
    return server.ask("PUT", f"{PATH}/{own}/approval", found, **more)


def certificate(found: Object) -> x509.Certificate:
    return x509.load_pem_x509_certificate(base64.b64decode(found["status"]["certificate"]))


def grant(server: Server, own: str, user: str, *rules_: Object) -> None:
    role = "/apis/rbac.authorization.k8s.io/v1/clusterroles"
    server.good("POST", role, {"metadata": {"name": own}, "rules": list(rules_)})
    api = "rbac.authorization.k8s.io"
    bound = {"metadata": {"name": own}, "roleRef": {"apiGroup": api, "kind": "ClusterRole", "name": own}}
    bound["subjects"] = [{"kind": "User", "apiGroup": api, "name": user}]  # type: ignore[assignment]
    server.good("POST", role.replace("roles", "rolebindings"), bound)


# ---- who asked, and which subresource writes what


def test_the_server_writes_who_asked(server: Server) -> None:
    forged: Any = {"username": "forged", "groups": ["system:masters"], "extra": {"a": ["b"]}}
    made = server.good("POST", PATH, request("a", **forged))
    assert made["spec"]["username"] == "admin" and "a" not in made["spec"]["extra"]
    (credential,) = made["spec"]["extra"]["authentication.kubernetes.io/credential-id"]
    assert credential.startswith("TOKENSHA256=")
    pair = AUTHORITY.client("ann", ["system:masters"])
    made = server.good("POST", PATH, request("b", **forged), token=None, cert=pair)
    assert made["spec"]["username"] == "ann" and "X509SHA256=" in str(made["spec"]["extra"])
    changed = server.good("PUT", f"{PATH}/b", {**made, "spec": {**made["spec"], "username": "bob"}})
    assert changed["spec"]["username"] == "ann"


def test_each_subresource_writes_its_part(server: Server) -> None:
    made = server.good("POST", PATH, request("c"))
    approved = {"type": "Approved", "status": "True", "reason": "Checked", "message": ""}
    code, why = server.ask("PUT", f"{PATH}/c/status", {**made, "status": {"conditions": [approved]}})
    assert code == 422 and 'may not add a condition of type "Approved"' in why["message"]
    made["metadata"].pop("resourceVersion")
    code, why = server.ask(
        "PUT", f"{PATH}/c/approval", {**made, "status": {"conditions": [approved], "certificate": "YQ=="}}
    )
    assert code == 200 and "certificate" not in why["status"]
    (told,) = why["status"]["conditions"]
    assert told["lastUpdateTime"] and told["lastTransitionTime"] and told["type"] == "Approved"
    raw = base64.b64encode(AUTHORITY.certificate.encode()).decode()
    signed = server.good("PUT", f"{PATH}/c/status", {**why, "status": {"certificate": raw}})
    assert signed["status"]["certificate"] == raw and signed["status"]["conditions"] == [told]
    both = {**signed, "status": {"conditions": [told, {**approved, "type": "Denied"}]}}
    assert server.ask("PUT", f"{PATH}/c/approval", both)[0] == 422
    assert server.ask("PUT", f"{PATH}/c/approval", {**signed, "status": {}})[0] == 422
    other = base64.b64encode(pki.Authority().certificate.encode()).decode()
    code, why = server.ask("PUT", f"{PATH}/c/status", {**signed, "status": {"certificate": other}})
    assert code == 422 and "may not modify existing certificate content" in why["message"]


@pytest.mark.parametrize(
    ("change", "field", "reason"),
    [
        ({"request": "YQ=="}, "spec.request", "FieldValueInvalid"),
        ({"request": base64.b64encode(AUTHORITY.certificate.encode()).decode()}, "spec.request", "FieldValueInvalid"),
        ({"usages": []}, "spec.usages", "FieldValueRequired"),
        ({"usages": ["client auth", "flying"]}, "spec.usages[1]", "FieldValueNotSupported"),
        ({"usages": ["client auth", "client auth"]}, "spec.usages[1]", "FieldValueDuplicate"),
        ({"signerName": ""}, "spec.signerName", "FieldValueRequired"),
        ({"signerName": "signer"}, "spec.signerName", "FieldValueInvalid"),
        ({"signerName": "local/signer"}, "spec.signerName", "FieldValueInvalid"),
        ({"signerName": "example.com/Signer"}, "spec.signerName", "FieldValueInvalid"),
        ({"signerName": requests.LEGACY}, "spec.signerName", "FieldValueInvalid"),
        ({"expirationSeconds": 599}, "spec.expirationSeconds", "FieldValueInvalid"),
    ],
    ids=lambda value: "-".join(map(str, value))[:20] if isinstance(value, dict) else "",
)
def test_what_is_refused(change: Object, field: str, reason: str) -> None:
    obj = request("x")
    (cause,) = list(rules.request({**obj, "spec": {**obj["spec"], **change}}))
    assert (cause.field, cause.reason) == (field, reason)


def test_a_request_of_another_key_is_refused() -> None:
    raw = bytearray(base64.b64decode(pem()))
    body = bytearray(base64.b64decode(b"".join(bytes(raw).splitlines()[1:-1])))
    body[-1] ^= 1
    text = b"-----BEGIN CERTIFICATE REQUEST-----\n" + base64.b64encode(body) + b"\n-----END CERTIFICATE REQUEST-----\n"
    with pytest.raises(ValueError, match="own key"):
        requests.read(text)


# ---- who may approve and sign


def test_an_approver_needs_the_right_on_the_signer(server: Server) -> None:
    server.good("POST", PATH, request("d"))
    api = "certificates.k8s.io"
    parts = ["certificatesigningrequests", "certificatesigningrequests/approval", "certificatesigningrequests/status"]
    grant(server, "approver", "nobody", {"apiGroups": [api], "resources": parts, "verbs": ["get", "update"]})
    code, why = approve(server, "d", token="nobody-token")
    assert code == 403 and f'not permitted to approve requests with signerName "{SIGNER}"' in why["message"]
    rule = {"apiGroups": [api], "resources": ["signers"], "resourceNames": ["example.com/*"]}
    grant(server, "signers", "nobody", {**rule, "verbs": ["approve"]})
    assert approve(server, "d", token="nobody-token")[0] == 200
    found = server.good("GET", f"{PATH}/d")
    raw = base64.b64encode(AUTHORITY.certificate.encode()).decode()
    body = {**found, "status": {**found["status"], "certificate": raw}}
    code, why = server.ask("PUT", f"{PATH}/d/status", body, token="nobody-token")
    assert code == 403 and "not permitted to sign" in why["message"]
    assert server.ask("PUT", f"{PATH}/d/status", found, token="nobody-token")[0] == 200  # nothing is changed
    grant(server, "signing", "nobody", {**rule, "resourceNames": [SIGNER], "verbs": ["sign"]})
    assert server.ask("PUT", f"{PATH}/d/status", body, token="nobody-token")[0] == 200


def test_nobody_becomes_an_administrator(server: Server) -> None:
    body = request("e", requests.CLIENT, pem("eve", ("system:masters",)))
    code, why = server.ask("POST", PATH, body)
    assert code == 403 and "system:masters group is not allowed" in why["message"]


def test_a_node_asks_for_its_own_name(server: Server) -> None:
    for signer in (requests.KUBELET_CLIENT, requests.KUBELET_SERVING):
        body = request("f", signer, pem("system:node:n2", ("system:nodes",)), KUBELET)
        code, why = server.ask("POST", PATH, body, token="node-token")
        assert code == 403 and "can only create a node CSR with CN=system:node:n1" in why["message"]


# ---- what is signed


def test_an_approved_request_is_signed_as_it_asks(server: Signing) -> None:
    key = rsa.generate_private_key(65537, 2048)
    encoded = pem("ann", ("team:a", "team:b"), ("ann.example",), key)
    server.good("POST", PATH, request("g", requests.CLIENT, encoded, KUBELET, expirationSeconds=3600))
    assert "conditions" not in (server.good("GET", f"{PATH}/g").get("status") or {})
    assert approve(server, "g")[0] == 200
    made = certificate(server.settled("g"))
    assert made.subject.rfc4514_string() == "CN=ann,O=team:b,O=team:a"
    assert made.public_key() == key.public_key()
    assert made.not_valid_after_utc - made.not_valid_before_utc == timedelta(seconds=3600)  # a short one: no backdate
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [x509.DNSName("ann.example")]
    use = made.extensions.get_extension_for_class(x509.KeyUsage).value
    assert use.digital_signature and not use.key_encipherment
    pair = pki.Pair(made.public_bytes(serialization.Encoding.PEM).decode(), _pem(key))
    review = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
    who = server.good("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", review, token=None, cert=pair)
    assert who["status"]["userInfo"]["username"] == "ann"
    assert who["status"]["userInfo"]["groups"] == ["team:a", "team:b", "system:authenticated"]


def _pem(key: rsa.RSAPrivateKey) -> str:
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return key.private_bytes(*form).decode()


@pytest.mark.parametrize(
    ("signer", "groups", "dns", "usages", "why"),
    [
        (requests.CLIENT, (), (), ["server auth"], "invalid usage for client certificate: server auth"),
        (requests.CLIENT, (), (), ["digital signature"], "missing required usage"),
        (requests.KUBELET_CLIENT, ("x",), (), KUBELET, "subject organization is not system:nodes"),
        (requests.KUBELET_CLIENT, ("system:nodes",), ("a.b",), KUBELET, "DNS subjectAltNames are not allowed"),
        (requests.KUBELET_CLIENT, ("system:nodes",), (), ["client auth"], "usages did not match"),
        (requests.KUBELET_CLIENT, ("system:nodes",), (), KUBELET, "does not begin with system:node:"),
        (requests.KUBELET_SERVING, ("system:nodes",), (), KUBELET, "DNS or IP subjectAltName is required"),
        (requests.KUBELET_SERVING, ("system:nodes",), ("a.b",), KUBELET, "usages did not match"),
    ],
)
def test_what_a_signer_refuses(
    signer: str, groups: tuple[str, ...], dns: tuple[str, ...], usages: list[str], why: str
) -> None:
    asked = requests.parse(pem("ann", groups, dns))
    assert why in requests.refusal(signer, asked, usages)
    assert not requests.refusal(requests.LEGACY, asked, usages)


def test_a_refusal_of_the_signer_is_told(server: Signing) -> None:
    server.good("POST", PATH, request("h", requests.CLIENT, usages=["server auth"]))
    approve(server, "h")
    (told,) = [c for c in server.settled("h", "Failed")["status"]["conditions"] if c["type"] == "Failed"]
    assert told["reason"] == "SignerValidationFailure" and "server auth" in told["message"]


def test_a_denied_request_gets_nothing(server: Signing) -> None:
    server.good("POST", PATH, request("i", requests.CLIENT, usages=KUBELET))
    assert approve(server, "i", "Denied")[0] == 200
    server.good("POST", PATH, request("j", requests.CLIENT, usages=KUBELET))
    approve(server, "j")
    server.settled("j")  # requests are handled in their order
    assert "certificate" not in server.good("GET", f"{PATH}/i")["status"]


# ---- nodes


def test_a_node_is_approved_by_its_rights_and_renews(server: Signing) -> None:
    key = pki.new_key()
    grant(
        server,
        "bootstrap",
        "nobody",
        {"apiGroups": ["certificates.k8s.io"], "resources": ["certificatesigningrequests"], "verbs": ["create"]},
        {
            "apiGroups": ["certificates.k8s.io"],
            "resources": ["certificatesigningrequests/nodeclient"],
            "verbs": ["create"],
        },
    )
    text, _ = pki.signing_request("system:node:n7", key, ["system:nodes"])
    encoded = base64.b64encode(text.encode()).decode()
    server.good("POST", PATH, request("k", requests.KUBELET_CLIENT, encoded, KUBELET), token="nobody-token")
    failed = server.settled("k", "Failed")  # the sender has no token for new nodes
    assert [c["reason"] for c in failed["status"]["conditions"]] == ["AutoApproved", "NodeNameTaken"]

    server.good(
        "POST",
        PATH,
        request("l", requests.KUBELET_CLIENT, encoded, ["digital signature", "client auth", "key agreement"]),
    )
    assert "conditions" not in (server.good("GET", f"{PATH}/l").get("status") or {})
    server.good("POST", PATH, request("m", requests.KUBELET_CLIENT, encoded, KUBELET), token="nobody-token")
    server.settled("m", "Failed")
    assert "conditions" not in (server.good("GET", f"{PATH}/l").get("status") or {})


def test_a_node_renews_with_its_present_certificate(server: Signing) -> None:
    pair = AUTHORITY.client("system:node:n8", ["system:nodes"])
    text, key = pki.signing_request("system:node:n8", "", ["system:nodes"])
    encoded = base64.b64encode(text.encode()).decode()
    body = request("n", requests.KUBELET_CLIENT, encoded, KUBELET)
    made = server.good("POST", PATH, body, token=None, cert=pair)
    assert made["spec"]["extra"]["podwire.io/certificate-serial"] == [pki.facts(pair.certificate).serial]
    found = server.settled("n")
    assert found["status"]["conditions"][0]["reason"] == "AutoApproved"
    facts = pki.facts(base64.b64decode(found["status"]["certificate"]).decode())
    assert facts.user == "system:node:n8" and facts.key == pki.public_fingerprint(key)
    item = server.do(server.store.get(identity.PREFIX + "n8"))
    assert item is not None and identity.parse(item.value).present == facts.serial


# ---- cleaning


def _old(hours: float, *kinds: str, certificate: str = "") -> Object:
    text = (datetime.fromtimestamp(10**9, UTC) - timedelta(hours=hours)).strftime("%Y-%m-%dT%H:%M:%SZ")
    rows = [{"type": kind, "status": "True", "lastUpdateTime": text} for kind in kinds]
    status = {"conditions": rows, **({"certificate": certificate} if certificate else {})}
    return {"metadata": {"name": "x", "creationTimestamp": text}, "spec": {}, "status": status}


@pytest.mark.parametrize(
    ("obj", "ends"),
    [
        (_old(25), True),
        (_old(23), False),
        (_old(1.1, "Denied"), True),
        (_old(0.9, "Denied"), False),
        (_old(1.1, "Approved", "Failed"), True),
        (_old(1.1, "Approved", certificate="x"), True),
        (_old(0.5, "Approved", certificate="ended"), True),
        (_old(48, "Approved"), False),  # its signer may be slow
    ],
    ids=range(8),
)
def test_which_requests_are_deleted(obj: Object, ends: bool) -> None:
    why = verdicts.over(obj, 10**9, lambda text: 0.0 if text == "ended" else 10.0**10)
    assert bool(why) is ends


def test_cleaning_deletes(server: Signing) -> None:
    server.good("POST", PATH, request("o"))
    clock = server.objects.clock
    server.objects.clock = lambda: clock() + 25 * 3600
    try:
        assert server.do(server.signing.clean()) > 0
    finally:
        server.objects.clock = clock
    assert server.ask("GET", f"{PATH}/o")[0] == 404
