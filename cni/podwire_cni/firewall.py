"""Keeps the node's nft tables (nodetable.py) as they should be: pods come and go as elements, what others break is
mended.

Not told by the kernel but known here: the node's rules, and the rules of every pod; leases are their durable form.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

from podwire_base.kernel.addresses import local_addresses
from podwire_base.kernel.conntrack.codec import UDP, Flow, matching
from podwire_base.kernel.conntrack.socket import Conntrack
from podwire_base.kernel.ip import Family, family_of
from podwire_base.kernel.nft import fake
from podwire_base.kernel.nft import ruleset as nft
from podwire_base.kernel.nft import socket as nft_socket
from podwire_base.role import logs

from . import nodetable
from .native import attach
from .nodetable import NodeRules, OtherNet, PodRules
from .types import Attachment, IPAddress, PortMapping

log = logs.get("wiring")


class Firewall:
    """The tables of the network namespace that the constructing thread is in. Methods may be called from many
    threads."""

    def __init__(self) -> None:
        self._nft = nft_socket.Connection()
        self._library = attach.load()
        self._lock = threading.Lock()
        self._node: NodeRules | None = None
        self._pods: dict[Attachment, PodRules] = {}

    def close(self) -> None:
        self._nft.close()

    # ---- the whole

    def present(self) -> bool:
        """Whether every table is there, whatever is in it."""
        with self._lock:
            there = set(self._nft.tables())
        return all(table in there for table in nodetable.tables())

    def adopt(self, node: NodeRules, pods: Mapping[Attachment, PodRules]) -> None:
        """Take the tables that are there for what `node` and `pods` say, unread."""
        with self._lock:
            self._node, self._pods = node, dict(pods)
            self._serve_localhost(self._pods.values())

    def sync(self, node: NodeRules, pods: Mapping[Attachment, PodRules] | None = None) -> list[str]:
        """Make the tables what they should be, in one commit; nothing is written where they already are. pods None:
        those that are known. Returns what was wrong."""
        with self._lock:
            if pods is not None:
                self._pods = dict(pods)
            first, self._node = self._node is None, node
            wanted = nodetable.plan(node, self._pods.values())
            wrong = ["tables written"] if first else self._differences(wanted)
            if wrong:
                self._nft.commit(wanted)
            behind = list(self._pods.values()) if wrong else []
            wrong += self._serve_localhost(self._pods.values())
        for pod in behind:
            _forget_before(pod)  # what began while the tables led nowhere
        return wrong

    def _differences(self, wanted: nft.Transaction) -> list[str]:
        mirror, wrong = fake.FakeConnection(), list[str]()
        mirror.commit(wanted)
        for table, should in mirror.state.items():
            found, where = self._nft.dump(table), f"table {table.family} {table.name}"
            if found is None:
                wrong.append(f"{where} was gone")
                continue
            if (
                found.sets != should.sets
                or found.chains != should.chains
                or any(
                    [r.comment for r in found.rules[name]] != [r.comment for r in rules]
                    for name, rules in should.rules.items()
                )
            ):
                wrong.append(f"{where}: chains, rules or sets were not as they should be")
            for name, held in should.elements.items():
                there = found.elements.get(name, {})
                if there != held:
                    missing, foreign = len(held.keys() - there.keys()), len(there.keys() - held.keys())
                    wrong.append(f"{where}: set {name} lacked {missing} elements and had {foreign} too many")
        return wrong

    def others(self, nets: tuple[OtherNet, ...]) -> None:
        """Networks besides the node's; nothing where they are known, or before `sync`."""
        with self._lock:
            node = self._node
        if node is not None and node.others != nets:
            self.sync(replace(node, others=nets))

    # ---- one pod

    def attach(self, owner: Attachment, pod: PodRules) -> None:
        """Raises OSError; then nothing of the pod is in the tables."""
        with self._lock:
            self._serve_localhost([pod])
            try:
                self._change(pod)
            except nft.NftError as err:
                if err.errno != errno.ENOENT or self._node is None:
                    raise
                # Somebody flushed the tables, and a pod need not fail for it until they are looked at again.
                self._nft.commit(nodetable.plan(self._node, [*self._pods.values(), pod]))
                log.warn("nft", change=f"tables made again: {err.strerror}")
            self._pods[owner] = pod
        _forget_before(pod)

    def detach(self, owner: Attachment, pod: PodRules) -> None:
        """Take away what `attach` put there, or what is left of it; what belongs to others stays."""
        with self._lock:
            self._pods.pop(owner, None)
            try:
                self._change(pod, remove=True)
            except nft.NftError as err:
                log.debug("elements not removed at once", error=str(err))
                for part in nodetable.elements(pod):
                    for key, value in part.items.items():
                        self._try([nft.Elements(part.set, {key: value})])
        for port in pod.ports:
            if port.protocol == "udp":
                _forget_after(pod, port)

    def _change(self, pod: PodRules, *, remove: bool = False) -> None:
        """nodetable.change, at once. Raises NftError."""
        if self._library:
            ready = nodetable.encoded(pod, remove=remove)
            if ready is not None and self._nft.commit_encoded(ready, self._library.exchange):
                return
        self._nft.commit(nodetable.change(pod, remove=remove))

    def _try(self, parts: Sequence[nft.Elements]) -> None:
        """Delete elements, as nodetable.change does."""
        try:
            self._nft.commit(nft.Transaction().add(*parts).delete(*parts))
        except nft.NftError as err:
            log.debug("elements not removed", error=str(err))

    def missing(self, pod: PodRules) -> list[str]:
        """What the tables lack of one pod."""
        lost = []
        with self._lock:
            for part in nodetable.elements(pod):
                found = self._nft.dump(part.set.table)
                held = {} if found is None else found.elements.get(part.set.name, {})
                lost += [
                    f"nft set {part.set.table.family} {nodetable.TABLE} {part.set.name} lacks "
                    f"{nft.show(part.set, key, value)}"
                    for key, value in part.items.items()
                    if key not in held or held[key] != value
                ]
        return lost

    def _serve_localhost(self, pods: Iterable[PodRules]) -> list[str]:
        """Let packets from 127.0.0.1 leave by the pods' bridges, and their answers come back. The tables keep pods from
        using it. Returns what had to be changed: a bridge that was made anew has lost it."""
        done = []
        for bridge in {pod.bridge for pod in pods if any(_on_localhost(port) for port in pod.ports)}:
            path = f"/proc/sys/net/ipv4/conf/{bridge}/route_localnet"
            with contextlib.suppress(FileNotFoundError):
                if _first_byte(path) != b"1":
                    Path(path).write_text("1")
                    done.append(f"net.ipv4.conf.{bridge}.route_localnet=1")
        return done


def _first_byte(path: str) -> bytes:
    """Plain system calls: a pod with a hostPort waits for this."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 1)
    finally:
        os.close(fd)


def _on_every_address(port: PortMapping) -> bool:
    return port.host_ip is None or port.host_ip.is_unspecified


def _on_localhost(port: PortMapping) -> bool:
    return port.host_ip is None or port.host_ip.is_unspecified or port.host_ip.is_loopback


def _homes(pod: PodRules, port: PortMapping) -> dict[Family, IPAddress]:
    found: dict[Family, IPAddress] = {}
    for address in pod.addresses:
        if port.host_ip is None or port.host_ip.version == address.version:
            found.setdefault(family_of(address), address)
    return found


def _forget_before(pod: PodRules) -> None:
    """UDP flows to the node's ports that began when those led nowhere, or elsewhere. What only passes the node, to the
    same port of another machine, goes on, and so does what another mapping of the port leads."""
    local: frozenset[str] | None = None
    for port in pod.ports:
        if port.protocol != "udp":
            continue
        local = frozenset(map(str, local_addresses())) if local is None else local
        for family, address in _homes(pod, port).items():
            _forget(family, port, functools.partial(_began_before, port, (str(address), port.container_port), local))


def _began_before(port: PortMapping, here: tuple[str, int], own: frozenset[str], flow: Flow) -> bool:
    dialled = flow.original.destination
    if _on_every_address(port):
        to_us = dialled in own or ip_address(dialled).is_loopback
    else:
        to_us = dialled == str(port.host_ip)
    return to_us and (flow.reply.source, flow.reply.source_port) != here


def _forget_after(pod: PodRules, port: PortMapping) -> None:
    """Flows that this port led to the pod."""
    for family, address in _homes(pod, port).items():
        _forget(family, port, functools.partial(_led_to, (str(address), port.container_port)))


def _led_to(here: tuple[str, int], flow: Flow) -> bool:
    return (flow.reply.source, flow.reply.source_port) == here and flow.original.destination != here[0]


def _forget(family: Family, port: PortMapping, stale: Callable[[Flow], bool]) -> None:
    """Delete the UDP entries to a port of the node of which `stale` is true.

    A UDP flow keeps the translation it began with as long as packets come. One that began before the port was mapped
    never reaches the pod; one that goes on after the pod went is sent to an address that nobody has, or soon somebody
    else.
    """
    try:
        with Conntrack() as conntrack:
            flows = conntrack.flows(family, matching(UDP, port=port.host_port))
            found = [
                f for f in flows if (f.protocol, f.original.destination_port) == (UDP, port.host_port) and stale(f)
            ]
            count = len(conntrack.delete(found))
    except OSError as err:
        log.warn("conntrack entries not cleaned", port=str(port), error=str(err))
        return
    if count:
        log.info("stale UDP flows forgotten", port=str(port), flows=count)
