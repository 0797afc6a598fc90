"""The embedded cluster's names, addresses and files, all computed from one record. This module does no I/O."""

from __future__ import annotations

import ipaddress
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from podwire_base.kube.loadbalancer import parse as parse_pools

BASE = Path("/run/podwire")
DATA = Path("/var/lib/podwire")  # on disk: images and writable layers of the runtime cri
RUNTIMES = ("netns", "cri")
MOST_NODES = 50
PODS6 = "fd70:6f64:7770::/56"  # of pods, where only Services are said to have IPv6
NETNS = Path("/run/netns")
LAYOUT = 2  # of the run directory; 1: namespaces are mounts in /run/netns (podwire 0.2.0)
MARKER = "PODWIRE_CLUSTER"  # environment variable of every process of a cluster; `down` finds the processes by it


class BadConfig(Exception):
    """A setting is invalid. The message names the setting and the fix."""


@dataclass(frozen=True)
class ClusterConfig:
    """load_balancer_pool: CIDRs or ranges for Services of type LoadBalancer; None: 32 addresses of the node network.
    upstream_dns: DNS servers that the nodes can reach, as "IP" or "IP#port". bridge_nf: the nodes' value of
    net.bridge.bridge-nf-call-iptables; -1 keeps the kernel's value. proxy_backend: the backend that writes the Service
    rules, one of the proxy's backends.choices(). publish: Services at ports of this machine, as words of `podwire
    publish`. internet: the range of slirp4netns, through which pods reach the world outside; "": they do not.
    host_access: they reach this machine's own addresses too. observe: the mode of the nodes' role `observe`.
    runtime: what runs pods: netns (podwire's own, without images) or cri (containerd).
    layout: of the run directory. names: the nodes (default: node1 to nodeN); stopped: those that are switched off.
    service_cidr6: IPv6 addresses for Services; "": Services have IPv4 only. With it, pods have IPv6 too.
    cluster_cidr6: IPv6 addresses for pods; "": pods have IPv4 only. node_cidr6: then the nodes' network. The mask sizes
    are the prefix lengths of each node's podCIDRs.
    """

    name: str = "podwire"
    nodes: int = 3
    api_port: int = 6443
    node_cidr: str = "172.30.0.0/24"
    cluster_cidr: str = "10.244.0.0/16"
    service_cidr: str = "10.96.0.0/16"
    service_cidr6: str = ""
    cluster_cidr6: str = ""
    node_cidr6: str = "fd70:6f64:7769::/64"
    node_cidr_mask_size: int = 24
    node_cidr_mask_size_ipv6: int = 64
    cluster_domain: str = "cluster.local"
    upstream_dns: tuple[str, ...] = ()
    bridge_nf: int = -1
    load_balancer_pool: tuple[str, ...] | None = None
    proxy_backend: str = "nftables"
    publish: tuple[str, ...] = ()
    internet: str = ""
    host_access: bool = False
    observe: str = "always"
    runtime: str = "netns"
    layout: int = LAYOUT
    names: tuple[str, ...] = ()
    stopped: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9-]{0,30}", self.name):
            raise BadConfig(
                f"name: {self.name!r}: lower-case letters, digits and '-', at most 31, starting with a letter"
            )
        if not 1 <= self.nodes <= MOST_NODES:
            raise BadConfig(f"nodes: {self.nodes}: from 1 to {MOST_NODES}")
        for node in self.names:
            if not re.fullmatch(r"node[1-9][0-9]?", node) or int(node[4:]) > MOST_NODES:
                raise BadConfig(f"names: {node!r}: node1 to node{MOST_NODES}")
        if self.runtime not in RUNTIMES:
            raise BadConfig(f"runtime: {self.runtime!r}: one of {', '.join(RUNTIMES)}")
        nets = [self._net(field, 4) for field in ("node_cidr", "cluster_cidr", "service_cidr")]
        if self.cluster_cidr6:
            nets += [self._net(field, 6) for field in ("node_cidr6", "cluster_cidr6")]
        nets += self._services6()
        self._check_sizes(nets)
        for server in self.upstream_dns:
            address, _, port = server.partition("#")
            try:
                ipaddress.ip_address(address)
                if port and not 0 < int(port) < 65536:
                    raise ValueError
            except ValueError:
                raise BadConfig(
                    f"upstream_dns: {server!r} is not a server; expected IP or IP#PORT, such as 9.9.9.9#53"
                ) from None
        if problems := parse_pools({"data": {"addresses": ",".join(self.load_balancer_pool or ())}})[1]:
            raise BadConfig(problems[0].replace("data.addresses", "load_balancer_pool"))
        for a, b in itertools.combinations(nets, 2):
            if a.version == b.version and a.overlaps(b):
                raise BadConfig(f"{a} and {b} overlap: nodes, pods and Services need ranges of their own")

    def _services6(self) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
        if not self.service_cidr6:
            return []
        if not self.cluster_cidr6:
            raise BadConfig("service_cidr6: Services have IPv6 addresses only where pods do: give cluster_cidr6")
        net = self._net("service_cidr6", 6)
        if net.num_addresses < 16:
            raise BadConfig(f"service_cidr6: {net} is too small: /124 or larger")
        return [net]

    def _net(self, field: str, version: int) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
        try:
            net = ipaddress.ip_network(getattr(self, field))
        except ValueError as err:
            raise BadConfig(f"{field}: {err}") from err
        if net.version != version:
            raise BadConfig(f"{field}: {net} is not an IPv{version} range")
        return net

    def _check_sizes(self, nets: Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network]) -> None:
        """Check that the nodes' podCIDRs fit into the pods' ranges, and the fixed addresses into the others."""
        last = max(int(node.removeprefix("node")) for node in self.node_names())
        if nets[0].num_addresses < last + 12:
            raise BadConfig(f"node_cidr: {nets[0]} is too small: node {last} has its address number {last + 10}")
        if nets[2].num_addresses < 16:
            raise BadConfig(f"service_cidr: {nets[2]} is too small: /28 or larger; the DNS has its tenth address")
        sizes = [("node_cidr_mask_size", nets[1], self.node_cidr_mask_size, 29)]
        sizes += [("node_cidr_mask_size_ipv6", net, self.node_cidr_mask_size_ipv6, 120) for net in nets[4:5]]
        for field, net, size, most in sizes:
            if not net.prefixlen <= size <= most:
                raise BadConfig(f"{field}: {size}: from {net.prefixlen} (the pods' range is {net}) to {most}")
            if 2 ** (size - net.prefixlen) < len(self.node_names()):
                raise BadConfig(
                    f"{field}: {net} has {2 ** (size - net.prefixlen)} ranges of /{size} for {len(self.node_names())} "
                    "nodes: choose a longer mask or a larger range"
                )

    def role_sets(self, backend: Mapping[str, str]) -> tuple[tuple[str, str, str], ...]:
        """Return settings for the nodes' agents: the proxy's backend, and /metrics on the lo of each node. backend:
        field of ProxyConfig -> value.
        """
        return (
            *(("proxy", field, value) for field, value in backend.items()),
            ("proxy", "metrics_address", "127.0.0.1:10249"),
            ("proxy", "conntrack_table", "false"),  # a node is a network namespace, and the table is the machine's
            ("dns", "metrics_address", "127.0.0.1:9153"),
            ("policy", "metrics_address", "127.0.0.1:9154"),
            ("observe", "mode", self.observe),
            ("observe", "metrics_address", "127.0.0.1:9155"),
        )

    # ---- names

    @property
    def run_dir(self) -> Path:
        return BASE / self.name

    @property
    def failed_dir(self) -> Path:
        """Where the logs of a start that failed are kept until the next `podwire up` or `podwire down`."""
        return BASE / f"{self.name}.failed"

    @property
    def context(self) -> str:
        """The name of the cluster and of its context in kubeconfigs; names of users begin with it."""
        return self.name if self.name == "podwire" else f"podwire-{self.name}"

    @property
    def kubeconfig(self) -> Path:
        return self.run_dir / "kubeconfig"

    def node_names(self) -> list[str]:
        return list(self.names) or [f"node{n}" for n in range(1, self.nodes + 1)]

    def running_nodes(self) -> list[str]:
        return [node for node in self.node_names() if node not in self.stopped]

    def namespace(self, node: str) -> str:
        """Return the name of the network namespace of a node or of a host outside the cluster."""
        return f"{self.name}-{node}"

    def netns(self, node: str) -> Path:
        """Return the file that keeps the network namespace of a node, a host or the switch ("switch")."""
        return (self.ns_dir if self.layout > 1 else NETNS) / self.namespace(node)

    @property
    def ns_dir(self) -> Path:
        return self.run_dir / "ns"

    def node_dir(self, node: str) -> Path:
        return self.run_dir / "nodes" / node

    @property
    def data_dir(self) -> Path:
        """The cluster's directory on disk, with the runtime cri."""
        return DATA / self.name

    def cri_dir(self, node: str) -> Path:
        return self.data_dir / "nodes" / node

    def cri_cgroup(self, node: str) -> str:
        """Return the cgroup of a node's pods, below each controller's mount."""
        return f"/podwire-{self.name}/{node}"

    # ---- addresses

    @property
    def gateway(self) -> str:
        """The address of the switch: the nodes' default gateway and the address of the API server."""
        return str(ipaddress.ip_network(self.node_cidr)[1])

    def node_address(self, node: str) -> str:
        return str(ipaddress.ip_network(self.node_cidr)[10 + int(node.removeprefix("node"))])

    @property
    def balancer_pool(self) -> tuple[str, ...]:
        """Return `load_balancer_pool`, or by default 32 addresses near the end of the node network, for example
        172.30.0.192/27. The pool is on the nodes' link, above the nodes' addresses. A network of fewer than 256
        addresses has no default pool.
        """
        if self.load_balancer_pool is not None:
            return self.load_balancer_pool
        net = ipaddress.ip_network(self.node_cidr)
        return (f"{net[-64]}/27",) if net.num_addresses >= 256 else ()

    @property
    def cluster_cidrs(self) -> tuple[str, ...]:
        return (self.cluster_cidr, *([self.cluster_cidr6] if self.cluster_cidr6 else ()))

    @property
    def service_cidrs(self) -> tuple[str, ...]:
        return (self.service_cidr, *([self.service_cidr6] if self.service_cidr6 else ()))

    @property
    def node_cidrs(self) -> tuple[str, ...]:
        return (self.node_cidr, *([self.node_cidr6] if self.cluster_cidr6 else ()))

    @property
    def gateway6(self) -> str:
        return str(ipaddress.ip_network(self.node_cidr6)[1])

    def node_address6(self, node: str) -> str:
        return str(ipaddress.ip_network(self.node_cidr6)[10 + int(node.removeprefix("node"))])

    def node_addresses(self, node: str) -> tuple[str, ...]:
        """Return the node's InternalIPs: IPv4, and IPv6 if pods have it."""
        return (self.node_address(node), *([self.node_address6(node)] if self.cluster_cidr6 else ()))

    @property
    def node_prefix(self) -> int:
        return ipaddress.ip_network(self.node_cidr).prefixlen

    @property
    def dns_address(self) -> str:
        return str(ipaddress.ip_network(self.service_cidr)[10])

    @property
    def kubernetes_address(self) -> str:
        return str(ipaddress.ip_network(self.service_cidr)[1])

    # ---- record

    @property
    def record(self) -> Path:
        return self.run_dir / "cluster.json"

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def parse(text: str) -> ClusterConfig | None:
    """Parse the output of `to_json`. Returns None for any other text."""
    try:
        found = json.loads(text)
        return ClusterConfig(
            **{
                "layout": 1,
                **found,
                "upstream_dns": tuple(found["upstream_dns"]),
                "names": tuple(found.get("names") or ()),
                "stopped": tuple(found.get("stopped") or ()),
                "publish": tuple(found.get("publish") or ()),
                "load_balancer_pool": (
                    None if found.get("load_balancer_pool") is None else tuple(found["load_balancer_pool"])
                ),
            }
        )
    except (ValueError, TypeError, KeyError, BadConfig):
        return None
