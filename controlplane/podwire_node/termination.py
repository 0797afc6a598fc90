"""A container's last words: its terminationMessagePath, or the end of its log (core/v1 Container)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from podwire_base.kube.meta import Object

from .launch import Bind

_LIMIT, _LOG_BYTES, _LOG_LINES = 4096, 2048, 80


def file(directory: Path, container: Object) -> Bind:
    """Make the empty file that the container writes, and return it as a bind. Raises OSError."""
    source = directory / "termination-log"
    directory.mkdir(parents=True, exist_ok=True)
    source.write_bytes(b"")
    source.chmod(0o666)
    return Bind(str(source), str(container.get("terminationMessagePath") or "/dev/termination-log"))


def message(directory: Path, container: Object, ended: dict[str, Any]) -> str:
    """Return the message of a container that ended, "" if it left none."""
    try:
        with (directory / "termination-log").open("rb") as found:
            said = found.read(_LIMIT).decode(errors="replace")
    except OSError:
        said = ""
    if not said and ended.get("code") and container.get("terminationMessagePolicy") == "FallbackToLogsOnError":
        said = _end_of(directory / "log")
    return said or str(ended.get("message") or "")


def _end_of(log: Path) -> str:
    try:
        with log.open("rb") as found:
            found.seek(max(0, log.stat().st_size - 2 * _LIMIT))
            lines = found.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    texts = [line.split(" ", 3)[-1] for line in lines][-_LOG_LINES:]
    return "\n".join(texts)[-_LOG_BYTES:]
