"""The I/O of the eBPF backend: the table of nftables, and over it the hooks. Implements backend.Kernel.

Where the hooks cannot run, nftables serves everything, and `problem` says why.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from podwire_base import native as built
from podwire_base.kernel.bpf import elf
from podwire_base.kernel.inotify import FileWatch
from podwire_base.kernel.ip import FAMILIES, Family
from podwire_base.kernel.nft import socket as nft_socket
from podwire_base.kernel.reasons import Reason
from podwire_base.role import hostports, logs, podspaces
from podwire_base.role.counts import Counts
from podwire_base.role.features import (
    BPF_SOCKET_HOOKS,
    BPF_TCX,
    CAP_BPF,
    CAP_NET_ADMIN,
    CAP_SYS_ADMIN,
    explain,
    judge,
    lacks,
)
from podwire_base.role.features import Kernel as Host
from podwire_base.role.kernelconfig import running

from ..backend import OFF, Figures, Watch
from ..dataplane import Frontend, Key
from ..iptables.watch import Timer
from ..model import Destination, is_v6
from ..nftables import kernel as nftables
from ..tally import Tallies, metrics, passed
from . import hooks as bpf_hooks
from . import maps, native, places, sockets, tally
from .bypass import Bypass
from .hooks import Hooks
from .live import Ask
from .live import Hooks as LiveHooks
from .maps import Client
from .plan import Plan, Planner, State
from .pods import Pods

log = logs.get("proxy")

ASKED = 1000  # endpoints of a frontend, 60 us each; of more the maps are walked
SHOWN = 5  # sockets that the log names
RIGHTS = CAP_BPF, CAP_NET_ADMIN  # of the hooks
INSIDE = (CAP_SYS_ADMIN,)  # to enter the pods' namespaces: the bypass finds their links there, and sockets end there
VERIFIED = (6, 18)  # the oldest release whose verifier has seen the programs


def too_old(host: Host) -> str:
    """Returns why the programs may not be loaded into this kernel; "" if they may."""
    if host.version < VERIFIED:
        return f"the programs were verified on Linux {VERIFIED[0]}.{VERIFIED[1]} and later, this is {host.release}"
    return judge(BPF_SOCKET_HOOKS, host)


def load(cgroup: str, bpffs: str, ns_fd: int | None) -> Hooks:
    """Loads the hooks, or takes over those that are there. Raises OSError, which says what is missing."""
    code = native.code("sock")
    if code is None:
        why = built.reason(native.FOLDER, "sock") or "install podwire again (make install)"
        raise OSError(errno.ENOEXEC, f"the programs are not built: {why}")
    if why := too_old(running()):
        raise OSError(errno.EOPNOTSUPP, why)
    where = places.cgroup(cgroup)
    folder = places.make(places.bpffs(bpffs), ns_fd, maps.LAYOUT)
    try:
        made = Hooks(elf.parse(code), where, folder)
    except elf.BadObject as err:
        raise OSError(errno.ENOEXEC, f"sock.bpf.o: {err}; install podwire again (make install)") from None
    except PermissionError as err:
        why = lacks(running(), *RIGHTS) or f"{explain(BPF_SOCKET_HOOKS, running())} ({err.strerror})"
        raise OSError(err.errno, why) from err
    for layout, old in places.folders(ns_fd, bpffs):
        if layout < maps.LAYOUT:
            places.remove(old)
    return made


def load_bypass(services: int, ns_fd: int | None) -> Bypass:
    """Raises OSError, which says what is missing."""
    code = native.code("bypass")
    if code is None:
        raise OSError(errno.ENOEXEC, f"its program is not built: {built.reason(native.FOLDER, 'bypass')}")
    if why := judge(BPF_TCX, running()):
        raise OSError(errno.EOPNOTSUPP, why)
    if why := lacks(running(), *INSIDE):
        raise OSError(errno.EPERM, why)
    made = Bypass(elf.parse(code), services, ns_fd)
    try:
        made.judge()
    except BaseException:
        made.close()
        raise
    return made


class Policies:
    """Hears of changed rules, and has the bypass look at network policies. Implements backend.Watch."""

    def __init__(self, bypass: Bypass, ns_fd: int | None) -> None:
        self._bypass, self._commits = bypass, nft_socket.Commits(0, ns_fd)

    def fileno(self) -> int:
        return self._commits.fileno()

    def changed(self) -> bool:
        self._commits.changed()
        try:
            self._bypass.judge()
        except OSError as err:
            log.warn("network policies could not be read: no packet passes by", error=str(err))
            self._bypass.stop()
        return False

    def close(self) -> None:
        self._commits.close()


class Arrivals:
    """Hears of pods that come and go, from the files that pod wiring writes. Implements backend.Watch."""

    def __init__(self, run_dir: Path, look: Callable[[], bool]) -> None:
        names = hostports.path(run_dir).name, podspaces.path(run_dir).name
        self._files, self._look = FileWatch(run_dir, names), look

    def fileno(self) -> int:
        return self._files.fileno()

    def changed(self) -> bool:
        return self._files.changed() and self._look()

    def close(self) -> None:
        self._files.close()


class Kernel:
    """run_dir: where pod wiring names the pods' namespaces; "": `admit` names them."""

    def __init__(
        self,
        planners: Sequence[Planner],
        ns_fd: int | None,
        cgroup: str,
        bpffs: str,
        run_dir: str = "",
        *,
        bypass: bool = False,
    ) -> None:
        self._ns_fd = ns_fd
        cidrs = planners[0].node.pod_cidrs if planners else ()
        self._run_dir = Path(run_dir)
        self.pods = Pods(self._run_dir, cidrs, self.admit) if run_dir else None
        self.beneath = nftables.Tables(ns_fd)
        self.hooks: Hooks | None = None
        self.spaces: Callable[[], Iterable[str | int]] = self.pods.paths if self.pods else lambda: ()
        self._retired: list[tuple[Key, frozenset[Destination]]] = []  # of a commit, until the sweep
        self._blind = lacks(running(), *INSIDE)  # why sockets cannot be ended
        self.problem = ""
        try:
            self.hooks = load(cgroup, bpffs, ns_fd)
        except OSError as err:
            self.problem = err.strerror or str(err)
        else:
            self.admit(self.hooks.clients())
            if self.pods is not None:
                self.pods.look()
        for planner in planners:
            planner.on = self.hooks is not None
        self.bypass: Bypass | None = None
        self._no_bypass = ""  # why it is off though asked for
        if bypass and self.hooks is not None:
            try:
                self.bypass = load_bypass(self.hooks.services, ns_fd)
            except OSError as err:
                self._no_bypass = err.strerror or str(err)
                log.warn("the bypass is off; pods' packets take the usual way", problem=self._no_bypass)

    @property
    def told(self) -> tuple[str, ...]:
        if self.hooks is None:
            return (f"{OFF}, nftables serves everything: {self.problem}",)
        parts = [f"socket hooks: on, for {self.hooks.served} namespaces"]
        if self._blind:
            parts.append(f"ending sockets of endpoints that are gone: off, {self._blind}")
        if self._bypass_told:
            parts.append(f"bypass: {self._bypass_told}")
        return tuple(parts)

    @property
    def _bypass_told(self) -> str:
        if self.bypass is None:
            return f"off, {self._no_bypass}" if self._no_bypass else ""
        slow = "".join(f", {number} slow ({why})" for why, number in sorted(self.bypass.slow.items()))
        return f"on, for {self.bypass.fast} pods{slow}"

    @property
    def no_notifications(self) -> bool:
        return self.beneath.no_notifications

    def admit(self, pods: Iterable[Client]) -> None:
        """Serves the sockets of these pods, and of the node. Raises OSError."""
        if self.hooks is not None:
            node = Client(places.cookie(self._ns_fd), maps.NODE)
            self.hooks.admit([node, *(pod for pod in pods if pod.cookie != node.cookie)])

    def read(self, family: Family) -> State | None:
        table = self.beneath.read(family)
        rows, slots = self.hooks.read(family) if self.hooks else ({}, {})
        return State(table, rows, slots) if table is not None or rows else None

    def commit(self, planner: Planner, plan: Plan) -> None:
        self.beneath.commit(planner.beneath, plan.beneath)
        if self.hooks is not None:
            self.hooks.write(plan)
            self._retired += planner.parted(plan)

    def settle(self, planner: Planner, *, swept: bool) -> None:
        self.beneath.settle(planner.beneath, swept=swept)
        if swept and self.hooks is not None:
            self._retire(planner)
        if swept and self.hooks is not None and planner.sockets_to_end:
            self._end_sockets(planner)
            planner.looked()

    def _retire(self, planner: Planner) -> None:
        """Sums the counts of endpoints that are gone; no program chooses them any more."""
        assert self.hooks is not None
        v6 = planner.family == "ip6"
        waiting = [one for one in self._retired if is_v6(one[0].ip) == v6]
        self._retired = [one for one in self._retired if is_v6(one[0].ip) != v6]
        if planner.left is None:  # after a start, and after rules were read back
            waiting += tally.stale(self.hooks.tallies(), planner.frontends.get, v6=v6)
        for key, ends in waiting:
            if key not in planner.frontends:
                self.hooks.forget(key, ends)
            else:
                for to in ends:
                    self.hooks.retire(key, to)

    def _end_sockets(self, planner: Planner) -> None:
        """Destroys the sockets whose endpoint is gone. It needs CAP_SYS_ADMIN, to enter the pods' namespaces."""
        assert self.hooks is not None
        if lacks(running(), *INSIDE):
            return
        own: list[str | int] = (
            [os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)] if self._ns_fd is None else []
        )
        try:
            spaces = [*(own or [self._ns_fd or 0]), *self.spaces()]
            ended = sockets.destroy(spaces, self.hooks.memory, self.hooks.dialled, planner.gone)
        except OSError as err:
            if (why := str(err)) != self._blind:
                self._blind = why
                log.warn("sockets of endpoints that are gone cannot be ended", error=why)
            return
        finally:
            for fd in own:
                os.close(int(fd))
        self._blind = ""
        for one in ended[:SHOWN]:
            log.info("ended a socket: its endpoint is gone", service=f"{one.key.ip}:{one.key.port}", endpoint=one.to.ip)
        if len(ended) > SHOWN:
            log.info("ended more sockets whose endpoint is gone", sockets=len(ended) - SHOWN)

    def watch(self, planners: Sequence[Planner]) -> Sequence[Watch]:
        found: list[Watch] = [*self.beneath.watch([planner.beneath for planner in planners])]
        if self.pods is None or self.hooks is None:
            return found
        if self.bypass is not None:
            found.append(Policies(self.bypass, self._ns_fd))
            self.bypass.judge()  # a policy may have come before this watch
        try:
            found.append(Arrivals(self._run_dir, self._look))
        except OSError as err:
            log.debug("new pods are seen within a second, not at once", error=str(err))
        return [*found, Timer(self._look)]

    def _look(self) -> bool:
        assert self.pods is not None
        self.pods.look()
        if self.bypass is not None:
            try:
                doors = hostports.decode(hostports.path(self._run_dir).read_text())
            except OSError:
                doors = ()  # no pod of the node has a hostPort
            try:
                self.bypass.look(self.pods.spaces(), doors)
            except OSError as err:
                log.warn("the bypass does not follow the pods", error=str(err))
        return False

    def counts(self, planners: Sequence[Planner]) -> Sequence[Counts]:
        return self.beneath.counts([planner.beneath for planner in planners])

    def counted(self, planners: Sequence[Planner]) -> Mapping[Reason, int]:
        return self.beneath.counted([planner.beneath for planner in planners])

    def figures(self, planners: Sequence[Planner]) -> Sequence[Figures]:
        """Returns what the hooks counted, for /metrics. Thread-safe."""
        if self.hooks is None:
            return ()

        def frontend(key: Key) -> Frontend | None:
            return next((one for planner in planners if (one := planner.frontends.get(key))), None)

        found = list(metrics(self.hooks.tallies(), frontend))
        if self.bypass is not None:
            found += passed(*self.bypass.passed())
        return tuple(found)

    def foreign_commits(self) -> int:
        return self.beneath.foreign_commits()

    def retire(self) -> list[str]:
        return []

    def close(self) -> None:
        if self.bypass is not None:
            self.bypass.close()
        if self.hooks is not None:
            self.hooks.close()
        self.beneath.close()


def observed(ns_fd: int | None = None) -> LiveHooks | None:
    """Returns the hooks with the tables beneath; None if this node has no pins of this layout."""
    folder = next((path for layout, path in places.folders(ns_fd) if layout == maps.LAYOUT), None)
    if folder is None:
        return None
    tables = nftables.observed(ns_fd)
    states = dict[Family, State]()
    for family in FAMILIES:
        found = bpf_hooks.observed(folder, family)
        if family in tables or found.services:
            states[family] = State(tables.get(family), found.services, found.slots)
    known = bpf_hooks.observed_clients(folder)
    pods = frozenset(ip for client in known if client.who == maps.POD for ip in (client.ip, client.ip6) if ip)
    return LiveHooks(states, pods, any(client.who == maps.NODE for client in known), _asking(folder))


def _asking(folder: Path) -> Ask | None:
    """Returns what has the kernel run the program that decides, over the maps under these pins."""
    if (code := native.code("sock")) is None:
        return None
    obj = elf.parse(code)

    def ask(key: Key, who: int, number: int) -> list[Destination | None] | None:
        if number > ASKED:
            return None
        try:
            return bpf_hooks.asked(folder, obj, key, who, number)
        except OSError as err:
            log.debug("the program cannot be asked; its maps are walked", error=str(err))
            return None

    return ask


def observed_tallies(ns_fd: int | None = None) -> Tallies | None:
    """Returns what this node's hooks counted; None if it has no hooks that count."""
    for layout, path in places.folders(ns_fd):
        if layout == maps.LAYOUT:
            with contextlib.suppress(FileNotFoundError):
                return bpf_hooks.observed_tallies(path)
    return None


def existing(ns_fd: int | None = None) -> list[str]:
    return [_line(path) for _, path in places.folders(ns_fd)]


def cleanup(ns_fd: int | None = None) -> list[str]:
    """Removes the pins, and with them the hooks. Returns a line for each folder found."""
    found = [path for _, path in places.folders(ns_fd)]
    for path in found:
        with contextlib.suppress(FileNotFoundError):
            places.remove(path)
    return [_line(path) for path in found]


def _line(path: Path) -> str:
    return f"socket hooks {path}"
