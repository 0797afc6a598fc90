"""The data types of CNI: the network configuration (NetConf), one invocation (Call) and its Result. Source: CNI spec
1.1.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network

VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
PLUGIN = "podwire-cni"
PORT_GROUP = 0x7077  # the link group of the pods' veths, at the node's end
BRIDGE = "podwire0"

IPAddress = IPv4Address | IPv6Address
IPInterface = IPv4Interface | IPv6Interface
IPNetwork = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Range:
    """The addresses from start to end (both included) of `subnet`. The gateway is an address of the subnet that no pod
    gets.
    """

    subnet: IPNetwork
    start: IPAddress
    end: IPAddress
    gateway: IPAddress

    def __contains__(self, address: IPAddress) -> bool:
        return address.version == self.subnet.version and int(self.start) <= int(address) <= int(self.end)


RangeSet = tuple[Range, ...]  # a pod gets one address from each set


@dataclass(frozen=True, slots=True)
class Dns:
    nameservers: tuple[str, ...] = ()
    domain: str = ""
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Route:
    """One route of a pod. `gw` None: the gateway of the result's IP configuration applies. The other fields exist from
    CNI 1.1.0 on.
    """

    dst: IPNetwork
    gw: IPAddress | None = None
    mtu: int | None = None
    advmss: int | None = None
    priority: int | None = None
    table: int | None = None
    scope: int | None = None


@dataclass(frozen=True, slots=True)
class Interface:
    """One interface of a result. sandbox: the path of the network namespace, "" for the node's own namespace. Only
    earlier plugins in a chain set the last two fields.
    """

    name: str
    mac: str = ""
    mtu: int | None = None
    sandbox: str = ""
    socket_path: str = ""
    pci_id: str = ""


@dataclass(frozen=True, slots=True)
class IPConfig:
    """One address of a result. interface: the position of its interface in Result.interfaces."""

    address: IPInterface
    gateway: IPAddress | None = None
    interface: int | None = None


@dataclass(frozen=True, slots=True)
class Result:
    interfaces: tuple[Interface, ...] = ()
    ips: tuple[IPConfig, ...] = ()
    routes: tuple[Route, ...] = ()
    dns: Dns = Dns()


@dataclass(frozen=True, slots=True, order=True)
class Attachment:
    """One interface of one container: the owner of leases and a veth. The spec guarantees that the pair (container ID,
    interface name) is unique in a network.
    """

    container_id: str
    ifname: str

    def __str__(self) -> str:
        return f"{self.container_id}/{self.ifname}"


@dataclass(frozen=True, slots=True)
class PortMapping:
    """A port of the node (hostPort) that leads to a port of the pod. host_ip None: every address of the node, of both
    IP families. 0.0.0.0 and :: mean every address of their family.
    """

    host_port: int
    container_port: int
    protocol: str = "tcp"  # or "udp", "sctp"
    host_ip: IPAddress | None = None

    def clashes(self, other: PortMapping) -> bool:
        """Whether one packet could match both mappings."""
        if (self.protocol, self.host_port) != (other.protocol, other.host_port):
            return False
        mine, theirs = self.host_ip, other.host_ip
        if mine is None or theirs is None:
            return True
        return mine.version == theirs.version and (mine == theirs or mine.is_unspecified or theirs.is_unspecified)

    def __str__(self) -> str:
        where = (
            "" if self.host_ip is None else f"[{self.host_ip}]:" if self.host_ip.version == 6 else f"{self.host_ip}:"
        )
        return f"{where}{self.host_port}/{self.protocol}"


@dataclass(frozen=True, slots=True)
class Limit:
    """A token bucket. rate: bits per second. burst: the bits that may pass at once after a pause. asked: the burst that
    the runtime asked for, 0 if it asked for none.
    """

    rate: int
    burst: int
    asked: int = 0


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """The rate limits of a pod. ingress: packets to the pod. egress: packets from the pod. None: no limit."""

    ingress: Limit | None = None
    egress: Limit | None = None

    def cut(self) -> str:
        """Returns which bursts are smaller than what the runtime asked for; "" if none is."""
        pairs = (("ingressBurst", self.ingress), ("egressBurst", self.egress))
        return ", ".join(
            f"{key} {limit.asked} is cut to {limit.burst} bits, the rate is {limit.rate} a second"
            for key, limit in pairs
            if limit and limit.burst < limit.asked
        )


@dataclass(frozen=True, slots=True)
class NetConf:
    """One plugin's configuration as the runtime passed it. `ranges` empty: the node's podCIDRs are the ranges."""

    version: str
    name: str
    mtu: int | None = None
    ranges: tuple[RangeSet, ...] = ()
    routes: tuple[Route, ...] = ()
    dns: Dns = Dns()
    ips: tuple[IPAddress, ...] = ()  # capability "ips": these addresses and no others
    mac: str = ""  # capability "mac"
    aliases: tuple[str, ...] = ()  # capability "aliases"
    ports: tuple[PortMapping, ...] = ()  # capability "portMappings"
    bandwidth: Bandwidth = Bandwidth()  # capability "bandwidth"
    prev_result: Result | None = None
    valid_attachments: frozenset[Attachment] | None = None
    bridge: str = ""  # the name of a further bridge; "": the node's own bridge
    routed: bool = True  # key "addressing"; "routed": full-length prefixes, "subnet": prefixes of the subnets
    is_gateway: bool = True  # on a further bridge: whether the node is the pods' gateway
    # For a further bridge, or without an agent: whether packets that leave through the node are masqueraded, except
    # packets to `native`.
    ip_masq: bool = False
    native: tuple[str, ...] = ()  # "nonMasqueradeCIDRs"
    spoof_check: bool = False  # "macspoofchk": pods must be held to their own MACs
    socket: str = ""  # the agent's socket; the leases are in the same directory
    plain: bool = field(
        init=False, compare=False
    )  # whether the configuration requests nothing special for the pod's links or routes

    def __post_init__(self) -> None:
        asked = self.routes or self.mac or self.prev_result
        object.__setattr__(self, "plain", not asked and self.bandwidth == Bandwidth() and self.dns == Dns())


@dataclass(frozen=True, slots=True)
class Call:
    """One invocation: the checked CNI_* variables. `args` is CNI_ARGS, in which a Kubernetes runtime names the pod."""

    command: str
    attachment: Attachment = Attachment("", "")
    netns: str = ""
    args: Mapping[str, str] = field(default_factory=dict)
    netns_override: bool = False

    @property
    def pod(self) -> str:
        """Returns namespace/name of the pod, "" if CNI_ARGS does not name a pod."""
        name = self.args.get("K8S_POD_NAME", "")
        return f"{self.args.get('K8S_POD_NAMESPACE', '')}/{name}" if name else ""
