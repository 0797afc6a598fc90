"""The resident wiring agent of one node: makes the node ready, serves the plugin binary, and follows the Nodes of the
cluster.

The agent needs the API server only for changes, because its conflist stores the last known state. So after a restart,
the agent attaches pods at once and keeps the routes and rules that it finds in the kernel.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from podwire_base.kernel.addresses import local_addresses
from podwire_base.kernel.netwatch import NetWatch, index_of
from podwire_base.kernel.nft.socket import Commits
from podwire_base.kube.client import config as client_config
from podwire_base.kube.client.config import ClientConfig
from podwire_base.kube.client.http import ApiClient
from podwire_base.kube.client.informer import Informer
from podwire_base.kube.client.reflector import Event
from podwire_base.kube.errors import ApiError
from podwire_base.kube.meta import Object
from podwire_base.role import asking, beat, layout, logs
from podwire_base.role.counts import Counts
from podwire_base.role.run import main, stop_event
from podwire_base.role.status import RoleStatus
from podwire_base.role.upkeep import Mendings, Upkeep

from . import (
    conflistfile,
    counting,
    managerfiles,
    nodes,
    nodetable,
    overlay,
    readiness,
    routes,
    runtimes,
    tunneltable,
    wiring,
)
from .commands import Plugin
from .firewall import Firewall
from .hostmanagers import notes
from .ipam import hostlocal
from .ipam.allocator import Allocator
from .ipam.ranges import podcidr_range
from .ipam.store import DirStore, boot_id
from .kernel import Kernel, known_netns
from .listener import Listener
from .networkstore import Networks
from .nodetable import OtherNet
from .overlay import Encapsulation
from .plan import NodeNet
from .podcare import PodCare
from .publishing import Publisher
from .tablesets import TABLE
from .tunneltable import Sources, TunnelRules
from .types import BRIDGE, IPAddress, RangeSet

log = logs.get("wiring")
RESYNC_SECONDS = 10.0  # seconds between two looks for changes by other programs (a flushed table, a route)
RETRY_SECONDS = 2.0
SHOWN = 3  # problems in the status; the log has all
HANDOVER_SECONDS = 15.0  # the previous agent locks the leases until its last call has ended


@dataclass(frozen=True)
class WiringConfig:
    """cluster_cidrs: the destinations to which pods send with their own source address. uplink: the link to the other
    nodes. The pods' MTU is the uplink's MTU, less the header of a tunnel if a tunnel is in use.

    mtu: the pods' MTU; 0: derive it from the uplink. conf_dir None: <run_dir>/cni/net.d. anti_spoofing: pods send only
    from their own addresses and MACs. encapsulation "auto": VXLAN to the nodes that are not on our link; "always":
    VXLAN to all nodes; "never": no VXLAN. quarantine: seconds before a released address is allocated to another pod, if
    other addresses are free. host_local: a directory of leases of the reference plugin host-local; the agent takes
    these leases over at its start. runtime_sockets: the CRI sockets of the node's container runtime, which is asked
    for its sandboxes when a pod vanished without a DEL; None: those of the common runtimes, if `conf_dir` says that a
    runtime of the machine uses this agent.
    host_managers: whether the agent of a machine tells the machine's network managers of podwire's interfaces.
    tunnel_sources "cluster": what leaves a tunnel has a source in the podCIDRs of the
    node that sent it, or an address of this node; "any": its node alone is checked, because a Service proxy without a
    detector of local traffic keeps the sources of other machines. no_pods: paths of network namespaces that are no
    pod's, besides the node's own and that of process 1: of the machine, if the node is a namespace of it.
    forward_accept: whether rules for pods are appended to an iptables chain FORWARD whose policy is drop.
    """

    node_name: str
    kubeconfig: str | None
    run_dir: Path
    cluster_cidrs: tuple[str, ...] = ("10.244.0.0/16",)
    uplink: str = "eth0"
    mtu: int = 0
    conf_dir: Path | None = None
    anti_spoofing: bool = True
    encapsulation: Encapsulation = "auto"
    quarantine: float = 30.0
    host_local: Path | None = None
    runtime_sockets: tuple[str, ...] | None = None
    host_managers: bool = True
    tunnel_sources: Sources = "cluster"
    no_pods: tuple[str, ...] = ()
    forward_accept: bool = True

    def __post_init__(self) -> None:
        """Raises ValueError; its text begins with the field's name."""
        if self.mtu and not 68 <= self.mtu <= 65535:
            raise ValueError(f"mtu: {self.mtu} is neither 0 nor from 68 to 65535 (IPv6 needs 1280)")

    @property
    def socket(self) -> Path:
        return self.run_dir / "cni.sock"

    @property
    def sockets(self) -> tuple[Path, ...]:
        if self.runtime_sockets is not None:
            return tuple(map(Path, self.runtime_sockets))
        return runtimes.SOCKETS if self.conf_dir else ()

    @property
    def conflist(self) -> Path:
        return (self.conf_dir or self.run_dir / "cni" / "net.d") / "10-podwire.conflist"

    @property
    def leases(self) -> Path:
        return self.run_dir / "cni" / "leases"


class Agent:
    """The parts of one agent. `sync` does all slow work and is not thread-safe."""

    def __init__(self, config: WiringConfig, kernel: Kernel, firewall: Firewall, store: DirStore) -> None:
        self.config = config
        self.node: NodeNet | None = None
        self.kernel, self.firewall = kernel, firewall
        self.networks = Networks(
            config.run_dir / "cni" / "networks",
            wiring.ensure_node,
            self._networks_changed,
            wiring.foreign,
            wiring.end_bridge,
        )
        self.networks.restore()
        self.plugin = Plugin(
            kernel,
            firewall,
            Allocator(store, config.quarantine, time.time),
            lambda: self.node,
            boot_id(),
            waiting_for=f"Node {config.node_name} has no spec.podCIDR yet",
            networks=self.networks,
            asker=asking.Asker(config.run_dir),
        )
        self.publisher = Publisher(config.run_dir, self.plugin)
        self.care = PodCare(self.plugin, config.node_name, config.sockets)
        on_machine = config.host_managers and managerfiles.on_the_machine()
        self.managers = managerfiles.Managers(config.uplink) if on_machine else None
        self.status = RoleStatus(config.run_dir, "wiring")
        self._told: tuple[str, ...] = ()
        self._near: frozenset[IPAddress] = frozenset()
        self._cluster: routes.Cluster | None = None
        self._refused: list[str] = []
        self._young = hostlocal.Young()
        self._nodes: set[str] = set()
        self.on_nodes: Callable[[], None] = lambda: None  # is called when a Node came or went
        self._ready = False
        self.mendings = Mendings(log, "wiring", config.node_name)
        self._facts: dict[str, object] | None = None  # of the Nodes, at the last sync
        self._waits = True  # whether a sync must be repeated, whatever is counted
        self._rival = ""  # the file that the runtime reads instead of the conflist

    def restore(self) -> None:
        """Continue from the last agent's state, without the API server."""
        self._tell_managers()
        if last := conflistfile.read(self.config.conflist):
            self._become(self._net(last.ranges, last.mtu), None)

    def sync(self, objects: Mapping[str, Object]) -> bool:
        """Make the kernel's state match the Nodes. Returns False if the kernel refused routes. Raises OSError or
        CNIError if the kernel refused another change; then call `sync` again later.
        """
        known, self._facts = self._facts, {name: routes.facts(one) for name, one in objects.items()}
        changes = list[str]()
        if objects.keys() != self._nodes:
            self._nodes = set(objects)
            self.on_nodes()
        cluster = routes.view(objects, self.config.node_name)
        me = objects.get(self.config.node_name)
        cidrs = [] if me is None else routes.pod_cidrs(me)
        others = {address for member in cluster.members for address in member.addresses}
        near, lost = nodes.near(others)
        # if the uplink is down for a moment, the agent must not switch to tunnels, because their MTU differs
        self._near = near | (lost & self._near)
        wires = overlay.plan(cluster, self._near, self.config.encapsulation)
        self._tell((*cluster.problems, *wires.problems))
        uplink = self._uplink_mtu()
        if cidrs:
            net = self._net(tuple((podcidr_range(cidr),) for cidr in cidrs), uplink - wires.overhead)
            far = frozenset() if self.config.encapsulation == "never" else others - self._near
            native = routes.native(cluster, self.config.cluster_cidrs, far)
            changes += self._become(net, native)
        self._cluster = cluster
        changes += self._guard_tunnels()  # before there is a tunnel
        gateways = self.node.gateways if self.node else ()
        done, refused = nodes.sync(
            wires, overlay.tunnels(wires, self.config.node_name, uplink, cluster.own, local_addresses(), gateways)
        )
        beat.tick("routes")
        for line in done:
            log.info("route", change=line)
        for line in refused:
            if line not in self._refused:
                log.warn("route refused", route=line)
        self._refused = refused
        if known == self._facts:  # nothing that the API asks for
            self.mendings.tell([*changes, *done])
        self._waits = bool(refused or not cidrs or self._young.since or self.care.pending)
        self.publisher.write()
        self._report(wires, refused)
        return not refused

    def _networks_changed(self, nets: tuple[OtherNet, ...]) -> None:
        self.firewall.others(nets)
        self._guard_tunnels()

    def _guard_tunnels(self) -> list[str]:
        """Write the rules of the tunnels, unless the Nodes are not known yet; then those of the last agent stay.
        Returns a line for each change.
        """
        if (cluster := self._cluster) is None:
            return []
        nets = self.networks.rules()
        own = [str(r.subnet) for ranges in (self.node.ranges if self.node else ()) for r in ranges]
        others = [str(cidr) for peer in cluster.peers for cidr in peer.cidrs]
        pods = (*self.config.cluster_cidrs, *own, *others, *(cidr for net in nets for cidr in net.cidrs))
        changes = self.firewall.forward(pods if self.config.forward_accept else ())
        rules = TunnelRules(
            cluster.members,
            pods,
            (BRIDGE, *(net.bridge for net in nets)),
            self.config.tunnel_sources,
        )
        changes += self.firewall.guard(tunneltable.plan(rules))
        for line in changes:
            log.info("nft", change=line)
        return changes

    def _tell(self, problems: tuple[str, ...]) -> None:
        if problems != self._told:
            for problem in problems:
                log.warn("Node ignored", problem=problem)
            self._told = problems

    def _uplink_mtu(self) -> int:
        mtu = wiring.uplink_mtu(self.config.uplink)
        if not mtu:
            log.warn("uplink not found, assuming an MTU of 1500", uplink=self.config.uplink)
        return mtu or 1500

    def _net(self, ranges: tuple[RangeSet, ...], mtu: int) -> NodeNet:
        return NodeNet(
            ranges,
            self.config.mtu or mtu,
            anti_spoofing=self.config.anti_spoofing,
            mac=wiring.bridge_mac(BRIDGE),
            ipv6=wiring.has_ipv6(),
        )

    def _become(self, net: NodeNet, native: frozenset[str] | None) -> list[str]:
        """Make the node's bridge, sysctls, tables and conflist match `net`. The method is idempotent: it compares each
        part with the kernel first. native None: keep the last agent's value, because this agent does not know the other
        nodes' addresses yet. Returns a line for each change.
        """
        unwanted, changes = self.plugin.with_unwanted(net, wiring.ensure_node)
        for line in changes:
            log.info("node", change=line)
        beat.tick("bridge")
        for line in self.networks.ensure():
            log.error("network refused", network=line)
        self._tell_managers()
        first = self.node is None
        for line in self.plugin.settle_damaged() if first else ():
            log.warn("damaged lease", lease=line)
        rules = replace(
            wiring.node_rules(net, self.config.cluster_cidrs if native is None else native, unwanted),
            others=self.networks.rules(),
            kept=self.plugin.damaged(),
        )
        pods = self.plugin.pods() if first else None
        if native is None and pods is not None and self.firewall.present():
            self.firewall.adopt(rules, pods)
        else:
            changes += (tables := self.firewall.sync(rules, pods))
            for line in tables:
                log.info("nft", change=line)
        self.node = net
        if self.plugin.unwanted(net) != unwanted:  # a DEL that still saw the last podCIDR
            changes += self._become(net, native)
        beat.tick("rules of the node")
        if first:
            for line in self.plugin.reconcile():
                log.info("lease freed", lease=line)
        if first or self._young.since:
            self._take_over(net)
        beat.tick("leases")
        for line in (repaired := self.plugin.repair()):
            log.warn("repaired", change=line)
        changes += repaired
        changes += self.care.look()
        if conflistfile.write(self.config.conflist, self.config.socket, net):
            log.info("conflist written", path=str(self.config.conflist))
        self._look_for_rival()
        return changes

    def _tell_managers(self) -> None:
        """Tell the machine's network managers of podwire's interfaces. Call it before the interfaces are made."""
        for path in self.managers.tell(self.networks.known) if self.managers else ():
            log.info("drop-in written", file=str(path))

    def _look_for_rival(self) -> None:
        """Tell in log and status which file the container runtime reads instead of the agent's conflist."""
        rival = conflistfile.rival(self.config.conflist)
        if rival and rival != self._rival:
            log.warn("another conflist comes first", runtime_reads=rival, ours=str(self.config.conflist))
        elif self._rival and not rival:
            log.info("the conflist is the first again", path=str(self.config.conflist))
        self._rival = rival

    def _take_over(self, net: NodeNet) -> None:
        """Take over leases of an earlier CNI plugin."""
        if self.config.host_local is None or not self.config.host_local.is_dir():
            return
        for line in self.plugin.take_over(self.config.host_local, net, self._young):
            log.info("host-local", lease=line)

    def _report(self, wires: overlay.PeerRoutes, refused: list[str]) -> None:
        if self.node is None:
            self.status.update(ready=False, reason="NoPodCIDR", message=self.plugin.waiting_for)
            return
        figures = self.plugin.figures()
        cidrs = ",".join(str(r.subnet) for ranges in self.node.ranges for r in ranges)
        tunnelled = sum(bool(hop.link) for hop in wires.routes.values())
        peers, lost = len(wires.routes) + len(wires.problems), len(refused) + len(wires.problems)
        message = f"{figures['pods']} pods in {cidrs}, routes to {peers - lost} of {peers} podCIDRs"
        message += f", {tunnelled} of them by VXLAN" if tunnelled else ""
        if self.config.tunnel_sources == "any":
            message += ", packets out of tunnels are checked for their node alone (tunnel_sources: any)"
        message += "".join(f"; {problem}" for problem in self._told[:SHOWN])
        if self.managers:
            message += "".join(f"; {note}" for note in notes(self.managers.seen(), self.config.uplink))
        message += f"; {self.care.note}" if self.care.note else ""
        message += self.mendings.words()
        self._ready = not refused
        down = bool(refused) and wiring.is_down(self.config.uplink)
        message = f"the uplink {self.config.uplink} is down; {message}" if down else message
        self._tell_plugin()
        message += f"; new pods do not come here, the runtime reads {self._rival} first" if self._rival else ""
        self.status.update(
            ready=not refused,
            reason="LinkDown" if down else "RouteRefused" if refused else "",
            message=message,
            **figures,
            **self.mendings.figures(),
            routes=peers,
            refused=lost,
            vxlan=tunnelled,
            mtu=self.node.mtu,
        )

    def _tell_plugin(self) -> None:
        """Tell the plugin binary that this agent is ready, for the time in which another one replaces it."""
        try:
            if self._ready:
                readiness.tell(self.config.run_dir, self.config.conflist)
        except OSError as err:
            log.warn("the plugin cannot be told that the agent is ready", error=str(err))

    async def _telling(self) -> None:
        while True:
            await asyncio.sleep(readiness.EACH)
            self._tell_plugin()

    async def follow(self, stop: asyncio.Event, client: ClientConfig) -> None:
        """Run until `stop` is set: sync when Nodes change, and periodically to repair changes that other programs made
        in the kernel.
        """
        changed = asyncio.Event()
        links, commits = NetWatch(routes.PROTOCOL), Commits(self.firewall.port_id)

        async def mend() -> None:
            changed.set()

        upkeep = Upkeep(self._counts(), mend, every=RESYNC_SECONDS, unsettled=lambda: self._waits)

        def heard(event: Event) -> None:
            if event.type != "MODIFIED" or event.old is None or routes.facts(event.old) != routes.facts(event.object):
                beat.pending()
                changed.set()

        async with ApiClient(client) as api:
            informer = Informer(api, "/api/v1/nodes", on_event=heard, on_synced=changed.set)
            watching = asyncio.create_task(informer.run())
            stopping = asyncio.create_task(stop.wait())
            telling = asyncio.create_task(self._telling())
            looking = asyncio.create_task(upkeep.run((links, commits)))
            try:
                pause = None
                while not stop.is_set():
                    news = asyncio.create_task(changed.wait())
                    tasks = {news, stopping, watching, looking}
                    await asyncio.wait(tasks, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
                    news.cancel()
                    for endless in (watching, looking):
                        if endless.done():
                            endless.result()  # the task ends early only because of a bug in podwire
                    changed.clear()
                    if informer.synced.is_set() and not stop.is_set():
                        beat.taking()
                        await asyncio.to_thread(upkeep.reading)
                        pause = await self._sync(dict(informer.objects))
                        names = (BRIDGE, *overlay.TUNNELS.values(), *self.networks.known)
                        links.watch(filter(None, map(index_of, names)), index_of(self.config.uplink))
                        await asyncio.to_thread(upkeep.settled)
                        await self._tell_events(api)
            finally:
                self._tell_plugin()
                for task in (watching, stopping, telling, looking):
                    task.cancel()
                await asyncio.gather(watching, stopping, telling, looking, return_exceptions=True)
                links.close()
                commits.close()

    def _counts(self) -> tuple[Counts, ...]:
        paths = (self.config.conflist, self.config.conflist.parent, self.config.leases)

        def of_node() -> tuple[object, ...]:
            return counting.of_links(), counting.of_sysctls(), counting.of_files(paths)

        def own() -> int:
            return self.firewall.changes

        # No notification tells of a pod's link, so a look after pods came and went must not take the links as right.
        return Counts(of_node), Counts(self.firewall.counts, self.firewall.generation, own)

    def _sync_in_thread(self, objects: Mapping[str, Object]) -> bool:
        with beat.work("sync"):
            return self.sync(objects)

    async def _tell_events(self, api: ApiClient) -> None:
        """Send the Events about pods and the Node. One that the API server does not take is lost; the log has it."""
        events, self.care.events = [*self.care.events, *self.mendings.events()], []
        for event in events:
            try:
                await api.create(f"/api/v1/namespaces/{event['metadata']['namespace']}/events", event)
            except ApiError as err:
                log.debug("event not stored", reason=event["reason"], error=str(err))

    async def _sync(self, objects: Mapping[str, Object]) -> float | None:
        """Sync once. Returns the seconds until the next sync, if no Node changes before; None: the upkeep tells."""
        try:
            whole = await asyncio.to_thread(self._sync_in_thread, objects)
        except Exception as err:  # any error may be temporary, and the agent must attach pods meanwhile
            log.error("sync failed", error=str(err), kind=type(err).__name__)
            self._ready = False
            self.status.update(ready=False, reason="SyncFailed", message=f"{type(err).__name__}: {err}")
            return RETRY_SECONDS
        if whole:
            beat.settled()
        return None if whole else RETRY_SECONDS


def run(config: WiringConfig) -> None:
    """Serve until SIGTERM or SIGINT. Pods stay attached afterwards. Call it inside the node's network namespace.

    Raises ConfigError (kubeconfig), Busy (another agent has this run directory), OSError.
    """
    if len(os.fsencode(config.socket)) > 100:
        raise OSError(f"run_dir {config.run_dir} is too long: a unix socket's path has at most 107 bytes")
    client = client_config.load(config.kubeconfig)
    layout.check(config.run_dir)
    _few_arenas()
    with contextlib.ExitStack() as stack:
        firewall = Firewall()
        stack.callback(firewall.close)
        if (found := firewall.layout()) > nodetable.LAYOUT:
            raise layout.NewerLayout(layout.refusal(f"nft tables {TABLE}", found, nodetable.LAYOUT))
        store = DirStore(config.leases, wait=HANDOVER_SECONDS)
        stack.callback(store.close)
        layout.claim(config.run_dir)
        kernel = Kernel()
        stack.callback(kernel.close)
        agent = Agent(config, kernel, firewall, store)
        try:
            agent.restore()
        except Exception as err:  # if the state cannot be restored, `sync` makes it when the Node is known
            log.warn("cannot restore the last state", error=str(err))
        agent.publisher.start()
        stack.callback(agent.publisher.close)
        listener = Listener(
            config.socket, agent.plugin, kernel.node_fd, known_netns(config.no_pods), agent.publisher.changed
        )
        stack.callback(listener.close)
        agent.on_nodes = lambda: listener.knows(known_netns(config.no_pods))
        agent.status.update(ready=agent.node is not None, message="starting", reason="Starting")
        # Imported modules stay in memory, so the garbage collector must not traverse them while a pod waits.
        gc.collect()
        gc.freeze()
        log.info("listening", socket=str(config.socket))
        main("wiring", _until_signal(agent, client))
    log.info("stopped, pods stay wired")


def _few_arenas() -> None:
    """Limit the number of malloc arenas, to save memory. By default glibc makes up to 8 arenas per CPU, and the agent's
    70 threads are never all busy at once.
    """
    with contextlib.suppress(AttributeError):  # a libc other than glibc
        ctypes.CDLL(None).mallopt(-8, 2)  # M_ARENA_MAX


async def _until_signal(agent: Agent, client: ClientConfig) -> None:
    await agent.follow(stop_event(), client)
