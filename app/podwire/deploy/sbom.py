"""The list of what is in the image, in the form of CycloneDX 1.5 (ECMA-424): Debian packages and Python distributions.
This module does no I/O. The list has neither a time nor a random serial number, so two builds write the same bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import quote, unquote

PATH = "usr/share/podwire/sbom.cdx.json"
_DEB = re.compile(r"([a-z0-9][a-z0-9.+-]*)_([^_]+)_([a-z0-9]+)\.deb")


@dataclass(frozen=True, order=True)
class Package:
    """purl: the package URL (ECMA-427), which names one release of one package."""

    name: str
    version: str
    purl: str


def debian(files: Iterable[str], suite: str, vendor: str = "debian") -> list[Package]:
    """Return the packages of .deb files by their names, such as "libpython3.11-stdlib_3.11.2-6+deb12u6_amd64.deb". apt
    writes the colon of an epoch as %3a. vendor: "debian" or "ubuntu".
    """
    found = []
    for file in files:
        if match := _DEB.fullmatch(file):
            name, version, architecture = match[1], unquote(match[2]), match[3]
            where = f"arch={architecture}&distro={suite}"
            found.append(Package(name, version, f"pkg:deb/{vendor}/{quote(name)}@{quote(version, safe='')}?{where}"))
    return sorted(set(found))


def python(folders: Iterable[str]) -> list[Package]:
    """Return the distributions of *.dist-info folders by their names, such as "msgspec-0.21.1.dist-info"."""
    found = []
    for folder in folders:
        name, dash, version = folder.removesuffix(".dist-info").rpartition("-")
        if dash and folder.endswith(".dist-info"):
            normal = re.sub(r"[-_.]+", "-", name).lower()  # PEP 503
            found.append(Package(normal, version, f"pkg:pypi/{normal}@{quote(version, safe='')}"))
    return sorted(set(found))


def document(name: str, version: str, packages: Iterable[Package]) -> bytes:
    """Return the list as JSON. name, version: of the image."""
    body = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": {"type": "container", "bom-ref": "image", "name": name, "version": version}},
        "components": [
            {"type": "library", "bom-ref": p.purl, "name": p.name, "version": p.version, "purl": p.purl}
            for p in sorted(packages, key=lambda p: p.purl)
        ],
    }
    return (json.dumps(body, indent=1) + "\n").encode()
