"""The verbs of CNI: ADD, DEL, CHECK, GC and STATUS. `Plugin` implements them on a Kernel, a Firewall, an Allocator and
the node's network.

Each verb does its steps in a fixed order. ADD writes the lease, adds the pod to the nft tables, creates the links and
marks the lease as complete. DEL removes the pod from the nft tables and deletes the links in parallel, and then removes
the lease. So after a crash, each partly attached pod still has a lease, and that lease has no links or no mark. At the
next start, `reconcile` removes such a lease and everything that belongs to the pod.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from podwire_base.role import logs
from podwire_base.role.hostports import HostPort

from .errors import CNIError, ErrorCode
from .ipam import hostlocal
from .ipam.allocator import Allocator, Lease, PoolExhausted, host_ports
from .keyedlock import KeyedLock
from .networkstore import Networks
from .nodetable import PodRules
from .ops import DeleteLink, DeleteNeighbour, DeleteRoute, Op
from .plan import OWN_LINK, NodeNet, Seen, differences, host_route, host_veth, ifb_of, repair_plan
from .prepared import PodPlan
from .types import BRIDGE, Attachment, Call, IPAddress, NetConf, PortMapping, RangeSet

log = logs.get("wiring")


class Kernel(Protocol):
    """The part of kernel.Kernel that the verbs use; testing.FakeKernel also implements it."""

    def apply(self, ops: Sequence[Op], pod_fd: int | None = None) -> None: ...

    def attach_pod(self, pod: PodPlan, pod_fd: int) -> None: ...

    def remove(self, ops: Sequence[Op], meanwhile: Callable[[], None] | None = None) -> None: ...

    def links(self) -> dict[str, tuple[int, int]]: ...

    def holder(self, address: IPAddress) -> str: ...

    def observe(self, eth: str, host: str, pod_fd: int) -> Seen: ...


class Firewall(Protocol):
    """The part of firewall.Firewall that the verbs use; testing.FakeFirewall also implements it."""

    def attach(self, owner: Attachment, pod: PodRules) -> None: ...

    def detach(self, owner: Attachment, pod: PodRules) -> None: ...

    def missing(self, pod: PodRules) -> list[str]: ...


@dataclass(frozen=True, slots=True)
class Sandbox:
    """The pod's network namespace as the plugin binary found it. fd: a descriptor of the namespace; None if the
    namespace could not be opened, and then `why` is the reason.
    """

    fd: int | None = None
    why: str = "CNI_NETNS is not set"
    is_netns: bool = True
    is_node: bool = False  # whether the namespace is the node's own
    caller_gone: Callable[[], bool] = lambda: False  # whether the caller no longer waits for the answer


@dataclass
class Plugin:
    """The verbs, and the agent's own work on attachments. `node()` returns None until the node has a podCIDR. All
    methods are thread-safe.
    """

    kernel: Kernel
    firewall: Firewall
    allocator: Allocator
    node: Callable[[], NodeNet | None]
    boot_id: str
    waiting_for: str = "the Node has no spec.podCIDR yet"
    networks: Networks | None = None
    _locks: KeyedLock = field(default_factory=KeyedLock)
    _leases: threading.Lock = field(default_factory=threading.Lock)

    # ---- verbs ----

    def add(self, call: Call, conf: NetConf, sandbox: Sandbox) -> bytes:
        """ADD: attach the pod. Returns the result as the plugin prints it. After an error, ADD undoes its own steps and
        raises the error.
        """
        pod_fd = _usable(call, sandbox)
        node = self._net(conf, make=True)
        with self._locks.of(call.attachment.container_id):
            _wanted(call, sandbox)  # if the caller was killed, the DEL that follows may have run already
            with self._leases:
                if held := self.allocator.owned_by(call.attachment):
                    raise CNIError(
                        ErrorCode.INVALID_ENVIRONMENT,
                        f"{call.attachment.ifname} of container {call.attachment.container_id} is already "
                        f"attached, with {', '.join(str(lease.address) for lease in held)}",
                        "run DEL first",
                    )
            taken = self._allocate(call, conf, node)
            try:
                pod = PodPlan(call, conf, node, [(lease.address, r) for lease, r in taken])
                rules = self._rules([lease for lease, _ in taken])
                self.firewall.attach(call.attachment, rules)
                try:
                    self.kernel.attach_pod(pod, pod_fd)
                except BaseException:
                    self.firewall.detach(call.attachment, rules)
                    raise
            except BaseException:
                with self._leases:
                    self.allocator.release(call.attachment)
                raise
            try:
                with self._leases:
                    self.allocator.confirm(call.attachment)
                _wanted(call, sandbox)
            except BaseException:
                self._detach(call.attachment)
                raise
        if not conf.plain and (cut := conf.bandwidth.cut()):
            log.warn("burst", container=call.attachment.container_id, pod=call.pod, change=cut)
        return pod.text()

    def delete(self, call: Call) -> None:
        """DEL: detach the pod. DEL is idempotent: a missing namespace, interface or lease is not an error."""
        with self._locks.of(call.attachment.container_id):
            self._detach(call.attachment)

    def check(self, call: Call, conf: NetConf, sandbox: Sandbox) -> None:
        pod_fd, node = _usable(call, sandbox), self._net(conf)
        if conf.prev_result is None:
            raise CNIError(
                ErrorCode.INVALID_CONFIG,
                "network configuration: prevResult is missing, and CHECK needs it",
                "pass the result of ADD as prevResult",
            )
        with self._leases:
            leases = self.allocator.owned_by(call.attachment)
        held = {lease.address for lease in leases}
        wrong = [
            f"the lease of {ip.address.ip} is not held by this container"
            for ip in conf.prev_result.ips
            if ip.address.ip not in held and any(ip.address.ip in r.subnet for s in node.ranges for r in s)
        ]
        if leases and leases[0].origin and not wrong:
            return  # another plugin attached the pod
        seen = self.kernel.observe(call.attachment.ifname, host_veth(call.attachment), pod_fd)
        wrong += differences(conf.prev_result, call.attachment, node.bridge, conf.bandwidth, seen)
        wrong += self.firewall.missing(self._rules(leases)) if leases else []
        if wrong:
            raise CNIError(
                ErrorCode.IO_FAILURE,
                f"{call.attachment}: " + "; ".join(wrong),
                "delete the pod's sandbox: the runtime creates a new one",
            )

    def collect(self, conf: NetConf) -> None:
        """GC: detach every attachment that the runtime's list does not contain. GC continues after an error. Raises one
        CNIError with all errors at the end.
        """
        if conf.valid_attachments is None:
            raise CNIError(
                ErrorCode.INVALID_CONFIG,
                "network configuration: cni.dev/valid-attachments is missing, and GC needs it",
                "pass the list of attachments that are in use",
            )
        failed = []
        with self._leases:
            # The list covers one network, and several networks may share a bridge.
            owners = {
                lease.owner
                for lease in self.allocator.leases()
                if lease.bridge == conf.bridge and lease.network in ("", conf.name)
            } - conf.valid_attachments
        for owner in sorted(owners):
            try:
                with self._locks.of(owner.container_id):
                    self._detach(owner)
            except (OSError, CNIError) as err:
                failed.append(f"{owner}: {err}")
        if failed:
            raise CNIError(ErrorCode.IO_FAILURE, "GC could not remove: " + "; ".join(failed), "the next GC tries again")

    def status(self, conf: NetConf) -> None:
        """STATUS: check whether an ADD can succeed now. Raises CNIError with code 50 if not, or with code 51 if the
        node's bridge is missing.
        """
        try:
            node = self._net(conf)
        except CNIError as err:
            raise CNIError(ErrorCode.NOT_AVAILABLE, err.msg, err.details) from None
        sets = conf.ranges or node.ranges
        _check_ranges(sets, node)
        self._free_dead(sets)
        for ranges in sets:
            with self._leases:
                if not self.allocator.free(ranges):
                    full = PoolExhausted(ranges)
                    raise CNIError(ErrorCode.NOT_AVAILABLE, full.msg, full.details)
        if not conf.bridge and node.bridge not in self.kernel.links():
            raise CNIError(
                ErrorCode.LIMITED_CONNECTIVITY,
                f"the bridge {node.bridge} is gone",
                "restart the wiring agent of this node: it creates the bridge again",
            )

    # ---- the agent's own work ----

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
                else "its interface is gone"
                if host_veth(lease.owner) not in links
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

    def repair(self) -> list[str]:
        """Undo changes that other programs made: make the pods' links ports of a re-created bridge again, and delete
        pod links that have no lease.

        Call it after `reconcile`. Returns one line for each action.
        """
        node = self._node()
        links, told = self.kernel.links(), []
        with self._leases:
            leases = {host_veth(lease.owner): lease for lease in self.allocator.leases()}
            whole = not self.allocator.store.damaged()  # a link may belong to an unreadable lease
        bridges = {
            links[name][0] for name in (node.bridge, *(lease.bridge for lease in leases.values())) if name in links
        }
        for name, (_, master) in links.items():
            if name in leases:
                bridge = leases[name].bridge or node.bridge
                if bridge not in links or master == links[bridge][0]:
                    continue
                owner = leases[name].owner
                with self._leases:
                    held = self.allocator.owned_by(owner)
                self.kernel.apply(
                    repair_plan(
                        owner, held[0].mac, [lease.address for lease in held], bridge, routed=self._routed(bridge)
                    )
                )
                told.append(f"{name} of {leases[name].pod or owner}: made a port of {bridge} again")
            elif (
                whole
                and OWN_LINK.match(name)
                and name.replace("ifb", "veth") not in leases
                and (master in bridges or name.startswith("ifb"))
            ):
                self.kernel.remove([DeleteLink(name)])
                told.append(f"{name}: a link of a pod without a lease, removed")
        return told + self.settle_damaged()

    def pods(self) -> dict[Attachment, PodRules]:
        """Returns the entries of the nft tables for each attached pod."""
        with self._leases:
            leases = self.allocator.leases()
        owned: dict[Attachment, list[Lease]] = {}
        for lease in leases:
            if lease.wired and lease.boot_id == self.boot_id and not lease.origin:
                owned.setdefault(lease.owner, []).append(lease)
        return {owner: self._rules(held) for owner, held in owned.items()}

    def take_over(self, directory: Path, node: NodeNet) -> list[str]:
        """Take over the leases of the reference plugin host-local (see ipam/hostlocal.py). Returns one line for each
        lease.
        """
        with self._leases:
            return list(hostlocal.take_over(directory, self.allocator, node.ranges, self.boot_id, hostlocal.booted()))

    def unwanted(self, node: NodeNet) -> list[IPAddress]:
        """Returns the pod addresses outside the node's present podCIDRs (of a podCIDR that the node no longer has).
        Such an address works until the DEL of its pod.
        """
        return sorted(
            (a for pod in self.pods().values() for a in pod.addresses if pod.bridge == node.bridge and not node.has(a)),
            key=str,
        )

    def figures(self) -> dict[str, int]:
        with self._leases:
            leases = self.allocator.leases()
            node = self.node()
            free = sum(self.allocator.free(ranges) for ranges in node.ranges) if node else 0
        return {"pods": len({lease.owner for lease in leases}), "free": free}

    def host_ports(self) -> frozenset[HostPort]:
        with self._leases:
            return host_ports(self.allocator.leases())

    # ---- parts ----

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

    def _net(self, conf: NetConf, *, make: bool = False) -> NodeNet:
        """Returns the network to which the configuration attaches pods. make: create the network if it does not exist.
        Raises CNIError.
        """
        if conf.spoof_check and not self._node().anti_spoofing:
            raise CNIError(
                ErrorCode.INVALID_CONFIG,
                "network configuration: macspoofchk is true, and the agent of this node runs with --no-anti-spoofing",
                "leave one of them out",
            )
        if not conf.bridge:
            if not conf.routed or not conf.is_gateway:
                raise CNIError(
                    ErrorCode.INVALID_CONFIG,
                    "network configuration: addressing and isGateway are for a bridge of its own",
                    f'name one in "bridge"; pods on {BRIDGE} are routed, and it is their gateway',
                )
            return self._node()
        if self.networks is None:
            raise CNIError(
                ErrorCode.INVALID_CONFIG,
                f"network configuration: bridge {conf.bridge} needs the wiring agent",
                f"start it, or leave the key out for {BRIDGE}",
            )
        return self.networks.of(conf, self._node(), make=make)

    def _node(self) -> NodeNet:
        node = self.node()
        if node is None:
            raise CNIError(
                ErrorCode.TRY_AGAIN_LATER,
                self.waiting_for,
                "the control plane gives each node a podCIDR (kube-controller-manager: --allocate-node-cidrs)",
            )
        return node

    def _allocate(self, call: Call, conf: NetConf, node: NodeNet) -> list[tuple[Lease, Any]]:
        sets = conf.ranges or node.ranges
        _check_ranges(sets, node)

        def take() -> list[tuple[Lease, Any]]:
            with self._leases:
                if found := self.allocator.holder(conf.ports):
                    lease, port = found
                    raise CNIError(
                        ErrorCode.TRY_AGAIN_LATER,
                        f"hostPort {port} of this node is held by {lease.pod or lease.owner}",
                        "delete that pod, or request another hostPort",
                    )
                return self.allocator.allocate(
                    sets,
                    call.attachment,
                    wanted=conf.ips,
                    pod=call.pod,
                    mac=conf.mac,
                    boot_id=self.boot_id,
                    pod_uid=call.args.get("K8S_POD_UID", ""),
                    ports=conf.ports,
                    aliases=conf.aliases,
                    bridge=conf.bridge,
                    network=conf.name,
                )

        if conf.mac:
            self._check_mac(conf, node)
        self._free_port_of_dead(conf.ports)
        try:
            return take()
        except PoolExhausted:
            if not self._free_dead(sets):
                raise
            return take()

    def _check_mac(self, conf: NetConf, node: NodeNet) -> None:
        """Raise CNIError if another pod on the bridge, or the bridge itself, has the requested MAC. A second port with
        the same MAC would receive the other pod's frames.
        """
        with self._leases:
            twin = next((x for x in self.allocator.leases() if x.bridge == conf.bridge and x.mac == conf.mac), None)
        if twin or conf.mac == node.bridge_mac:
            raise CNIError(
                ErrorCode.INVALID_CONFIG,
                f"network configuration: the MAC {conf.mac} is that of "
                f"{(twin.pod or twin.owner) if twin else node.bridge}",
                "request another one, or none",
            )

    def _free_port_of_dead(self, ports: Sequence[PortMapping]) -> None:
        """Detach the pod that holds one of these hostPorts if its interface no longer exists. (The interface of a pod
        vanishes with its namespace, also without a DEL. Without this, the next pod could not get the same hostPort.)
        """
        with self._leases:
            found = self.allocator.holder(ports)
        if found and found[0].wired:
            self._free(found[0].owner)

    def _free_dead(self, sets: Sequence[RangeSet]) -> int:
        """If a range set has no free address, detach the pods whose interface no longer exists (the interface of a pod
        vanishes with its namespace, also without a DEL). Returns the number of detached pods.
        """
        with self._leases:
            if all(self.allocator.free(ranges) for ranges in sets):
                return 0
            wired = {lease.owner for lease in self.allocator.leases() if lease.wired and not lease.origin}
        links = self.kernel.links()
        return sum(self._free(owner) for owner in wired if host_veth(owner) not in links)

    def _free(self, owner: Attachment) -> bool:
        """Detach a pod if its interface no longer exists and no other call works on its container. Returns whether the
        pod was detached.
        """
        with self._locks.of(owner.container_id, patience=1) as mine:
            if not mine or host_veth(owner) in self.kernel.links():
                return False
            self._detach(owner)
            return True

    def _detach(self, owner: Attachment) -> None:
        with self._leases:
            held = self.allocator.owned_by(owner)
        node = self.node()
        ops: list[Op] = [DeleteNeighbour(lease.bridge or BRIDGE, lease.address) for lease in held]
        ops += [
            DeleteRoute(BRIDGE, host_route(lease.address).network)
            for lease in held
            if node and not node.has(lease.address) and not lease.origin and not lease.bridge
        ]
        ours = bool(held) and not held[0].origin
        ops += [DeleteLink(host_veth(owner)), DeleteLink(ifb_of(owner))]

        def unruled() -> None:
            try:
                self.firewall.detach(owner, self._rules(held))
            except OSError as err:  # the next repair removes them; a pod's end must not fail
                log.warn("elements of a pod not removed", container=owner.container_id, error=str(err))

        self.kernel.remove(ops, unruled if ours else None)
        with self._leases:
            self.allocator.release(owner)


def _check_ranges(sets: Sequence[RangeSet], node: NodeNet) -> None:
    """Raise CNIError if a range is outside the node's podCIDRs or has another gateway. The node routes only its
    podCIDRs and has only their gateway addresses, so an address of any other range would be unreachable.
    """
    for i, ranges in enumerate(sets):
        for j, r in enumerate(ranges):
            homes = [h for s in node.ranges for h in s if r.start in h.subnet and r.end in h.subnet]
            if not homes:
                raise CNIError(
                    ErrorCode.INVALID_CONFIG,
                    f"network configuration: ipam.ranges[{i}][{j}].subnet {r.subnet} is outside this node's "
                    f"podCIDRs {', '.join(str(h.subnet) for s in node.ranges for h in s)}",
                    "leave ipam.ranges out, or name a part of them",
                )
            if r.gateway != homes[0].gateway:
                raise CNIError(
                    ErrorCode.INVALID_CONFIG,
                    f"network configuration: ipam.ranges[{i}][{j}].gateway {r.gateway} is not the "
                    f"address of {node.bridge}, {homes[0].gateway}",
                    "leave the gateway out",
                )


def _wanted(call: Call, sandbox: Sandbox) -> None:
    """Raise CNIError if the caller has ended. The runtime of a killed plugin process does not know the outcome of the
    call, so the ADD must be undone.
    """
    if sandbox.caller_gone():
        raise CNIError(
            ErrorCode.TRY_AGAIN_LATER,
            f"the caller that wanted {call.attachment} attached has ended; everything was undone",
        )


def _usable(call: Call, sandbox: Sandbox) -> int:
    """Returns the descriptor of the pod's network namespace. Raises CNIError if the namespace is missing, is another
    kind of file, or is the node's own.
    """
    if sandbox.fd is None:
        raise CNIError(
            ErrorCode.UNKNOWN_CONTAINER,
            f"the pod's network namespace CNI_NETNS={call.netns}: {sandbox.why}",
            "the namespace must exist before the plugin is called",
        )
    if not sandbox.is_netns:
        raise CNIError(
            ErrorCode.INVALID_ENVIRONMENT,
            f"CNI_NETNS={call.netns} is not a network namespace",
            "set it to a path such as /proc/PID/ns/net or /run/netns/NAME",
        )
    if sandbox.is_node and not call.netns_override:
        raise CNIError(
            ErrorCode.INVALID_ENVIRONMENT,
            f"CNI_NETNS={call.netns} is the node's own network namespace",
            "give the pod a namespace of its own (or set CNI_NETNS_OVERRIDE=1 if you want that)",
        )
    return sandbox.fd
