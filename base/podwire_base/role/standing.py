"""Where a role stands, from its status file, its beat and its process. Pure: the caller read them.

The status file alone cannot tell the truth about a role that hangs or that has fallen behind the API: it says what the
role last said of itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

HANGS = 3.0  # seconds without progress; a beat is at most two seconds old while the event loop of the role runs
BEHIND = 5.0  # seconds that a change of the API may wait before the role carries it out


class Reading(Protocol):
    """A beat, as role/beat.py reads it."""

    @property
    def at(self) -> float: ...
    @property
    def pid(self) -> int: ...
    @property
    def ready(self) -> bool: ...
    @property
    def revision(self) -> str: ...
    @property
    def written(self) -> str: ...
    @property
    def since(self) -> float: ...
    @property
    def did(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Standing:
    """One role of one node. reason: a CamelCase word. age: seconds since its last progress, behind: seconds that the
    oldest change waits which it has not carried out; both None where no beat tells it. seen, written: resourceVersions.
    """

    ready: bool
    reason: str
    message: str
    pid: int = 0
    restarts: int = 0
    age: float | None = None
    behind: float | None = None
    seen: str = ""
    written: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def standing(
    row: Mapping[str, Any] | None, beat: Reading | None, now: float, *, alive: bool, restarts: int
) -> Standing:
    """row: the content of the status file; None: the role writes none, its beat says all. now: the monotonic clock of
    the machine. alive: whether the process that wrote the row, or else the beat, runs.
    """
    if row is None and beat is not None:
        row = {
            "pid": beat.pid,
            "ready": beat.ready,
            "reason": "Ready" if beat.ready else "Starting",
            "message": beat.did,
        }
    if row is None:
        return Standing(False, "NotStarted", "the role has not reported yet", restarts=restarts)
    pid, said = int(row.get("pid") or 0), str(row.get("message") or "")
    if not alive:
        return Standing(False, "NotRunning", f"process {pid} is gone; last: {said}", pid, restarts)
    if beat is None or beat.pid != pid:
        return Standing(bool(row["ready"]), str(row["reason"]), said, pid, restarts, figures=row.get("figures") or {})
    age, behind = max(0.0, now - beat.at), max(0.0, now - beat.since) if beat.since else 0.0
    ready, reason, message = bool(row["ready"]), str(row["reason"]), said
    if age > HANGS:
        ready, reason, message = False, "NoProgress", f"no progress for {age:.0f} s; last: {beat.did}"
    elif behind > BEHIND and ready:
        message = f"behind the API for {behind:.0f} s: has seen revision {beat.revision or '?'}"
        ready, reason, message = False, "Behind", f"{message}, carried out {beat.written or 'none'}; last: {beat.did}"
    return Standing(
        ready, reason, message, pid, restarts, age, behind, beat.revision, beat.written, row.get("figures") or {}
    )


def overtaken(found: Standing, newest: int, seconds: float) -> Standing:
    """Return the standing of a role that has not seen revision `newest` of the API for `seconds`."""
    if not found.ready or not found.seen.isdecimal() or int(found.seen) >= newest:
        return found
    message = f"behind the API for at least {seconds:.0f} s: has seen revision {found.seen} of {newest}"
    return Standing(
        False,
        "Behind",
        message,
        found.pid,
        found.restarts,
        found.age,
        max(found.behind or 0.0, seconds),
        found.seen,
        found.written,
        found.figures,
    )
