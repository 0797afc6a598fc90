"""Follows the file of the pods' network namespaces, and makes them clients of the hooks. I/O."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from podwire_base.role import logs, podspaces
from podwire_base.role.podspaces import PodSpace

from ..model import covers, is_v6
from . import places
from .maps import POD, Client

log = logs.get("proxy")


class Pods:
    """admit: gets the clients after each change of the file. pod_cidrs: no other address counts as a pod's."""

    def __init__(self, run_dir: Path, pod_cidrs: Iterable[str], admit: Callable[[list[Client]], None]) -> None:
        self._path, self._cidrs, self._admit = podspaces.path(run_dir), tuple(pod_cidrs), admit
        self._seen: tuple[int, int] | None = None
        self._known: dict[PodSpace, Client] = {}

    def look(self) -> bool:
        """Reads the file if it changed. Returns False: no rule of the proxy's was touched by others."""
        try:
            found = self._path.stat()
            if (found.st_ino, found.st_mtime_ns) == self._seen:
                return False
            spaces = podspaces.decode(self._path.read_text())
        except FileNotFoundError:
            return False  # no pod wiring of podwire's on this node
        except (OSError, UnicodeDecodeError) as err:
            log.debug("the pods' namespaces could not be read", error=str(err))
            return False
        self._known = dict(self._clients(spaces))
        try:
            self._admit(list(self._known.values()))
        except OSError as err:
            log.warn("the socket hooks do not serve new pods", error=str(err))
            return False
        self._seen = (found.st_ino, found.st_mtime_ns)
        return False

    def spaces(self) -> list[PodSpace]:
        """Returns the namespaces that are clients."""
        return list(self._known)

    def paths(self) -> list[str | int]:
        """Returns the files of the namespaces that are clients."""
        return [space.path for space in self._known]

    def _clients(self, spaces: Iterable[PodSpace]) -> Iterator[tuple[PodSpace, Client]]:
        for space in spaces:
            if (known := self._known.get(space)) is not None:
                yield space, known
                continue
            with contextlib.suppress(OSError):  # it ends just now, or is not visible here: nftables serves it
                if (number := _cookie(space)) and (ips := [ip for ip in space.ips if covers(self._cidrs, ip)]):
                    v4, v6 = ([ip for ip in ips if is_v6(ip) == wanted] for wanted in (False, True))
                    yield space, Client(number, POD, v4[0] if v4 else "", v6[0] if v6 else "")


def _cookie(space: PodSpace) -> int:
    """Returns the namespace's number; 0 if another namespace has its path now."""
    fd = os.open(space.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        return places.cookie(fd) if (found.st_dev, found.st_ino) == (space.device, space.inode) else 0
    finally:
        os.close(fd)
