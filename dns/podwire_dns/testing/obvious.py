"""A slow resolver that computes each answer from the objects in the simplest way.

The resolver shares no code with the rest of this package, so that tests can compare the two.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from typing import Any

Object = dict[str, Any]
Answer = tuple[str, set[str]]  # rcode, answer records as "name type data"


def _text(address: str) -> str:
    return str(ipaddress.ip_address(address))


def _host(endpoint: Object, address: str) -> str:
    if endpoint.get("hostname"):
        return str(endpoint["hostname"])
    dashes = _text(address).translate({ord("."): "-", ord(":"): "-"})
    return f"{'0' * dashes.startswith('-')}{dashes}{'0' * dashes.endswith('-')}"


class Obvious:
    def __init__(
        self,
        zone: str,
        services: Iterable[Object],
        slices: Iterable[Object],
        namespaces: Iterable[Object],
        networks: Iterable[str],
        addresses: Iterable[str],
    ) -> None:
        self.zone, self.services, self.slices = zone, list(services), list(slices)
        self.namespaces = {n["metadata"]["name"] for n in namespaces}
        self.networks = [ipaddress.ip_network(n) for n in networks]
        self.addresses = list(addresses)
        self.records = set(self.all_records())

    def all_records(self) -> Iterator[tuple[str, str, str]]:
        """Yields every existing record: (name, type, data)."""
        yield f"dns-version.{self.zone}", "TXT", '"1.1.0"'
        for apex in (self.zone, *map(self._apex, self.networks)):
            yield apex, "NS", f"ns.dns.{self.zone}"
        for address in self.addresses:
            yield f"ns.dns.{self.zone}", "AAAA" if ":" in address else "A", _text(address)
        for service in self.services:
            yield from self.records_of(service)

    def endpoints_of(self, service: Object) -> Iterator[tuple[Object, str, str]]:
        """Yields (slice, hostname, address) for each endpoint that counts as ready."""
        for piece in self.slices:
            same_namespace = piece["metadata"]["namespace"] == service["metadata"]["namespace"]
            owner = piece["metadata"]["labels"].get("kubernetes.io/service-name")
            if same_namespace and owner == service["metadata"]["name"]:
                for endpoint in piece["endpoints"]:
                    ready = endpoint["conditions"].get("ready", True)
                    if ready or service["spec"].get("publishNotReadyAddresses"):
                        for address in endpoint["addresses"]:
                            yield piece, _host(endpoint, address), address

    def records_of(self, service: Object) -> Iterator[tuple[str, str, str]]:
        spec = service["spec"]
        base = f"{service['metadata']['name']}.{service['metadata']['namespace']}.svc.{self.zone}"
        if spec.get("type") == "ExternalName":
            yield base, "CNAME", spec["externalName"].rstrip(".") + "."
            return
        if not spec.get("clusterIPs"):
            return
        srv: dict[str, set[tuple[int, str]]] = {}

        def listen(port: Object, target: str) -> None:
            prefixes = ["", f"_{port['name']}._{port['protocol'].lower()}."] if port.get("name") else [""]
            for prefix in prefixes:
                srv.setdefault(prefix + base, set()).add((port["port"], target))

        if spec["clusterIPs"] != ["None"]:
            for address in spec["clusterIPs"]:
                yield base, "AAAA" if ":" in address else "A", _text(address)
                yield ipaddress.ip_address(address).reverse_pointer + ".", "PTR", base
            for _, hostname, address in self.endpoints_of(service):
                yield f"{hostname}.{base}", "AAAA" if ":" in address else "A", _text(address)
                yield ipaddress.ip_address(address).reverse_pointer + ".", "PTR", f"{hostname}.{base}"
            for port in spec["ports"]:
                listen(port, base)
        else:
            for piece, hostname, address in self.endpoints_of(service):
                owner = f"{hostname}.{base}"
                for name in (base, owner):
                    yield name, "AAAA" if ":" in address else "A", _text(address)
                yield ipaddress.ip_address(address).reverse_pointer + ".", "PTR", owner
                for port in piece["ports"]:
                    listen(port, owner)
        for name, targets in srv.items():
            for number, target in targets:
                yield name, "SRV", f"0 {max(1, 100 // len(targets))} {number} {target}"

    def resolve(self, name: str, rtype: str) -> Answer | None:
        """Returns the answer; None if the name is outside the zones."""
        found = {f"{n} {t} {d}" for n, t, d in self.records if n == name and t in (rtype, "CNAME")}
        if found:
            return "NOERROR", found
        if not self.ours(name):
            return None
        existing = {n for n, _, _ in self.records} | {f"svc.{self.zone}", f"pod.{self.zone}", self.zone}
        existing |= {f"{n}.{kind}.{self.zone}" for n in self.namespaces for kind in ("svc", "pod")}
        exists = name in existing or any(other.endswith("." + name) for other in existing)
        return "NOERROR" if exists or self.is_apex(name) else "NXDOMAIN", set()

    def is_apex(self, name: str) -> bool:
        return any(name == self._apex(n) for n in self.networks)

    def ours(self, name: str) -> bool:
        return any(name == apex or name.endswith("." + apex) for apex in (self.zone, *map(self._apex, self.networks)))

    @staticmethod
    def _apex(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> str:
        """Returns the apex of the reverse zone. The prefix must end at an octet (IPv6: a nibble)."""
        labels = network.network_address.reverse_pointer.split(".")
        host_labels = (network.max_prefixlen - network.prefixlen) // (8 if network.version == 4 else 4)
        return ".".join(labels[host_labels:]) + "."
