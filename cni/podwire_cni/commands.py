"""The verbs of CNI: ADD, DEL, CHECK, GC and STATUS. `Plugin` implements them on a Kernel, a Firewall, an Allocator and
the node's network.

Each verb does its steps in a fixed order. ADD writes the lease, adds the pod to the nft tables, creates the links and
marks the lease as complete. DEL removes the pod from the nft tables and deletes the links in parallel, and then removes
the lease. So after a crash, each partly attached pod still has a lease, and that lease has no links or no mark. At the
next start, `reconcile` removes such a lease and everything that belongs to the pod.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from podwire_base.role import logs
from podwire_base.role.judging import Asked

from .attachments import Attachments
from .conflist import NAME
from .errors import CNIError, ErrorCode
from .ipam.allocator import Lease, PoolExhausted
from .plan import NodeNet, differences, host_veth
from .prepared import PodPlan
from .types import BRIDGE, Call, NetConf, RangeSet

log = logs.get("wiring")


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
    netns: str = ""  # the namespace as a lease records it (netnsid.record), "" if its file is not visible here
    no_pod: str = ""  # the path by which the agent knows the namespace as the machine's or another node's


class Plugin(Attachments):
    """The verbs, on the attachments of a node."""

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
            taken = self._allocate(call, conf, node, sandbox.netns)
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
        if self.asker and self.asker.there() and not conf.bridge:  # the pods of further bridges are no policy's
            ips = tuple(str(lease.address) for lease, _ in taken)
            uid = call.args.get("K8S_POD_UID", "")
            if why := self.asker.ask(Asked("ADD", call.attachment.container_id, call.pod, uid, ips)):
                log.warn("the pod is isolated until it is judged", pod=call.pod, why=why)
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

    # ---- parts ----

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

    def _allocate(self, call: Call, conf: NetConf, node: NodeNet, netns: str) -> list[tuple[Lease, Any]]:
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
                    netns=netns,
                    # in another conflist, other plugins may have changed the pod after this one
                    mtu=(conf.mtu or node.mtu) if conf.plain and not conf.bridge and conf.name == NAME else 0,
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
    kind of file, or is that of the node, of the machine or of another node.
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
    if sandbox.no_pod and not sandbox.is_node:
        raise CNIError(
            ErrorCode.INVALID_ENVIRONMENT,
            f"CNI_NETNS={call.netns} is not a pod's network namespace: it is {sandbox.no_pod}, of the machine or "
            "of another node",
            "pass the network namespace of the pod; a pod in the host's network needs no CNI plugin",
        )
    if sandbox.is_node and not call.netns_override:
        raise CNIError(
            ErrorCode.INVALID_ENVIRONMENT,
            f"CNI_NETNS={call.netns} is the node's own network namespace",
            "give the pod a namespace of its own (or set CNI_NETNS_OVERRIDE=1 if you want that)",
        )
    return sandbox.fd
