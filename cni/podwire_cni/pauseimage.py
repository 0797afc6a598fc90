"""The pause program as an OCI image archive, for runtimes that want their sandbox's first process from an image.

    podwire pause-image > pause.tar && ctr --namespace k8s.io images import pause.tar

One layer with one static file. The same program gives the same bytes: no times, no names of a builder. Pure: bytes in, bytes
out. Source: OCI image specification 1.0 (image layout, manifest, configuration).
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from typing import Any

NAME = "podwire.io/pause:latest"
MACHINES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "ppc64le": "ppc64le", "s390x": "s390x",
            "riscv64": "riscv64"}


def _tar(files: dict[str, tuple[bytes, int]]) -> bytes:
    """path -> (content, mode) as a tar file."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for path, (content, mode) in files.items():
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(content), mode
            archive.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def _digest(blob: bytes) -> str:
    return "sha256:" + hashlib.sha256(blob).hexdigest()


def build(program: bytes, machine: str, name: str = NAME) -> bytes:
    """The archive. program: a static executable for `machine` (as uname says it: x86_64, aarch64 ...); name: REPOSITORY:TAG.

    Raises ValueError where it is none, or the machine has no name in OCI.
    """
    if program[:4] != b"\x7fELF":
        raise ValueError("the pause program is not a compiled one: install a C compiler and podwire again")
    if machine not in MACHINES:
        raise ValueError(f"machine {machine!r} has no OCI name; known are {', '.join(MACHINES)}")
    blobs: dict[str, bytes] = {}

    def described(kind: str, blob: bytes) -> dict[str, Any]:
        blobs[_digest(blob)] = blob
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": _digest(blob), "size": len(blob)}

    def written(kind: str, body: dict[str, Any]) -> dict[str, Any]:
        return described(kind, json.dumps(body, separators=(",", ":")).encode())

    layer = described("layer.v1.tar", _tar({"pause": (program, 0o755)}))
    config = written("config.v1+json", {
        "architecture": MACHINES[machine], "os": "linux", "config": {"Entrypoint": ["/pause"], "User": "65535:65535"},
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]}})
    manifest = written("manifest.v1+json", {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
                                            "config": config, "layers": [layer]})
    manifest["annotations"] = {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name.rsplit(":", 1)[-1]}
    manifest["platform"] = {"architecture": MACHINES[machine], "os": "linux"}
    index = json.dumps({"schemaVersion": 2, "manifests": [manifest]}, separators=(",", ":")).encode()
    files = {"oci-layout": (b'{"imageLayoutVersion":"1.0.0"}', 0o644), "index.json": (index, 0o644)}
    files |= {f"blobs/{digest.replace(':', '/')}": (blob, 0o644) for digest, blob in blobs.items()}
    return _tar(files)
