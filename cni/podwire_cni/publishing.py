"""Writes for the Service proxy which pods the node has: at once after each call, and no call waits for it."""

from __future__ import annotations

import contextlib
import queue
import threading
from pathlib import Path
from typing import Protocol

from podwire_base.role import bugs, files, hostports, logs, podspaces
from podwire_base.role.hostports import HostPort
from podwire_base.role.podspaces import PodSpace

log = logs.get("wiring")
GATHER = 0.05  # seconds: calls that end within this time are written together


class Pods(Protocol):
    """The part of Attachments that is published."""

    def host_ports(self) -> frozenset[HostPort]: ...

    def pod_spaces(self) -> frozenset[PodSpace]: ...


class Publisher:
    """Keeps the pods' hostPorts, of which the proxy tells the pods whose hostPort a Service has, and the pods'
    namespaces, whose sockets the hooks of its backend ebpf serve. All methods are thread-safe.
    """

    def __init__(self, run_dir: Path, pods: Pods) -> None:
        self._run_dir, self._pods = run_dir, pods
        self._written: dict[Path, str] = {}  # the text of each file
        self._lock = threading.Lock()
        self._news = queue.SimpleQueue[None]()  # cheaper than an Event, for the worker that tells
        self._ends = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Write after each call of `changed`, in a thread, until `close`."""
        self._thread = threading.Thread(target=self._run, name="publish", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Write what changed last, and end."""
        if self._thread is not None:
            self._ends.set()
            self.changed()
            self._thread.join()

    def changed(self) -> None:
        """Pods may have come or gone. It returns at once."""
        self._news.put(None)

    def write(self) -> None:
        """Write the files whose content differs from what this process wrote last."""
        with self._lock:
            for path, text in (
                (hostports.path(self._run_dir), hostports.encode(self._pods.host_ports())),
                (podspaces.path(self._run_dir), podspaces.encode(self._pods.pod_spaces())),
            ):
                if text == self._written.get(path):
                    continue
                try:
                    files.write(path, text)
                    self._written[path] = text
                except OSError as err:
                    log.warn("what the Service proxy reads could not be written", file=str(path), error=str(err))

    def _run(self) -> None:
        while not self._ends.is_set():
            self._news.get()
            self._ends.wait(GATHER)
            with contextlib.suppress(queue.Empty):  # before the leases are read: what comes later is written next time
                while True:
                    self._news.get_nowait()
            try:
                self.write()
            except Exception as err:  # the thread must go on; the agent's sync writes too
                bugs.report(log, "the pods could not be published", err)
