"""The settings of the feeder and of the server. Both use the same record, DnsConfig."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from podwire_base.numerals import decimal

from . import names
from .cache import CAPACITY, FAILURE_SECONDS, NEGATIVE_CAP, POSITIVE_CAP
from .forward import DOWN_AFTER, EXPIRE, NO_TLS, POLICIES, TLS, Route, Tls
from .rules import Block
from .schema import Schema

MAX_TTL = 3600
RESOLV_CONF = "/etc/resolv.conf"
PORT, TLS_PORT = 53, 853
WILDCARDS = ("0.0.0.0", "::")
LAST_PORT = 65535


class BadConfig(ValueError):
    """A setting is invalid. The text names the setting and the remedy."""


@dataclass(frozen=True, slots=True)
class Forward:
    """The upstreams for names below `domain` ("." for all others). upstreams: as in DnsConfig; without upstreams, the
    server refuses these names. home: the first zone (in wire form) of the block whose rules made the names, outside its
    zones; b"" for other names. The other fields are the fields of forward.Route.
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
    cache_failures: float = FAILURE_SECONDS
    home: bytes = b""


@dataclass(frozen=True, slots=True)
class DnsConfig:
    """kubeconfig: None means the pod's own service account. run_dir: holds dns.sock and the status files.

    listen: the cluster DNS addresses, put on lo if the node does not have them; "0.0.0.0" and "::" stand for the
    existing addresses. dns_addresses: the addresses that clients use if they differ from `listen` (the addresses of a
    Service). pod_cidrs, service_cidrs: the server answers the reverse names of these ranges and forwards all other
    reverse names. ttl: seconds, 0 to 3600. denial_ttl: the upper bound of the TTL of the cluster's negative answers.
    pods: answer a-b-c-d.namespace.pod names; verify_pods: answer only if a pod has the address (the feeder then watches
    all pods). notrack: exempt DNS on the listen addresses from conntrack.
    spare: a second server process reads the same sockets, so that the DNS survives the end of either (spare.py).
    linger: seconds after SIGTERM for which the spare answers, if no other server takes the sockets over.
    batches: receive and send many packets with one call if the native code is available. shuffle: start the addresses
    of a name at a random address.

    upstreams: "IP", "IP#port", "tls://IP#port" (DNS over TLS), or the path of a resolv.conf, for names outside the
    cluster; empty: the server refuses such names. stubs: "domain=UPSTREAM,UPSTREAM", the upstreams of names below the
    domain. forwards: if not empty, replaces `upstreams` and `stubs`. tls: for upstreams with tls://. policy: the order
    of the upstreams: sequential, round_robin or random. autopath: complete a search path's name in one answer.
    serve_stale: seconds for which the server still gives an expired answer while no upstream answers. prefetch: fetch
    popular answers again shortly before they expire. cache_positive, cache_negative: the maximum lifetime, in seconds,
    of positive and negative answers of upstreams. cache_capacity: the maximum number of answers.

    health_address, ready_address, metrics_address: "host:port" of /health, /ready and /metrics; empty: no such page.
    lame_duck: seconds for which the server still answers after SIGTERM, while /ready already fails. log_queries: log a
    line for each query, with the client's pod (slower); log_classes: only answers of these classes (all, success,
    denial, error); log_names: only names below these names.

    corefile: the path of a CoreDNS Corefile, which overrides the other settings. ignore_access: start although the
    Corefile restricts the clients; the server does not enforce the restriction. blocks: the rewrite, template and hosts
    rules of the Corefile. reload: seconds between checks of the Corefile; 0: check only at SIGHUP. follow: the same for
    resolv.conf and hosts files.

    user: the numeric user and group as which the server runs if it is started as root, with no privileges and nothing
    but its sockets; 0: it stays root.
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
    denial_ttl: int = MAX_TTL
    pods: bool = True
    verify_pods: bool = False
    notrack: bool = True
    batches: bool = True
    spare: bool = True
    linger: float = 0.0
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
    user: int = 64053

    @property
    def socket_path(self) -> Path:
        return self.run_dir / "dns.sock"

    def schema(self) -> Schema:
        """Returns the settings of the zone without its records. Raises BadConfig."""
        if not 0 <= self.ttl <= MAX_TTL:
            raise BadConfig(f"ttl is {self.ttl}; it must be from 0 to {MAX_TTL} seconds")
        try:
            reverse = dict.fromkeys(
                z for cidr in (*self.service_cidrs, *self.pod_cidrs) for z in names.reverse_zones(cidr)
            )
            reached = tuple(_ip(a, "dns_addresses") for a in self.dns_addresses) or self.addresses()
            reached = tuple(address for address in reached if address not in WILDCARDS)
            denial = min(self.ttl, self.denial_ttl)
            return Schema(names.fqdn(self.cluster_domain), self.ttl, tuple(reverse), reached, self.pods, denial)
        except names.BadName as err:
            raise BadConfig(f"cluster_domain, pod_cidrs or service_cidrs: {err}") from err

    def zones(self) -> tuple[bytes, ...]:
        """Returns the apexes in wire form, the cluster domain first."""
        schema = self.schema()
        return tuple(names.to_wire(zone) for zone in (schema.zone, *schema.reverse))

    def addresses(self) -> tuple[str, ...]:
        """Returns the addresses of `listen` in canonical form. Raises BadConfig."""
        return tuple(_ip(address, "listen") for address in self.listen)

    def check_pages(self) -> None:
        """Raises BadConfig for invalid addresses of /health, /ready and /metrics."""
        for name in ("health_address", "ready_address", "metrics_address"):
            text = getattr(self, name)
            if text and not is_page_address(text):
                raise BadConfig(f"{name}: {text!r} is not an address; write HOST:PORT or :PORT")

    def forwarding(self) -> tuple[Forward, ...]:
        """Returns `forwards`, or the equivalent of `upstreams` and `stubs`. Raises BadConfig."""
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

    def homes(self) -> dict[bytes, dict[bytes, Route]]:
        """Returns the result of `routes` for each block whose rules make names outside its zones. Raises BadConfig."""
        return {home: self.routes(home) for home in dict.fromkeys(each.home for each in self.forwards) if home}

    def routes(self, home: bytes = b"") -> dict[bytes, Route]:
        """Returns domain in wire form -> upstreams. home: as in Forward.

        Raises BadConfig, also if a query could return to this server.
        """
        found = {}
        for policy in (self.policy, *(each.policy for each in self.forwarding())):
            if policy not in POLICIES:
                raise BadConfig(f"policy is {policy!r}; it must be one of {', '.join(POLICIES)}")
        for each in self.forwarding():
            if each.home != home:
                continue
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
                each.cache_failures,
            )
        return found

    def _upstream(self, text: str) -> str:
        scheme = TLS if text.startswith(TLS) else ""
        host, _, port = text.removeprefix(TLS).partition("#")
        number = decimal(port, LAST_PORT) if port else TLS_PORT if scheme else PORT
        if not number:
            raise BadConfig(f"upstream {text!r} has a bad port; write IP or IP#port")
        address = _ip(host, "upstream")
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
