"""An upstream resolver with DNS over TLS (RFC 7858). Its certificate comes from a CA that the test creates."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from pathlib import Path

from dnslib import DNSRecord

from podwire_controlplane.server import pki

from .dnsupstream import Upstream
from .netns import NetNS


class Authority:
    """A CA. `server(name)` and `client(name)` return (certificate file, key file). ca: the file of the CA's
    certificate.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._signer = folder, pki.Authority()
        self.ca = folder / "ca.pem"
        self.ca.write_text(self._signer.certificate)

    def server(self, *names: str) -> tuple[Path, Path]:
        """names: DNS names and IP addresses of the server."""
        addresses = [name for name in names if name.replace(".", "").isdigit()]
        return self._write(names[0], self._signer.server([n for n in names if n not in addresses], addresses))

    def client(self, name: str) -> tuple[Path, Path]:
        return self._write(name, self._signer.client(name, []))

    def _write(self, name: str, pair: pki.Pair) -> tuple[Path, Path]:
        certificate, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        certificate.write_text(pair.certificate)
        key.write_text(pair.key)
        return certificate, key


class TlsUpstream(Upstream):
    """An Upstream that also answers on port 853. handshakes: the number of completed handshakes. once: close the
    connection after each answer.

    swapped: answer the second of two queries before the first. client_ca: require a client certificate of this CA.
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
        """Shut down every open connection."""
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
