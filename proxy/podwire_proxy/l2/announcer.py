"""The role `lb`: answers ARP and Neighbor Discovery for the load balancer addresses that this node was elected for.

The role is a separate process: a proxy that writes 44,000 Services for seconds must not look dead to the other nodes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from podwire_base.kernel.addresses import gateways, uplink
from podwire_base.kube import loadbalancer as lb
from podwire_base.kube import meta
from podwire_base.kube.client.config import load
from podwire_base.kube.client.http import ApiClient
from podwire_base.kube.client.informer import Informer
from podwire_base.kube.client.reflector import Event
from podwire_base.kube.errors import ApiError, ConfigError, Refused, Unreachable
from podwire_base.role import layout, logs
from podwire_base.role.run import main, stop_event, until_stopped
from podwire_base.role.status import RoleStatus

from . import frames
from .addresses import Owners, View, usable
from .election import BEAT, PROBE, Election, decode, encode
from .packets import PacketSocket

log = logs.get("lb")
REPEATS = (0.1, 0.4, 1.0)  # seconds after the first announcement, because one frame can be lost
DEFEND = 1.0  # seconds between two defences of an address
ASK_AGAIN = 0.5
GATHER = 0.02  # seconds for which changes of the API are gathered: a list of thousands must not delay a beat
PROBE_TIMEOUT = 0.5
LOOK = 20  # beats between two looks at the routes
API_SLICES = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"
PRIORITY = -15  # nice value: a node that is late by a second counts as dead


@dataclass(frozen=True)
class LbConfig:
    """uplink: the link to the clients and the other nodes; "": the link of the default route."""

    node_name: str
    kubeconfig: str | None
    run_dir: Path
    uplink: str = ""


@dataclass
class Announcer:
    """One running responder."""

    config: LbConfig
    packets: PacketSocket
    election: Election
    view: View = field(default_factory=View)
    nodes: dict[str, meta.Object] = field(default_factory=dict)
    machines: Owners = field(default_factory=Owners)

    def __post_init__(self) -> None:
        self.status = RoleStatus(self.config.run_dir, "lb")
        self.mine: set[str] = set()
        self.owners: dict[str, str] = {}
        self.answered = self.moves = 0
        self._defended: dict[str, float] = {}
        self._conflicts: list[str] = []
        self._problem = ""
        self._slices_wanted = asyncio.Event()
        self._deciding = False

    # The API's state

    def on_service(self, event: Event) -> None:
        if self.view.service(event.key, None if event.type == "DELETED" else event.object):
            self._decide_soon()
        if self.view.wants_slices:
            self._slices_wanted.set()

    def on_slice(self, event: Event) -> None:
        if self.view.slice(event.key, None if event.type == "DELETED" else event.object):
            self._decide_soon()

    def on_config(self, event: Event) -> None:
        was = self.active
        pools, problems = lb.parse(None if event.type == "DELETED" else event.object)
        for problem in problems:
            log.warn("pool is partly unusable", object=event.key, problem=problem)
        self.view.pools, self.machines.changed = pools, True
        if self.active and not was:
            self.election.started = time.monotonic()  # without addresses to assign, the node did not listen
        self._decide_soon()

    def on_node(self, event: Event) -> None:
        obj = None if event.type == "DELETED" else event.object
        if obj is not None:
            usable([obj])  # a malformed object is logged and skipped; the beats could not read it either
        self.machines.node(event.key, obj)
        self.nodes.pop(event.key, None)
        if obj is not None:
            self.nodes[event.key] = obj
        self._decide_soon()

    def on_api_slice(self, event: Event) -> None:
        self.machines.api_slice(event.key, None if event.type == "DELETED" else event.object)
        self._decide_soon()

    def look_at_routes(self) -> None:
        """Reads the default gateways of this machine, which no node may answer for."""
        try:
            self.machines.gateways(tuple(map(str, gateways())))
        except OSError as err:
            log.debug("routes could not be read", error=str(err))

    def _note_occupied(self) -> None:
        """Works out which addresses of the pools somebody has. This node gives up such an address at once."""
        self.view.occupied = self.machines.occupied(self.view.pools)
        told, self._conflicts = self._conflicts, self.view.conflicts()
        for conflict in self._conflicts:
            if conflict not in told:
                log.warn("not answering for a load balancer's address: somebody has it", address=conflict)

    def _decide_soon(self) -> None:
        if not self._deciding:
            self._deciding = True
            asyncio.get_running_loop().call_later(GATHER, self.decide)

    # Frames from the link

    def hear(self, frame: bytes) -> None:
        now = time.monotonic()
        if frame[12:14] == b"\x88\xb5":
            beat = decode(frames.beat_body(frame))
            if beat is not None and self.election.hear(beat, now):
                self.decide()
            return
        for said in frames.read(frame):
            if isinstance(said, frames.Question):
                if said.target in self.mine:
                    self.answered += 1
                    self._send(frames.answer(said, self.packets.mac))
            elif said.ip in self.mine and said.mac != self.packets.mac:
                self._contested(said, now)

    def _contested(self, claim: frames.Claim, now: float) -> None:
        """Handles a claim of another host to an address of this node.

        Another node that lost or won the address knows the new owner by the next beat.
        """
        self.decide()
        if claim.ip in self.mine and now - self._defended.get(claim.ip, -DEFEND) >= DEFEND:
            self._defended[claim.ip] = now
            log.warn(
                "another host claims an address of ours; announced again", address=claim.ip, mac=claim.mac.hex(":")
            )
            self._announce([claim.ip])

    def _send(self, frame: bytes) -> None:
        try:
            self.packets.send(frame)
        except (OSError, KeyError) as err:
            self._problem = f"{self.packets.link}: {getattr(err, 'strerror', None) or err}"
        else:
            self._problem = ""  # the link carries frames

    def _announce(self, ips: Iterable[str]) -> None:
        for ip in ips:
            if ip in self.mine:
                for frame in frames.announcements(ip, self.packets.mac):
                    self._send(frame)

    # Decisions

    @property
    def active(self) -> bool:
        return bool(self.view.pools)

    def decide(self) -> None:
        """Computes the owner of each address. The call is cheap and idempotent, and happens at every event."""
        now, self._deciding = time.monotonic(), False
        if self.machines.changed:
            self._note_occupied()
        addresses = self.view.addresses()
        self.owners = self.election.owners(addresses, usable(self.nodes.values()), now)
        mine = {ip for ip, node in self.owners.items() if node == self.config.node_name}
        won, lost = mine - self.mine, self.mine - mine
        if not won and not lost:
            return
        self.mine = mine
        self.moves += len(won)
        try:
            self.packets.hear_questions(mine)
        except OSError as err:  # the link is missing; when it returns, the role joins the groups again
            self._problem = f"{self.packets.link}: {err.strerror or err}"
        self._announce(sorted(won))
        for delay in REPEATS if won else ():
            asyncio.get_running_loop().call_later(delay, self._announce, sorted(won))
        for ip in sorted(won):
            log.info("answering for a load balancer's address", address=ip, service=self.view.holder(ip))
        for ip in sorted(lost):
            log.info("no longer answering for an address", address=ip, now=self.owners.get(ip, "nobody"))
        self.report()

    def report(self) -> None:
        addresses, now = self.view.addresses(), time.monotonic()
        figures: dict[str, Any] = {"addresses": len(addresses), "mine": sorted(self.mine), "moves": self.moves}
        if self._problem:
            self.status.update(ready=False, message=self._problem, reason="LinkDown", **figures)
        elif not self.active:
            self.status.update(ready=True, message="no load balancer pools", **figures)
        else:
            message = f"answers for {len(self.mine)} of {len(addresses)} load balancer addresses on {self.packets.link}"
            message += f", {len(self.election.alive(now))} nodes heard"
            orphans = sorted(addresses.keys() - self.owners.keys())
            if orphans and self.election.ready(now):
                message += f"; no node can serve {', '.join(orphans[:5])}"
            if conflicts := self.view.conflicts():
                message += f"; not answering for {', '.join(conflicts[:5])}"
            self.status.update(ready=True, message=message, **figures)

    # Loops

    async def run(self, api: ApiClient) -> None:
        path = f"/api/v1/namespaces/{lb.CONFIG_NAMESPACE}/configmaps"
        informers = [
            Informer(api, path, field_selector=f"metadata.name={lb.CONFIG_NAME}", on_event=self.on_config),
            Informer(api, "/api/v1/nodes", on_event=self.on_node),
            Informer(api, API_SLICES, field_selector="metadata.name=kubernetes", on_event=self.on_api_slice),
            Informer(api, "/api/v1/services", on_event=self.on_service, keep=_stub),
        ]
        async with asyncio.TaskGroup() as group:
            group.create_task(self._beats())
            group.create_task(self._probes(api))
            for informer in informers:
                group.create_task(informer.run())
            for informer in informers:
                await informer.synced.wait()
            if not self._slices_wanted.is_set():
                self._synced()
            await self._slices_wanted.wait()
            slices = Informer(api, "/apis/discovery.k8s.io/v1/endpointslices", on_event=self.on_slice, keep=_stub)
            group.create_task(slices.run())
            await slices.synced.wait()
            self._synced()

    def _synced(self) -> None:
        self.election.synced = True
        self.decide()
        self.report()

    async def _beats(self) -> None:
        loop, turn, told = asyncio.get_running_loop(), 0, ""
        while True:
            if not self.packets.sockets():
                self._reopen(loop)
            if self.active:
                self._send(frames.beat(self.packets.mac, encode(self.election.tell(time.monotonic()))))
            self.decide()
            turn += 1
            if turn % LOOK == 1:
                self.look_at_routes()
            if turn % 8 == 0 or self._problem != told:
                told = self._problem
                self.report()
            await asyncio.sleep(BEAT)

    def _reopen(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            if not self.packets.link:
                self.packets.link = self.config.uplink or uplink()
            if not self.packets.link:
                raise OSError("there is no default route; name the link to the clients")
            self.packets.open()
        except OSError as err:
            problem = f"{self.packets.link or 'uplink'}: {err.strerror or err}"
            if problem != self._problem:
                log.warn("cannot use the link; trying again with every beat", problem=problem)
            self._problem = problem
            self.packets.close()
            self.report()
            return
        self._problem = ""
        for sock in self.packets.sockets():
            loop.add_reader(sock.fileno(), self._readable, loop, sock)
        log.info("on the wire", link=self.packets.link, mac=self.packets.mac.hex(":"))

    def _readable(self, loop: asyncio.AbstractEventLoop, sock: Any) -> None:
        try:
            self.packets.receive(sock, self.hear)
        except OSError as err:
            self._problem = f"{self.packets.link}: {err.strerror or err}"
            log.warn("the link is down", link=self.packets.link, error=str(err))
            for one in self.packets.sockets():
                loop.remove_reader(one.fileno())
            self.packets.close()  # the next beat opens it again

    async def _probes(self, api: ApiClient) -> None:
        contact = self.election.contact
        while True:
            now = time.monotonic()
            needed = bool(self.mine) or (bool(self.view.addresses()) and self.election.witness(now))
            if contact.wanted(now, needed):
                try:
                    await api.request("GET", "/livez", timeout=PROBE_TIMEOUT)
                    contact.worked(time.monotonic())
                except Unreachable:
                    contact.failed()
                except ApiError:
                    contact.worked(time.monotonic())  # any answer of the server counts
            await asyncio.sleep(max(0.0, now + PROBE - time.monotonic()))

    def leave(self) -> None:
        """Announces the end of this role to the other nodes, so that they need not wait for missing beats."""
        self.election.leaving = True
        if self.active:
            for _ in range(2):
                self._send(frames.beat(self.packets.mac, encode(self.election.tell(time.monotonic()))))
        self.mine = set()


def _stub(obj: meta.Object) -> meta.Object:
    kept = {name: obj["metadata"][name] for name in ("name", "namespace", "resourceVersion") if name in obj["metadata"]}
    return {"metadata": kept}


async def _cluster(api: ApiClient, status: RoleStatus) -> str:
    """Returns the uid of namespace kube-system, which distinguishes clusters on one link. Retries until success."""
    told = ""
    while True:
        try:
            return meta.uid(await api.get("/api/v1/namespaces/kube-system"))
        except ApiError as err:
            if isinstance(err, Refused) and str(err) != told:  # most likely a missing permission
                told = str(err)
                log.warn("the API server refuses", error=told)
                status.update(ready=False, message=told, reason=err.reason or "Refused")
        await asyncio.sleep(ASK_AGAIN)


async def _main(config: LbConfig) -> None:
    stop = stop_event()
    status = RoleStatus(config.run_dir, "lb")
    status.update(ready=False, message="waiting for the API server", reason="Starting")

    async def work() -> None:
        client = load(config.kubeconfig)
        async with ApiClient(client) as api:
            cluster = await _cluster(api, status)
            election = Election(cluster, config.node_name, time.monotonic())
            made.append(Announcer(config, PacketSocket(config.uplink), election, machines=Owners(client.server_ips)))
            await made[0].run(api)

    made: list[Announcer] = []

    def leave() -> None:
        for announcer in made:
            announcer.leave()

    await until_stopped(stop, work(), leave)


def run(config: LbConfig) -> None:
    """Serves until SIGTERM or SIGINT, inside the node's network namespace. Raises ConfigError."""
    logs.configure(node=config.node_name)
    layout.claim(config.run_dir)
    with contextlib.suppress(OSError):  # without the privilege a busy node may look dead for a moment
        os.setpriority(os.PRIO_PROCESS, 0, PRIORITY)
    log.info("starting", uplink=config.uplink or "of the default route")
    main("lb", _main(config))
    log.info("stopped; other nodes take over its addresses")


@click.command("lb")
@click.option("--node-name", envvar="NODE_NAME", required=True, help="Name of this machine's Node object.")
@click.option("--kubeconfig", envvar="KUBECONFIG", help="A kubeconfig. [default: in-cluster]")
@click.option(
    "--run-dir",
    default="/run/podwire",
    type=click.Path(path_type=Path),
    show_default=True,
    help="Of the status file that `podwire status` reads.",
)
@click.option("--uplink", default="", help="The link to clients and other nodes. [of the default route]")
def command(node_name: str, kubeconfig: str | None, run_dir: Path, uplink: str) -> None:
    """Answer ARP and Neighbor Discovery for load balancers' addresses, in turn with the other nodes."""
    try:
        run(LbConfig(node_name, kubeconfig, run_dir, uplink))
    except (ConfigError, OSError) as err:
        raise click.ClickException(str(err)) from err
