"""The attachments of this node: what an ADD left in the kernel, in the nft tables and on disk, and the agent's own work
on it. commands.py has the verbs.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from podwire_base.role import logs
from podwire_base.role.asking import Asker
from podwire_base.role.hostports import HostPort
from podwire_base.role.judging import Asked
from podwire_base.role.podspaces import PodSpace

from .errors import CNIError, ErrorCode
from .ipam import hostlocal
from .ipam.allocator import Allocator, Lease, host_ports, pod_spaces
from .keyedlock import KeyedLock
from .networkstore import Networks
from .nodetable import PodRules
from .ops import DeleteLink, DeleteNeighbour, DeleteRoute, Op, SetUp
from .plan import OWN_LINK, NodeNet, Seen, host_route, host_veth, ifb_of, mac_for, repair_plan
from .prepared import PodPlan
from .takeback import Doubts, Evidence
from .types import BRIDGE, VERSIONS, Attachment, Call, IPAddress, NetConf, PortMapping, RangeSet

log = logs.get("wiring")


class Kernel(Protocol):
    """The part of kernel.Kernel that the verbs use; testing.FakeKernel also implements it."""

    def apply(self, ops: Sequence[Op], pod_fd: int | None = None) -> None: ...

    def attach_pod(self, pod: PodPlan, pod_fd: int) -> None: ...

    def remove(self, ops: Sequence[Op], meanwhile: Callable[[], None] | None = None) -> None: ...

    def links(self) -> dict[str, tuple[int, int]]: ...

    def down(self) -> set[str]: ...

    def lives(self, recorded: str) -> bool | None: ...

    def namespace(self, recorded: str) -> contextlib.AbstractContextManager[int]: ...

    def unmarked(self) -> frozenset[str]: ...

    def holder(self, address: IPAddress) -> str: ...

    def observe(self, eth: str, host: str, pod_fd: int) -> Seen: ...


class Firewall(Protocol):
    """The part of firewall.Firewall that the verbs use; testing.FakeFirewall also implements it."""

    def attach(self, owner: Attachment, pod: PodRules) -> None: ...

    def detach(self, owner: Attachment, pod: PodRules) -> None: ...

    def missing(self, pod: PodRules) -> list[str]: ...


@dataclass
class Attachments:
    """`node()` returns None until the node has a podCIDR. All methods are thread-safe."""

    kernel: Kernel
    firewall: Firewall
    allocator: Allocator
    node: Callable[[], NodeNet | None]
    boot_id: str
    waiting_for: str = "the Node has no spec.podCIDR yet"
    networks: Networks | None = None
    asker: Asker | None = None  # has the policy role judge pods
    _locks: KeyedLock = field(default_factory=KeyedLock)
    _leases: threading.Lock = field(default_factory=threading.Lock)
    # held while routes are compared with the leases outside the podCIDRs, and while such a lease and its route end
    _outside: threading.RLock = field(default_factory=threading.RLock)
    _doubts: Doubts = field(default_factory=Doubts)

    def reconcile(self) -> list[str]:
        """At the agent's start, detach each attachment that a crash, a reboot or the loss of a namespace left
        incomplete. Returns one line for each action.
        """
        links, told, gone = self.kernel.links(), [], set[Attachment]()
        with self._leases:
            leases = self.allocator.leases()
        for lease in leases:
            why = (
                "it is of an earlier boot"
                if lease.boot_id != self.boot_id
                else ""
                if lease.origin
                else "its ADD was cut off"
                if not lease.wired
                else "its interface and its namespace are gone"
                if self._dead(lease, links)
                else ""
            )
            if why:
                with self._locks.of(lease.owner.container_id):
                    if lease in self.allocator.owned_by(lease.owner):  # no ADD has completed the lease meanwhile
                        self._detach(lease.owner)
                        gone.add(lease.owner)
            if lease.owner in gone:
                told.append(f"{lease.address} of {lease.pod or lease.owner}: {why}")
        return told + self.settle_damaged()

    def settle_damaged(self) -> list[str]:
        """Handle the addresses whose lease file is unreadable. If no pod of this node uses the address, release the
        address. If a pod uses the address and the pod's lease of the other IP family is readable, write the unreadable
        lease again for the same owner: the MAC shows that both addresses belong to one pod. Returns one line for each
        action.
        """
        told = []
        for address in sorted(self.allocator.store.damaged(), key=str):
            mac = self.kernel.holder(address)
            with self._leases:
                known = [
                    x
                    for x in self.allocator.leases()
                    if (x.mac, x.boot_id, x.wired, x.origin) == (mac, self.boot_id, True, "")
                ]
                if not mac:
                    self.allocator.store.release(address)
                    told.append(f"{address}: its lease is unreadable and no pod has it")
                elif len(known) == 1 and known[0].address.version != address.version:
                    # If the write fails, the next repair tries again.
                    with contextlib.suppress(CNIError):
                        self.allocator.mend(replace(known[0], address=address))
                        told.append(
                            f"{address} of {known[0].pod or known[0].owner}: its lease was unreadable, written anew"
                        )
        return told

    def damaged(self) -> tuple[IPAddress, ...]:
        """Returns the addresses whose lease is unreadable; a pod may have them."""
        return tuple(sorted(self.allocator.store.damaged(), key=str))

    def repair(self) -> list[str]:
        """Undo changes that other programs made: make the pods' links ports of a re-created bridge again, set them up,
        and delete pod links that have no lease. Give the ports that an older version made the marks of this version.

        Call it after `reconcile`. Returns one line for each action.
        """
        node = self._node()
        links, down, told = self.kernel.links(), self.kernel.down(), list[str]()
        unmarked = self.kernel.unmarked()
        with self._leases:
            leases = {host_veth(lease.owner): lease for lease in self.allocator.leases()}
            whole = not self.allocator.store.damaged()  # a link may belong to an unreadable lease
        bridges = {
            links[name][0] for name in (node.bridge, *(lease.bridge for lease in leases.values())) if name in links
        }
        for name, (_, master) in links.items():
            if name in leases and name in down and leases[name].wired:
                self.kernel.apply([SetUp(name, "node")])
                told.append(f"{name} of {leases[name].pod or leases[name].owner}: set up again")
            if name in leases:
                bridge = leases[name].bridge or node.bridge
                at_home = bridge in links and master == links[bridge][0]
                if bridge not in links or (at_home and name not in unmarked):
                    continue
                owner = leases[name].owner
                with self._leases:
                    held = self.allocator.owned_by(owner)
                self.kernel.apply(
                    repair_plan(
                        owner, held[0].mac, [lease.address for lease in held], bridge, routed=self._routed(bridge)
                    )
                )
                what = "marked as a pod's port" if at_home else f"made a port of {bridge} again"
                told.append(f"{name} of {leases[name].pod or owner}: {what}")
            elif (
                whole
                and OWN_LINK.match(name)
                and name.replace("ifb", "veth") not in leases
                and (master in bridges or name.startswith("ifb"))
            ):
                self.kernel.remove([DeleteLink(name)])
                told.append(f"{name}: a link of a pod without a lease, removed")
        return told + self.settle_damaged()

    def vanished(self) -> list[Lease]:
        """Returns one lease of each attached pod whose interface no longer exists."""
        links = self.kernel.links()
        with self._leases:
            wired = {lease.owner: lease for lease in self.allocator.leases() if lease.wired and not lease.origin}
        return [lease for owner, lease in wired.items() if host_veth(owner) not in links]

    def take_back(
        self, vanished: Sequence[Lease], known: frozenset[str] | None, now: float, *, asked: bool
    ) -> list[str]:
        """Take back the leases of pods that vanished without a DEL, as takeback.py decides. known: the sandboxes that
        the runtime knows; None if it gave no answer. asked: whether there is a runtime. Returns one line for each pod.
        """
        leases = {lease.owner: lease for lease in vanished}
        found = {
            owner: Evidence(
                False,
                self.kernel.lives(lease.netns),
                None if known is None else owner.container_id in known,
                asked,
                bool(lease.pod),
                lease.boot_id == self.boot_id,
            )
            for owner, lease in leases.items()
        }
        told = []
        for owner, why in self._doubts.look(now, found).items():
            with self._leases:
                addresses = [str(lease.address) for lease in self.allocator.owned_by(owner)]
            if self._free(leases[owner]):
                told.append(f"{', '.join(addresses)} of {leases[owner].pod or owner}: {why}")
        return told

    def attach_again(self, lease: Lease) -> str | None:
        """Attach a living pod whose link another program deleted, exactly as its ADD did. Returns "" if that is done,
        None if there is nothing to do any more, and otherwise why it cannot be done.
        """
        owner = lease.owner
        with self._locks.of(owner.container_id, patience=1) as mine:
            with self._leases:
                held = self.allocator.owned_by(owner)
            if not mine or not held or host_veth(owner) in self.kernel.links():
                return None
            node = self._node()
            if not lease.mtu:
                return "podwire does not know all that its configuration asked for"
            if not lease.netns:
                return "its namespace is not visible here"
            homes = [(x.address, r) for s in node.ranges for r in s for x in held if x.address in r.subnet]
            if len(homes) != len(held) or mac_for(homes[0][0]) != lease.mac:
                return "the node's podCIDRs or the bridge changed since"
            namespace, _, name = lease.pod.partition("/")
            args = {"K8S_POD_NAMESPACE": namespace, "K8S_POD_NAME": name} if name else {}
            call = Call("ADD", owner, lease.netns.partition(" ")[2], args)
            conf = NetConf(VERSIONS[-1], lease.network, mtu=lease.mtu)
            try:
                with self.kernel.namespace(lease.netns) as pod_fd:
                    self.kernel.attach_pod(PodPlan(call, conf, node, homes), pod_fd)
            except (OSError, CNIError) as err:
                return str(err)
            return ""

    def pods(self) -> dict[Attachment, PodRules]:
        """Returns the entries of the nft tables for each attached pod."""
        with self._leases:
            leases = self.allocator.leases()
        owned: dict[Attachment, list[Lease]] = {}
        for lease in leases:
            if lease.wired and lease.boot_id == self.boot_id and not lease.origin:
                owned.setdefault(lease.owner, []).append(lease)
        return {owner: self._rules(held) for owner, held in owned.items()}

    def take_over(self, directory: Path, node: NodeNet, young: hostlocal.Young) -> list[str]:
        """Take over the leases of the reference plugin host-local (see ipam/hostlocal.py). Returns one line for each
        lease.
        """
        with self._leases:
            booted = hostlocal.booted()
            return list(hostlocal.take_over(directory, self.allocator, node.ranges, self.boot_id, booted, young))

    def unwanted(self, node: NodeNet) -> list[IPAddress]:
        """Returns the pod addresses outside the node's present podCIDRs (of a podCIDR that the node no longer has).
        Such an address works until the DEL of its pod.
        """
        return sorted(
            (a for pod in self.pods().values() for a in pod.addresses if pod.bridge == node.bridge and not node.has(a)),
            key=str,
        )

    def with_unwanted(
        self, node: NodeNet, ensure: Callable[[NodeNet, Sequence[IPAddress]], list[str]]
    ) -> tuple[list[IPAddress], list[str]]:
        """Call `ensure` with the node's network and the addresses outside its podCIDRs, while no such pod ends. Returns
        these addresses and the lines of `ensure`.
        """
        with self._outside:
            unwanted = self.unwanted(node)
            return unwanted, ensure(node, unwanted)

    def figures(self) -> dict[str, int]:
        with self._leases:
            leases = self.allocator.leases()
            node = self.node()
            free = sum(self.allocator.free(ranges) for ranges in node.ranges) if node else 0
        return {"pods": len({lease.owner for lease in leases}), "free": free}

    def host_ports(self) -> frozenset[HostPort]:
        with self._leases:
            return host_ports(self.allocator.leases())

    def pod_spaces(self) -> frozenset[PodSpace]:
        with self._leases:
            return pod_spaces(self.allocator.leases())

    # ---- parts ----

    def _node(self) -> NodeNet:
        node = self.node()
        if node is None:
            raise CNIError(
                ErrorCode.TRY_AGAIN_LATER,
                self.waiting_for,
                "the control plane gives each node a podCIDR (kube-controller-manager: --allocate-node-cidrs)",
            )
        return node

    def _rules(self, held: Sequence[Lease]) -> PodRules:
        return PodRules(
            host_veth(held[0].owner),
            held[0].mac,
            tuple(lease.address for lease in held),
            held[0].ports,
            held[0].bridge or BRIDGE,
            self._routed(held[0].bridge or BRIDGE),
        )

    def _routed(self, bridge: str) -> bool:
        """Whether the pods of this bridge send frames only to the node (a routed bridge). A bridge without a known
        network counts as routed.
        """
        return self.networks is None or self.networks.routed(bridge)

    def _free_port_of_dead(self, ports: Sequence[PortMapping]) -> None:
        """Detach the pod that holds one of these hostPorts if it is dead. (The interface of a pod
        vanishes with its namespace, also without a DEL. Without this, the next pod could not get the same hostPort.)
        """
        with self._leases:
            found = self.allocator.holder(ports)
        if found and found[0].wired:
            self._free(found[0])

    def _free_dead(self, sets: Sequence[RangeSet]) -> int:
        """If a range set has no free address, detach the dead pods (the interface of a pod vanishes with its
        namespace, also without a DEL). Returns the number of detached pods.
        """
        with self._leases:
            if all(self.allocator.free(ranges) for ranges in sets):
                return 0
            wired = {lease.owner: lease for lease in self.allocator.leases() if lease.wired and not lease.origin}
        links = self.kernel.links()
        return sum(self._free(lease) for lease in wired.values() if self._dead(lease, links))

    def _dead(self, lease: Lease, links: Mapping[str, object]) -> bool:
        """Whether the pod's interface no longer exists, and its namespace neither. A pod without an interface may
        live: another program may have deleted the link.
        """
        return host_veth(lease.owner) not in links and not self.kernel.lives(lease.netns)

    def _free(self, lease: Lease) -> bool:
        """Detach a dead pod if no other call works on its container. Returns whether the pod was detached."""
        with self._locks.of(lease.owner.container_id, patience=1) as mine:
            if not mine or not self._dead(lease, self.kernel.links()):
                return False
            self._detach(lease.owner)
            return True

    def _detach(self, owner: Attachment) -> None:
        with self._leases:
            held = self.allocator.owned_by(owner)
        routes = self._own_routes(held)
        # without the lock, a sync that has read the leases would add the route again
        with self._outside if routes else contextlib.nullcontext():
            self._remove(owner, held, routes)
        if not routes and (late := self._own_routes(held)):  # the node's podCIDR has changed meanwhile
            with self._outside:
                self.kernel.remove(late)

    def _own_routes(self, held: Sequence[Lease]) -> list[Op]:
        """The removals of the routes that addresses outside the node's podCIDRs have."""
        node = self.node()
        return [
            DeleteRoute(BRIDGE, host_route(lease.address).network)
            for lease in held
            if node and not node.has(lease.address) and not lease.origin and not lease.bridge
        ]

    def _remove(self, owner: Attachment, held: Sequence[Lease], routes: Sequence[Op]) -> None:
        ops: list[Op] = [DeleteNeighbour(lease.bridge or BRIDGE, lease.address) for lease in held]
        ops += routes
        ours = bool(held) and not held[0].origin
        ops += [DeleteLink(host_veth(owner)), DeleteLink(ifb_of(owner))]

        def unruled() -> None:
            try:
                self.firewall.detach(owner, self._rules(held))
            except OSError as err:  # the next repair removes them; a pod's end must not fail
                log.warn("elements of a pod not removed", container=owner.container_id, error=str(err))

        self.kernel.remove(ops, unruled if ours else None)
        if ours and self.asker and self.asker.there():
            self.asker.ask(Asked("DEL", owner.container_id, held[0].pod, held[0].pod_uid))
        with self._leases:
            self.allocator.release(owner)
