"""Converts a subset of CoreDNS's Corefile into a DnsConfig, so that an existing cluster keeps its settings.

The module reads autopath, bind, bufsize, cache, errors, forward, health, hosts, import, kubernetes, loadbalance,
log, loop, prometheus, ready, reload, rewrite name, template. The module skips everything else and reports
each skipped line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from . import corefile_cache, corefile_routes, corefile_rules, corefile_words, names
from .config import MAX_TTL, PORT, DnsConfig, Forward, is_page_address
from .corefile_cache import Caching
from .corefile_parse import Place, parse
from .corefile_routes import DNS, Key, Sending
from .corefile_text import Directive, bad, number, seconds
from .forward import DOWN_AFTER, EXPIRE, NO_TLS, POLICIES, TLS
from .rewriting import Rewrite
from .rules import Block, Hosts
from .templates import Template
from .wire import UDP_SIZE
from .zonetext import LONGEST_TTL

HEALTH, READY, METRICS = ":8080", ":8181", "localhost:9153"
RELOAD, RELOAD_LEAST = 30.0, 2.0
EMPTY: dict[str, Any] = {  # only the Corefile sets these fields
    "upstreams": (),
    "stubs": (),
    "forwards": (),
    "blocks": (),
    "prefetch": False,
    "denial_ttl": MAX_TTL,
}
WAVED = "--ignore-access-rules (with podwire agent: --set dns.ignore_access=true)"
ALWAYS = ("errors", "loop")  # directives for functions that are always active


@dataclass(slots=True)
class _Server:
    """The state of one server block during reading."""

    zones: tuple[str, ...]
    wire: tuple[bytes, ...]
    caching: Caching = field(default_factory=Caching)  # without `cache` the server caches only failures
    rewrites: list[Rewrite] = field(default_factory=list)
    templates: list[Template] = field(default_factory=list)
    hosts: list[Hosts] = field(default_factory=list)
    sendings: list[Sending] = field(default_factory=list)
    kubernetes: bool = False
    cluster: bool = False


@dataclass(slots=True)
class _Reader:
    """Reads server blocks. config: grows with each directive. notes: the skipped, unsupported lines."""

    config: DnsConfig
    notes: list[str] = field(default_factory=list)
    port: int = PORT  # the port of a block that names no port
    taken: dict[str, Directive] = field(default_factory=dict)  # zone -> its server block
    sent: list[corefile_routes.Block] = field(default_factory=list)
    cluster: bool = False
    elsewhere: list[tuple[Directive, Rewrite]] = field(default_factory=list)  # rules of blocks without `kubernetes`
    said: dict[str, tuple[Directive, object]] = field(default_factory=dict)  # setting -> (directive, value)

    def note(self, item: Directive, why: str = "is not supported and left out") -> None:
        self.notes.append(f"{item.at}: {' '.join(item.words)!r} {why}")

    def set(self, **changes: object) -> None:
        self.config = replace(self.config, **changes)  # type: ignore[arg-type]  # each caller names fields of its type

    def zones(self, block: Directive, keys: list[Key], port: int) -> list[str]:
        """Returns the zones of a block that this server serves: zones of plain DNS at the port of this server."""
        found: list[str] = []
        for key in keys:
            if key.scheme != DNS:
                self.note(block, f"listens with {key.scheme}, which is not supported")
            elif (key.port or self.port) != port:
                self.note(block, f"is skipped for {key.word!r}: this DNS listens on port {port} only")
            else:
                found += key.zones
        for zone in found:
            if zone in self.taken:
                raise bad(block, f"the zone {zone!r} has a server block already, at {self.taken[zone].at}")
            self.taken[zone] = block
        return found

    def server(self, block: Directive, zones: list[str]) -> None:
        made = _Server(tuple(zones), corefile_routes.wire(zones))
        readers: dict[str, Callable[[Directive, _Server], None]] = {
            "autopath": self.autopath,
            "bind": self.bind,
            "bufsize": self.bufsize,
            "cache": self.cache,
            "forward": self.forward,
            "health": self.health,
            "hosts": self.hosts,
            "kubernetes": self.kubernetes,
            "loadbalance": self.loadbalance,
            "log": self.log,
            "prometheus": self.prometheus,
            "ready": self.ready,
            "reload": self.reload,
            "rewrite": self.rewrite,
            "template": self.template,
        }
        made.kubernetes = any(item.name == "kubernetes" for item in block.block)
        if made.kubernetes:
            self.set(shuffle=any(item.name == "loadbalance" for item in block.block))
        order = {
            "kubernetes": -1,
            "forward": 1,
        }  # `cache` needs the cluster domain; `forward` needs the settings of `cache`
        for item in sorted(block.block, key=lambda item: order.get(item.name, 0)):
            corefile_words.check(item)
            self.idle(item)
            if item.name in readers:
                readers[item.name](item, made)
            elif item.name in corefile_words.ACCESS:
                self.access(item)
            elif item.name in corefile_words.SOURCES:
                self.source(item, made)
            elif item.name in corefile_words.IDLE_DIRECTIVES:
                self.note(item, f"has no effect here: {corefile_words.IDLE_DIRECTIVES[item.name]}")
            elif item.name not in ALWAYS or item.args not in ([], ["stdout"]):
                self.note(item)
        self.bounded(made)
        rules = Block(made.wire, tuple(made.rewrites), tuple(made.templates), tuple(made.hosts))
        self.set(blocks=(*self.config.blocks, rules))
        self.sent.append(corefile_routes.Block(made.wire, made.sendings, bool(made.rewrites)))

    def source(self, item: Directive, server: _Server) -> None:
        """Keeps the names of a source that this server does not read from the upstreams of its block.

        With `fallthrough`, CoreDNS sends the names that the source does not have to the upstreams too.
        """
        if any(option.name == "fallthrough" for option in item.block):
            self.note(item, "is not supported: the names of its zones go to the upstreams, as fallthrough says")
            return
        zones = corefile_routes.zone_names(corefile_words.source_zones(item), item) or list(server.zones)
        self.note(item, f"is not supported: names in {', '.join(zones)} are refused")
        server.sendings.append(Sending(item, corefile_routes.wire(zones), (), Forward(".", ()), source=True))

    def idle(self, item: Directive) -> None:
        """Reports the options that have no effect in this server, and removes them."""
        for option in item.block:
            if option.name in corefile_words.IDLE:
                self.note(option, f"has no effect here: {corefile_words.IDLE[option.name]}")
        item.block = [option for option in item.block if option.name not in corefile_words.IDLE]

    def access(self, item: Directive) -> None:
        if not self.config.ignore_access:
            raise bad(
                item,
                f"{item.name} restricts who is answered, and is not supported here; remove it, or start with "
                f"{WAVED} to answer everybody",
            )
        self.note(item, "is not enforced: everybody is answered")

    def bounded(self, server: _Server) -> None:
        """Limits the TTLs of local answers as `cache` does."""
        made = server.caching
        most, absent = int(made.positive) or LONGEST_TTL, int(made.negative) or LONGEST_TTL
        server.hosts = [replace(each, ttl=min(each.ttl, most)) for each in server.hosts]
        server.templates = [
            replace(each, most_ttl=most if each.answers and not each.rcode else absent) for each in server.templates
        ]
        if server.cluster:
            self.set(ttl=min(self.config.ttl, most if "success" in made.cluster else MAX_TTL))
            self.set(denial_ttl=min(MAX_TTL, absent) if "denial" in made.cluster else MAX_TTL)

    def once(self, item: Directive, name: str, value: object) -> None:
        """Sets a setting that all server blocks share. Reports a block that contradicts another block."""
        before = self.said.setdefault(name, (item, value))
        if before[1] != value:
            self.note(item, f"holds for all server blocks, in place of that at {before[0].at}")
            self.said[name] = item, value
        self.set(**{name: value})

    def kubernetes(self, item: Directive, server: _Server) -> None:
        every = corefile_routes.zone_names(item.args, item) or server.zones
        zones = [zone for zone in dict.fromkeys(every) if not zone.endswith(("in-addr.arpa", "ip6.arpa"))]
        if self.cluster:
            if zones:
                self.note(item, f"is skipped: {self.config.cluster_domain!r} is the only cluster domain here")
            return
        self.cluster = server.cluster = True
        if zones and zones[0] != ".":
            self.set(cluster_domain=zones[0])
        if len(zones) > 1:
            self.note(item, f"has more than one cluster domain; only {zones[0]!r} is answered")
        self.set(pods=False, verify_pods=False)  # CoreDNS's default
        for option in item.block:
            if option.name == "ttl" and option.args:
                self.set(ttl=number(option.args[0], option))
            elif option.name == "pods":
                if option.args not in (["disabled"], ["insecure"], ["verified"]):
                    raise bad(option, "pods must be disabled, insecure or verified")
                self.set(pods=option.args != ["disabled"], verify_pods=option.args == ["verified"])
            elif option.name == "fallthrough":
                zones = corefile_routes.zone_names(option.args, option)
                if not zones or any(not zone.endswith(".arpa") for zone in zones):
                    self.note(option, "holds for reverse names only: missing names of the cluster are NXDOMAIN")
            elif option.name == "kubeconfig" and option.args:
                self.set(kubeconfig=option.args[0])
            elif option.words != ["ignore", "empty_service"]:
                self.note(option)

    def forward(self, item: Directive, server: _Server) -> None:
        if len(item.args) < 2:
            raise bad(item, "forward needs a domain and at least one upstream")
        words = (word.removeprefix("dns://") for word in item.args[1:])
        targets = tuple(word if word.startswith("/") else corefile_routes.upstream(word, item) for word in words)
        sources = corefile_routes.zone_names(item.args[:1], item)
        excepts: list[str] = []
        lives = server.caching.positive, server.caching.negative, server.caching.failures
        made = Forward(".", targets, "random", NO_TLS, False, DOWN_AFTER, EXPIRE, *lives)
        for option in item.block:
            if option.name == "policy" and option.args:
                if option.args[0] not in POLICIES:
                    raise bad(option, f"the policy must be one of {', '.join(POLICIES)}")
                made = replace(made, policy=option.args[0])
            elif option.name == "tls_servername" and option.args:
                made = replace(made, tls=replace(made.tls, servername=option.args[0]))
            elif option.name == "tls":
                made = replace(made, tls=corefile_routes.tls(option, made.tls.servername))
            elif option.name == "force_tcp":
                made = replace(made, force_tcp=True)
            elif option.name == "max_fails" and option.args:
                made = replace(made, max_fails=number(option.args[0], option))
            elif option.name == "expire" and option.args:
                made = replace(made, expire=seconds(option.args[0], option))
            elif option.name == "except" and option.args:
                excepts += corefile_routes.zone_names(option.args, option)
            elif option.name != "prefer_udp":  # prefer_udp is the behaviour of this server
                self.note(option)
        if not any(word.startswith(TLS) for word in targets):
            self._without_tls(item)
        wire = corefile_routes.wire
        server.sendings.append(Sending(item, wire(sources), wire(excepts), made))

    def _without_tls(self, item: Directive) -> None:
        for option in item.block:
            if option.name in ("tls", "tls_servername"):
                self.note(option, "has no effect here: no upstream of this forward has tls://")

    def cache(self, item: Directive, server: _Server) -> None:
        server.caching = made = corefile_cache.read(item, self.config.cluster_domain, self.note)
        if made.stale is not None:
            self.once(made.stale[0], "serve_stale", made.stale[1])
        if made.capacity:
            self.set(cache_capacity=made.capacity)
        self.set(prefetch=self.config.prefetch or made.prefetch)

    def health(self, item: Directive, _server: _Server) -> None:
        self.once(item, "health_address", _address(item, HEALTH))
        for option in item.block:
            if option.name == "lameduck" and option.args:
                self.set(lame_duck=seconds(option.args[0], option))
            else:
                self.note(option)

    def ready(self, item: Directive, _server: _Server) -> None:
        self.once(item, "ready_address", _address(item, READY))
        for option in item.block:
            self.note(option)

    def prometheus(self, item: Directive, _server: _Server) -> None:
        self.once(item, "metrics_address", _address(item, METRICS))

    def reload(self, item: Directive, _server: _Server) -> None:
        every = seconds(item.args[0], item) if item.args else RELOAD
        self.once(item, "reload", max(RELOAD_LEAST, every) if every else 0.0)
        if len(item.args) > 1:
            self.note(item, "has a jitter, which has no effect here: it looks every interval")

    def bind(self, item: Directive, _server: _Server) -> None:
        addresses, excepted = self._addresses(item), list[str]()
        for option in item.block:
            excepted += self._addresses(option)
        addresses = [address for address in addresses if address not in excepted]
        before = self.said.get("listen")
        if before is not None and before[1] != tuple(addresses) and not self.config.ignore_access:
            raise bad(
                item,
                f"bind has other addresses than that at {before[0].at}, and all server blocks listen on the same ones "
                f"here. Write the same addresses, or start with {WAVED} to listen on the last ones",
            )
        if addresses:
            self.once(item, "listen", tuple(addresses))
        elif not self.config.ignore_access:
            raise bad(
                item,
                "bind names no address; interfaces are not supported here. Write addresses, or start with "
                f"{WAVED} to listen on {', '.join(self.config.listen)}",
            )

    def _addresses(self, item: Directive) -> list[str]:
        found = []
        for word in item.args:
            try:
                found.append(names.canonical(word))
            except names.BadName:
                self.note(item, f"names {word!r}, which is not an address, and is left out")
        return found

    def bufsize(self, item: Directive, _server: _Server) -> None:
        if item.args and item.args[0] != str(UDP_SIZE):
            self.note(item, f"is left out: UDP answers end at {UDP_SIZE} bytes")

    def loadbalance(self, item: Directive, server: _Server) -> None:
        if item.args[:1] not in ([], ["round_robin"]) or item.block:
            self.note(item, "is not supported; each answer starts at a random address")
        elif not server.kubernetes:
            self.note(item, "has no effect here: answers of upstreams keep their order")

    def log(self, item: Directive, server: _Server) -> None:
        formats = [word for word in item.args if "{" in word]
        if formats:
            self.note(item, "has a format of its own, which is not supported; queries are logged as key=value")
        domains = tuple(word for word in item.args if word not in formats and word != ".")
        classes: tuple[str, ...] = ("all",)
        for option in item.block:
            if not set(option.args) <= {"all", "success", "denial", "error"}:
                raise bad(option, "class takes all, success, denial and error")
            classes = tuple(option.args)
        corefile_rules.zones_of(domains, item)
        if not domains and "." not in server.zones:
            domains = server.zones
        if "log_classes" in self.said:  # another block also has `log`: log the classes of both blocks
            domains = (*self.config.log_names, *domains) if domains and self.config.log_names else ()
        self.set(log_queries=True, log_names=domains)
        self.once(item, "log_classes", classes)

    def autopath(self, item: Directive, server: _Server) -> None:
        if item.args[-1:] != ["@kubernetes"]:
            self.note(item, "is the search path of the pods' namespaces here, as with @kubernetes")
        self.set(autopath=True)

    def rewrite(self, item: Directive, server: _Server) -> None:
        found = corefile_rules.rewrite(item, self.note)
        server.rewrites += [found] if found is not None else []
        if found is not None and not server.kubernetes:
            self.elsewhere.append((item, found))

    def tell_elsewhere(self) -> None:
        """Reports the rules that lead to the cluster from a block in which CoreDNS has no cluster."""
        for item, rule in self.elsewhere if self.cluster else ():
            if f".{rule.new.lower().rstrip('.')}".endswith(f".{self.config.cluster_domain.rstrip('.')}"):
                self.note(
                    item, "leads to names of the cluster: they are answered here, though the block lacks kubernetes"
                )

    def template(self, item: Directive, server: _Server) -> None:
        found = corefile_rules.template(item, server.wire, self.note)
        server.templates += [found] if found is not None else []

    def hosts(self, item: Directive, server: _Server) -> None:
        found, again = corefile_rules.hosts(item, server.wire, self.note)
        server.hosts.append(found)
        if again is not None:
            self.set(follow=min(self.config.follow, again) if self.config.follow and again else again)


def _address(item: Directive, default: str) -> str:
    text = item.args[0] if item.args else default
    if not is_page_address(text):
        raise bad(item, f"{text!r} is not an address; write HOST:PORT or :PORT")
    return text


def resolv_conf(text: str) -> tuple[str, ...]:
    """Returns the nameservers of a resolv.conf. A link-local address has its scope: "fe80::1%eth0"."""
    rows = (line.split() for line in text.splitlines())
    return tuple(words[1] for words in rows if len(words) > 1 and words[0] == "nameserver")


def apply(text: str, base: DnsConfig, place: Place | None = None) -> tuple[DnsConfig, list[str]]:
    """Returns `base` with the settings of the Corefile, and a note for each skipped line. Raises BadConfig.

    place: the files and the environment around the Corefile. Only the Corefile determines forwarding: without
    `forward`, the server refuses names outside the cluster.
    """
    blocks, notes = parse(text, place)
    reader = _Reader(replace(base, **EMPTY), notes, base.port)
    keys = [[corefile_routes.key(word, block) for word in block.words] for block in blocks]
    port = _port(blocks, keys, base.port)
    reader.set(port=port)
    for block, own in zip(blocks, keys, strict=True):
        zones = reader.zones(block, own, port)
        if zones:
            reader.server(block, zones)
    reader.tell_elsewhere()
    reader.set(forwards=corefile_routes.routes(reader.sent, reader.config.zones(), reader.note))
    return reader.config, reader.notes


def _port(blocks: list[Directive], keys: list[list[Key]], base: int) -> int:
    """Returns the port of this server: of the cluster's block, else of the block for ".", else of the first block."""
    found = [
        (any(item.name == "kubernetes" for item in block.block), "." in key.zones, key.port or base)
        for block, own in zip(blocks, keys, strict=True)
        for key in own
        if key.scheme == DNS
    ]
    return max(found, key=lambda each: each[:2], default=(False, False, base))[2]
