"""Assigns each file of a root file system to a layer of podwire's image, or omits the file. This module does no I/O.

The image has three layers, from bottom to top: the interpreter with its libraries, podwire's dependencies, podwire. The
layer that changes most often is on top.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePosixPath as Path

from podwire_cni import oci

from . import sbom

SITE = "opt/podwire"  # the folder of the wheel and its dependencies
BEAT = "podwire_base/role/native/bin/podwire-beat"  # for probes
PACKAGES = (
    "podwire",
    "podwire_base",
    "podwire_cni",
    "podwire_controlplane",
    "podwire_dns",
    "podwire_node",
    "podwire_proxy",
)
CONFIG = {
    "Entrypoint": ["/usr/local/bin/podwire"],
    "Env": ["PATH=/usr/local/bin:/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE=1"],
    "Labels": {"org.opencontainers.image.title": "podwire", "org.opencontainers.image.licenses": "Apache-2.0"},
}
PROGRAM = f"""#!/usr/bin/python3
import sys
sys.path.insert(0, "/{SITE}")
from podwire.main import cli
sys.exit(cli())
"""
# The interpreter's packages have files only for developers, desktops and dpkg. Wheels have type stubs, tests and
# programs that podwire does not use.
_UNUSED = (
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "usr/share/lintian",
    "usr/share/bug",
    "usr/share/applications",
    "usr/share/pixmaps",
    "usr/share/binfmts",
    "var/cache",
    "var/log",
    "var/lib/apt",
    "var/lib/dpkg",
    "etc/apt",
    "etc/alternatives",
    "dev",
    "proc",
    "sys",
    "tmp",
    "run",
    f"{SITE}/bin",
)
_UNUSED_DIRS = {"idlelib", "lib2to3", "tkinter", "turtledemo", "ensurepip", "pydoc_data", "tests", "test"}
# pip writes these files; they contain the origin of the wheel and depend on the installation
_NOTES = {"RECORD", "direct_url.json", "REQUESTED", "INSTALLER"}
_EMPTY = ("dev", "proc", "sys", "tmp", "run", "etc", "host", "root")


def wanted(path: str) -> bool:
    parts = Path(path).parts
    if any(path == unused or path.startswith(unused + "/") for unused in _UNUSED):
        return False
    if parts[-1] in _NOTES and len(parts) > 1 and parts[-2].endswith(".dist-info"):
        return False
    return not (_UNUSED_DIRS & set(parts[:-1]) and parts[0] in ("usr", "opt")) and parts[-1] not in _UNUSED_DIRS


def layer_of(path: str) -> int:
    """Return the number of the file's layer: 0 for the system, 1 for dependencies, 2 for podwire."""
    if not path.startswith(SITE + "/"):
        return 0
    own = Path(path).parts[len(Path(SITE).parts)]
    return 2 if own in PACKAGES or own.startswith("podwire-") else 1


def split(entries: Iterable[oci.Entry], pause: bytes, listing: bytes) -> list[bytes]:
    """Return the three layers as tar archives. pause: the content of the pause program. listing: the list of
    packages (sbom.py).
    """
    found: list[list[oci.Entry]] = [[], [], []]
    for entry in entries:
        if wanted(entry.path):
            found[layer_of(entry.path)].append(entry)
    known = {entry.path for entry in found[0]}
    found[0] += [oci.Entry(path, mode=0o1777 if path == "tmp" else 0o755) for path in _EMPTY if path not in known]
    found[2] += [oci.Entry("usr/local/bin/podwire", PROGRAM.encode(), 0o755), oci.Entry("pause", pause, 0o755)]
    found[2].append(oci.Entry("usr/local/bin/podwire-beat", link=f"/{SITE}/{BEAT}", mode=0o777))
    found[2].append(oci.Entry(sbom.PATH, listing))
    return [oci.tar(entries) for entries in found]
