"""The image of `podwire image build` in Debian's containerd (`make test-image`, two minutes).

`ctr` imports it, and it runs as the DaemonSet's containers do.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import containerd
from lab.cninode import CniNode, put_node, wait_until
from lab.containerd import Containerd
from lab.fakeapi import FakeApi
from lab.netns import Lab
from podwire.deploy import image, sbom

pytestmark = [pytest.mark.runtimes, pytest.mark.long, pytest.mark.alone]
ROOT = Path(__file__).resolve().parents[1]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
NAME = f"podwire.io/podwire:{VERSION}"


def built(path: Path) -> Path:
    done = subprocess.run(
        [f"{sys.prefix}/bin/podwire", "image", "build", "-o", str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return path


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("image") / "podwire.tar")


@pytest.fixture(scope="module")
def world(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[CniNode, Containerd]]:
    with Lab() as lab:
        ns, outside = lab.netns("node"), lab.netns("outside")
        lab.wire(ns, "eth0", outside, "eth0", "192.0.2.1/24", "192.0.2.42/24")
        with FakeApi(ns) as api:
            put_node(api, "n1", "10.244.1.0/24", "192.0.2.1")
            api.put(
                "/api/v1/services",
                {
                    "metadata": {"name": "web", "namespace": "default"},
                    "spec": {"clusterIP": "10.96.0.77", "ports": [{"port": 80}]},
                },
            )
            node = CniNode(ns, tmp_path_factory.mktemp("run"), "n1", api)
            runtime = containerd.started(ns, tmp_path_factory.mktemp("containerd"), node.client, node.run_dir / "net.d")
            try:
                runtime.ctr("images", "import", "--snapshotter", "native", str(archive))
                yield node, runtime
            finally:
                runtime.close()


def run(runtime: Containerd, name: str, *words: str, flags: tuple[str, ...] = ()) -> str:
    command = (NAME, name, "/usr/local/bin/podwire", *words)
    return runtime.ctr("run", "--rm", "--net-host", "--snapshotter", "native", *flags, *command).stdout


def files(archive: Path) -> dict[str, bytes]:
    """Path -> content, of every file in the layers."""
    found: dict[str, bytes] = {}
    with tarfile.open(archive) as outer:
        blobs = [outer.extractfile(member) for member in outer if member.name.startswith("blobs/")]
        layers = [blob.read() for blob in blobs if blob is not None]
    for layer in layers:
        if layer[:2] == b"\x1f\x8b":
            with tarfile.open(fileobj=io.BytesIO(gzip.decompress(layer))) as inner:
                found.update(
                    {
                        m.name: content.read()
                        for m in inner
                        if m.isfile() and (content := inner.extractfile(m)) is not None
                    }
                )
    return found


def test_nothing_in_it_is_of_the_build(archive: Path) -> None:
    """Neither the build folder nor the time; so each start can use the compiled files."""
    assert archive.stat().st_size < 60e6, "small as reasonable"
    found = files(archive)
    compiled = {path: content for path, content in found.items() if path.endswith(".pyc")}
    assert len(compiled) > 1000
    assert not [path for path, content in compiled.items() if content[4:8] != b"\1\0\0\0"], (
        "unchecked by hash (PEP 552)"
    )
    assert not [path for path, content in found.items() if b"/podwire-image-" in content]
    sources = {path for path in found if path.startswith("opt/podwire/podwire_") and path.endswith(".py")}
    assert {str(Path(p).parent / "__pycache__" / Path(p).stem) for p in sources} == {
        p.split(".cpython-")[0] for p in compiled if p.startswith("opt/podwire/podwire_")
    }


def test_what_is_in_it_is_listed(archive: Path) -> None:
    """Every distribution and every Debian package, and nothing else."""
    found = files(archive)
    purls = {part["purl"].split("?")[0] for part in json.loads(found[sbom.PATH])["components"]}
    assert f"pkg:pypi/podwire@{VERSION}" in purls
    metadata = {path.split("/")[2] for path in found if path.endswith(".dist-info/METADATA")}
    assert len([p for p in purls if p.startswith("pkg:pypi/")]) == len(metadata) > 20
    locked = re.findall(r"^([a-z0-9-]+)==(\S+)", image.LOCK.read_text(), re.MULTILINE)
    assert {f"pkg:pypi/{name}@{version}" for name, version in locked} >= {
        p for p in purls if p.startswith("pkg:pypi/") and "/podwire@" not in p
    }
    assert {"libc6", "python3-minimal", "libssl3"} <= {p.split("/")[2].split("@")[0] for p in purls if "pkg:deb" in p}


def test_a_second_build_is_the_same(archive: Path, tmp_path: Path) -> None:
    assert built(tmp_path / "again.tar").read_bytes() == archive.read_bytes()


def test_it_knows_its_version_and_its_programs(world: tuple[CniNode, Containerd]) -> None:
    _, runtime = world
    assert VERSION in run(runtime, "version", "--version")


def test_the_init_container_installs_the_plugin(world: tuple[CniNode, Containerd], tmp_path: Path) -> None:
    _, runtime = world
    (tmp_path / "bin").mkdir()
    (tmp_path / "net.d").mkdir()
    mounts = [
        word
        for own, place in (("bin", "/host/opt/cni/bin"), ("net.d", "/host/etc/cni/net.d"))
        for word in ("--mount", f"type=bind,src={tmp_path / own},dst={place},options=rbind:rw")
    ]
    said = run(runtime, "install", "install", "--root", "/host", "--only", "plugin", flags=tuple(mounts))
    assert "write /opt/cni/bin/podwire-cni" in said
    done = subprocess.run(
        [tmp_path / "bin" / "podwire-cni"],
        env={"CNI_COMMAND": "VERSION"},
        input='{"cniVersion":"1.0.0"}',
        capture_output=True,
        text=True,
        check=True,
    )
    assert "1.1.0" in json.loads(done.stdout)["supportedVersions"]


def test_the_agent_runs_every_role(world: tuple[CniNode, Containerd]) -> None:
    """Privileged and in the node's network, as the DaemonSet's container; the node's rules are there afterwards, and
    answer."""
    node, runtime = world
    flags = (
        "--detach",
        "--privileged",
        "--read-only",
        "--mount",
        f"type=bind,src={node.run_dir},dst={node.run_dir},options=rbind:rw",
        "--env",
        "NODE_NAME=n1",
    )
    runtime.ctr(
        "run",
        "--net-host",
        "--snapshotter",
        "native",
        *flags,
        NAME,
        "agent",
        "/usr/local/bin/podwire",
        "agent",
        "--kubeconfig",
        str(node.kubeconfig),
        "--run-dir",
        str(node.run_dir),
        "--upstream-dns",
        "192.0.2.53",
    )

    def ready() -> bool:
        found = {p.stem: json.loads(p.read_text())["ready"] for p in (node.run_dir / "status").glob("*.json")}
        return set(found) >= {"wiring", "proxy", "dns-feeder", "dns"} and all(found.values())

    try:
        wait_until(ready, f"all roles are ready: {runtime.words()}", 60)
        assert "10.96.0.77" in node.ns.run(["nft", "list", "table", "ip", "podwire"]).stdout
        answer = node.ns.run(["dig", "+short", "@10.96.0.10", "web.default.svc.cluster.local"]).stdout
        assert answer.strip() == "10.96.0.77"
    finally:
        runtime.ctr("tasks", "kill", "--signal", "SIGTERM", "agent")
        wait_until(lambda: "STOPPED" in runtime.ctr("tasks", "ls").stdout, "it ends at SIGTERM")
    assert "podwire" in node.ns.run(["nft", "list", "tables"]).stdout, "what is in the kernel outlives it"
