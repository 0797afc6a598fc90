"""What a feeder and a server must know; both are started from the same record."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from . import names
from .cache import NEGATIVE_CAP, POSITIVE_CAP
from .forward import POLICIES
from .schema import Schema

MAX_TTL = 3600


class BadConfig(ValueError):
    """A setting that cannot work; the text names it and says what to do."""


@dataclass(frozen=True, slots=True)
class DnsConfig:
    """kubeconfig: None means the pod's own service account. run_dir: holds dns.sock and the status files.

    listen: the cluster DNS addresses, bound on lo where the node does not have them. upstreams: "IP" or "IP#port", asked for
    names that are not ours; empty: such names are refused. pod_cidrs, service_cidrs: their reverse zones are answered here, all
    other reverse names are forwarded. ttl: seconds, 0 to 3600. pods: answer a-b-c-d.namespace.pod names; verify_pods:
    only where there is such a pod (the feeder then watches all pods). notrack: keep DNS on the listen addresses out of
    conntrack. batches: receive and send many packets at once where that was compiled.

    health_address, ready_address, metrics_address: "host:port" of /health, /ready and /metrics, empty: none. lame_duck: seconds
    to go on answering after SIGTERM, while /ready already says no. log_queries: a line for each, with the client's pod: slower.

    autopath: complete a search path's name in one answer. stubs: "domain=IP[#port],IP[#port]", names below that domain are
    asked there. policy: which upstream is asked first: sequential, round_robin or random. serve_stale: seconds that an expired
    answer is still given while no upstream answers. prefetch: fetch popular answers anew shortly before they expire.
    cache_positive, cache_negative: the longest that answers of upstreams, and their absence, are kept, in seconds.
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
    verify_pods: bool = False
    notrack: bool = True
    batches: bool = True
    health_address: str = ""
    ready_address: str = ""
    metrics_address: str = ""
    lame_duck: float = 0.0
    log_queries: bool = False
    autopath: bool = False
    stubs: tuple[str, ...] = ()
    policy: str = "sequential"
    serve_stale: float = 0.0
    prefetch: bool = True
    cache_positive: float = POSITIVE_CAP
    cache_negative: float = NEGATIVE_CAP

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
        return tuple(self._upstream(text, "upstreams") for text in self.upstreams)

    def routes(self) -> dict[bytes, tuple[str, ...]]:
        """Domain in wire form -> upstreams as "IP#port"; the root's are `upstreams`. Raises BadConfig."""
        found = {b"\0": self.checked_upstreams()} if self.upstreams else {}
        for text in self.stubs:
            domain, equals, addresses = text.partition("=")
            if not equals or not addresses:
                raise BadConfig(f"stubs: {text!r} must be written domain=IP or domain=IP#port,IP#port")
            try:
                name = names.to_wire(names.fqdn(domain))
            except names.BadName as err:
                raise BadConfig(f"stubs: {err}") from err
            if any(zone == name or name.endswith(zone) for zone in self.zones()):
                raise BadConfig(f"stubs: {domain!r} lies in a zone that is answered here; take it out")
            found[name] = tuple(self._upstream(address, "stubs") for address in addresses.split(","))
        if self.policy not in POLICIES:
            raise BadConfig(f"policy is {self.policy!r}; it must be one of {', '.join(POLICIES)}")
        return found

    def _upstream(self, text: str, what: str) -> str:
        host, _, port = text.partition("#")
        if port and not (port.isdigit() and 0 < int(port) < 65536):
            raise BadConfig(f"{what}: {text!r} has a bad port; write IP or IP#port")
        address = _ip(host, what)
        if address in self.addresses() and int(port or 53) == self.port:
            raise BadConfig(f"{what}: {text!r} is this DNS itself, and queries would go round for ever; take it out")
        return f"{address}#{port or 53}"


def _ip(text: str, what: str) -> str:
    try:
        return names.canonical(text)
    except names.BadName as err:
        raise BadConfig(f"{what}: {err}") from err
