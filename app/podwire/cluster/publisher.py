"""The process of a cluster that publishes Services on the machine's loopback, and the client side of its socket.

It listens in the machine's network namespace and makes its sockets to Services inside the namespaces of nodes, so
nothing of the machine's network changes. Publications are written to a file in the run directory and are taken up again
after a restart. Commands ask over a unix socket with one JSON line each way; only root may.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import random
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from podwire_base.kernel.netns import call_in
from podwire_base.kube.client import config as client_config
from podwire_base.kube.client.http import ApiClient
from podwire_base.kube.client.informer import Informer
from podwire_base.role import accept, beat, files, logs, unixsocket, waits
from podwire_base.role.run import main, stop_event, until_stopped

from . import relay
from .config import ClusterConfig
from .publications import BadPublication, Place, Publication, Target, parse, parse_place, slices_of, target

log = logs.get("publisher")
RETRY_SECONDS = 2.0  # between two attempts at a port that another program has
CONNECT_SECONDS = 5.0
TRIES = 3  # nodes that one connection tries
_PATHS = ("/api/v1/services", "/apis/discovery.k8s.io/v1/endpointslices", "/api/v1/nodes")


class CannotPublish(Exception):
    """The publisher refuses, or does not answer. The message says what to do."""


def socket_path(config: ClusterConfig) -> Path:
    return config.run_dir / "publish.sock"


def record(config: ClusterConfig) -> Path:
    return config.run_dir / "publish.json"


def _kept(config: ClusterConfig) -> list[Publication]:
    try:
        found = json.loads(record(config).read_text())
    except FileNotFoundError:
        found = list(config.publish)
    except (OSError, ValueError) as err:
        log.error("the record of publications cannot be read", file=str(record(config)), error=str(err))
        return []
    good = []
    for text in found if isinstance(found, list) else []:
        try:
            good.append(parse(str(text)))
        except BadPublication as err:
            log.error("a publication in the record is left out", error=str(err))
    return good


def bind_error(place: Place, err: OSError) -> str:
    """Return the reason why the machine cannot listen at a place, and what to do."""
    if err.errno == errno.EADDRINUSE:
        return f"port {place} is taken by another program: choose another port, or 0 for any free one"
    if err.errno == errno.EADDRNOTAVAIL:
        return f"{place.address} is not an address of this machine: `ip addr` lists them"
    return f"port {place}: {os.strerror(err.errno) if err.errno else err}"


@dataclass
class _Published:
    """relay: None while the port is taken; then `why` has the reason."""

    publication: Publication
    relay: relay.Relay | None = None
    why: str = ""
    refused: int = 0
    said: str = field(default="", repr=False)


class Publisher:
    def __init__(self, config: ClusterConfig) -> None:
        self.config = config
        self.published: dict[Place, _Published] = {}
        self._copies: list[Informer] = []
        self._needed = asyncio.Event()

    # ---- the cluster's state

    async def follow(self) -> None:
        """Follow the API, from the first publication on."""
        await self._needed.wait()
        async with ApiClient(client_config.load(str(self.config.run_dir / "api" / "controllers.kubeconfig"))) as api:
            self._copies = [Informer(api, path) for path in _PATHS]
            await asyncio.gather(*(copy.run() for copy in self._copies))

    async def synced(self, seconds: float = 5.0) -> bool:
        self._needed.set()
        end = time.monotonic() + seconds
        while not (self._copies and all(copy.synced.is_set() for copy in self._copies)):
            if time.monotonic() > end:
                return False
            await asyncio.sleep(0.02)
        return True

    def target(self, publication: Publication) -> Target:
        if not self._copies or not all(copy.synced.is_set() for copy in self._copies):
            return Target(why="the API server does not answer yet")
        services, slices, nodes = (copy.objects for copy in self._copies)
        service = services.get(publication.key)
        return target(
            publication, service, slices_of(slices.values(), publication), nodes.values(), random.getrandbits(16)
        )

    # ---- connections

    def _dial(self, row: _Published) -> relay.Dial:
        async def dial() -> socket.socket:
            await self.synced()
            found = self.target(row.publication)
            if found.why:
                self._refuse(row, found.why)
                raise ConnectionRefusedError(errno.ECONNREFUSED, found.why)
            last: OSError = OSError(errno.EHOSTUNREACH, "no node")
            for node in random.sample(found.nodes, len(found.nodes))[:TRIES]:
                try:
                    return await self._connect(node, found, row.publication.place.protocol == "UDP")
                except OSError as err:
                    last = err
            self._refuse(row, f"{found.address}:{found.port}: {last.strerror or last}")
            raise last

        return dial

    async def _connect(self, node: str, found: Target, datagrams: bool) -> socket.socket:
        family = socket.AF_INET6 if ":" in found.address else socket.AF_INET
        kind = socket.SOCK_DGRAM if datagrams else socket.SOCK_STREAM
        where = str(self.config.netns(node))
        sock = call_in(where, lambda: socket.socket(family, kind | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK))
        try:
            wait = asyncio.get_running_loop().sock_connect(sock, (found.address, found.port))
            await waits.within(wait, CONNECT_SECONDS)
        except TimeoutError:
            sock.close()
            raise OSError(errno.ETIMEDOUT, f"no answer by way of {node}") from None
        except BaseException:
            sock.close()
            raise
        return sock

    def _refuse(self, row: _Published, why: str) -> None:
        row.refused += 1
        if why != row.said:  # once for each reason
            row.said = why
            log.warn("a connection is refused", port=str(row.publication.place), reason=why)

    # ---- what commands ask

    def begin(self) -> None:
        for publication in _kept(self.config):
            self._add(publication, keep_on_error=True)
        if self.published:
            self._needed.set()
        self._save()

    def _add(self, publication: Publication, *, keep_on_error: bool = False) -> _Published:
        row = _Published(publication)
        try:
            sockets, place = relay.bind(publication.place)
        except OSError as err:
            row.why = bind_error(publication.place, err)
            if not keep_on_error:
                raise CannotPublish(row.why) from err
            log.warn("a port cannot be published; it is tried again", port=str(publication.place), reason=row.why)
        else:
            row.publication = Publication(place, publication.namespace, publication.service, publication.port)
            row.relay = relay.serve(sockets, place, self._dial(row))
        self.published[row.publication.place] = row
        return row

    def add(self, publication: Publication) -> _Published:
        """Publish, or return the row that does so already. Raises CannotPublish."""
        for row in self.published.values():
            same = row.publication
            if (same.key, same.port, same.place.protocol, same.place.address) == (
                publication.key,
                publication.port,
                publication.place.protocol,
                publication.place.address,
            ) and publication.place.port in (0, same.place.port):
                return row
            if publication.place.port and _clash(same.place, publication.place):
                raise CannotPublish(
                    f"port {same.place} leads to {same.key}:{same.port} already; end that first: "
                    f"`podwire publish --rm {same.place}`"
                )
        row = self._add(publication)
        self._needed.set()
        self._save()
        log.info("published", what=str(row.publication))
        return row

    def remove(self, place: Place) -> _Published:
        row = self.published.pop(place, None)
        if row is None:
            raise CannotPublish(f"port {place} is not published: `podwire publish --list`")
        if row.relay is not None:
            row.relay.close()
        self._save()
        log.info("no longer published", what=str(row.publication))
        return row

    def _save(self) -> None:
        files.write(
            record(self.config), json.dumps([str(row.publication) for row in self.published.values()]), mode=0o600
        )

    async def retry(self) -> None:
        """Try ports again that another program had."""
        while True:
            await asyncio.sleep(RETRY_SECONDS)
            for place, row in list(self.published.items()):
                if row.relay is None and place in self.published:
                    with contextlib.suppress(CannotPublish):
                        self._add(row.publication)
                        log.info("published", what=str(row.publication))

    def row(self, row: _Published) -> dict[str, Any]:
        publication = row.publication
        return {
            "addresses": list(publication.place.addresses),
            "port": publication.place.port,
            "protocol": publication.place.protocol,
            "place": str(publication.place),
            "service": publication.key,
            "servicePort": publication.port,
            "state": row.why or self.target(publication).why or "ready",
            "connections": row.relay.connections if row.relay else 0,
            "refused": row.refused,
        }

    async def answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        try:
            if asked["do"] == "add":
                found = [self.add(parse(text)) for text in asked["what"]]
            elif asked["do"] == "remove":
                found = [self.remove(parse_place(text)) for text in asked["what"]]
            else:
                found = list(self.published.values())
        except (CannotPublish, BadPublication) as err:
            return {"error": str(err)}
        if found:
            await self.synced()
        return {"rows": [self.row(one) for one in found]}

    async def client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, ValueError, KeyError):
            writer.write(json.dumps(await self.answer(json.loads(await reader.readline()))).encode() + b"\n")
            await writer.drain()
        writer.close()


def _clash(a: Place, b: Place) -> bool:
    return (a.port, a.protocol) == (b.port, b.protocol) and bool(set(a.addresses) & set(b.addresses))


async def _serve(config: ClusterConfig) -> None:
    publisher, path = Publisher(config), socket_path(config)
    stop = stop_event()
    publisher.begin()
    server = accept.streams(unixsocket.listen(path), publisher.client)
    beat.tell(True, f"{len(publisher.published)} ports published")
    log.info("serving", published=len(publisher.published))

    async def work() -> None:
        await asyncio.gather(publisher.follow(), publisher.retry())

    try:
        await until_stopped(stop, work())
    finally:
        server.close()
        for row in publisher.published.values():
            if row.relay is not None:
                row.relay.close()
        path.unlink(missing_ok=True)


def run(config: ClusterConfig) -> None:
    main("publisher", _serve(config))


# ---- the commands' side


def ask(
    config: ClusterConfig, do: str, what: list[str], seconds: float = 10.0, sleep: Callable[[float], None] = time.sleep
) -> list[dict[str, Any]]:
    """Ask the publisher of a cluster and return the rows that it names. do: "add", "remove" or "list". Raises
    CannotPublish.
    """
    end = time.monotonic() + seconds
    while True:
        try:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(seconds + 10)
                sock.connect(str(socket_path(config)))
                sock.sendall(json.dumps({"do": do, "what": what}).encode() + b"\n")
                with sock.makefile("rb") as file:
                    answer = json.loads(file.readline())
            break
        except PermissionError:
            raise CannotPublish("this needs root: the cluster is root's") from None
        except (OSError, ValueError) as err:  # it is being started again
            if time.monotonic() > end:
                raise CannotPublish(
                    f"cluster {config.name!r} does not answer ({err}); its log: {config.run_dir}/log/publisher.log"
                ) from None
            sleep(0.1)
    if "error" in answer:
        raise CannotPublish(answer["error"])
    rows: list[dict[str, Any]] = answer["rows"]
    return rows


def check_free(publications: list[Publication]) -> None:
    """Raise CannotPublish if the machine cannot listen at one of these places now."""
    for number, publication in enumerate(publications):
        for other in publications[:number]:
            if publication.place.port and _clash(publication.place, other.place):
                raise CannotPublish(f"--publish {publication}: port {publication.place} is given twice")
        try:
            sockets, _ = relay.bind(publication.place)
        except OSError as err:
            raise CannotPublish(f"--publish {publication}: {bind_error(publication.place, err)}") from err
        for sock in sockets:
            sock.close()
