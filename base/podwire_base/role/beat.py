"""The beat of a role: a small file with the time of its last progress, its revision and what it did last.

The supervisor reads it and kills a role that makes no progress; probes of a container read it with `podwire-beat`, and
`podwire status` shows it. The file has one line of SIZE bytes, which is written in place, at most once a second:

    podwire-beat/1 at=5123.25 pid=4711 ready=1 revision=815 written=812 since=5121.5 did="synced 12 Services"

at: seconds of the machine's monotonic clock (CLOCK_MONOTONIC), which all containers share. revision: the last
resourceVersion that the role has seen in the API; written: the last one whose changes it has carried out, and since:
when it saw the oldest change that it has not carried out (0: there is none).

A role ticks in its event loop each second and in long work after each batch. Work in a thread is registered, so that
the loop's ticks do not hide a thread that hangs: the beat has the time of the part that made progress least recently.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .. import progress
from . import logtext

SIZE = 256
SECONDS = 1.0  # between two writes, and between two ticks of an event loop
LONGEST = 100  # characters of what a role did
HEAD = "podwire-beat/1"


def path_of(run_dir: Path, role: str) -> Path:
    return run_dir / "status" / f"{role}.beat"


def opened(path: Path) -> int:
    """Open the beat's file for writing; missing directories are created. Returns the descriptor. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)


class Beat:
    """The beat of this process, written to `fd`."""

    def __init__(self, fd: int) -> None:
        self.fd, self.did, self.revision, self.ready = fd, "starting", "", False
        self._thread = threading.get_ident()
        self._main = time.monotonic()
        self._works: dict[int, float] = {}
        self._stuck: dict[str, float] = {}
        self._written = 0.0
        self._done, self._taken = "", ""  # revisions that are carried out, and that are being carried out
        self._since = self._newer = 0.0  # the oldest change that is not carried out; the oldest since `taking`
        self._write(self._main)

    def tick(self, did: str = "", revision: str = "") -> None:
        now = time.monotonic()
        if did:
            self.did = did
        if revision:
            self.revision = revision
        thread = threading.get_ident()
        if thread == self._thread:
            self._main = now
        elif thread in self._works:
            self._works[thread] = now
        if now - self._written >= SECONDS:
            self._write(now)

    def pending(self) -> None:
        now = time.monotonic()
        self._since, self._newer = self._since or now, self._newer or now

    def taking(self) -> None:
        self._taken, self._newer = self.revision, 0.0

    def settled(self) -> None:
        self._done, self._since = self._taken, self._newer

    def tell(self, ready: bool, did: str) -> None:
        """Change readiness, which is written at once."""
        changed, self.ready = ready != self.ready, ready
        if changed:
            self._written = 0.0
        self.tick(did)

    def stuck(self, part: str, since: float | None) -> None:
        """Tell of a part of the role that another part watches: it makes no progress since then; None: it does."""
        if since is None:
            self._stuck.pop(part, None)
        else:
            self._stuck[part] = since

    @contextlib.contextmanager
    def work(self, what: str) -> Iterator[None]:
        thread = threading.get_ident()
        if thread == self._thread:
            self.tick(what)
            yield
            return
        self._works[thread] = time.monotonic()
        self.tick(what)
        try:
            yield
        finally:
            del self._works[thread]

    def _write(self, now: float) -> None:
        self._written = now
        at = min([self._main, *self._works.values(), *self._stuck.values()])
        with contextlib.suppress(OSError):  # a beat that is not written ends the role in time
            done = self._done if self._since else self.revision
            os.pwrite(self.fd, line(at, os.getpid(), self.ready, self.revision, self.did, done, self._since), 0)


def line(
    at: float, pid: int, ready: bool, revision: str, did: str, written: str | None = None, since: float = 0.0
) -> bytes:
    """Returns the content of the file, SIZE bytes. written None: the revision."""
    seen, done = (text if text.isascii() and text.isalnum() else '""' for text in (revision[:24], (written or "")[:24]))
    text = f"{HEAD} at={at:.2f} pid={pid} ready={int(ready)} revision={seen}"
    text += f" written={seen if written is None else done} since={since:.2f} did={logtext.value(did[:LONGEST])}"
    data = text.encode("ascii", "backslashreplace")
    if len(data) >= SIZE:
        data = text.partition(" did=")[0].encode("ascii", "backslashreplace") + b' did=""'
    return data.ljust(SIZE - 1) + b"\n"


@dataclass(frozen=True, slots=True)
class Reading:
    at: float
    pid: int
    ready: bool
    revision: str
    did: str
    written: str = ""
    since: float = 0.0


def read(path: Path) -> Reading | None:
    """Returns the beat in a file; None if there is none, or if it is just being written."""
    try:
        head, *words = shlex.split(path.read_bytes()[:SIZE].decode("ascii"))
        found = dict(word.split("=", 1) for word in words)
        if head != HEAD:
            return None
        return Reading(
            float(found["at"]),
            int(found["pid"]),
            found["ready"] == "1",
            found["revision"],
            found["did"],
            found.get("written", ""),  # a role of an earlier version does not tell these two
            float(found.get("since", 0)),
        )
    except (OSError, ValueError, KeyError):
        return None


# ---- the beat of this process

_current: Beat | None = None


def begin(fd: int | None) -> None:
    """Make a new beat the beat of this process; None: no beat (as in a child that is not a role)."""
    global _current  # noqa: PLW0603 - a process has one beat, and the code that ticks must not have to know it
    _current = None if fd is None else Beat(fd)
    progress.listen(tick)


def ensure(path: Path) -> None:
    """Begin a beat if this process has none: a role that no supervisor started."""
    if _current is None:
        with contextlib.suppress(OSError):  # the status file tells such an error
            begin(opened(path))


def tick(did: str = "", revision: str = "") -> None:
    """Tell progress. did: what was done. revision: the API's resourceVersion that this was about."""
    if _current is not None:
        _current.tick(did, revision)


def stuck(part: str, since: float | None) -> None:
    if _current is not None:
        _current.stuck(part, since)


def pending() -> None:
    """Tell that the API changed something which this role has to carry out. A bare revision is not enough: many changes
    of objects concern a role not at all.
    """
    if _current is not None:
        _current.pending()


def taking() -> None:
    """Tell that the role begins to carry out what it has seen until now."""
    if _current is not None:
        _current.taking()


def settled() -> None:
    """Tell that what was seen before the last `taking` is carried out."""
    if _current is not None:
        _current.settled()


def tell(ready: bool, did: str) -> None:
    if _current is not None:
        _current.tell(ready, did)


@contextlib.contextmanager
def work(what: str) -> Iterator[None]:
    """Work in a thread other than that of the event loop; it ticks itself, and counts as hanging if it does not."""
    if _current is None:
        yield
        return
    with _current.work(what):
        yield
