"""A subset of CoreDNS's Corefile -> DnsConfig, so that an existing cluster's settings carry over.

Read: kubernetes, forward, cache, log, errors, health, ready, prometheus, reload, loadbalance, loop, autopath. Everything else
is named with its line and left out; nothing is dropped in silence.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from .config import BadConfig, DnsConfig

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_TOKEN = re.compile(r'"((?:[^"\\]|\\.)*)"|([{}])(?=\s|$)|(\S+)')
HEALTH, READY, METRICS, STALE = ":8080", ":8181", "localhost:9153", 3600.0
ALWAYS = ("errors", "loadbalance", "loop", "reload", "whoami", "minimal")  # what this server does anyway, or has no need of


@dataclass(slots=True)
class Directive:
    """One line, with the lines of the block behind it."""

    line: int
    words: list[str]
    block: list[Directive] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.words[0]

    @property
    def args(self) -> list[str]:
        return self.words[1:]


def parse(text: str) -> list[Directive]:
    """The server blocks: `words` are their zones. Raises BadConfig for braces that do not match."""
    root = Directive(0, [""])
    stack = [root]
    for number, words in _lines(text):
        opens = words[-1] == "{"
        plain = words[:-1] if opens else words
        if words == ["}"]:
            if len(stack) == 1:
                raise BadConfig(f"Corefile line {number}: a }} without a {{")
            stack.pop()
            continue
        if any(word in "{}" for word in plain) or not plain:
            raise BadConfig(f"Corefile line {number}: a brace must end its line, and }} must stand alone")
        made = Directive(number, plain)
        stack[-1].block.append(made)
        if opens:
            stack.append(made)
    if len(stack) > 1:
        raise BadConfig(f"Corefile line {stack[-1].line}: the {{ is not closed")
    return root.block


def _lines(text: str) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(text.splitlines(), 1):
        found = [quoted if quoted else brace or word for quoted, brace, word in _TOKEN.findall(re.sub(r"(^|\s)#.*", "", line))]
        if found:
            yield number, found


def seconds(text: str, line: int) -> float:
    """"5s", "1m30s", or a bare number of seconds."""
    if re.fullmatch(r"\d+", text):
        return float(text)
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h)", text)
    if not parts or "".join(a + b for a, b in parts) != text:
        raise BadConfig(f"Corefile line {line}: {text!r} is no duration; write 5s, 1m or 1h")
    return sum(float(amount) * _UNITS[unit] for amount, unit in parts)


@dataclass(slots=True)
class _Reader:
    """config: grows with each directive. nameservers: of /etc/resolv.conf. notes: what was left out."""

    config: DnsConfig
    nameservers: tuple[str, ...]
    notes: list[str] = field(default_factory=list)

    def note(self, item: Directive, why: str = "is not supported and left out") -> None:
        self.notes.append(f"Corefile line {item.line}: {' '.join(item.words)!r} {why}")

    def server(self, block: Directive) -> None:
        zones = []
        for word in block.words:
            zone, _, port = word.strip(",").removeprefix("dns://").partition(":")
            if "://" in word:
                self.note(block, f"listens with {word.partition('://')[0]}, which is not supported")
                return
            if port and zone in (".", ""):
                self.config = replace(self.config, port=self._number(port, block))
            zones.append(zone or ".")
        readers: dict[str, Callable[[Directive], None]] = {
            "kubernetes": self.kubernetes, "cache": self.cache, "health": self.health, "ready": self.ready,
            "prometheus": self.prometheus, "log": self.log, "autopath": self.autopath}
        for item in block.block:
            if item.name == "forward":
                for zone in zones:
                    self.forward(item, zone)
            elif item.name in readers:
                readers[item.name](item)
            elif item.name not in ALWAYS:
                self.note(item)

    def _number(self, text: str, item: Directive) -> int:
        if not text.isdigit():
            raise BadConfig(f"Corefile line {item.line}: {text!r} is no number")
        return int(text)

    def _first(self, item: Directive, default: str) -> str:
        return item.args[0] if item.args else default

    def kubernetes(self, item: Directive) -> None:
        zones = [zone for zone in item.args if not zone.endswith(("in-addr.arpa", "ip6.arpa"))]
        if zones:
            self.config = replace(self.config, cluster_domain=zones[0])
        if len(zones) > 1:
            self.note(item, f"has more than one cluster domain; only {zones[0]!r} is answered")
        self.config = replace(self.config, pods=False)  # CoreDNS's default
        for option in item.block:
            if option.name == "ttl" and option.args:
                self.config = replace(self.config, ttl=self._number(option.args[0], option))
            elif option.name == "pods" and option.args in (["disabled"], ["insecure"], ["verified"]):
                self.config = replace(self.config, pods=option.args != ["disabled"], verify_pods=option.args == ["verified"])
            elif option.name not in ("fallthrough", "ignore"):
                self.note(option)

    def forward(self, item: Directive, zone: str) -> None:
        if len(item.args) < 2:
            raise BadConfig(f"Corefile line {item.line}: forward needs a domain and at least one upstream")
        domain = item.args[0] if item.args[0] != "." else zone
        targets: list[str] = []
        for word in item.args[1:]:
            if word.startswith("/"):
                targets += self.nameservers
            elif word.startswith("tls://"):
                self.note(item, f"names {word!r}: DNS over TLS is not supported; this upstream is left out")
            else:
                targets.append(_upstream(word.removeprefix("dns://")))
        if not targets:
            self.note(item, "has no upstream left")
            return
        policy = "random"
        for option in item.block:
            if option.name == "policy" and option.args:
                policy = option.args[0]
            elif option.name not in ("max_concurrent", "max_fails", "health_check", "expire", "prefer_udp"):
                self.note(option)
        if domain == ".":
            self.config = replace(self.config, upstreams=tuple(targets), policy=policy)
        else:
            self.config = replace(self.config, stubs=(*self.config.stubs, f"{domain.rstrip('.')}={','.join(targets)}"))

    def cache(self, item: Directive) -> None:
        if item.args and item.args[0].isdigit():
            ttl = float(item.args[0])
            self.config = replace(self.config, cache_positive=ttl, cache_negative=ttl)
        for option in item.block:
            if option.name in ("success", "denial") and len(option.args) > 1:
                ttl = seconds(option.args[1], option.line)
                change = {"cache_positive" if option.name == "success" else "cache_negative": ttl}
                self.config = replace(self.config, **change)  # type: ignore[arg-type]  # both are floats
            elif option.name == "serve_stale":
                stale = seconds(option.args[0], option.line) if option.args else STALE
                self.config = replace(self.config, serve_stale=stale)
            elif option.name == "disable":
                if self.config.cluster_domain.rstrip(".") not in [word.rstrip(".") for word in option.args]:
                    self.note(option)  # the cluster's own names are never in a cache
            elif option.name not in ("prefetch", "success", "denial"):
                self.note(option)

    def health(self, item: Directive) -> None:
        self.config = replace(self.config, health_address=self._first(item, HEALTH))
        for option in item.block:
            if option.name == "lameduck" and option.args:
                self.config = replace(self.config, lame_duck=seconds(option.args[0], option.line))
            else:
                self.note(option)

    def ready(self, item: Directive) -> None:
        self.config = replace(self.config, ready_address=self._first(item, READY))

    def prometheus(self, item: Directive) -> None:
        self.config = replace(self.config, metrics_address=self._first(item, METRICS))

    def log(self, item: Directive) -> None:
        self.config = replace(self.config, log_queries=True)
        if item.args or item.block:
            self.note(item, "has a format of its own, which is not supported; every query is logged as key=value")

    def autopath(self, item: Directive) -> None:
        self.config = replace(self.config, autopath=True)


def _upstream(word: str) -> str:
    """"IP", "IP:port", "[IPv6]:port" -> "IP" or "IP#port"."""
    bracketed = re.fullmatch(r"\[(.+)\](?::(\d+))?", word)
    if bracketed:
        return bracketed[1] + (f"#{bracketed[2]}" if bracketed[2] else "")
    host, colon, port = word.partition(":")
    return f"{host}#{port}" if colon and ":" not in port else word


def resolv_conf(text: str) -> tuple[str, ...]:
    """The nameservers of a resolv.conf."""
    rows = (line.split() for line in text.splitlines())
    return tuple(words[1].partition("%")[0] for words in rows if len(words) > 1 and words[0] == "nameserver")


def apply(text: str, base: DnsConfig, nameservers: tuple[str, ...] = ()) -> tuple[DnsConfig, list[str]]:
    """`base` with what the Corefile says, and a line for everything that was left out. Raises BadConfig."""
    reader = _Reader(base, nameservers)
    for block in parse(text):
        reader.server(block)
    return reader.config, reader.notes
