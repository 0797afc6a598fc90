"""A resolver reached over TLS (RFC 7858), with a certificate of an authority made for the test."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import socket
import ssl
import threading
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from dnslib import DNSRecord

from .dnsupstream import Upstream
from .netns import NetNS


class Authority:
    """`issue(name)` -> (certificate, key) files; `ca`: the file that makes clients believe them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.key = folder, ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
        self.ca = folder / "ca.pem"
        self.ca.write_bytes(
            self._signed(self.name, self.key.public_key(), x509.BasicConstraints(ca=True, path_length=None))
        )

    def _signed(self, subject: x509.Name, key: ec.EllipticCurvePublicKey, *extensions: x509.ExtensionType) -> bytes:
        now = datetime.datetime.now(datetime.UTC)
        made = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
        )
        for extension in extensions:
            made = made.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
        return made.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def issue(self, *names: str) -> tuple[Path, Path]:
        """names: DNS names and IP addresses of the subject."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
        alternative: list[x509.GeneralName] = []
        for name in names:
            try:
                alternative.append(x509.IPAddress(ipaddress.ip_address(name)))
            except ValueError:
                alternative.append(x509.DNSName(name))
        certificate, secret = self.folder / f"{names[0]}.pem", self.folder / f"{names[0]}.key"
        certificate.write_bytes(self._signed(subject, key.public_key(), x509.SubjectAlternativeName(alternative)))
        secret.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return certificate, secret


class TlsUpstream(Upstream):
    """An Upstream that answers on port 853 too. handshakes: connections that came about. once: close after each answer.

    swapped: hold the first of two queries back, and answer the second one before it. client_ca: ask clients for a
    certificate.
    """

    def __init__(self, ns: NetNS, address: str, certificate: Path, key: Path, client_ca: Path | None = None) -> None:
        super().__init__(ns, address)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(certificate, key)
        if client_ca is not None:
            self.context.load_verify_locations(client_ca)
            self.context.verify_mode = ssl.CERT_REQUIRED
        self.handshakes, self.once, self.swapped = 0, False, False
        self.open: set[ssl.SSLSocket] = set()

        def listen() -> socket.socket:
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((address, 853))
            sock.listen(64)
            return sock

        self.tls = ns.call(listen)

    def __enter__(self) -> TlsUpstream:
        super().__enter__()
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *args: object) -> None:
        with contextlib.suppress(OSError):
            self.tls.shutdown(socket.SHUT_RDWR)
        self.tls.close()
        self.drop()
        super().__exit__(*args)

    def drop(self) -> None:
        """Break every connection."""
        for conn in list(self.open):
            with contextlib.suppress(OSError):
                conn.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                conn, _ = self.tls.accept()
            except OSError:
                return
            threading.Thread(target=self._serve_tls, args=(conn,), daemon=True).start()

    def _serve_tls(self, plain: socket.socket) -> None:
        held: bytes | None = None
        with contextlib.suppress(OSError), self.context.wrap_socket(plain, server_side=True) as conn:
            self.open.add(conn)
            self.handshakes += 1
            stream = conn.makefile("rb")
            while data := stream.read(int.from_bytes(stream.read(2))):
                if self.mode == "silent":
                    continue
                reply = bytes(self.answer(DNSRecord.parse(data)).pack())
                if self.swapped and held is None:
                    held = reply
                    continue
                for each in (reply, held):
                    if each is not None:
                        conn.sendall(len(each).to_bytes(2) + each)
                held = None
                if self.once:
                    return
