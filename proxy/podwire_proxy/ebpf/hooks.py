"""Loads the programs, keeps the maps, and pins both so that they outlive the process. I/O.

Takeover: a new process opens the pins, keeps the maps whose shape is the same, and puts its own programs into the links
that are there (BPF_LINK_UPDATE): no connection meets a moment without hooks, and sockets keep what they dialled.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from podwire_base.kernel.bpf import elf
from podwire_base.kernel.bpf import syscalls as bpf
from podwire_base.kernel.ip import Family

from ..dataplane import Key
from ..model import Destination, is_v6
from ..tally import Tallies, Tally
from . import maps, places, tally
from .maps import Client, Row
from .plan import Plan, State

# Where each program attaches: linux/bpf.h, enum bpf_attach_type
ATTACHED = {
    "connect4": 10,
    "connect6": 11,
    "sendmsg4": 14,
    "sendmsg6": 15,
    "recvmsg4": 19,
    "recvmsg6": 20,
    "getpeername4": 29,
    "getpeername6": 30,
}
ASK = "ask"


class Hooks:
    """The programs and maps of one node. Raises OSError, from the constructor too, which then leaves what was there."""

    def __init__(self, obj: elf.Object, cgroup: Path, folder: Path) -> None:
        self.folder, self.cgroup = folder, cgroup
        self._open = contextlib.ExitStack()
        self.served = 0  # namespaces
        self._cpus = bpf.possible_cpus()
        try:
            self._maps = {name: self._map(name, spec) for name, spec in obj.maps.items()}
            self._specs = obj.maps
            size = maps.ENDPOINT * obj.maps["endpoints"].max_entries
            self._slots = self._open.enter_context(mmap.mmap(self._maps["endpoints"], size))
            self._programs = {name: self._program(obj, name) for name in (*ATTACHED, ASK)}
            self._attach()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._open.close()

    def _own(self, fd: int) -> int:
        self._open.callback(os.close, fd)
        return fd

    def _map(self, name: str, spec: elf.MapSpec) -> int:
        path = self.folder / name
        with contextlib.suppress(FileNotFoundError):
            found = self._own(bpf.pinned(path))
            if bpf.map_shape(found) == spec:
                return found
            path.unlink()
        made = self._own(bpf.create_map(name, spec))
        bpf.pin(made, path)
        return made

    def _program(self, obj: elf.Object, name: str) -> int:
        program = next(one for section, one in obj.programs.items() if section.endswith(f"/{name}"))
        kind = bpf.Kind.SCHED_CLS if name == ASK else bpf.Kind.CGROUP_SOCK_ADDR
        code = program.linked(self._maps)
        return self._own(bpf.load(kind, f"podwire_{name}", code, obj.licence, ATTACHED.get(name, 0)))

    def _attach(self) -> None:
        fd = os.open(self.cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            here = os.fstat(fd).st_ino
            # what shows the dialled address comes before what dials, so that no answer shows an endpoint
            for name in sorted(ATTACHED, reverse=True):
                self._link(name, fd, here)
        finally:
            os.close(fd)

    def _link(self, name: str, cgroup: int, number: int) -> None:
        path = self.folder / f"at_{name}"
        with contextlib.suppress(FileNotFoundError):
            link = self._own(bpf.pinned(path))
            if bpf.cgroup_of(link) == number:
                bpf.replace(link, self._programs[name])
                return
            path.unlink()  # of a cgroup that is gone, or of another setting
            with contextlib.suppress(OSError):
                bpf.detach(link)
        link = self._own(bpf.attach_to_cgroup(self._programs[name], cgroup, ATTACHED[name]))
        bpf.pin(link, path)

    # ---- the maps

    def read(self, family: Family) -> tuple[dict[Key, Row], dict[int, bytes]]:
        """Returns the family's frontends, and the endpoints of their blocks by slot."""
        return read(self._maps["services"], self._specs["services"], self._slots, family)

    def write(self, plan: Plan) -> None:
        for slot, data in plan.slots.items():
            self._slots[slot * maps.ENDPOINT : slot * maps.ENDPOINT + maps.ENDPOINT] = data
        if len(plan.write) == 1:
            ((key, row),) = plan.write.items()
            bpf.update(self._maps["services"], maps.place(key), maps.service(key, row))
        elif plan.write:
            items = [(maps.place(key), maps.service(key, row)) for key, row in plan.write.items()]
            bpf.update_many(self._maps["services"], items)
        bpf.delete_many(self._maps["services"], [maps.place(key) for key in plan.drop])

    def clients(self) -> set[Client]:
        return clients(self._maps["clients"], self._specs["clients"])

    def admit(self, wanted: Iterable[Client]) -> tuple[set[Client], set[Client]]:
        """Makes these the namespaces whose sockets are served. Returns (those that came, those that went)."""
        have, want = self.clients(), set(wanted)
        self.served = len(want)
        numbers = {client.cookie for client in want}
        for client in have - want:
            if client.cookie not in numbers:
                bpf.delete(self._maps["clients"], maps.client(client)[0])
        for client in want - have:
            bpf.update(self._maps["clients"], *maps.client(client))
        return want - have, have - want

    def dialled(self, cookie: bytes) -> bytes | None:
        """Returns what a connected UDP socket dialled, as bytes. cookie: the socket's number."""
        return bpf.lookup(self._maps["dialling"], cookie, self._specs["dialling"].value_size)

    def tallies(self) -> Tallies:
        """Returns what the hooks counted. Thread-safe."""
        return _tallies(self._maps, self._specs)

    def retire(self, key: Key, to: Destination) -> None:
        """Adds the count of an endpoint that is gone to the frontend's row of gone endpoints."""
        counts, row, size = self._maps["counts"], tally.row_key(key, to), 8 * self._cpus
        if (value := bpf.lookup(counts, row, size)) is None:
            return
        gone = tally.row_key(key, None)
        before = bpf.lookup(counts, gone, size) or bytes(size)
        form = f"<{self._cpus}Q"
        added = (a + b for a, b in zip(struct.unpack(form, before), struct.unpack(form, value), strict=True))
        bpf.update(counts, gone, struct.pack(form, *added))
        bpf.delete(counts, row)

    def forget(self, key: Key, ends: Iterable[Destination]) -> None:
        """Deletes the counts of a frontend that is gone. ends: its last endpoints."""
        rows = [tally.row_key(key, to) for to in ends] + [tally.row_key(key, None, why) for why in (0, *maps.WHY_LEFT)]
        bpf.delete_many(self._maps["counts"], rows)

    @property
    def services(self) -> int:
        """The descriptor of the map of frontends."""
        return self._maps["services"]

    @property
    def memory(self) -> int:
        """The descriptor of the sockets' memory."""
        return self._maps["memory"]

    def ask(self, key: Key, who: int, random: int) -> tuple[int, Destination | None]:
        """Returns what the programs answer: (UNKNOWN, CHOSEN or a key of WHY_LEFT of maps.py, the endpoint)."""
        return maps.answer(bpf.run(self._programs[ASK], maps.question(key, who, random))[1])


def read(services: int, spec: elf.MapSpec, slots: mmap.mmap, family: Family) -> tuple[dict[Key, Row], dict[int, bytes]]:
    found = {maps.key_of(key): maps.row_of(value) for key, value in bpf.dump(services, spec)}
    rows = {key: row for key, row in found.items() if is_v6(key.ip) == (family == "ip6")}
    room = len(slots) // maps.ENDPOINT
    wanted = {row.base + n for row in rows.values() for n in range(row.number) if row.base + n < room}
    return rows, {n: slots[n * maps.ENDPOINT : n * maps.ENDPOINT + maps.ENDPOINT] for n in wanted}


def clients(fd: int, spec: elf.MapSpec) -> set[Client]:
    return {maps.client_of(key, value) for key, value in bpf.dump(fd, spec)}


def observed(folder: Path, family: Family) -> State:
    """Returns the maps' part of what another process keeps under these pins."""
    with contextlib.ExitStack() as stack:
        fds = {name: bpf.pinned(folder / name) for name in ("services", "endpoints")}
        for fd in fds.values():
            stack.callback(os.close, fd)
        shape = bpf.map_shape(fds["endpoints"])
        slots = stack.enter_context(mmap.mmap(fds["endpoints"], maps.ENDPOINT * shape.max_entries, prot=mmap.PROT_READ))
        rows, found = read(fds["services"], bpf.map_shape(fds["services"]), slots, family)
    return State(None, rows, found)


def _tallies(fds: Mapping[str, int], specs: Mapping[str, elf.MapSpec]) -> Tallies:
    def rows() -> Iterator[Tally]:
        for key, number in bpf.sums(fds["counts"], specs["counts"]):
            yield tally.tally_of(key, number)

    totals = bpf.sums(fds["totals"], specs["totals"])
    return tally.tallies(rows(), {struct.unpack("<I", key)[0]: number for key, number in totals})


def observed_tallies(folder: Path) -> Tallies:
    """Returns what the hooks under these pins counted."""
    with contextlib.ExitStack() as stack:
        fds = {name: bpf.pinned(folder / name) for name in ("counts", "totals")}
        for fd in fds.values():
            stack.callback(os.close, fd)
        return _tallies(fds, {name: bpf.map_shape(fd) for name, fd in fds.items()})


def observed_clients(folder: Path) -> set[Client]:
    fd = bpf.pinned(folder / "clients")
    try:
        return clients(fd, bpf.map_shape(fd))
    finally:
        os.close(fd)


def asked(folder: Path, obj: elf.Object, key: Key, who: int, number: int) -> list[Destination | None]:
    """Returns what the program answers over the maps under these pins: for each of `number` endpoints the endpoint,
    None where nftables serves. Raises OSError.
    """
    program = next(one for section, one in obj.programs.items() if section.endswith(f"/{ASK}"))
    with contextlib.ExitStack() as stack:
        fds = {name: bpf.pinned(folder / name) for name in ("services", "endpoints")}
        for fd in fds.values():
            stack.callback(os.close, fd)
        ask = bpf.load(bpf.Kind.SCHED_CLS, f"podwire_{ASK}", program.linked(fds), obj.licence)
        stack.callback(os.close, ask)
        questions = (maps.question(key, who, random) for random in range(max(1, number)))
        return [maps.answer(bpf.run(ask, one)[1])[1] for one in questions]


def newest(ns_fd: int | None = None) -> int:
    """Returns the highest layout of this node's pins; 0 without pins."""
    return max((layout for layout, _ in places.folders(ns_fd)), default=0)
