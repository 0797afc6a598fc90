"""The API server process: the store, the application, and TLS sockets in one or more network namespaces."""

from __future__ import annotations

import asyncio
import copy
import json
import socket
import sqlite3
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from podwire_base.kernel.netns import call_in
from podwire_base.kube.client.aio import web
from podwire_base.kube.errors import StatusError
from podwire_base.kube.meta import Object
from podwire_base.kube.registry import of
from podwire_base.kube.times import timestamp
from podwire_base.role import beat, logs
from podwire_base.role.run import main, notify, stop_event

from ..allocators import ServiceAllocator, service_ranges
from ..store.sqlite import SqliteStore
from . import auth, backups, builtinkinds, builtinroles, eventttl, join, servicecidrs
from .accounts import Accounts, load_keys
from .accountsecrets import AccountSecrets
from .app import AUTHORIZER, make_app
from .bootstraptokens import Bootstrapping, documents
from .certificates import Certificates, authority
from .claims import GRACE
from .identities import Identities
from .listening import KEEPALIVE_SECONDS, Guard, Listening
from .objects import Objects
from .writes import Scope, WriteOptions

log = logs.get("apiserver")
KEEP_SECONDS = 5.0
SWEEP_SECONDS, SWEEP_AGAIN = 10.0, 0.1  # between two sweeps of old Events


@dataclass(frozen=True)
class ServerConfig:
    """data: directory of store, certificates and tokens. listen: (address, port, path of a network namespace or "").

    service_cidr: the range of Service addresses; two, of both IP families, after a comma: the first is the default one.
    advertise: the (address, port) behind the Service default/kubernetes. dns: (address, domain) of the cluster DNS. The
    Service kube-dns gives the cluster DNS a name; the DNS server of each node answers at this address.

    event_ttl: seconds from the last write of an Event to its deletion. held: ports of `listen` that a parent process
    holds by a bound socket with SO_REUSEPORT. nodes: the run directories of the nodes of this machine; None: there are
    none.
    """

    data: Path
    listen: tuple[tuple[str, int, str], ...]
    advertise: tuple[str, int]
    service_cidr: str = "10.96.0.0/16"
    node_ports: tuple[int, int] = (30000, 32767)
    dns: tuple[str, str] | None = None
    event_ttl: float = eventttl.TTL
    held: tuple[int, ...] = ()
    nodes: Path | None = None


def _tls(data: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(data / "server.pem", data / "server-key.pem")
    context.load_verify_locations(data / "ca.pem")
    context.verify_mode = ssl.CERT_OPTIONAL
    return context


def _tokens(data: Path) -> dict[str, auth.User]:
    path = data / "tokens.json"
    if not path.exists():
        return {}
    return {t: auth.User(u["name"], frozenset(u["groups"])) for t, u in json.loads(path.read_text()).items()}


def _listener(address: str, port: int, netns: str, *, held: bool = False) -> socket.socket:
    def make() -> socket.socket:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if held:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((address, port))
        sock.listen(1024)
        return sock

    return call_in(netns, make) if netns else make()


async def _ensure(objects: Objects, scope: Scope, obj: Object) -> None:
    """Create an object, or patch the existing object to the wanted spec."""
    own = Scope(scope.resource, scope.namespace, obj["metadata"]["name"])
    if await objects.store.get(own.key) is None:
        await objects.create(scope, copy.deepcopy(obj), WriteOptions())
    else:
        await objects.patch(own, "application/merge-patch+json", obj, WriteOptions())


async def bootstrap(objects: Objects, config: ServerConfig) -> None:
    """Create or restore the objects that every cluster has: namespaces and the Service `kubernetes` with Endpoints."""
    for name in ("default", "kube-system", "kube-public", "kube-node-lease"):
        await _ensure(objects, Scope(of("Namespace"), ""), {"metadata": {"name": name}})
    address, port = config.advertise
    ranges = service_ranges(config.service_cidr)
    await servicecidrs.ensure(objects, [str(network) for network in ranges])
    first = str(ranges[0][1])
    await _ensure(
        objects,
        Scope(of("Service"), "default"),
        {
            "metadata": {"name": "kubernetes", "labels": {"component": "apiserver", "provider": "kubernetes"}},
            "spec": {"clusterIP": first, "ports": [{"name": "https", "port": 443, "targetPort": port}]},
        },
    )
    await _ensure(
        objects,
        Scope(of("Endpoints"), "default"),
        {
            "metadata": {"name": "kubernetes", "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
            "subsets": [{"addresses": [{"ip": address}], "ports": [{"name": "https", "port": port}]}],
        },
    )
    await _ensure(
        objects,
        Scope(of("EndpointSlice"), "default"),
        {
            "metadata": {"name": "kubernetes", "labels": {"kubernetes.io/service-name": "kubernetes"}},
            "addressType": "IPv6" if ":" in address else "IPv4",
            "endpoints": [{"addresses": [address], "conditions": {"ready": True}}],
            "ports": [{"name": "https", "port": port}],
        },
    )
    if config.dns:
        await _bootstrap_dns(objects, config.dns[0])
    if ca := _read(config.data / "ca.pem"):
        where = f"https://{f'[{address}]' if ':' in address else address}:{port}"
        for made in documents(where, ca, join.read_addresses(config.data) or join.Addresses()):
            await _ensure(objects, Scope(of("ConfigMap"), "kube-public"), made)


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


async def _bootstrap_dns(objects: Objects, address: str) -> None:
    """Create or restore the Service kube-dns. Its label makes the proxy ignore the Service, because every node has the
    address on a local interface.
    """
    await _ensure(
        objects,
        Scope(of("Service"), "kube-system"),
        {
            "metadata": {
                "name": "kube-dns",
                "labels": {"k8s-app": "kube-dns", "service.kubernetes.io/service-proxy-name": "podwire-dns"},
            },
            "spec": {
                "clusterIP": address,
                "ports": [
                    {"name": "dns", "port": 53, "protocol": "UDP"},
                    {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
                ],
            },
        },
    )


async def _keep(objects: Objects, config: ServerConfig) -> None:
    """Restore built-in objects after a client deletes or changes them, and claims that a server has left behind."""
    repaired = objects.clock()
    while True:
        await asyncio.sleep(KEEP_SECONDS)
        try:
            await bootstrap(objects, config)
        except StatusError as err:
            log.warn("a built-in object cannot be restored", error=err.message)
        if objects.clock() - repaired > GRACE:
            repaired = objects.clock()
            await objects.care.repair()


async def _end_events(ends: eventttl.EventTtl) -> None:
    while True:
        try:
            more = await ends.sweep() == eventttl.AT_ONCE
        except (OSError, sqlite3.Error) as err:  # a full disk, for example
            log.warn("old Events cannot be deleted", error=str(err))
            more = False
        await asyncio.sleep(SWEEP_AGAIN if more else SWEEP_SECONDS)


def _accounts(objects: Objects, config: ServerConfig) -> Accounts:
    """Return the tokens of the ServiceAccounts. Their key is made when the first one is asked for."""
    domain = config.dns[1] if config.dns else "cluster.local"
    address, port = config.advertise
    return Accounts(
        objects.store,
        objects.clock,
        lambda: load_keys(config.data),
        f"https://kubernetes.default.svc.{domain}",
        f"https://{f'[{address}]' if ':' in address else address}:{port}",
    )


async def serve(config: ServerConfig, ready: Callable[[], None] | None = None) -> None:
    """Serve the API until SIGTERM or SIGINT. Calls `ready` when the sockets are open."""
    store = SqliteStore(config.data / "store.db")
    low, high = config.node_ports
    ranges = service_ranges(config.service_cidr)
    second = ranges[1] if len(ranges) > 1 else None
    objects = Objects(store, ServiceAllocator(ranges[0], range(low, high + 1), second))
    await objects.start()
    await bootstrap(objects, config)
    await builtinroles.keep(store, objects.clock())
    await builtinkinds.keep(store, objects.clock())
    identities, guard = Identities(store), Guard()
    accounts = _accounts(objects, config)
    app = make_app(objects, _tokens(config.data), identities, guard.settled, accounts=accounts, nodes=config.nodes)
    app.add_routes(join.routes(config.data, identities))
    app.add_routes(backups.routes(store))
    runner = web.AppRunner(
        app,
        access_log=None,
        shutdown_timeout=0.5,
        handler_cancellation=True,  # a watch ends with its client
        keepalive_timeout=KEEPALIVE_SECONDS,
    )
    await runner.setup()
    assert runner.server is not None
    tls = _tls(config.data)
    sites = [
        Listening(runner.server, _listener(address, port, netns, held=not netns and port in config.held), tls, guard)
        for address, port, netns in config.listen
    ]
    log.info(
        "serving",
        listen=[f"{a}:{p}" for a, p, _ in config.listen],
        revision=await store.revision(),
        since=timestamp(objects.clock()),
    )
    notify("READY=1")
    beat.tell(True, "serving")
    if ready:
        ready()
    stop = stop_event()
    ends = eventttl.EventTtl(store, objects.clock, config.event_ttl)
    await ends.start()
    workers = (
        Certificates(objects, app[AUTHORIZER], identities, authority(config.data)),
        Bootstrapping(objects),
        AccountSecrets(objects, accounts, _read(config.data / "ca.pem")),
    )
    tasks = [asyncio.create_task(c) for c in (_keep(objects, config), _end_events(ends), *(w.run() for w in workers))]
    await stop.wait()
    for task in tasks:
        task.cancel()
    for site in sites:
        site.close()
    await runner.cleanup()
    await store.close()
    log.info("stopped")


def run(config: ServerConfig) -> None:
    main("apiserver", serve(config))
