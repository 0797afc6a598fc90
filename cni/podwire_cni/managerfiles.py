"""Writes the drop-in files for the host's network managers, and asks the managers to read them (hostmanagers.py).

Only an agent in the machine's own network namespace does that: the interfaces of an embedded cluster's nodes are not
the machine's.
"""

from __future__ import annotations

import contextlib
import subprocess
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from podwire_base.role import files, logs

from . import hostmanagers
from .hostmanagers import CONF, NETWORK, NETWORK_MANAGER, NETWORKD, Manager, Seen

log = logs.get("wiring")
ASK: dict[Manager, tuple[str, ...]] = {
    NETWORKD: ("networkctl", "reload"),
    NETWORK_MANAGER: ("nmcli", "general", "reload", "conf"),
}
# Sockets that show in /proc/net/unix, also from a container in the machine's network namespace.
SOCKETS: dict[Manager, tuple[str, ...]] = {
    NETWORKD: ("/run/systemd/netif/",),
    NETWORK_MANAGER: ("/run/NetworkManager/",),
}
FILES: dict[Manager, tuple[str, ...]] = {NETWORKD: (NETWORK,), NETWORK_MANAGER: (CONF,)}
SECONDS = 10


def on_the_machine(own: str = "/proc/thread-self/ns/net", first: str = "/proc/1/ns/net") -> bool:
    """Whether the calling thread is in the machine's own network namespace, that of process 1."""
    try:
        return Path(own).samefile(first)
    except OSError:
        return False


def reload(manager: Manager) -> bool:
    """Ask the manager to read its configuration. Returns whether it did."""
    try:
        done = subprocess.run(ASK[manager], capture_output=True, timeout=SECONDS, check=False)
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0


class Managers:
    """The managers of one machine. run: the machine's /run; host: its root, with the configuration of networkd. ask:
    asks one manager to reload. Methods are thread-safe.
    """

    def __init__(
        self, uplink: str, run: Path = Path("/run"), host: Path = Path("/"), ask: Callable[[Manager], bool] = reload
    ) -> None:
        self.uplink, self.run, self.host, self._ask = uplink, run, host, ask
        self._lock = threading.Lock()
        self._due = set[Manager](FILES)  # at the start also for files that an earlier agent wrote
        self._first = True

    def write(self, bridges: Iterable[str] = ()) -> list[Path]:
        """Write the drop-in files that differ, where the manager's directory below /run exists. bridges: podwire's
        further bridges. Returns the paths of the written files. A file that cannot be written is logged.
        """
        done = []
        for name, text in hostmanagers.drop_ins(bridges).items():
            path = self.run / name
            if not (self.run / name.partition("/")[0]).is_dir():
                continue  # the manager, or systemd, is not on this machine, or its directory is not in this container
            with contextlib.suppress(OSError):
                if path.read_text() == text:
                    continue
            try:
                files.write(path, text)
            except OSError as err:
                log.warn("drop-in not written", file=str(path), error=err.strerror)
                continue
            done.append(path)
        with self._lock:
            # udev notices a change of its file by itself
            self._due |= {name for name, own in FILES.items() if any(self.run / path in done for path in own)}
        return done

    def tell(self, bridges: Iterable[str] = ()) -> list[Path]:
        """Write the drop-in files that differ, and ask the managers to read them, in a thread of its own: pods do not
        wait for that. Returns the paths of the written files.
        """
        done, first, self._first = self.write(bridges), self._first, False
        if done or first:
            threading.Thread(target=self.reload, name="managers", daemon=True).start()
        return done

    def reload(self) -> None:
        """Ask the running managers whose files changed to read them. Takes up to SECONDS for each."""
        running = self.running()
        with self._lock:
            due = self._due & running
        for manager in sorted(due):
            if self._ask(manager):
                log.info("told the host's network manager of podwire's interfaces", manager=manager)
                with self._lock:
                    self._due.discard(manager)
            else:
                log.warn("drop-in takes effect at its next reload", manager=manager)

    def running(self) -> frozenset[Manager]:
        try:
            sockets = (self.host / "proc/net/unix").read_text()
        except OSError:
            sockets = ""
        found = {name for name, places in SOCKETS.items() if any(place in sockets for place in places)}
        if any((self.run / "systemd/netif/links").glob("*")):
            found.add(NETWORKD)
        if (self.run / "NetworkManager/NetworkManager.pid").exists():
            found.add(NETWORK_MANAGER)
        return frozenset(found)

    def seen(self) -> Seen:
        running = self.running()
        with self._lock:
            due = frozenset(self._due)
        # a manager whose directory is out of sight got its files from another container, and cannot be asked
        hidden = {name for name, own in FILES.items() if not (self.run / own[0].partition("/")[0]).is_dir()}
        return Seen(running, running & (due | hidden), NETWORKD in running and self._removes_routes())

    def _removes_routes(self) -> bool:
        """Whether networkd manages the uplink, and its configuration lets it remove routes of other programs."""
        try:
            index = int((self.host / "sys/class/net" / self.uplink / "ifindex").read_text())
            state = (self.run / "systemd/netif/links" / str(index)).read_text()
        except (OSError, ValueError):
            return False
        managed = "ADMIN_STATE=" in state and "ADMIN_STATE=unmanaged" not in state
        return managed and not hostmanagers.keeps_foreign_routes(hostmanagers.ordered(self._networkd_conf()))

    def _networkd_conf(self) -> dict[str, str]:
        found = {}
        for place in ("usr/lib", "lib", "run", "etc"):
            folder = self.host / place / "systemd"
            for path in (folder / "networkd.conf", *sorted(folder.glob("networkd.conf.d/*.conf"))):
                with contextlib.suppress(OSError, UnicodeDecodeError):
                    found[f"/{path.relative_to(self.host)}"] = path.read_text()
        return found
