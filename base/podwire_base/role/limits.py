"""The limit of open files of a role. The usual limit of 1,024 is too low for a role with many peers."""

from __future__ import annotations

import resource

from .logs import Logger

FILES = 65_536
FEW = 4096  # a lower limit is worth a warning


def raise_files() -> int:
    """Raise this process's limit of open files as far as allowed, up to FILES. Returns the limit in force."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(hard, FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return soft if soft != resource.RLIM_INFINITY else wanted


def raise_and_tell(log: Logger) -> int:
    """Raise the limit, and log it where it stays low. Returns the limit in force."""
    files = raise_files()
    if files < FEW:
        log.warn("few open files are allowed; a flood of connections may use them up", limit=files, wanted=FILES)
    return files
