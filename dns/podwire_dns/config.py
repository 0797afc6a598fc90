"""What a feeder and a server must know; both are started from the same record."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from . import names
from .schema import Schema

MAX_TTL = 3600


class BadConfig(ValueError):
    """A setting that cannot work; the text names it and says what to do."""


@dataclass(frozen=True, slots=True)
class DnsConfig:
    """kubeconfig: None means the pod's own service account. run_dir: holds dns.sock and the status files.

    listen: the cluster DNS addresses, bound on lo where the node does not have them. upstreams: "IP" or "IP#port", asked in
    this order for names that are not ours; empty: such names are refused. pod_cidrs, service_cidrs: their reverse zones are
    answered here, all other reverse names are forwarded. ttl: seconds, 0 to 3600. pods: answer a-b-c-d.namespace.pod names.
    notrack: keep DNS on the listen addresses out of conntrack. batches: receive and send many packets at once where that was
    compiled.
    """

    node_name: str
    kubeconfig: str | None
    run_dir: Path
    listen: tuple[str, ...] = ("10.96.0.10",)
    port: int = 53
    cluster_domain: str = "cluster.local"
    upstreams: tuple[str, ...] = ()
    pod_cidrs: tuple[str, ...] = ("10.244.0.0/16",)
    service_cidrs: tuple[str, ...] = ("10.96.0.0/16",)
    ttl: int = 5
    pods: bool = True
    notrack: bool = True
    batches: bool = True

    @property
    def socket_path(self) -> Path:
        return self.run_dir / "dns.sock"

    def schema(self) -> Schema:
        """The zone's frame. Raises BadConfig."""
        if not 0 <= self.ttl <= MAX_TTL:
            raise BadConfig(f"ttl is {self.ttl}; it must be from 0 to {MAX_TTL} seconds")
        try:
            reverse = dict.fromkeys(z for cidr in (*self.service_cidrs, *self.pod_cidrs) for z in names.reverse_zones(cidr))
            return Schema(names.fqdn(self.cluster_domain), self.ttl, tuple(reverse), self.addresses(), self.pods)
        except names.BadName as err:
            raise BadConfig(f"cluster_domain, pod_cidrs or service_cidrs: {err}") from err

    def zones(self) -> tuple[bytes, ...]:
        """Apexes in wire form, the cluster domain first."""
        schema = self.schema()
        return tuple(names.to_wire(zone) for zone in (schema.zone, *schema.reverse))

    def addresses(self) -> tuple[str, ...]:
        """`listen`, checked and in canonical form."""
        return tuple(_ip(address, "listen") for address in self.listen)

    def checked_upstreams(self) -> tuple[str, ...]:
        """`upstreams` as "IP#port". Raises BadConfig, also where a query would come back to ourselves."""
        found = []
        for text in self.upstreams:
            host, _, port = text.partition("#")
            if port and not (port.isdigit() and 0 < int(port) < 65536):
                raise BadConfig(f"upstreams: {text!r} has a bad port; write IP or IP#port")
            address = _ip(host, "upstreams")
            if address in self.addresses() and int(port or 53) == self.port:
                raise BadConfig(f"upstreams: {text!r} is this DNS itself, and queries would go round for ever; take it out")
            found.append(f"{address}#{port or 53}")
        return tuple(found)


def _ip(text: str, what: str) -> str:
    try:
        return names.canonical(text)
    except names.BadName as err:
        raise BadConfig(f"{what}: {err}") from err
