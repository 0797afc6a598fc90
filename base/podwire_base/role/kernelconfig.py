"""Reads the running kernel: its release, its configuration, and the capabilities of this process."""

from __future__ import annotations

import contextlib
import functools
import gzip
import os
import re
from pathlib import Path

from .features import Kernel, parse_options


def read(release: str = "", root: Path = Path("/")) -> Kernel:
    """Read the kernel. release: "" for the running kernel, else the release of another kernel. root: the directory that
    contains /proc and /boot, for tests.
    """
    release = release or os.uname().release
    text = _configuration(release, root)
    return Kernel(release, None if text is None else parse_options(text), _capabilities(root))


@functools.cache
def running() -> Kernel:
    """Returns `read()` of this machine, cached for the process."""
    return read()


def _configuration(release: str, root: Path) -> str | None:
    """Returns the text of the kernel's configuration. Returns None if the kernel does not provide it
    (CONFIG_IKCONFIG_PROC) and there is no copy in the distribution's files.
    """
    with contextlib.suppress(OSError, EOFError):  # the file is missing, or not a complete gzip file
        return gzip.decompress((root / "proc/config.gz").read_bytes()).decode()
    for place in (f"boot/config-{release}", f"lib/modules/{release}/config"):
        with contextlib.suppress(OSError):
            return (root / place).read_text()
    return None


def _capabilities(root: Path) -> int:
    """Returns the capabilities of this process in its user namespace; all capabilities if /proc has no information."""
    with contextlib.suppress(OSError):
        found = re.search(r"^CapEff:\s*([0-9a-f]+)$", (root / "proc/self/status").read_text(), re.MULTILINE)
        if found:
            return int(found[1], 16)
    return -1
