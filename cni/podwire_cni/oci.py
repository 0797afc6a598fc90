"""Makes images as OCI archives, without a container engine. The same files always give the same bytes, because an
archive contains no times and no builder names.

Pure: bytes in, bytes out. Source: OCI image specification 1.0 (image layout, manifest, configuration).
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MACHINES = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "armv7l": "arm",
    "ppc64le": "ppc64le",
    "s390x": "s390x",
    "riscv64": "riscv64",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of an image. path: has no leading "/". content None: the entry is a directory, or a symbolic link with
    the target `link`.
    """

    path: str
    content: bytes | None = None
    mode: int = 0o755
    link: str = ""


def tar(entries: Iterable[Entry]) -> bytes:
    """Returns an uncompressed layer. The entries are sorted by path (a directory before its content), with owner root
    and time 0.
    """
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for entry in sorted(entries, key=lambda e: e.path):
            info = tarfile.TarInfo(entry.path)
            info.mode = entry.mode
            if entry.link:
                info.type, info.linkname = tarfile.SYMTYPE, entry.link
            elif entry.content is None:
                info.type = tarfile.DIRTYPE
            else:
                info.size = len(entry.content)
            archive.addfile(info, io.BytesIO(entry.content) if entry.content is not None else None)
    return out.getvalue()


def digest(blob: bytes) -> str:
    return "sha256:" + hashlib.sha256(blob).hexdigest()


def compressed(layer: bytes) -> bytes:
    """Returns the layer in gzip form, without file name and time."""
    return gzip.compress(layer, 6, mtime=0)


def archive(
    layers: Sequence[bytes], config: Mapping[str, Any], machine: str, name: str, *, compress: bool = False
) -> bytes:
    """Returns an image archive for `ctr images import`. layers: tar files, the lowest layer first. config: the image's
    `config` object (Entrypoint, Env ...). machine: the machine name of uname. name: REPOSITORY:TAG. compress: compress
    the layers with gzip.

    Raises ValueError if OCI has no name for the machine.
    """
    if machine not in MACHINES:
        raise ValueError(f"machine {machine!r} has no OCI name; known are {', '.join(MACHINES)}")
    blobs: dict[str, bytes] = {}

    def described(kind: str, blob: bytes) -> dict[str, Any]:
        blobs[digest(blob)] = blob
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": digest(blob), "size": len(blob)}

    def written(kind: str, body: dict[str, Any]) -> dict[str, Any]:
        return described(kind, json.dumps(body, separators=(",", ":")).encode())

    rows = [
        described("layer.v1.tar+gzip", compressed(layer)) if compress else described("layer.v1.tar", layer)
        for layer in layers
    ]
    made = written(
        "config.v1+json",
        {
            "architecture": MACHINES[machine],
            "os": "linux",
            "config": dict(config),
            "rootfs": {"type": "layers", "diff_ids": [digest(layer) for layer in layers]},
        },
    )
    manifest = written(
        "manifest.v1+json",
        {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": made, "layers": rows},
    )
    manifest["annotations"] = {
        "io.containerd.image.name": name,
        "org.opencontainers.image.ref.name": name.rsplit(":", 1)[-1],
    }
    manifest["platform"] = {"architecture": MACHINES[machine], "os": "linux"}
    index = json.dumps({"schemaVersion": 2, "manifests": [manifest]}, separators=(",", ":")).encode()
    files = [Entry("oci-layout", b'{"imageLayoutVersion":"1.0.0"}', 0o644), Entry("index.json", index, 0o644)]
    return tar([*files, *(Entry(f"blobs/{key.replace(':', '/')}", blob, 0o644) for key, blob in blobs.items())])
