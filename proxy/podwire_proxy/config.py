"""The settings of the proxy role, their checks, and the values that the role derives from its Node. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from podwire_base.kube import meta, nodeaddresses
from podwire_base.kube.errors import ConfigError
from podwire_base.kube.shape import ANY
from podwire_base.numerals import decimal

from .externalips import CHOICES, RESERVED, SERVE, port_range
from .model import Claimable, NodeInfo, covers, is_v6, normal_cidr, normal_ip

METRICS_PORT, HEALTHZ_PORT = 10249, 10256
# kube-proxy's defaults: its tests find a closed connection of a client that waits for an hour, not for a minute
CONNTRACK = (("nf_conntrack_tcp_timeout_established", 86400), ("nf_conntrack_tcp_timeout_close_wait", 3600))
DETECTORS = ("ClusterCIDR", "NodeCIDR", "BridgeInterface", "InterfaceNamePrefix")
LIBERAL = "nf_conntrack_tcp_be_liberal"
NODES = "/api/v1/nodes"
AUTOSCALER_TAINT = "ToBeDeletedByClusterAutoscaler"


@dataclass(frozen=True)
class ProxyConfig:
    """kubeconfig None: in-cluster service account. run_dir: the node's run directory, for the role's status file.

    cluster_cidrs: the pods' addresses. service_cidrs: the Service ranges; the proxy drops packets to their unallocated
    addresses. node_cidrs: the nodes' network. No Service may claim an address of these three as externalIP, but a
    Node's own address (externalips.py). backend:
    the name of the backend. iptables_variant: for iptables, the variant of the programs; auto: the variant that the
    host uses. detect_local: the detector of pod traffic (kube-proxy's detectLocalMode): by cluster_cidrs (() disables
    the detector), by the Node's podCIDRs, or by the interface in local_interface (a name or a name prefix).
    node_port_addresses: "primary", or CIDRs of local addresses. min_interval: seconds between two syncs of a burst.
    localhost_node_ports: serve NodePorts on 127.0.0.1 too. metrics_address: "host:port" for /metrics, /proxyMode and
    /configz; healthz_address: "host:port" for /healthz and /livez; "" disables the pages. healthz_timeout: seconds for
    which an update may wait before the proxy counts as unhealthy. conntrack_max_per_core, conntrack_min: the required
    number of flows per core, and in total; the proxy raises conntrack's maximum but never lowers it; 0: no change.
    conntrack_table: whether this role may set the maximum, which is the machine's and not a network namespace's.
    conntrack: net.netfilter settings to write, such as ("nf_conntrack_tcp_timeout_close_wait", 3600).
    external_ips_on_nodes: "Serve" or "Refuse" externalIPs that are a node's address. external_ips_reserved_ports: ports
    and ranges ("22", "10248-10259") that are never served there. bind_hard_fail: end if another program has the address
    of the pages; else try again. oom_score_adj: of this process; 0: no change. ebpf_cgroup, ebpf_bpffs: for the backend
    ebpf, the cgroup at which the socket hooks sit ("": the root of the machine's cgroup2) and the bpffs with their pins
    ("": /sys/fs/bpf). require_ebpf: with the backend ebpf, end if the hooks cannot run; else nftables serves all.
    ebpf_bypass: with the backend ebpf, packets from pod to pod of the node pass the host's stack by.

    An IP address without a port gets kube-proxy's port, 10249 or 10256.
    """

    node_name: str
    kubeconfig: str | None
    run_dir: Path
    cluster_cidrs: tuple[str, ...] = ("10.244.0.0/16",)
    service_cidrs: tuple[str, ...] = ("10.96.0.0/16",)
    backend: str = "nftables"
    iptables_variant: str = "auto"
    masquerade_all: bool = False
    min_interval: float = 0.01
    verify_interval: float = 600.0
    metrics_address: str = ""
    healthz_address: str = ""
    healthz_timeout: float = 60.0
    detect_local: str = "ClusterCIDR"
    local_interface: str = ""
    node_port_addresses: tuple[str, ...] = ("primary",)
    node_cidrs: tuple[str, ...] = ()
    localhost_node_ports: bool = False
    conntrack: tuple[tuple[str, int], ...] = CONNTRACK
    conntrack_max_per_core: int = 32768
    conntrack_min: int = 131072
    conntrack_table: bool = True
    external_ips_on_nodes: str = SERVE
    external_ips_reserved_ports: tuple[str, ...] = RESERVED
    bind_hard_fail: bool = False
    oom_score_adj: int = 0
    ebpf_cgroup: str = ""
    ebpf_bpffs: str = ""
    require_ebpf: bool = False
    ebpf_bypass: bool = False

    def __post_init__(self) -> None:
        for name, port in (("metrics_address", METRICS_PORT), ("healthz_address", HEALTHZ_PORT)):
            object.__setattr__(self, name, with_port(getattr(self, name), port))

    def node(
        self,
        obj: meta.Object | None = None,
        local: Iterable[str] = (),
        warn: Callable[[str], None] = lambda _: None,
    ) -> NodeInfo:
        """Returns the NodeInfo of this node. Without the Node object, the result has no NodePorts and no zone.

        local: the addresses of the machine, from which node_port_addresses selects. warn: gets each unusable value of
        the Node.
        """
        return node_info(self, obj, local, warn)

    @property
    def scans_addresses(self) -> bool:
        """Whether the proxy needs the addresses of the machine."""
        return self.node_port_addresses != ("primary",)


def _check_numbers(config: ProxyConfig) -> None:
    for text in config.external_ips_reserved_ports:
        try:
            port_range(text)
        except ValueError:
            raise ConfigError(
                f"external_ips_reserved_ports: {text!r} is not a port or a range of ports such as 22 or 10248-10259"
            ) from None
    if not -1000 <= config.oom_score_adj <= 1000:
        raise ConfigError(f"oom_score_adj: {config.oom_score_adj} is not a number from -1000 to 1000")


def with_port(address: str, port: int) -> str:
    """Adds the port to an IP address without one, as kube-proxy's AppendPortIfNeeded: "0.0.0.0", "::", "[::]"."""
    bare = address[1:-1] if address.startswith("[") and address.endswith("]") else address
    try:
        ip = normal_ip(bare)
    except ValueError:
        return address
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


def check(config: ProxyConfig) -> None:
    """Checks the settings except the backend. Raises ConfigError, which names the field and its valid values.

    backends.check() checks the backend and its settings, and calls this function.
    """
    if not config.service_cidrs:
        raise ConfigError("service_cidrs: is empty; give the range that ClusterIPs come from, as 10.96.0.0/16")
    ports = tuple(cidr for cidr in config.node_port_addresses if cidr != "primary")
    if not config.node_port_addresses or (ports and len(ports) != len(config.node_port_addresses)):
        raise ConfigError("node_port_addresses: must be 'primary' alone, or CIDRs of the node's addresses")
    for name, cidrs in (
        ("cluster_cidrs", config.cluster_cidrs),
        ("service_cidrs", config.service_cidrs),
        ("node_port_addresses", ports),
        ("node_cidrs", config.node_cidrs),
    ):
        for cidr in cidrs:
            try:
                ipaddress.ip_network(cidr, strict=False)
            except ValueError as err:
                raise ConfigError(f"{name}: {cidr!r} is not a CIDR such as 10.244.0.0/16") from err
    for name, value, known in (
        ("external_ips_on_nodes", config.external_ips_on_nodes, CHOICES),
        ("detect_local", config.detect_local, DETECTORS),
    ):
        if value not in known:
            raise ConfigError(f"{name}: {value!r} is none of {', '.join(known)}")
    _check_numbers(config)
    if config.detect_local in ("BridgeInterface", "InterfaceNamePrefix") and not 0 < len(config.local_interface) < 16:
        raise ConfigError(f"local_interface: {config.detect_local} needs an interface's name (1 to 15 characters)")
    for name, address in (("metrics_address", config.metrics_address), ("healthz_address", config.healthz_address)):
        host, colon, port = address.rpartition(":")
        if address and (not colon or decimal(port) is None):
            raise ConfigError(f"{name}: {address!r} is not host:port, such as {host or '127.0.0.1'}:10249")


def pod_ranges(obj: meta.Object | None, warn: Callable[[str], None] = lambda _: None) -> tuple[str, ...]:
    """Returns the valid podCIDRs of a Node. Invalid ranges must not reach the rules."""
    spec = (obj or {}).get("spec") or {}
    usable = []
    for text in filter(None, spec.get("podCIDRs") or [spec.get("podCIDR")]):
        try:
            usable.append(normal_cidr(str(text)))
        except ValueError:
            warn(f"spec.podCIDRs: {text!r} is not a CIDR")
    return tuple(usable)


def node_info(
    config: ProxyConfig, obj: meta.Object | None, local: Iterable[str], warn: Callable[[str], None] = lambda _: None
) -> NodeInfo:
    zone = meta.labels(obj).get("topology.kubernetes.io/zone", "") if obj else ""
    pods, interface = config.cluster_cidrs, ""
    if config.detect_local == "NodeCIDR":
        pods = pod_ranges(obj, warn)
    elif config.detect_local != "ClusterCIDR":
        pods, interface = (), config.local_interface + ("*" if config.detect_local == "InterfaceNamePrefix" else "")
    addresses = tuple(map(str, nodeaddresses.primary(obj, warn)))
    ports = None
    if config.scans_addresses:
        usable = (
            ip
            for ip in local
            if not ipaddress.ip_address(ip).is_loopback and not ipaddress.ip_address(ip).is_link_local
        )
        ports = tuple(sorted(ip for ip in usable if covers(config.node_port_addresses, ip)))
    return NodeInfo(
        config.node_name,
        addresses,
        zone,
        pods,
        config.service_cidrs,
        config.masquerade_all,
        ports,
        interface,
        (*config.cluster_cidrs, *config.service_cidrs),
        config.localhost_node_ports,
        (LIBERAL, 1) not in config.conntrack,
        claimable(config, () if obj is None else (obj,)),
    )


def claimable(config: ProxyConfig, nodes: Iterable[meta.Object]) -> Claimable:
    """Returns the rules for externalIPs, as far as the settings and these Nodes decide. Facts (externalips.py) adds the
    rest.
    """
    ips: set[str] = set()
    pods: set[str] = set()
    for node in nodes:
        ips.update(str(ip) for kind in nodeaddresses.KINDS for ip in nodeaddresses.listed(node, kind))
        pods.update(pod_ranges(node))
    own = (address.rpartition(":")[2] for address in (config.metrics_address, config.healthz_address))
    return Claimable(
        frozenset(ips),
        config.node_cidrs,
        tuple(sorted(pods)),
        tuple(port_range(text) for text in (*config.external_ips_reserved_ports, *filter(None, own))),
        serve=config.external_ips_on_nodes == SERVE,
    )


def one_sided(config: ProxyConfig) -> list[str]:
    """Returns a line for each setting whose CIDRs leave out one of the IP families that the Services have."""
    found = []
    for v6 in sorted({is_v6(cidr) for cidr in config.service_cidrs}):
        family, everyone = ("IPv6", "::/0") if v6 else ("IPv4", "0.0.0.0/0")
        if config.scans_addresses and not any(is_v6(cidr) == v6 for cidr in config.node_port_addresses):
            found.append(
                f"node_port_addresses (nodePortAddresses) has no CIDR of {family}: NodePorts and healthCheckNodePorts "
                f"are closed at all {family} addresses of the node; kube-proxy opens them there. {everyone} opens them"
            )
        detects = config.detect_local == "ClusterCIDR" and config.cluster_cidrs
        if detects and not any(is_v6(cidr) == v6 for cidr in config.cluster_cidrs):
            found.append(
                f"cluster_cidrs (clusterCIDR) has no CIDR of {family}: no source of {family} counts as a pod, so "
                f"externalTrafficPolicy Local holds for pods too, and no client of a {family} ClusterIP is masqueraded"
            )
    return found


def wanted_flows(config: ProxyConfig, cores: int) -> int:
    """Returns the required number of flows in conntrack, as kube-proxy computes it; 0: no requirement."""
    return max(config.conntrack_min, config.conntrack_max_per_core * cores) if config.conntrack_max_per_core else 0


NODE_SHAPE = {
    "metadata": {"labels": dict},
    "spec": {"podCIDRs": [ANY], "taints": [ANY]},
    "status": {"addresses": [ANY]},
}


def eligible(obj: meta.Object | None) -> bool:
    """Whether load balancers may send new traffic to this node; False if the Node is deleted or about to be."""
    if obj is None or meta.deleting(obj):
        return False
    taints = (obj.get("spec") or {}).get("taints") or []
    return all(taint.get("key") != AUTOSCALER_TAINT for taint in taints if isinstance(taint, dict))


def service_cidrs(found: Iterable[tuple[Any, ...]], configured: tuple[str, ...]) -> tuple[tuple[str, ...], list[str]]:
    """Returns (the ranges of all ServiceCIDR objects, the unusable ranges).

    A range is unusable if it is invalid, or if no range of its family is configured: that family has no rules.
    """
    families = {":" in cidr for cidr in configured}
    usable: set[str] = set()
    strange: list[str] = []
    for cidr in dict.fromkeys(str(cidr) for cidrs in found for cidr in cidrs):
        try:
            normal = normal_cidr(cidr)
        except ValueError:
            strange.append(cidr)
            continue
        if (":" in normal) in families:
            usable.add(normal)
        else:
            strange.append(cidr)
    return tuple(sorted(usable)), strange
