"""Maintains the node's nft tables (nodetable.py): adds and removes the elements of each pod, and repairs changes that
other programs made.

The wanted rules of the node and of every pod are in memory; they are not read from the kernel. After a restart, they
are computed from the leases again.
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
from podwire_base.kernel.nft.decode import Foreign
from podwire_base.role import logs

from . import forwarding, nodetable, tunneltable
from .native import attach
from .nodetable import NodeRules, OtherNet, PodRules
from .types import Attachment, IPAddress, PortMapping

log = logs.get("wiring")


class Firewall:
    """The tables of one network namespace: the namespace of the thread that calls the constructor. Methods are
    thread-safe.
    """

    def __init__(self) -> None:
        self._nft = nft_socket.Connection()
        self._library = attach.load()
        self._lock = threading.Lock()
        self._node: NodeRules | None = None
        self._pods: dict[Attachment, PodRules] = {}
        self._guarded = False
        self.changes = 0  # pods that came and went

    def close(self) -> None:
        self._nft.close()

    # ---- whole tables

    def present(self) -> bool:
        """Whether every table exists. The content is not checked."""
        with self._lock:
            there = set(self._nft.tables())
        return all(table in there for table in nodetable.tables())

    @property
    def port_id(self) -> int:
        """Returns the port id of the only connection that changes the tables."""
        return self._nft.port_id

    @staticmethod
    def counts() -> tuple[tuple[str, int], ...]:
        """Returns what the kernel counts of all tables of this role, and of the chains FORWARD whether they drop and
        how many rules there are this role's. Thread-safe. Raises OSError.
        """
        with nft_socket.Connection() as conn:
            found = list(conn.counts((*nodetable.tables(), *tunneltable.tables()), contents=True))
            for name in forwarding.CHAINS:
                chain = conn.chain(name.table, name.name)
                ours = forwarding.ours(conn.rules(chain)) if chain is not None else []
                place = f"{name.table.family} {name.table.name} {name.name}"
                found += [(f"{place} drops", forwarding.drops(chain)), (place, len(ours))]
            return tuple(found)

    @staticmethod
    def generation() -> int:
        with nft_socket.Connection() as conn:
            return conn.generation()

    def layout(self) -> int:
        """Returns the layout of the existing tables; 0 if there are none, or if a version before 0.3 wrote them."""
        with self._lock:
            return max(map(nodetable.layout_of, self._nft.chains()), default=0)

    def adopt(self, node: NodeRules, pods: Mapping[Attachment, PodRules]) -> None:
        """Record `node` and `pods` as the state of the existing tables, without reading the tables."""
        with self._lock:
            self._node, self._pods = node, dict(pods)
            self._serve_localhost(self._pods.values())

    def sync(self, node: NodeRules, pods: Mapping[Attachment, PodRules] | None = None) -> list[str]:
        """Replace the tables in one commit if they differ from the wanted state. pods None: the pods in memory. Returns
        the differences found.
        """
        with self._lock:
            if pods is not None:
                self._pods = dict(pods)
            first, self._node = self._node is None, node
            wanted = nodetable.whole(node, self._pods.values())
            wrong = ["tables written"] if first else self._differences(wanted)
            if wrong:
                self._nft.commit(wanted)
            behind = list(self._pods.values()) if wrong else []
            wrong += self._serve_localhost(self._pods.values())
        for pod in behind:
            _forget_before(pod)  # delete flows that began while the tables were wrong
        return wrong

    def guard(self, wanted: nft.Transaction) -> list[str]:
        """Replace the tables of the tunnels (tunneltable.plan) in one commit if they differ. Returns the differences
        found.
        """
        with self._lock:
            wrong = self._differences(wanted)
            if wrong:
                self._nft.commit(wanted)
                wrong = wrong if self._guarded else ["tunnel tables written"]
            self._guarded = True
            return wrong

    def forward(self, cidrs: Iterable[str]) -> list[str]:
        """Let packets of pods pass chains FORWARD whose policy is drop (forwarding.py). cidrs: the addresses of pods;
        () removes the rules. Returns a line for each change.
        """
        told = []
        with self._lock:
            for name in forwarding.CHAINS:
                chain = self._nft.chain(name.table, name.name)
                if chain is None:
                    continue
                wanted = forwarding.plan(chain, self._nft.rules(chain), cidrs)
                if wanted:
                    self._nft.commit(wanted)
                    policy = "accept" if forwarding.drops(chain) else "no longer need to accept"
                    told.append(f"rules of table {chain.table.family} filter, chain FORWARD, {policy} pods' packets")
        return told

    def _differences(self, wanted: nft.Transaction) -> list[str]:
        mirror, wrong = fake.FakeConnection(), list[str]()
        mirror.commit(wanted)
        for table, should in mirror.state.items():
            found, where = self._nft.dump(table, exprs=True), f"table {table.family} {table.name}"
            if found is None:
                wrong.append(f"{where} was gone")
                continue
            if (
                found.sets != should.sets
                or found.chains != should.chains
                or any(
                    list(map(_bytes_of, found.rules[name])) != list(map(_bytes_of, rules))
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
        """Set the further networks (bridges besides the node's own). Does nothing if they are unchanged, or before the
        first `sync`.
        """
        with self._lock:
            node = self._node
        if node is not None and node.others != nets:
            self.sync(replace(node, others=nets))

    # ---- one pod

    def attach(self, owner: Attachment, pod: PodRules) -> None:
        """Add the pod's elements. Raises OSError; then the tables contain no element of the pod."""
        with self._lock:
            self.changes += 1
            self._serve_localhost([pod])
            try:
                self._change(pod)
            except nft.NftError as err:
                if err.errno != errno.ENOENT or self._node is None:
                    raise
                # Another program has flushed the tables. Write them again, because this ADD should not fail until the
                # next repair.
                self._nft.commit(nodetable.whole(self._node, [*self._pods.values(), pod]))
                log.warn("nft", change=f"tables made again: {err.strerror}")
            self._pods[owner] = pod
        _forget_before(pod)

    def detach(self, owner: Attachment, pod: PodRules) -> None:
        """Remove the elements that `attach` wrote and that still exist. Elements of other pods stay."""
        with self._lock:
            self.changes += 1
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
        """Commit nodetable.change of the pod. Raises NftError."""
        if self._library:
            ready = nodetable.encoded(pod, remove=remove)
            if ready is not None and self._nft.commit_encoded(ready, self._library.exchange):
                return
        self._nft.commit(nodetable.change(pod, remove=remove))

    def _try(self, parts: Sequence[nft.Elements]) -> None:
        """Delete these elements. As in nodetable.change, a missing element is not an error. A refusal by the kernel is
        only logged.
        """
        try:
            self._nft.commit(nft.Transaction().add(*parts).delete(*parts))
        except nft.NftError as err:
            log.debug("elements not removed", error=str(err))

    def missing(self, pod: PodRules) -> list[str]:
        """Returns a description of each element of the pod that the tables lack."""
        lost = []
        with self._lock:
            for part in nodetable.elements(pod):
                found = self._nft.dump(part.set.table)
                held = {} if found is None else found.elements.get(part.set.name, {})
                lost += [
                    f"nft set {part.set.table.family} {part.set.table.name} {part.set.name} lacks "
                    f"{nft.show(part.set, key, value)}"
                    for key, value in part.items.items()
                    if key not in held or held[key] != value
                ]
        return lost

    def _serve_localhost(self, pods: Iterable[PodRules]) -> list[str]:
        """Enable route_localnet on the bridges of pods with a hostPort on 127.0.0.1, so that packets from 127.0.0.1
        reach the pods and the answers return. (A rule in the tables prevents pods from reaching the node's 127.0.0.1
        through this setting.) Returns one line for each change; a re-created bridge has lost the setting.
        """
        done = []
        for bridge in {pod.bridge for pod in pods if any(_on_localhost(port) for port in pod.ports)}:
            path = f"/proc/sys/net/ipv4/conf/{bridge}/route_localnet"
            with contextlib.suppress(FileNotFoundError):
                if _first_byte(path) != b"1":
                    Path(path).write_text("1")
                    done.append(f"net.ipv4.conf.{bridge}.route_localnet=1")
        return done


def _bytes_of(rule: nft.Rule) -> tuple[object, ...]:
    """Returns what two equal rules have in common: the bytes of their expressions, and the comment."""
    return (*(e if isinstance(e, Foreign) else e.encode() for e in rule.exprs), rule.comment)


def _first_byte(path: str) -> bytes:
    """Returns the first byte of a file. It uses plain system calls, because a pod with a hostPort waits for it."""
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
    """Delete the UDP flows to the pod's hostPorts that began before the hostPorts led to the pod. Flows that the node
    only forwards, to the same port of another machine, stay. So do flows that a Service or another mapping of the same
    port translated: a NodePort wins over a hostPort, and must not change the endpoint of its clients.
    """
    local: frozenset[str] | None = None
    for port in pod.ports:
        if port.protocol != "udp":
            continue
        local = frozenset(map(str, local_addresses())) if local is None else local
        for family in _homes(pod, port):
            _forget(family, port, functools.partial(_began_before, port, local))


def _began_before(port: PortMapping, own: frozenset[str], flow: Flow) -> bool:
    dialled = flow.original.destination
    if _on_every_address(port):
        to_us = dialled in own or ip_address(dialled).is_loopback
    else:
        to_us = dialled == str(port.host_ip)
    return to_us and (flow.reply.source, flow.reply.source_port) == (dialled, flow.original.destination_port)


def _forget_after(pod: PodRules, port: PortMapping) -> None:
    """Delete the flows that this hostPort translated to the pod."""
    for family, address in _homes(pod, port).items():
        _forget(family, port, functools.partial(_led_to, (str(address), port.container_port)))


def _led_to(here: tuple[str, int], flow: Flow) -> bool:
    return (flow.reply.source, flow.reply.source_port) == here and flow.original.destination != here[0]


def _forget(family: Family, port: PortMapping, stale: Callable[[Flow], bool]) -> None:
    """Delete the UDP conntrack entries with this port as destination for which `stale` returns True.

    A UDP flow keeps its first translation as long as packets arrive. So a flow that began before the port was mapped
    would never reach the pod. A flow that continues after the end of the pod would go to an address that is unused, or
    that another pod gets later.
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
