"""Tells Services and pods which of their claims on an address and port another claim has (claims.py). I/O."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from podwire_base.kube import meta
from podwire_base.role import hostports, logs, waits
from podwire_base.role.hostports import HostPort

from .changes import DeduplicatedLog, Tracker
from .claims import displaced, lost
from .objects import about, claim_event, host_port_event

log = logs.get("proxy")
AGAIN = 10.0  # seconds between two looks at the hostPorts; pod wiring writes them in the same rhythm
SHOWN = 3  # claims in the status message


Post = Callable[[meta.Object, Callable[[meta.Object], meta.Object]], None]  # Events.post


class ClaimWatch:
    """One per proxy. post: sends an Event. changed: called when `status` changed outside of `tell`.

    Every proxy finds the same lost claims of Services, so all of them name their Event alike, and the API server keeps
    one. A hostPort is this node's alone.
    """

    def __init__(
        self,
        run_dir: Path,
        node: str,
        tracker: Tracker,
        post: Post,
        changed: Callable[[], None],
    ) -> None:
        self._path, self._node, self._tracker = hostports.path(run_dir), node, tracker
        self._post, self._changed = post, changed
        self._told = DeduplicatedLog()
        self._lost: Mapping[str, list[str]] = {}
        self._displaced: Mapping[HostPort, str] = {}
        self._look = asyncio.Event()

    @property
    def count(self) -> int:
        return sum(map(len, self._lost.values())) + len(self._displaced)

    @property
    def status(self) -> list[str]:
        """Returns a few lines for the role's status; () without a lost claim."""
        lines = [f"Service {service}: {line}" for service, found in self._lost.items() for line in found]
        lines += [f"pod {one.pod}: {line}" for one, line in self._displaced.items()]
        return lines[:SHOWN] + ([f"{len(lines) - SHOWN} more claims that others have"] if len(lines) > SHOWN else [])

    def tell(self) -> None:
        """Call this after each sync: tells what Services lost."""
        plane = self._tracker.dataplane
        found = lost(plane) if plane.contested else {}
        for service in {**self._lost, **found}:
            for line in self._told.news("Service", service, found.get(service, [])):
                log.warn("another Service has what this one claims", service=service, problem=line)
                self._post(about("Service", service), partial(claim_event, why=line, now=time.time()))
        self._lost = found
        self._look.set()

    async def watch_host_ports(self) -> None:
        """Tells the pods whose hostPort a Service has. Never returns."""
        while True:
            await waits.until_set(self._look, AGAIN)
            self._look.clear()
            self.look_at_host_ports()
            await asyncio.sleep(1)  # a burst of syncs is one look

    def look_at_host_ports(self) -> None:
        try:
            found = displaced(self._tracker.dataplane, hostports.decode(self._path.read_text()))
        except FileNotFoundError:
            found = {}  # no pod wiring of podwire's on this node
        except (OSError, UnicodeDecodeError) as err:
            log.debug("the hostPorts of this node could not be read", error=str(err))
            return
        for one in {**self._displaced, **found}:
            for line in self._told.news("hostPort", repr(one), [found[one]] if one in found else []):
                log.warn("a Service has a pod's hostPort", pod=one.pod, problem=line)
                if one.pod:
                    whom = about("Pod", one.pod, one.uid)
                    self._post(whom, partial(host_port_event, self._node, why=line, now=time.time()))
        if found != self._displaced:
            self._displaced = found
            self._changed()
