"""The API server over TLS on 127.0.0.1 in a separate thread, and a blocking client that returns raw answers."""

from __future__ import annotations

import contextlib
import functools
import http.client
import ipaddress
import json
import ssl
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from aiohttp import web

from podwire_base.kube.client.config import ClientConfig
from podwire_base.kube.meta import Object
from podwire_base.kube.registry import of
from podwire_base.patience import patient
from podwire_controlplane.allocators import ServiceAllocator
from podwire_controlplane.server import auth, builtinroles, pki
from podwire_controlplane.server.accountkeys import AccountKeys, new_key
from podwire_controlplane.server.accounts import Accounts
from podwire_controlplane.server.app import make_app
from podwire_controlplane.server.fairness import Fairness
from podwire_controlplane.server.listening import Guard, Listening
from podwire_controlplane.server.main import _listener
from podwire_controlplane.server.objects import Objects
from podwire_controlplane.server.writes import Scope, WriteOptions
from podwire_controlplane.store.memory import MemoryStore

from .inthread import InThread, tls

AUTHORITY = pki.Authority()
TOKENS = {
    "admin-token": auth.User("admin", frozenset({auth.ADMINS})),
    "node-token": auth.User("system:node:n1", frozenset({auth.NODES})),
    "controllers-token": auth.User(auth.CONTROLLERS, frozenset({"system:authenticated"})),
    "reader-token": auth.User("reader", frozenset({auth.READERS})),
    "nobody-token": auth.User("nobody", frozenset()),
}


@functools.cache
def account_keys() -> AccountKeys:
    """Return the key of all servers of this process: it takes a tenth of a second to make one."""
    return AccountKeys(new_key())


class Server(InThread):
    """Use as `with Server() as server:`. The server's event loop creates the store and closes it at the end."""

    def __init__(self, make: Callable[[], MemoryStore] = MemoryStore, port: int = 0, second: str = "") -> None:
        """second: the IPv6 range of Services, "" for none."""
        super().__init__()
        self.make, self.port = make, port
        self.nodes: Path | None = None  # a folder with the sockets of nodes
        self.allocator = ServiceAllocator(
            ipaddress.ip_network("10.96.0.0/16"), second=ipaddress.ip_network(second) if second else None
        )
        self.objects: Objects

    async def _start(self) -> None:
        self.store = self.make()
        self.objects = Objects(self.store, self.allocator)
        await self.objects.start()
        for space in ("default", "kube-system", "kube-node-lease"):
            scope = Scope(of("Namespace"), "", space)
            if await self.store.get(scope.key) is None:
                await self.objects.create(scope, {"metadata": {"name": space}}, WriteOptions())
        await builtinroles.keep(self.store, self.objects.clock())
        guard = Guard()
        self.fairness = Fairness()
        self.accounts = Accounts(self.store, self.objects.clock, account_keys)
        app = make_app(
            self.objects,
            TOKENS,
            settled=guard.settled,
            fairness=self.fairness,
            accounts=self.accounts,
            nodes=self.nodes,
        )
        app.add_routes(self._routes())
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        assert self._runner.server is not None
        sock = _listener("127.0.0.1", self.port, "")
        self.port = sock.getsockname()[1]
        context = tls(AUTHORITY, ["localhost"], ["127.0.0.1"])
        self._listening = Listening(self._runner.server, sock, context, guard)

    def _routes(self) -> list[web.RouteDef]:
        """Return routes beside the API."""
        return []

    async def _leave(self) -> None:
        self._listening.close()

    # ---- clients

    def config(self, token: str = "admin-token") -> ClientConfig:
        return ClientConfig(
            f"https://127.0.0.1:{self.port}", token, ssl.create_default_context(cadata=AUTHORITY.certificate)
        )

    def kubeconfig(self, path: Path) -> Path:
        pair = AUTHORITY.client("admin", [auth.ADMINS])
        pki.write_private(
            path, pki.kubeconfig("c", f"https://127.0.0.1:{self.port}", AUTHORITY.certificate, "admin", pair)
        )
        return path

    @contextlib.contextmanager
    def open(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        token: str | None = "admin-token",
        cert: pki.Pair | None = None,
        headers: dict[str, str] | None = None,
    ) -> Iterator[http.client.HTTPResponse]:
        """Yield the raw answer. body: bytes are sent unchanged, any other value is sent as JSON."""
        context = ssl.create_default_context(cadata=AUTHORITY.certificate)
        if cert:
            with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
                file.write(cert.certificate + cert.key)
                file.flush()
                context.load_cert_chain(file.name)
        link = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=patient(20), context=context)
        known = {"Authorization": f"Bearer {token}"} if token else {}
        sent = {"Content-Type": "application/json", **known, **(headers or {})}
        raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        try:
            link.request(method, path, raw, sent)
            yield link.getresponse()
        finally:
            link.close()

    def ask(self, method: str, path: str, body: Any = None, **more: Any) -> tuple[int, Object]:
        """Return (status, decoded JSON body)."""
        with self.open(method, path, body, **more) as answer:
            raw = answer.read()
            assert answer.headers.get_content_type() == "application/json", (answer.status, raw)
            decoded: Object = json.loads(raw)
            return answer.status, decoded

    def good(self, method: str, path: str, body: Any = None, **more: Any) -> Object:
        code, answer = self.ask(method, path, body, **more)
        assert code < 300, answer
        return answer

    def text(self, path: str) -> bytes:
        with self.open("GET", path) as answer:
            assert answer.status == 200
            return answer.read()

    def frames(self, path: str, **more: Any) -> list[Object]:
        """Return all frames of a watch that ends after its timeoutSeconds."""
        with self.open("GET", path, **more) as answer:
            assert answer.status == 200
            return [json.loads(line) for line in answer.read().splitlines()]
