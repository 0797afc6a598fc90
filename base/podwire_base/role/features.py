"""The features of the kernel that podwire or its tests use. Pure; role/kernelconfig.py reads the running kernel.

Each feature has the upstream release of Linux that introduced it, and the kernel options that it needs. From this data,
`judge` decides whether a kernel may lack the feature (the kernel is "excused") or must have it. A distribution may
backport a feature to an older release. So an excuse explains a refusal, but does not predict one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

Version = tuple[int, int]

CAP_NET_ADMIN, CAP_SYS_ADMIN, CAP_PERFMON, CAP_BPF = 12, 21, 38, 39  # linux/capability.h
_CAPABILITIES = {
    CAP_NET_ADMIN: "CAP_NET_ADMIN",
    CAP_SYS_ADMIN: "CAP_SYS_ADMIN",
    CAP_PERFMON: "CAP_PERFMON",
    CAP_BPF: "CAP_BPF",
}


@dataclass(frozen=True, slots=True)
class Feature:
    """One feature. name: the standard term. since: the upstream release that introduced the feature. options: the
    kernel options that the feature needs, without CONFIG_; () if every kernel of that release has the feature.
    capability: the capability that a process needs for the feature.
    """

    name: str
    since: Version
    options: tuple[str, ...] = ()
    capability: int = CAP_NET_ADMIN

    def __str__(self) -> str:
        options = "".join(f", CONFIG_{option}" for option in self.options)
        return f"{self.name} (Linux {self.since[0]}.{self.since[1]}{options})"


@dataclass(frozen=True, slots=True)
class Kernel:
    """The running kernel, and the capabilities of this process.

    release: the output of uname -r. options: the kernel's configuration, names without CONFIG_, for example {"VETH":
    "y"}; an absent option is off; None if the configuration cannot be read. capabilities: the effective set as a bit
    mask.
    """

    release: str
    options: Mapping[str, str] | None = None
    capabilities: int = -1

    @property
    def version(self) -> Version:
        return parse_release(self.release)


# nf_tables, as the nftables backend and the CNI plugin's firewall use it
NF_TABLES = Feature("nf_tables", (3, 13), ("NF_TABLES",))
NFT_CT = Feature("nf_tables: ct expressions", (3, 13), ("NF_TABLES", "NFT_CT"))
NFT_NAT = Feature("nf_tables: dnat", (3, 13), ("NF_TABLES", "NFT_NAT"))
NFT_MASQUERADE = Feature("nf_tables: masquerade", (3, 18), ("NF_TABLES", "NFT_MASQ"))
NFT_REJECT = Feature("nf_tables: reject", (3, 14), ("NF_TABLES", "NFT_REJECT"))
NFT_NUMGEN = Feature("nf_tables: numgen", (4, 9), ("NF_TABLES", "NFT_NUMGEN"))
NFT_NOTRACK = Feature("nf_tables: notrack", (4, 9), ("NF_TABLES", "NFT_CT"))
NFT_FIB = Feature("nf_tables: fib type", (4, 10), ("NF_TABLES", "NFT_FIB"))
NFT_INET = Feature("nf_tables: family inet", (3, 14), ("NF_TABLES", "NF_TABLES_INET"))
NFT_FLOW_TABLES = Feature("nf_tables: flow tables", (4, 16), ("NF_TABLES", "NF_FLOW_TABLE"))
NFTABLES_BACKEND = (NF_TABLES, NFT_CT, NFT_NAT, NFT_MASQUERADE, NFT_REJECT, NFT_NUMGEN, NFT_FIB)

# connection tracking
CONNTRACK = Feature("connection tracking", (2, 6), ("NF_CONNTRACK",))
CTNETLINK = Feature("conntrack over netlink", (2, 6), ("NF_CONNTRACK", "NF_CT_NETLINK"))
CONNTRACK_EVENTS = Feature("conntrack events", (2, 6), ("NF_CT_NETLINK", "NF_CONNTRACK_EVENTS"))
CONNTRACK_SCTP = Feature("connection tracking of SCTP", (2, 6), ("NF_CONNTRACK", "NF_CT_PROTO_SCTP"))
CONNTRACK_FILTER = Feature("conntrack dumps filtered by tuple (CTA_FILTER)", (5, 8), ("NF_CT_NETLINK",))
CONNTRACK_STATUS_FILTER = Feature("conntrack dumps filtered by status", (5, 18), ("NF_CT_NETLINK",))

# iptables, as the iptables backend uses it
NFT_COMPAT = Feature("iptables over nf_tables", (3, 13), ("NF_TABLES", "NFT_COMPAT"))
LEGACY_NAT = Feature("legacy iptables, IPv4 nat table", (2, 6), ("IP_NF_NAT",))
LEGACY_NAT6 = Feature("legacy iptables, IPv6 nat table", (3, 7), ("IP6_NF_NAT",))
IP_SET = Feature("ipset", (2, 6), ("IP_SET", "IP_SET_HASH_IP", "NETFILTER_XT_SET"))
XT_BPF = Feature("iptables match bpf", (3, 9), ("NETFILTER_XT_MATCH_BPF",))
XT_STATISTIC = Feature("iptables match statistic", (2, 6), ("NETFILTER_XT_MATCH_STATISTIC",))
IPVS = Feature("IPVS", (2, 6), ("IP_VS", "IP_VS_NFCT"))

# links, queues and sockets
BRIDGE_NETFILTER = Feature("netfilter on bridges (br_netfilter)", (2, 6), ("BRIDGE_NETFILTER",))
DUMMY = Feature("dummy links", (2, 6), ("DUMMY",))
FQ_CODEL = Feature("queue fq_codel", (3, 5), ("NET_SCH_FQ_CODEL",))
IFB = Feature("ifb links", (2, 6), ("IFB",))
INGRESS = Feature("ingress queue", (2, 6), ("NET_SCH_INGRESS",))
IPVLAN = Feature("ipvlan links", (3, 19), ("IPVLAN",))
MACVLAN = Feature("macvlan links", (2, 6), ("MACVLAN",))
NETEM = Feature("queue netem", (2, 6), ("NET_SCH_NETEM",))
SCTP_SOCKETS = Feature("SCTP sockets", (2, 6), ("IP_SCTP",))
TBF = Feature("queue tbf", (2, 6), ("NET_SCH_TBF",))
TUN = Feature("tun devices", (2, 6), ("TUN",))
VETH = Feature("veth links", (2, 6), ("VETH",))
VLAN = Feature("VLAN links", (2, 6), ("VLAN_8021Q",))
VRF = Feature("VRF links", (4, 3), ("NET_VRF",))
VXLAN = Feature("VXLAN links", (3, 7), ("VXLAN",))
WIREGUARD = Feature("WireGuard links", (5, 6), ("WIREGUARD",))

# eBPF and tracing
BPF = Feature("eBPF", (3, 18), ("BPF_SYSCALL",), CAP_BPF)
BPF_SOCKET_HOOKS = Feature(
    "eBPF socket hooks, with the number of a network namespace", (5, 14), ("BPF_SYSCALL", "CGROUP_BPF"), CAP_BPF
)
BPF_CGROUP_SOCK_ADDR = Feature("eBPF at connect of a cgroup", (4, 17), ("BPF_SYSCALL", "CGROUP_BPF"), CAP_BPF)
BPF_RING_BUFFER = Feature("eBPF ring buffer", (5, 8), ("BPF_SYSCALL",), CAP_BPF)
BPF_DROP_REASONS = Feature(
    "reasons of dropped packets at a tracepoint", (5, 17), ("BPF_EVENTS", "DEBUG_INFO_BTF"), CAP_PERFMON
)
BPF_TCX = Feature("eBPF at tcx", (6, 6), ("BPF_SYSCALL", "NET_XGRESS"), CAP_BPF)
BPF_NETFILTER = Feature("eBPF at netfilter hooks", (6, 4), ("BPF_SYSCALL", "NETFILTER_BPF_LINK"), CAP_BPF)
BTF = Feature("types of the kernel (BTF)", (5, 4), ("DEBUG_INFO_BTF",), CAP_BPF)
KPROBES = Feature("kprobes", (2, 6), ("KPROBES",), CAP_SYS_ADMIN)
SHORT_SLICES = Feature("time slices of a thread's own choice", (6, 12), (), 0)


def parse_release(release: str) -> Version:
    """Returns the version in a release: (6, 18) for "6.18.44-amd64", (0, 0) for text without a version."""
    found = re.match(r"(\d+)\.(\d+)", release)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def parse_options(text: str) -> dict[str, str]:
    """Returns the enabled options, from the text of a kernel's configuration."""
    return dict(re.findall(r"^CONFIG_(\w+)=(.*)$", text, re.MULTILINE))


def judge(feature: Feature, kernel: Kernel) -> str:
    """Returns why this kernel may lack the feature: the kernel is older, or its configuration lacks an option. Returns
    "" if the kernel must have the feature.
    """
    if kernel.version < feature.since:
        return f"{feature.name} came with Linux {feature.since[0]}.{feature.since[1]}, this is {kernel.release}"
    if kernel.options is not None:
        off = [f"CONFIG_{option}" for option in feature.options if option not in kernel.options]
        if off:
            return f"{feature.name}: this kernel is built without {', '.join(off)}"
    return ""


def explain(feature: Feature, kernel: Kernel) -> str:
    """Returns an explanation for the user after the kernel has refused the feature: the missing part and the remedy."""
    reason = judge(feature, kernel)
    if reason:
        return reason
    enough = (
        {feature.capability, CAP_SYS_ADMIN} if feature.capability in (CAP_BPF, CAP_PERFMON) else {feature.capability}
    )
    if feature.capability and not any(kernel.capabilities >> one & 1 for one in enough):
        return f"{feature.name}: this process lacks {_CAPABILITIES[feature.capability]}"
    modules = [o for o in feature.options if (kernel.options or {}).get(o) == "m"]
    if modules:
        return f"{feature.name}: load its kernel module (built as a module: CONFIG_{', CONFIG_'.join(modules)})"
    return f"{feature.name}: the kernel refuses it; {feature} is needed"


def lacks(kernel: Kernel, *capabilities: int) -> str:
    """Returns which of these capabilities this process lacks; "" if it has all. CAP_SYS_ADMIN comprises CAP_BPF and
    CAP_PERFMON (capabilities(7)).
    """
    comprised = (CAP_BPF, CAP_PERFMON) if kernel.capabilities >> CAP_SYS_ADMIN & 1 else ()
    missing = [one for one in capabilities if not kernel.capabilities >> one & 1 and one not in comprised]
    return f"this process lacks {' and '.join(_CAPABILITIES[one] for one in missing)}" if missing else ""


def lacking(features: Iterable[Feature], kernel: Kernel) -> list[str]:
    """Returns one line for each feature that this kernel may lack, with the reason."""
    return [reason for feature in features if (reason := judge(feature, kernel))]
