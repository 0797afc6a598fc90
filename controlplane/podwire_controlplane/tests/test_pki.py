"""The certificates hold by the letter of RFC 5280, as Python 3.13 verifies by default: so does every Python here."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from podwire_controlplane.server.pki import Authority, Pair, signing_request


def context(folder: Path, purpose: ssl.Purpose, authority: Authority, own: Pair) -> ssl.SSLContext:
    """Return the TLS context of one side. It sends a certificate, requires one, and verifies strictly."""
    made = ssl.create_default_context(purpose, cadata=authority.certificate)
    made.verify_mode = ssl.CERT_REQUIRED
    made.verify_flags |= ssl.VERIFY_X509_STRICT
    file = folder / f"{purpose.name}.pem"
    file.write_text(own.certificate + own.key)
    made.load_cert_chain(file)
    return made


def handshake(client: ssl.SSLContext, server: ssl.SSLContext, name: str) -> None:
    """Do a TLS handshake between both sides in memory. Raises SSLError."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [
        client.wrap_bio(to_client, to_server, server_hostname=name),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for side in sides * 3:
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            pass  # the other side's turn
    assert all(side.version() for side in sides)


@pytest.mark.parametrize("name", ["kubernetes.default.svc", "10.96.0.1", "fd00::1"])
@pytest.mark.parametrize("signed", [False, True], ids=["key made here", "key of a signing request"])
def test_both_sides_verify_strictly(tmp_path: Path, name: str, signed: bool) -> None:
    authority = Authority(Authority().pair)  # as read back from a file
    server = authority.server(["kubernetes.default.svc"], ["10.96.0.1", "fd00::1"])
    client = authority.client("admin", ["system:masters"])
    if signed:
        request, key = signing_request("node1")
        client = Pair(authority.sign_client(request, "system:node:node1", ["system:nodes"]), key)
    handshake(
        context(tmp_path, ssl.Purpose.SERVER_AUTH, authority, client),
        context(tmp_path, ssl.Purpose.CLIENT_AUTH, authority, server),
        name,
    )


@pytest.mark.parametrize("fault", ["another authority", "another name", "a client's as a server's"])
def test_what_is_refused(tmp_path: Path, fault: str) -> None:
    authority = Authority()
    server = authority.server(["kubernetes"], [])
    if fault == "another authority":
        server = Authority().server(["kubernetes"], [])
    elif fault == "a client's as a server's":
        server = authority.client("kubernetes", [])
    with pytest.raises(ssl.SSLError):
        handshake(
            context(tmp_path, ssl.Purpose.SERVER_AUTH, authority, authority.client("admin", [])),
            context(tmp_path, ssl.Purpose.CLIENT_AUTH, authority, server),
            "elsewhere" if fault == "another name" else "kubernetes",
        )
