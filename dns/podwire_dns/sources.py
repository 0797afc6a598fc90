"""Computes the effective settings of a role from its flags, its Corefile, and its resolv.conf and hosts files.

The module also detects changes of these files.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

from podwire_base.role import logs, waits

from . import corefile, names, reading
from .config import WILDCARDS, BadConfig, DnsConfig, Forward
from .corefile_parse import Place
from .exchange import socket_address
from .reading import Stamp
from .rules import Block, Rules

LOOK_SECONDS = 0.5


def is_local(address: str) -> bool:
    """Whether this network namespace has the address."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind(socket_address(address, 0))
        except OSError:
            return False
    return True


def hold_hangup() -> None:
    """Blocks SIGHUP until `Sources.follow`: a signal during the start must neither end the role nor get lost."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})


@dataclass(slots=True)
class Sources:
    """Reads the settings and the files that they name.

    base: the settings from the flags. notes: the lines that the last `load` skipped. digest: the digest of the Corefile
    in use. failed: settings that `follow` could not apply.
    """

    base: DnsConfig
    notes: list[str] = field(default_factory=list)
    digest: str = ""
    failed: int = 0
    _stamps: dict[str, Stamp] = field(default_factory=dict)
    _imported: dict[str, str] = field(default_factory=dict)  # path -> content
    _globs: dict[str, list[str]] = field(default_factory=dict)  # pattern of an import -> matching files

    def load(self) -> DnsConfig:
        """Reads and checks all settings. Raises BadConfig, which names the file or the setting."""
        before, digest = (self._stamps, self._imported, self._globs), self.digest
        self.notes, self._stamps, self._imported, self._globs = [], {}, {}, {}
        try:
            return self._load()
        except BadConfig:
            stamps, imported, globs = before
            self._stamps, self._imported = {**stamps, **self._stamps}, {**imported, **self._imported}
            self._globs, self.digest = {**globs, **self._globs}, digest
            raise

    def _load(self) -> DnsConfig:
        config = self.base
        if config.corefile:
            text = self._read(config.corefile, needed=True)
            place = Place(config.corefile, self._import, self._glob, os.environ)
            config, self.notes = corefile.apply(text, config, place)
            self.digest = hashlib.sha512("".join((text, *self._imported.values())).encode()).hexdigest()
        config = replace(
            config,
            forwards=tuple(self._forward(each, config) for each in config.forwarding()),
            upstreams=(),
            stubs=(),
            blocks=tuple(self._block(block) for block in config.blocks),
        )
        self.notes = list(dict.fromkeys(self.notes))  # the same file may stand in several forwards
        config.schema()
        config.check_pages()
        for route in (*config.routes().values(), *(each for own in config.homes().values() for each in own.values())):
            try:
                reading.tls_context(route.tls)
            except OSError as err:
                raise BadConfig(
                    f"tls: {err.strerror or err}; the certificate, its key and the CA must be PEM files"
                ) from err
        Rules(config.blocks)
        return config

    def files(self) -> set[str]:
        """Returns the files that the last `load` has read, or tried to."""
        return set(self._stamps)

    def patterns(self) -> set[str]:
        return set(self._globs)

    def tell(self, log: logs.Logger) -> None:
        """Logs the notes."""
        for note in self.notes:
            log.warn(note)

    def changed(self, *, corefile: bool) -> bool:
        """Whether the Corefile (or a file that it imports) or another file has changed since `load` read it."""
        return any(
            reading.stamp(path) != stamp
            for path, stamp in self._stamps.items()
            if corefile == (path == self.base.corefile or path in self._imported)
        ) or (corefile and any(reading.fitting(pattern) != found for pattern, found in self._globs.items()))

    def _import(self, path: str) -> str:
        """Reads an imported file. Raises OSError."""
        self._stamps[path], self._imported[path] = reading.stamp(path), ""
        self._imported[path] = reading.text(path)
        return self._imported[path]

    def _glob(self, pattern: str) -> list[str]:
        self._globs[pattern] = reading.fitting(pattern)
        return self._globs[pattern]

    def _read(self, path: str, *, needed: bool = False) -> str:
        self._stamps[path] = reading.stamp(path)
        try:
            return reading.text(path)
        except OSError as err:
            if needed:
                raise BadConfig(f"{path}: {err.strerror}") from err
            self.notes.append(f"{path}: {err.strerror}; it counts as empty until it is there")
            return ""

    def _forward(self, each: Forward, config: DnsConfig) -> Forward:
        """Replaces each path of a resolv.conf file with the nameservers of that file, without this server."""
        found: list[str] = []
        for upstream in each.upstreams:
            if not upstream.startswith("/"):
                found.append(upstream)
                continue
            for text in corefile.resolv_conf(self._read(upstream)):
                try:
                    address = names.canonical(text)
                except names.BadName as err:
                    self.notes.append(f"{upstream}: {err}; it is left out")
                    continue
                wildcard = any(mine in WILDCARDS for mine in config.addresses())
                if config.port == 53 and (
                    address in (*config.addresses(), *config.dns_addresses) or (wildcard and is_local(address))
                ):
                    self.notes.append(f"{upstream}: nameserver {address} is this DNS itself, and is left out")
                else:
                    found.append(address)
        if each.upstreams and not found:
            self.notes.append(f"no upstream is left for {each.domain!r}: such names are refused")
        return replace(each, upstreams=tuple(found))

    def _block(self, block: Block) -> Block:
        return replace(
            block,
            hosts=tuple(replace(hosts, text=self._read(hosts.path)) if hosts.path else hosts for hosts in block.hosts),
        )

    async def follow(self, config: DnsConfig, log: logs.Logger, take: Callable[[DnsConfig], Awaitable[None]]) -> None:
        """Passes new settings to `take` at each change of a file and at SIGHUP. Never returns.

        If the new settings are invalid, the method logs the error, and the old settings stay in use (first `config`).
        """
        loop = asyncio.get_running_loop()
        asked = asyncio.Event()
        loop.add_signal_handler(signal.SIGHUP, asked.set)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
        corefile_at = others_at = loop.time()
        while True:
            await waits.until_set(asked, LOOK_SECONDS)
            now, due = loop.time(), asked.is_set()
            asked.clear()
            if config.reload and now - corefile_at >= config.reload:
                corefile_at, due = now, due or self.changed(corefile=True)
            if config.follow and now - others_at >= config.follow:
                others_at, due = now, due or self.changed(corefile=False)
            if not due:
                continue
            digest = self.digest
            try:
                fresh = self.load()
                self.tell(log)
                await take(fresh)
                config = fresh
            except Exception as err:  # after any error the old settings stay, and the loop continues
                self.failed += 1
                self.digest = digest
                log.error("the new settings are invalid, the old ones stay", error=str(err))
