"""The archive is read back as a runtime reads it: by its digests."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from typing import Any

import pytest

from podwire_cni.pauseimage import build

PROGRAM = b"\x7fELF and so on"


def test_every_digest_leads_to_its_blob_and_at_last_to_the_program() -> None:
    with tarfile.open(fileobj=io.BytesIO(build(PROGRAM, "x86_64", "example.org/pause:3"))) as archive:
        files = {m.name: archive.extractfile(m).read() for m in archive}  # type: ignore[union-attr]  # all are files

    def follow(link: dict[str, Any]) -> bytes:
        blob = files["blobs/" + link["digest"].replace(":", "/")]
        assert link["digest"] == "sha256:" + hashlib.sha256(blob).hexdigest() and link["size"] == len(blob)
        return blob

    assert json.loads(files["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    (entry,) = json.loads(files["index.json"])["manifests"]
    assert entry["annotations"]["io.containerd.image.name"] == "example.org/pause:3"
    manifest = json.loads(follow(entry))
    config, (layer,) = json.loads(follow(manifest["config"])), manifest["layers"]
    assert config["rootfs"]["diff_ids"] == [layer["digest"]] and config["architecture"] == "amd64"
    with tarfile.open(fileobj=io.BytesIO(follow(layer))) as root:
        member = root.getmember(config["config"]["Entrypoint"][0].strip("/"))
        assert member.mode == 0o755 and root.extractfile(member).read() == PROGRAM  # type: ignore[union-attr]  # a file
    assert len(files) == 5


def test_same_program_same_bytes() -> None:
    assert build(PROGRAM, "aarch64") == build(PROGRAM, "aarch64") != build(PROGRAM, "x86_64")


@pytest.mark.parametrize(
    ("program", "machine", "words"), [(b"#!/bin/sh", "x86_64", "C compiler"), (PROGRAM, "vax", "vax")]
)
def test_what_cannot_be_an_image(program: bytes, machine: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build(program, machine)
