"""The settings of a feeder and a server. Both start from the same record."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from . import names
from .cache import CAPACITY, NEGATIVE_CAP, POSITIVE_CAP
from .forward import DOWN_AFTER, EXPIRE, NO_TLS, POLICIES, TLS, Route, Tls
from .rules import Block
from .schema import Schema

MAX_TTL = 3600
RESOLV_CONF = "/etc/resolv.conf"
PORT, TLS_PORT = 53, 853
WILDCARDS = ("0.0.0.0", "::")
LAST_PORT = 65535


class BadConfig(ValueError):
    """An invalid setting; the text names it and the remedy."""


@dataclass(frozen=True, slots=True)
class Forward:
    """The upstreams for names below `domain` ("." for all others). upstreams: as in DnsConfig; without any, such names
    are refused. The other fields are those of forward.Route.
    """

    domain: str
    upstreams: tuple[str, ...]
    policy: str = "sequential"
    tls: Tls = NO_TLS
    force_tcp: bool = False
    max_fails: int = DOWN_AFTER
    expire: float = EXPIRE
    cache_positive: float = POSITIVE_CAP
    cache_negative: float = NEGATIVE_CAP


@dataclass(frozen=True, slots=True)
class DnsConfig:
    """kubeconfig: None means the pod's own service account. run_dir: holds dns.sock and the status files.

    listen: the cluster DNS addresses, put on lo if the node does not have them; "0.0.0.0" and "::" stand for the
    addresses that exist. dns_addresses: the addresses at which clients reach this DNS if they differ from `listen` (a
    Service's addresses). pod_cidrs, service_cidrs: their reverse zones are answered here, all other reverse names are
    forwarded. ttl: seconds, 0 to 3600. pods: answer a-b-c-d.namespace.pod names; verify_pods: only if such a pod exists
    (the feeder then watches all pods). notrack: keep DNS on the listen addresses out of conntrack. batches: receive and
    send many packets at once if that is compiled. shuffle: start the addresses of a name at a random one.

    upstreams: "IP", "IP#port", "tls://IP#port" (DNS over TLS), or the path of a resolv.conf, for names outside the
    cluster; empty: such names are refused. stubs: "domain=UPSTREAM,UPSTREAM", the upstreams of names below that domain.
    forwards: if not empty, replaces both. tls: for upstreams with tls://. policy: the order of the upstreams:
    sequential, round_robin or random. autopath: complete a search path's name in one answer. serve_stale: seconds for
    which an expired answer is still given while no upstream answers. prefetch: fetch popular answers again shortly
    before they expire. cache_positive, cache_negative: how long answers of upstreams, and negative answers, are kept at
    most, in seconds. cache_capacity: number of answers.

    health_address, ready_address, metrics_address: "host:port" of /health, /ready and /metrics, empty: none. lame_duck:
    seconds of answering after SIGTERM, while /ready already fails. log_queries: a line for each, with the
    client's pod: slower; log_classes: only for answers of these classes (all, success, denial, error); log_names: only
    for names below these.

    corefile: the path of a CoreDNS Corefile, which overrides the other settings. ignore_access: start although it
    restricts who is answered, which is not enforced. blocks: its rewrite, template and
    hosts. reload: seconds between checks of the Corefile, 0: only at SIGHUP. follow: the same for resolv.conf and hosts
    files.
    """

    node_name: str
    kubeconfig: str | None
    run_dir: Path
    listen: tuple[str, ...] = ("10.96.0.10",)
    port: int = 53
    cluster_domain: str = "cluster.local"
    upstreams: tuple[str, ...] = (RESOLV_CONF,)
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
    cache_capacity: int = CAPACITY
    dns_addresses: tuple[str, ...] = ()
    tls: Tls = NO_TLS
    forwards: tuple[Forward, ...] = ()
    blocks: tuple[Block, ...] = ()
    shuffle: bool = True
    log_classes: tuple[str, ...] = ("all",)
    log_names: tuple[str, ...] = ()
    corefile: str = ""
    ignore_access: bool = False
    reload: float = 0.0
    follow: float = 5.0

    @property
    def socket_path(self) -> Path:
        return self.run_dir / "dns.sock"

    def schema(self) -> Schema:
        """The zone's frame. Raises BadConfig."""
        if not 0 <= self.ttl <= MAX_TTL:
            raise BadConfig(f"ttl is {self.ttl}; it must be from 0 to {MAX_TTL} seconds")
        try:
            reverse = dict.fromkeys(
                z for cidr in (*self.service_cidrs, *self.pod_cidrs) for z in names.reverse_zones(cidr)
            )
            reached = tuple(_ip(a, "dns_addresses") for a in self.dns_addresses) or self.addresses()
            reached = tuple(address for address in reached if address not in WILDCARDS)
            return Schema(names.fqdn(self.cluster_domain), self.ttl, tuple(reverse), reached, self.pods)
        except names.BadName as err:
            raise BadConfig(f"cluster_domain, pod_cidrs or service_cidrs: {err}") from err

    def zones(self) -> tuple[bytes, ...]:
        """Apexes in wire form, the cluster domain first."""
        schema = self.schema()
        return tuple(names.to_wire(zone) for zone in (schema.zone, *schema.reverse))

    def addresses(self) -> tuple[str, ...]:
        """`listen`, checked and in canonical form."""
        return tuple(_ip(address, "listen") for address in self.listen)

    def check_pages(self) -> None:
        """Raises BadConfig for impossible addresses of /health, /ready and /metrics."""
        for name in ("health_address", "ready_address", "metrics_address"):
            text = getattr(self, name)
            if text and not is_page_address(text):
                raise BadConfig(f"{name}: {text!r} is no address; write HOST:PORT or :PORT")

    def forwarding(self) -> tuple[Forward, ...]:
        """`forwards`, or the equivalent of `upstreams` and `stubs`. Raises BadConfig."""
        if self.forwards:
            return self.forwards
        found = []
        for domain, upstreams in ((".", self.upstreams), *map(_stub, self.stubs)):
            if upstreams:
                found.append(
                    Forward(
                        domain,
                        upstreams,
                        self.policy,
                        self.tls,
                        cache_positive=self.cache_positive,
                        cache_negative=self.cache_negative,
                    )
                )
        return tuple(found)

    def routes(self) -> dict[bytes, Route]:
        """Domain in wire form -> its upstreams. Raises BadConfig, also if a query would come back to this server."""
        found = {}
        for policy in (self.policy, *(each.policy for each in self.forwarding())):
            if policy not in POLICIES:
                raise BadConfig(f"policy is {policy!r}; it must be one of {', '.join(POLICIES)}")
        for each in self.forwarding():
            try:
                name = names.to_wire(names.fqdn(each.domain)) if each.domain != "." else b"\0"
            except names.BadName as err:
                raise BadConfig(f"forward: {err}") from err
            if any(zone == name or name.endswith(zone) for zone in self.zones()):
                raise BadConfig(f"forward: {each.domain!r} lies in a zone that is answered here; remove it")
            addresses = dict.fromkeys(self._upstream(text) for text in each.upstreams)
            found[name] = Route(
                tuple(addresses),
                each.policy,
                each.tls,
                each.force_tcp,
                each.max_fails,
                each.expire,
                each.cache_positive,
                each.cache_negative,
            )
        return found

    def _upstream(self, text: str) -> str:
        scheme = TLS if text.startswith(TLS) else ""
        host, _, port = text.removeprefix(TLS).partition("#")
        if port and not (port.isdigit() and 0 < int(port) <= LAST_PORT):
            raise BadConfig(f"upstream {text!r} has a bad port; write IP or IP#port")
        address = _ip(host, "upstream")
        number = int(port or (TLS_PORT if scheme else PORT))
        if address in self.addresses() and number == self.port:
            raise BadConfig(f"upstream {text!r} is this DNS itself, and queries would loop forever; remove it")
        return f"{scheme}{address}#{number}"


def is_page_address(text: str) -> bool:
    """Whether the text has the form HOST:PORT, [IPv6]:PORT or :PORT."""
    port = re.fullmatch(r".*:([0-9]{1,5})", text)
    return port is not None and int(port[1]) <= LAST_PORT


def _stub(text: str) -> tuple[str, tuple[str, ...]]:
    domain, equals, addresses = text.partition("=")
    if not equals or not addresses:
        raise BadConfig(f"stubs: {text!r} must be written domain=IP or domain=IP#port,IP#port")
    return domain, tuple(addresses.split(","))


def _ip(text: str, what: str) -> str:
    try:
        address = names.canonical(text)
    except names.BadName as err:
        raise BadConfig(f"{what}: {err}") from err
    if "%" in address and what != "upstream":
        raise BadConfig(f"{what}: {text!r} has a scope; clients need an address that is not link-local")
    return address
