"""Whose an address, a port or a rule of the ruleset is: the Service, pod or node of each element. Pure.

The kernel keeps no names beside its elements, because they would cost memory for each; the API's objects and the
node's leases have them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from podwire_base.kernel.ip import unpacked
from podwire_base.kernel.nft.codec import TableDump
from podwire_base.kernel.nft.expr import Verdict
from podwire_base.kernel.nft.objects import INTERVAL_END, TYPES, Rule, Set, Value, show
from podwire_base.kube.meta import Object, key, name

from .catalogue import Catalogue, balancer_ips, cluster_ips, node_ips, places, pod_ips

_PROTOCOLS = {6: "TCP", 17: "UDP", 132: "SCTP"}
_SIZES = {"ipv4_addr": 4, "ipv6_addr": 16}


@dataclass(slots=True)
class Owners:
    """Look-ups of one cluster. links: a pod's port on the node -> "namespace/name" of the pod."""

    services: dict[tuple[str, str, int], str] = field(default_factory=dict)
    addresses: dict[str, str] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)

    def element(self, set_: Set, raw: bytes, value: Value) -> str:
        """Returns who has an element, "" if nobody is known."""
        parts = list(dict.fromkeys(self._parts(set_.key, raw)))
        if isinstance(value, bytes) and value != INTERVAL_END and set_.data:
            to = list(dict.fromkeys(self._parts(set_.data, value)))
            parts = [f"{' '.join(parts[:1])} -> {' '.join(to[:1])}"] if to else parts
        return ", ".join(filter(None, parts)).strip()

    def _parts(self, types: Iterable[str], raw: bytes) -> Iterator[str]:
        """Yields what the fields of a key or of a value belong to."""
        fields = list(_fields(tuple(types), raw))
        for index, (kind, data) in enumerate(fields):
            if kind in _SIZES:
                ip = unpacked(data)
                rest = fields[index + 1 : index + 3]
                if [one for one, _ in rest] == ["inet_proto", "inet_service"]:
                    protocol = _PROTOCOLS.get(rest[0][1][0], "")
                    found = self.services.get((ip, protocol, int.from_bytes(rest[1][1], "big")))
                    if found:
                        yield found
                        continue
                if owner := self.addresses.get(ip):
                    yield owner
            elif kind == "ifname":
                link = data.rstrip(b"\0").decode(errors="replace")
                if pod := self.links.get(link):
                    yield f"pod {pod}"


def _fields(types: tuple[str, ...], raw: bytes) -> Iterator[tuple[str, bytes]]:
    at = 0
    for kind in types:
        size = TYPES[kind][1]
        if at + size > len(raw):
            return
        yield kind, raw[at : at + size]
        at += (size + 3) & ~3


def owners(catalogue: Catalogue, links: Mapping[str, str] | None = None) -> Owners:
    """Returns the look-ups. Of two Services with one address and port the elder one has it."""
    found = Owners(links=dict(links or {}))
    for node in catalogue.of("Node"):
        found.addresses.update(dict.fromkeys(node_ips(node), f"node {name(node)}"))
    for pod in catalogue.of("Pod"):
        if not pod["spec"].get("hostNetwork"):
            words = f"pod {key(pod)} on {pod['spec'].get('nodeName') or 'no node'}"
            found.addresses.update(dict.fromkeys(pod_ips(pod), words))
    for service in catalogue.of("Service"):
        for ip in cluster_ips(service):
            found.addresses[ip] = f"Service {key(service)}"
        for place in places(service, catalogue):
            holder = catalogue.at(*place) or service
            found.services.setdefault(place, f"Service {key(holder)} ({_kind(holder, place)})")
    return found


def _kind(service: Object, place: tuple[str, str, int]) -> str:
    ip, _, number = place
    ports: list[Object] = service["spec"].get("ports") or []
    port: Object = next((p for p in ports if number in (p.get("port"), p.get("nodePort"))), {})
    named = f" {port['name']}" if port.get("name") else ""
    if ip in cluster_ips(service):
        return f"ClusterIP{named}"
    if ip in balancer_ips(service):
        return f"LoadBalancer{named}"
    return f"{'ExternalIP' if ip in (service['spec'].get('externalIPs') or []) else 'NodePort'}{named}"


def chains(dump: TableDump, who: Owners) -> dict[str, str]:
    """Returns chain -> its Service, for chains to which elements of one Service alone lead."""
    found: dict[str, set[str]] = {}
    for set_name, held in dump.elements.items():
        for raw, value in held.items():
            if isinstance(value, Verdict) and value.chain:
                found.setdefault(value.chain, set()).add(who.element(dump.sets[set_name], raw, None).partition(" (")[0])
    return {chain: next(iter(names)) for chain, names in found.items() if len(names) == 1 and "" not in names}


def lines(dump: TableDump, who: Owners, texts: Mapping[tuple[str, int], str]) -> Iterator[str]:
    """Yields a table as text, with the owner behind each element and each chain. texts: (chain, handle) -> a rule."""
    table = dump.table
    yield f"table {table.family} {table.name} {{"
    for set_name, set_ in sorted(dump.sets.items()):
        held = dump.elements.get(set_name, {})
        yield f"  {'map' if set_.data else 'set'} {set_name} {{  # {len(held)} element{'s' * (len(held) != 1)}"
        for raw, value in sorted(held.items()):
            owner = who.element(set_, raw, value)
            yield f"    {show(set_, raw, value)}{f'  # {owner}' if owner else ''}"
        yield "  }"
    named = chains(dump, who)
    for chain_name, rules in dump.rules.items():
        chain = dump.chains[chain_name]
        owner = f"  # {named[chain_name]}" if chain_name in named else ""
        yield f"  chain {chain_name} {{{owner}"
        if chain.hook:
            yield f"    type {chain.type} hook {chain.hook} priority {chain.priority}; policy {chain.policy};"
        yield from (f"    {_rule(rule, texts)}" for rule in rules)
        yield "  }"
    yield "}"


def _rule(rule: Rule, texts: Mapping[tuple[str, int], str]) -> str:
    text = texts.get((rule.chain.name, rule.handle))
    if text is None:
        kinds = " ".join(expr.NAME or "?" for expr in rule.exprs)
        text = f"({kinds})" + (f' comment "{rule.comment}"' if rule.comment else "")
    return f"{text} # handle {rule.handle}"


def parse_rules(listed: str) -> dict[tuple[str, int], str]:
    """Returns (chain, handle) -> rule from the output of `nft -a list table`."""
    found: dict[tuple[str, int], str] = {}
    chain = ""
    for line in map(str.strip, listed.splitlines()):
        words = line.split()
        if len(words) >= 2 and words[0] == "chain":
            chain = words[1]
        elif line.startswith(("set ", "map ")):
            chain = ""
        text, mark, handle = line.rpartition(" # handle ")
        if chain and mark and handle.isdecimal() and not text.startswith("chain "):
            found[chain, int(handle)] = text
    return found
