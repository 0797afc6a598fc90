"""The data types of CNI: NetConf, the runtime's Call, Result. Source: CNI spec 1.1.0."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network

VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
PLUGIN = "podwire-cni"
BRIDGE = "podwire0"

IPAddress = IPv4Address | IPv6Address
IPInterface = IPv4Interface | IPv6Interface
IPNetwork = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Range:
    """Addresses start..end (both included) of `subnet`; the gateway is one of the subnet's and is never given to a
    pod."""

    subnet: IPNetwork
    start: IPAddress
    end: IPAddress
    gateway: IPAddress

    def __contains__(self, address: IPAddress) -> bool:
        return address.version == self.subnet.version and int(self.start) <= int(address) <= int(self.end)


RangeSet = tuple[Range, ...]  # one address is taken from each set


@dataclass(frozen=True, slots=True)
class Dns:
    nameservers: tuple[str, ...] = ()
    domain: str = ""
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Route:
    """`gw` None: the runtime's view is that the result's gateway serves. The rest exist from 1.1.0 on."""

    dst: IPNetwork
    gw: IPAddress | None = None
    mtu: int | None = None
    advmss: int | None = None
    priority: int | None = None
    table: int | None = None
    scope: int | None = None


@dataclass(frozen=True, slots=True)
class Interface:
    """sandbox: path of the network namespace, "" for the node's own. The last two are of plugins before us in a
    chain."""

    name: str
    mac: str = ""
    mtu: int | None = None
    sandbox: str = ""
    socket_path: str = ""
    pci_id: str = ""


@dataclass(frozen=True, slots=True)
class IPConfig:
    """interface: position in Result.interfaces."""

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
    """One interface of one container, the owner of a lease and a veth (the pair is unique per network, says the
    spec)."""

    container_id: str
    ifname: str

    def __str__(self) -> str:
        return f"{self.container_id}/{self.ifname}"


@dataclass(frozen=True, slots=True)
class PortMapping:
    """A port of the node that leads to one of the pod. host_ip None: every address of the node, of either IP family;
    0.0.0.0 and :: every address of theirs."""

    host_port: int
    container_port: int
    protocol: str = "tcp"  # or "udp", "sctp"
    host_ip: IPAddress | None = None

    def clashes(self, other: PortMapping) -> bool:
        """Whether a packet could be meant for both."""
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
    """A token bucket. rate: bits a second; burst: bits that may pass at once after a pause."""

    rate: int
    burst: int


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """ingress: what the pod may receive; egress: what it may send. None: as much as there is."""

    ingress: Limit | None = None
    egress: Limit | None = None


@dataclass(frozen=True, slots=True)
class NetConf:
    """One plugin's configuration as the runtime passed it. `ranges` empty: the node's podCIDRs serve."""

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
    bridge: str = ""  # another one than the node's pods have; "" for that
    routed: bool = True  # addressing "routed": full-length prefixes; else those of the ranges' subnets ("subnet")
    is_gateway: bool = True  # of another bridge: whether the node has an address on it, by which pods leave
    # Of another bridge, or without an agent: what leaves by the node gets its address, but for what goes to `native`.
    ip_masq: bool = False
    native: tuple[str, ...] = ()  # "nonMasqueradeCIDRs"
    socket: str = ""  # the agent's; its directory is where the node's state is
    plain: bool = field(
        init=False, compare=False
    )  # nothing is asked for that would make a pod's links or routes special

    def __post_init__(self) -> None:
        asked = self.routes or self.mac or self.prev_result
        object.__setattr__(self, "plain", not asked and self.bandwidth == Bandwidth() and self.dns == Dns())


@dataclass(frozen=True, slots=True)
class Call:
    """One invocation: the CNI_* variables, checked. `args` is CNI_ARGS, where a kubelet's runtime names the pod."""

    command: str
    attachment: Attachment = Attachment("", "")
    netns: str = ""
    args: Mapping[str, str] = field(default_factory=dict)
    netns_override: bool = False

    @property
    def pod(self) -> str:
        """namespace/name of the pod, "" where the runtime gave none."""
        name = self.args.get("K8S_POD_NAME", "")
        return f"{self.args.get('K8S_POD_NAMESPACE', '')}/{name}" if name else ""
