"""The sysctls of conntrack that the role needs: switched on where they are off, with what was found written down first,
so that `podwire cleanup` can put it back. I/O.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from podwire_base.role import files, logs

from .verdicts import TIMEOUTS

log = logs.get("observe")
WANTED = ("nf_conntrack_acct", "nf_conntrack_timestamp")
RECORD = "observe-sysctls.json"
# The network namespace of the calling thread.
BASE = Path("/proc/sys/net/netfilter")


def _read(name: str) -> str:
    return (BASE / name).read_text().strip()


def ensure(run_dir: Path) -> list[str]:
    """Switches the sysctls on. Returns those that are off and may not be changed."""
    path, off = run_dir / RECORD, []
    found = _record(path)
    for name in WANTED:
        try:
            value = _read(name)
            if value == "1":
                continue
            if name not in found:
                found[name] = value
                files.write(path, json.dumps(found))
            (BASE / name).write_text("1")
            log.info("sysctl", name=f"net.netfilter.{name}", value=1, before=value)
        except OSError as err:
            off.append(name)
            log.warn("a sysctl stays off", name=f"net.netfilter.{name}", error=str(err))
    return off


def _record(path: Path) -> dict[str, str]:
    try:
        found = json.loads(path.read_text())
        return {str(name): str(value) for name, value in found.items() if name in WANTED}
    except (OSError, ValueError, AttributeError):
        return {}


def restore(run_dir: Path, *, dry_run: bool = False) -> Iterator[str]:
    """Puts back what was found, where the value is still ours. Yields a line for each."""
    path = run_dir / RECORD
    for name, value in _record(path).items():
        try:
            if _read(name) == "1" and value != "1":
                if not dry_run:
                    (BASE / name).write_text(value)
                yield f"sysctl net.netfilter.{name} = 1 (before: {value})"
        except OSError as err:
            log.warn("a sysctl stays", name=f"net.netfilter.{name}", error=str(err))
            continue
    if not dry_run:
        path.unlink(missing_ok=True)


def timeouts() -> dict[int, float]:
    """Returns TCP_CONNTRACK_* -> seconds for which an entry stays after its last packet."""
    found = {}
    for state, word in TIMEOUTS.items():
        try:
            found[state] = float(_read(f"nf_conntrack_tcp_timeout_{word}"))
        except (OSError, ValueError):
            continue
    return found
