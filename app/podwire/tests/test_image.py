"""The image: the layer of each file, and the archive, read back by its digests as a runtime reads it."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from podwire.deploy import image, layers, sbom
from podwire.main import cli
from podwire_cni import oci

ELF = b"\x7fELF pause"
SITE = layers.SITE


@pytest.mark.parametrize(
    ("path", "layer"),
    [
        ("usr/bin/python3.11", 0),
        ("lib/x86_64-linux-gnu/libc.so.6", 0),
        (f"{SITE}/aiohttp/client.py", 1),
        (f"{SITE}/podwire_dns/native/bin/_packets.abi3.so", 2),
        (f"{SITE}/podwire-0.2.0.dist-info/METADATA", 2),
        (f"{SITE}/podwire_proxy/testing/builders.py", 2),
        (f"{SITE}/_cffi_backend.so", 1),
    ],
)
def test_layers(path: str, layer: int) -> None:
    assert layers.wanted(path) and layers.layer_of(path) == layer


@pytest.mark.parametrize(
    "path",
    [
        "usr/share/doc/x",
        "var/lib/dpkg/status",
        "usr/lib/python3.11/idlelib/run.py",
        "usr/lib/python3.11/test",
        "dev/null",
        f"{SITE}/bin/podwire",
        f"{SITE}/yaml/tests/test_x.py",
        f"{SITE}/podwire-0.2.0.dist-info/direct_url.json",
        f"{SITE}/podwire-0.2.0.dist-info/RECORD",
    ],
)
def test_what_nobody_needs_is_left_out(path: str) -> None:
    assert not layers.wanted(path)


def _read(archive: bytes) -> tuple[dict[str, bytes], dict[str, Any], dict[str, Any]]:
    """(files, manifest, config), every digest checked on the way."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        files = {m.name: opened.extractfile(m).read() for m in opened}  # type: ignore[union-attr]  # all are files

    def follow(link: dict[str, Any]) -> bytes:
        blob = files["blobs/" + link["digest"].replace(":", "/")]
        assert link["digest"] == "sha256:" + hashlib.sha256(blob).hexdigest() and link["size"] == len(blob)
        return blob

    (entry,) = json.loads(files["index.json"])["manifests"]
    manifest = json.loads(follow(entry))
    config = json.loads(follow(manifest["config"]))
    for layer, diff in zip(manifest["layers"], config["rootfs"]["diff_ids"], strict=True):
        blob = follow(layer)
        raw = gzip.decompress(blob) if layer["mediaType"].endswith("gzip") else blob
        assert diff == "sha256:" + hashlib.sha256(raw).hexdigest()
    return files, manifest, config


def _tree(folder: Path) -> Path:
    for path, text in (
        ("usr/bin/python3.11", "elf"),
        (f"{SITE}/aiohttp/a.py", "a"),
        (f"{SITE}/podwire_cni/b.py", "b"),
        ("var/lib/dpkg/status", "s"),
        ("usr/share/doc/python3/copyright", "c"),
    ):
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (folder / "usr/bin/python3.11").chmod(0o755)
    (folder / "usr/bin/python3").symlink_to("python3.11")
    return folder


def test_a_tree_becomes_an_image(tmp_path: Path) -> None:
    made = layers.split(image.entries(_tree(tmp_path)), ELF, b"{}")
    files, manifest, config = _read(oci.archive(made, layers.CONFIG, "x86_64", "podwire.io/podwire:9", compress=True))
    assert config["config"]["Entrypoint"] == ["/usr/local/bin/podwire"] and len(manifest["layers"]) == 3
    members: dict[str, tuple[int, tarfile.TarInfo]] = {}
    for n, layer in enumerate(manifest["layers"]):
        raw = gzip.decompress(files["blobs/" + layer["digest"].replace(":", "/")])
        with tarfile.open(fileobj=io.BytesIO(raw)) as opened:
            for member in opened:
                assert member.name not in members and member.mtime == 0 and (member.uid, member.uname) == (0, "")
                members[member.name] = (n, member)
    assert members["usr/bin/python3"][1].linkname == "python3.11" and members["usr/bin/python3.11"][1].mode == 0o755
    assert members[f"{SITE}/aiohttp/a.py"][0] == 1 and members[f"{SITE}/podwire_cni/b.py"][0] == 2
    assert members["pause"][1].size == len(ELF) and members["usr/local/bin/podwire"][1].mode == 0o755
    assert members[sbom.PATH][0] == 2 and members[sbom.PATH][1].size == 2
    assert members["tmp"][1].mode == 0o1777 and not [name for name in members if "dpkg" in name or "share/doc" in name]


_PARTS = st.lists(st.text("abcxyz", min_size=1, max_size=3), min_size=1, max_size=3)
_PATHS = st.lists(_PARTS.map("/".join), unique=True, max_size=6)


@given(_PATHS, st.randoms())
def test_the_order_of_files_makes_no_difference(paths: list[str], chance: Any) -> None:
    entries = [oci.Entry(f"f/{path}.x", path.encode()) for path in paths]
    mixed = list(entries)
    chance.shuffle(mixed)
    assert oci.tar(entries) == oci.tar(mixed) and oci.compressed(oci.tar(entries)) == oci.compressed(oci.tar(mixed))


def test_names_longer_than_a_tar_header_stay_whole() -> None:
    path = "/".join(["directory"] * 30) + "/file.py"
    with tarfile.open(fileobj=io.BytesIO(oci.tar([oci.Entry(path, b"x")]))) as opened:
        assert opened.getnames() == [path]


def test_the_list_of_packages_is_the_same_each_time() -> None:
    debs = [
        "libc6_2.36-9+deb12u14_amd64.deb",
        "zlib1g_1%3a1.2.13.dfsg-1_amd64.deb",
        "lock",
        "partial",
        "tzdata_2026a-0+deb12u1_all.deb",
    ]
    folders = [
        "aiohttp-3.14.5.dist-info",
        "PyYAML-6.0.4.dist-info",
        "lightkube_models-1.37.0.8.dist-info",
        "yaml",
        "bin",
    ]
    packages = [*sbom.debian(debs, "bookworm"), *sbom.python(folders)]
    made = sbom.document("podwire.io/podwire", "9", packages)
    assert made == sbom.document("podwire.io/podwire", "9", reversed(packages)), "no order, no time, no random number"
    body = json.loads(made)
    assert (body["bomFormat"], body["specVersion"]) == ("CycloneDX", "1.5")
    assert not {"serialNumber", "timestamp"} & {*body, *body["metadata"]}
    purls = [part["purl"] for part in body["components"]]
    assert purls == sorted(purls) and len(purls) == len(set(purls)) == 6
    assert "pkg:deb/debian/libc6@2.36-9%2Bdeb12u14?arch=amd64&distro=bookworm" in purls
    assert "pkg:deb/debian/zlib1g@1%3A1.2.13.dfsg-1?arch=amd64&distro=bookworm" in purls
    assert {"pkg:pypi/pyyaml@6.0.4", "pkg:pypi/lightkube-models@1.37.0.8"} <= set(purls)
    assert sbom.debian(["a_1_arm64.deb"], "noble", "ubuntu")[0].purl.startswith("pkg:deb/ubuntu/a@1")


def test_where_packages_come_from(tmp_path: Path) -> None:
    for text in ("ID=debian\nVERSION_CODENAME=bookworm\n", 'VERSION_CODENAME="bookworm"'):
        assert image.codename(text) == "bookworm"
    with pytest.raises(image.BuildFailed, match="--suite"):
        image.codename("ID=debian\n")
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list").write_text("deb http://mirror.example/debian bookworm main\n")
    (tmp_path / "sources.list.d/debian.sources").write_text("Suites: bookworm bookworm-updates\n")
    (tmp_path / "sources.list.d/other.list").write_text("deb https://other.example/apt cloud-bookworm main\n")
    (tmp_path / "sources.list.d/notes.txt").write_text("bookworm\n")
    assert [Path(p).name for p in image.sources(tmp_path, "bookworm")] == ["sources.list", "debian.sources"]


def test_errors_are_for_people(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli, ["image", "build"])
    assert done.exit_code == 1 and "--wheel" in done.output
    with pytest.raises(image.BuildFailed, match="apt-get install no-such-tool"):
        image._run(["no-such-tool"], "x")
    with pytest.raises(image.BuildFailed, match=r"x: sh -c .*said this"):
        image._run(["sh", "-c", "echo said this >&2; exit 3"], "x")
    with pytest.raises(ValueError, match="vax"):
        oci.archive([], {}, "vax", "a:b")
