"""What on a host keeps Services from working, told with the fix. Pure; nftables/apply.py gathers the facts."""

from __future__ import annotations

from dataclasses import dataclass

FULL = 0.9  # part of the conntrack table from which on new flows are in danger


@dataclass(frozen=True, slots=True)
class HostFacts:
    """Of one network namespace. drop_chains: "family table chain" of foreign base chains at the forward hook whose policy is
    drop. tables: "family name" of all nf_tables tables. legacy: loaded tables of legacy iptables."""

    forwarding: bool = True
    strict_rp_filter: bool = False
    conntrack_count: int = 0
    conntrack_max: int = 0
    drop_chains: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    legacy: tuple[str, ...] = ()


def findings(facts: HostFacts) -> list[str]:
    """One line a problem, worst first: what it does, and what to do about it."""
    found = []
    if not facts.forwarding:
        found.append("net.ipv4.ip_forward is 0: no packet reaches an endpoint on another node; sysctl -w net.ipv4.ip_forward=1")
    if facts.conntrack_max and facts.conntrack_count >= FULL * facts.conntrack_max:
        found.append(f"conntrack holds {facts.conntrack_count} of {facts.conntrack_max} flows: new ones are dropped when it is "
                     "full; raise net.netfilter.nf_conntrack_max in the host's own namespace")
    for chain in facts.drop_chains:
        family, table, name = chain.split(" ", 2)
        found.append(f"chain {name} of table {family} {table} drops what is forwarded unless a rule lets it through (Docker, "
                     f"firewalld); allow the pods' addresses there")
    if any(table.endswith(" kube-proxy") for table in facts.tables):
        found.append("rules of kube-proxy in nftables mode are here and translate first or second; kube-proxy --cleanup")
    if facts.legacy:
        found.append(f"legacy iptables tables are loaded beside nf_tables ({', '.join(facts.legacy)}): both see every packet; "
                     "iptables-legacy-save shows them")
    if facts.strict_rp_filter:
        found.append("net.ipv4.conf.all.rp_filter is 1: answers that come by another interface are dropped; set it to 2 or 0")
    return found
