"""Carries packets from pod to pod of the node past the host's stack: the program at the pods' links, and its maps. I/O.

Links and maps end with this process: no packet passes by while nobody follows pods, policies and rate limits. A flow
goes on through the rules then, where conntrack picks it up in the middle (nf_conntrack_tcp_loose).
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import time
from collections.abc import Callable, Iterable, Sequence

from podwire_base.kernel.bpf import elf
from podwire_base.kernel.bpf import syscalls as bpf
from podwire_base.kernel.conntrack.codec import Flow
from podwire_base.kernel.conntrack.socket import Conntrack
from podwire_base.kernel.ip import FAMILIES
from podwire_base.kernel.netlink import codec
from podwire_base.kernel.netlink import rtnetlink as nl
from podwire_base.kernel.netlink.socket import RouteSocket
from podwire_base.kernel.nft import ruleset as nft
from podwire_base.kernel.nft.socket import Connection
from podwire_base.role import logs
from podwire_base.role.hostports import HostPort
from podwire_base.role.podspaces import PodSpace

from ..model import PROTOCOLS
from . import fast, maps
from .fast import Entry, Judged, Seat

log = logs.get("proxy")
POLICIES = "podwire-policy"  # the tables of network policies; sets as policy/README.md names them
JUDGED, POLICED = ("judged",), ("pods-in", "pods-out")
TCX_INGRESS = 46  # linux/bpf.h, enum bpf_attach_type
GETQDISC, IFLA_LINK, TCA_KIND = 38, 5, 1
INTERFACE = "eth0"  # of a pod
AGAIN = 10_000_000_000  # ns between two looks at conntrack for pods that are slow
_TWICE = 2  # looks at which flows between fast pods are forgotten, after they became fast


class Bypass:
    """services: the descriptor of the hooks' map of frontends. Raises OSError."""

    def __init__(self, obj: elf.Object, services: int, ns_fd: int | None) -> None:
        self._ns_fd, self._open = ns_fd, contextlib.ExitStack()
        self.clock: Callable[[], int] = time.monotonic_ns  # as ktime_get_ns of the program
        self._links: dict[int, int] = {}  # ifindex -> descriptor of the link
        self._seats: dict[PodSpace, Seat] = {}
        self._refused: dict[PodSpace, str] = {}
        self._asked = -AGAIN  # when conntrack was asked (ns)
        self._forget = 0  # looks that are left at which flows between fast pods are deleted
        self.judged = Judged()
        self.slow: dict[str, int] = {}  # reason -> pods
        self.fast = 0  # pods
        try:
            self._maps = {"services": services}
            for name, spec in obj.maps.items():
                if name not in self._maps:
                    self._maps[name] = self._own(bpf.create_map(name, spec))
            self._specs = obj.maps
            code = obj.programs["tc/bypass"].linked(self._maps)
            self._program = self._own(bpf.load(bpf.Kind.SCHED_CLS, "podwire_bypass", code, obj.licence))
        except BaseException:
            self.close()
            raise

    def _own(self, fd: int) -> int:
        self._open.callback(os.close, fd)
        return fd

    def close(self) -> None:
        for fd in self._links.values():
            os.close(fd)
        self._links.clear()
        self._open.close()

    def judge(self) -> None:
        """Reads which pods network policies isolate, and makes those slow at once."""
        there, judged, policed = set[bool](), set[str](), set[str]()
        with Connection(self._ns_fd) as conn:
            for family in FAMILIES:
                table = nft.Table(family, POLICIES)
                try:
                    for names, found in ((JUDGED, judged), (POLICED, policed)):
                        for name in names:
                            elements = conn.elements(nft.Set(table, name, ("ipv6_addr",)))
                            found |= {maps.unmapped(_sixteen(key)) for key in elements}
                except OSError as err:
                    if err.errno != errno.ENOENT:
                        raise
                    continue  # no role judges policies of this family
                there.add(family == "ip6")
        now = Judged(frozenset(there), frozenset(judged), frozenset(policed))
        if now != self.judged:
            self.judged = now
            self._apply(self._seats.values())

    def stop(self) -> None:
        """Makes all pods slow: it is not known which ones may be fast."""
        self.judged = Judged(frozenset({False, True}))
        self._apply(self._seats.values())

    def look(self, spaces: Iterable[PodSpace], doors: Iterable[HostPort]) -> None:
        """Makes these the pods, and these the ports of the node that lead into pods. Raises OSError."""
        wanted = set(spaces)
        for space in self._seats.keys() - wanted:
            del self._seats[space]
        self._refused = {space: why for space, why in self._refused.items() if space in wanted}
        for space in wanted - self._seats.keys() - self._refused.keys():
            try:
                self._seats[space] = self._seat(space)
            except OSError as err:
                self._refused[space] = err.strerror or str(err)
                log.debug("the bypass does not carry a pod", ips=space.ips, why=str(err))
        self._detach({seat.ifindex for seat in self._seats.values()})
        self._doors(doors)
        limited = self._limited()
        self._seats = {s: seat._replace(limited=seat.ifindex in limited) for s, seat in self._seats.items()}
        self._apply(self._seats.values())

    def _seat(self, space: PodSpace) -> Seat:
        """Finds the pod's link and puts the program at the node's end."""
        fd = os.open(space.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            at = os.fstat(fd)
            if (at.st_dev, at.st_ino) != (space.device, space.inode):
                raise FileNotFoundError(f"{space.path} is another namespace now")
            with RouteSocket(fd) as sock:
                found = [codec.parse(body[16:]) for body in sock.everything(nl.GETLINK, nl.all_links())]
        finally:
            os.close(fd)
        link = next((one for one in found if codec.to_text(one.get(nl.IFLA_IFNAME)) == INTERFACE), None)
        if link is None or IFLA_LINK not in link:
            raise FileNotFoundError(f"the pod has no link {INTERFACE} to the node")
        ifindex: int = struct.unpack("=I", link[IFLA_LINK])[0]
        if ifindex not in self._links:
            self._links[ifindex] = bpf.attach_to_link(self._program, ifindex, TCX_INGRESS, self._ns_fd)
        return Seat(space.ips, ifindex, link[nl.IFLA_ADDRESS])

    def _detach(self, wanted: set[int]) -> None:
        for ifindex in self._links.keys() - wanted:
            os.close(self._links.pop(ifindex))

    def _limited(self) -> set[int]:
        """Returns the links of the node whose queue limits or delays: the bypass would go past it."""
        with RouteSocket(self._ns_fd) as sock:
            found = [(body, codec.parse(body[20:])) for body in sock.everything(GETQDISC, bytes(20))]
        kinds = [(nl.index_of(body), codec.to_text(parts.get(TCA_KIND))) for body, parts in found]
        return {ifindex for ifindex, kind in kinds if kind not in fast.NO_QUEUE}

    def _doors(self, doors: Iterable[HostPort]) -> None:
        want = {fast.door(one.port, PROTOCOLS[one.protocol]) for one in doors}
        have = {key for key, _ in bpf.dump(self._maps["doors"], self._specs["doors"])}
        for key in want - have:
            bpf.update(self._maps["doors"], key, bytes(4))
        bpf.delete_many(self._maps["doors"], list(have - want))

    def _apply(self, seats: Iterable[Seat]) -> None:
        seats, now = list(seats), self.clock()
        have = self.entries()
        flows = list[Flow]()
        asked = fast.candidates(seats, have, self.judged, now)
        if now < self._asked + AGAIN:  # conntrack's whole table is read, so not each time
            asked = {ip for ip in asked if ip not in have}
        elif asked:
            self._asked = now
        if asked:
            flows = self._flows()
        waiting = {ip for ip, entry in have.items() if (entry.wire or not entry.fast) and ip not in asked}
        plan = fast.plan(seats, have, self.judged, fast.translated(flows) | waiting, now)
        for part in (plan.slow, plan.fast):
            for ip, entry in part.items():
                bpf.update(self._maps["pods"], *fast.element(ip, entry))
        bpf.delete_many(self._maps["pods"], [maps.mapped(ip) for ip in plan.drop])
        self._forget = _TWICE if plan.fast else max(0, self._forget - 1)
        if self._forget:
            self._forget_flows(seats)
        whys = [fast.why_slow(seat, self.judged, frozenset()) for seat in seats]
        self.slow = {why: whys.count(why) for why in set(whys) - {""}}
        self.fast = whys.count("")

    def entries(self) -> dict[str, Entry]:
        """Returns the elements of the map `pods` by address."""
        found = bpf.dump(self._maps["pods"], self._specs["pods"])
        return {maps.unmapped(key): fast.entry_of(value) for key, value in found}

    def _flows(self) -> list[Flow]:
        with Conntrack(self._ns_fd) as conntrack:
            return [flow for family in FAMILIES for flow in conntrack.flows(family)]

    def _forget_flows(self, seats: Sequence[Seat]) -> None:
        """Deletes the entries of flows that pass by now: if they come back to the rules, an old entry would take their
        packets for invalid ones.
        """
        pods = frozenset(ip for seat in seats for ip in seat.ips if not fast.why_slow(seat, self.judged, frozenset()))
        with Conntrack(self._ns_fd) as conntrack:
            gone = fast.between([flow for family in FAMILIES for flow in conntrack.flows(family)], pods)
            conntrack.delete(gone)

    def passed(self) -> tuple[int, int]:
        """Returns (packets, bytes) that passed by. Thread-safe."""
        cpus = bpf.possible_cpus()
        value = bpf.lookup(self._maps["passed"], bytes(4), 16 * cpus) or bytes(16 * cpus)
        numbers = struct.unpack(f"<{2 * cpus}Q", value)
        return sum(numbers[::2]), sum(numbers[1::2])


def _sixteen(key: bytes) -> bytes:
    """Returns an address of a set's element in its mapped form."""
    return bytes(10) + b"\xff\xff" + key[:4] if len(key) == 4 else key[:16]
