"""The resident wiring agent of one node: makes the node ready, serves the plugin binary, and follows the Nodes of the
cluster.

The agent needs the API server only for changes, because its conflist stores the last known state. So after a restart,
the agent attaches pods at once and keeps the routes and rules that it finds in the kernel.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from podwire_base.kernel.addresses import local_addresses
from podwire_base.kube.client import config as client_config
from podwire_base.kube.client.config import ClientConfig
from podwire_base.kube.meta import Object
from podwire_base.role import asking, beat, layout, logs
from podwire_base.role.run import main, stop_event
from podwire_base.role.status import RoleStatus
from podwire_base.role.upkeep import Mendings

from . import conflistfile, managerfiles, nodes, nodetable, overlay, readiness, routes, tunneltable, wiring
from .agentconfig import WiringConfig
from .commands import Plugin
from .firewall import Firewall
from .following import Follower
from .hostmanagers import notes
from .ipam import hostlocal
from .ipam.allocator import Allocator
from .ipam.ranges import podcidr_range
from .ipam.store import DirStore, boot_id
from .kernel import Kernel
from .listener import Listener
from .netnsid import known_netns
from .networkstore import Networks
from .nodetable import OtherNet
from .plan import NodeNet
from .podcare import PodCare
from .publishing import Publisher
from .tablesets import TABLE
from .tunneltable import TunnelRules
from .types import BRIDGE, IPAddress, RangeSet

__all__ = ["Agent", "WiringConfig", "run"]
log = logs.get("wiring")
SHOWN = 3  # problems in the status; the log has all
HANDOVER_SECONDS = 15.0  # the previous agent locks the leases until its last call has ended


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
        self.ready = False
        self.mendings = Mendings(log, "wiring", config.node_name)
        self._facts: dict[str, object] | None = None  # of the Nodes, at the last sync
        self.waits = True  # whether a sync must be repeated, whatever is counted
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
        self.waits = bool(refused or not cidrs or self._young.since or self.care.pending)
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
        self.ready = not refused
        down = bool(refused) and wiring.is_down(self.config.uplink)
        message = f"the uplink {self.config.uplink} is down; {message}" if down else message
        self.tell_plugin()
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

    def tell_plugin(self) -> None:
        """Tell the plugin binary that this agent is ready, for the time in which another one replaces it."""
        try:
            if self.ready:
                readiness.tell(self.config.run_dir, self.config.conflist)
        except OSError as err:
            log.warn("the plugin cannot be told that the agent is ready", error=str(err))


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
    await Follower(agent).run(stop_event(), client)
