"""Finds conditions of a host that prevent Services from working, and gives the fix for each condition. Pure.

host.py and the backends collect the facts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

FULL = 0.9  # above this fill level of the conntrack table, new flows are at risk
# Prefix of an iptables chain's name -> (owner, command that removes the chains). The first match counts.
_KUBE_ROUTER = ("kube-router", "kube-router --cleanup-config")
_KUBELET = ("kubelet", "it creates them again")
_CILIUM = ("Cilium", "cilium uninstall")
OWNERS: tuple[tuple[str, str, str], ...] = (
    *((start, *_KUBE_ROUTER) for start in ("KUBE-ROUTER-", "KUBE-NWPLCY-", "KUBE-POD-FW-")),
    *((start, *_KUBELET) for start in ("KUBE-KUBELET-CANARY", "KUBE-FIREWALL", "KUBE-IPTABLES-HINT", "KUBE-MARK-DROP")),
    ("KUBE-", "kube-proxy", "kube-proxy --cleanup"),
    ("cali-", "Calico", "its uninstall"),
    ("CILIUM_", *_CILIUM),
    ("OLD_CILIUM_", *_CILIUM),
    ("FLANNEL-", "flannel", "stop flanneld"),
    ("WEAVE", "Weave Net", "weave reset"),
    ("ANTREA-", "Antrea", "its uninstall"),
    ("CNI-", "CNI plugins (portmap, bridge)", "delete their pods"),
    ("DOCKER", "Docker", "stop docker"),
    ("LIBVIRT_", "libvirt", "stop its networks"),
    ("ufw", "ufw", "ufw disable"),
)
# Name of an nftables table, or its start -> owner.
TABLES: tuple[tuple[str, str], ...] = (
    ("kube-proxy", "kube-proxy"),
    ("flannel-ipv", "flannel"),
    ("cni_hostport", "CNI plugins (portmap)"),
    ("cni_plugins_masquerade", "CNI plugins (bridge, ptp)"),
    ("firewalld", "firewalld"),
    ("docker-bridges", "Docker"),
    ("libvirt_network", "libvirt"),
    ("netavark", "podman"),
    ("calico", "Calico"),
)


def owner_of(table: str, chain: str) -> str:
    """Returns the program that makes a chain of another program, by the chain's or the table's name; "": unknown."""
    by_chain = next((owner for start, owner, _ in OWNERS if chain.startswith(start)), "")
    return by_chain or next((owner for start, owner in TABLES if table.startswith(start)), "")


@dataclass(frozen=True, slots=True)
class ForeignChain:
    """A chain of iptables that another program made. place: "iptables-legacy, IPv4". rules: number of foreign rules, -1
    if unknown.
    """

    place: str
    table: str
    name: str
    rules: int = -1


@dataclass(frozen=True, slots=True)
class Leftover:
    """Chains of one owner in one table. owner "": unknown."""

    owner: str
    fix: str
    place: str
    table: str
    chains: tuple[str, ...]

    def __str__(self) -> str:
        names = ", ".join(self.chains[:3]) + (" ..." if len(self.chains) > 3 else "")
        many = f"{len(self.chains)} chains" if len(self.chains) > 1 else "chain"
        return f"{many} of table {self.table} ({self.place}): {names}"


def leftovers(chains: Iterable[ForeignChain]) -> list[Leftover]:
    """Returns the owners of the chains, one entry per owner and table."""
    found: dict[tuple[str, str, str, str], list[str]] = {}
    for chain in chains:
        owner, fix = next(((o, f) for start, o, f in OWNERS if chain.name.startswith(start)), ("", ""))
        found.setdefault((owner, fix, chain.place, chain.table), []).append(chain.name)
    return [Leftover(*key, tuple(sorted(names))) for key, names in sorted(found.items())]


@dataclass(frozen=True, slots=True)
class Foreign:
    """Rules of other programs in one network namespace, of the kind that one backend reads.

    tables: "family name" of all nf_tables tables, including the proxy's tables. drop_chains: "family table chain" of
    base chains at the forward hook with policy drop. chains: chains of iptables. findings: further problems, each with
    its fix.
    """

    tables: tuple[str, ...] = ()
    drop_chains: tuple[str, ...] = ()
    chains: tuple[ForeignChain, ...] = ()
    findings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class HostFacts:
    """The facts of one network namespace. foreign: the foreign rules, per backend. conntrack_refused: (setting, wanted
    value, reason) of net.netfilter settings that could not be written.
    """

    forwarding: bool = True
    strict_rp_filter: bool = False
    conntrack_count: int = 0
    conntrack_max: int = 0
    foreign: tuple[Foreign, ...] = ()
    conntrack_wanted: int = 0
    conntrack_refused: tuple[tuple[str, int, str], ...] = ()


def findings(facts: HostFacts) -> list[str]:
    """Returns one line for each problem, worst first: the effect and the fix."""
    found = []
    if not facts.forwarding:
        found.append(
            "net.ipv4.ip_forward is 0: no packet reaches an endpoint on another node; sysctl -w net.ipv4.ip_forward=1"
        )
    if facts.conntrack_max and facts.conntrack_count >= FULL * facts.conntrack_max:
        found.append(
            f"conntrack holds {facts.conntrack_count} of {facts.conntrack_max} flows: new ones are dropped when it is "
            "full; raise net.netfilter.nf_conntrack_max in the host's own namespace"
        )
    if facts.conntrack_max and facts.conntrack_max < facts.conntrack_wanted:
        found.append(
            f"conntrack has room for {facts.conntrack_max} flows, {facts.conntrack_wanted} wanted; only the host's "
            f"own namespace can set it: sysctl -w net.netfilter.nf_conntrack_max={facts.conntrack_wanted}"
        )
    for name, value, why in facts.conntrack_refused:
        found.append(f"net.netfilter.{name} cannot be set to {value}: {why}; sysctl -w net.netfilter.{name}={value}")
    for chain in (chain for one in facts.foreign for chain in one.drop_chains):
        family, table, name = chain.split(" ", 2)
        found.append(
            f"chain {name} of table {family} {table} drops forwarded packets unless a rule allows them (Docker, "
            f"firewalld); allow the pods' addresses there"
        )
    if any(table.endswith(" kube-proxy") for one in facts.foreign for table in one.tables):
        found.append(
            "rules of kube-proxy in nftables mode are here and translate first or second; kube-proxy --cleanup"
        )
    for left in leftovers(chain for one in facts.foreign for chain in one.chains):
        if left.owner in ("kube-proxy", "kube-router") and left.table == "nat":
            found.append(f"{left.owner} left {left}; they translate Services first or second; {left.fix}")
    found += [problem for one in facts.foreign for problem in one.findings]
    if facts.strict_rp_filter:
        found.append(
            "net.ipv4.conf.all.rp_filter is 1: answers that come by another interface are dropped; set it to 2 or 0"
        )
    return found
