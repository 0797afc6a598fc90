"""Keeps the node's nft tables (nodetable.py) correct: pods are elements that are added and removed, and changes by
others are repaired.

It holds the rules of the node and of every pod in memory and does not read them from the kernel; leases are their
durable form.
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

    # ---- whole tables

    def present(self) -> bool:
        """Whether every table exists, whatever its content."""
        with self._lock:
            there = set(self._nft.tables())
        return all(table in there for table in nodetable.tables())

    def adopt(self, node: NodeRules, pods: Mapping[Attachment, PodRules]) -> None:
        """Assume without reading that the existing tables match `node` and `pods`."""
        with self._lock:
            self._node, self._pods = node, dict(pods)
            self._serve_localhost(self._pods.values())

    def sync(self, node: NodeRules, pods: Mapping[Attachment, PodRules] | None = None) -> list[str]:
        """Bring the tables to the wanted state in one commit; write nothing if they are correct. pods None: the pods in
        memory. Returns the differences found.
        """
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
            _forget_before(pod)  # flows that began while the tables were wrong
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
        """Set the networks besides the node's own; does nothing if they are known, or before `sync`."""
        with self._lock:
            node = self._node
        if node is not None and node.others != nets:
            self.sync(replace(node, others=nets))

    # ---- one pod

    def attach(self, owner: Attachment, pod: PodRules) -> None:
        """Raises OSError; then the tables have nothing of the pod."""
        with self._lock:
            self._serve_localhost([pod])
            try:
                self._change(pod)
            except nft.NftError as err:
                if err.errno != errno.ENOENT or self._node is None:
                    raise
                # Another program flushed the tables. The pod must not fail until the next repair.
                self._nft.commit(nodetable.plan(self._node, [*self._pods.values(), pod]))
                log.warn("nft", change=f"tables made again: {err.strerror}")
            self._pods[owner] = pod
        _forget_before(pod)

    def detach(self, owner: Attachment, pod: PodRules) -> None:
        """Remove what `attach` wrote, or the rest of it; elements of other pods stay."""
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
        """nodetable.change with an immediate commit. Raises NftError."""
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
        """The elements of one pod that the tables lack."""
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
        """Let packets from 127.0.0.1 leave by the pods' bridges, and their answers return. (The tables keep pods from
        using that.) Returns the changes: a re-created bridge has lost the setting.
        """
        done = []
        for bridge in {pod.bridge for pod in pods if any(_on_localhost(port) for port in pod.ports)}:
            path = f"/proc/sys/net/ipv4/conf/{bridge}/route_localnet"
            with contextlib.suppress(FileNotFoundError):
                if _first_byte(path) != b"1":
                    Path(path).write_text("1")
                    done.append(f"net.ipv4.conf.{bridge}.route_localnet=1")
        return done


def _first_byte(path: str) -> bytes:
    """Plain system calls, because a pod with a hostPort waits for this."""
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
    """Delete UDP flows to the node's ports that began when the ports led nowhere or elsewhere. Flows that only pass the
    node, to the same port of another machine, stay, and so do flows of another mapping of the port.
    """
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
    """Delete the flows that this port led to the pod."""
    for family, address in _homes(pod, port).items():
        _forget(family, port, functools.partial(_led_to, (str(address), port.container_port)))


def _led_to(here: tuple[str, int], flow: Flow) -> bool:
    return (flow.reply.source, flow.reply.source_port) == here and flow.original.destination != here[0]


def _forget(family: Family, port: PortMapping, stale: Callable[[Flow], bool]) -> None:
    """Delete the UDP entries to a port of the node for which `stale` is true.

    A UDP flow keeps its first translation as long as packets arrive. A flow that began before the port was mapped never
    reaches the pod. A flow that continues after the pod's end goes to an address that is unused, or belongs to another
    pod later.
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
