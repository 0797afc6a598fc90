"""kubectl and Helm, unmodified, against the API server of a running cluster: what each command says and does.

The commands stand in clients/kubectl and clients/helm, a file for each group. `make test-clients` runs all of them with
every version.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import clients, transcripts
from lab.cluster import cluster
from lab.patience import patient
from podwire.demo.lab import DemoLab

HERE = Path(__file__).parent / "clients"
GROUPS = sorted(path.stem for path in (HERE / "kubectl").glob("*.txt"))
SMALL = ("access",)  # these with the newest version are part of `make test`
NEWEST = max(clients.KUBECTL, key=transcripts.release)
BIG = (pytest.mark.clients, pytest.mark.long)


@pytest.fixture(scope="module")
def lab() -> Iterator[DemoLab]:
    with cluster(3, name="kubectl") as made:
        yield made


class Shell:
    """A folder with the manifests, and an environment with programs of one version, which work in one namespace."""

    def __init__(self, folder: Path, lab: DemoLab, programs: tuple[Path, ...], space: str) -> None:
        self.folder, self.space = folder / "files", space
        shutil.copytree(HERE / "files", self.folder)
        (folder / "bin").mkdir()
        for program in programs:
            (folder / "bin" / program.name).symlink_to(program)
        shutil.copyfile(lab.config.kubeconfig, folder / "kubeconfig")
        self.environment = {
            **os.environ,
            "HOME": str(folder),
            "KUBECONFIG": str(folder / "kubeconfig"),
            "NS": space,
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        }

    def kubectl(self, *words: str) -> None:
        done = subprocess.run(
            ["kubectl", *words], capture_output=True, text=True, check=False, env=self.environment, timeout=patient(60)
        )
        assert done.returncode == 0, done.stderr


def played(name: str, version: str, shell: Shell) -> None:
    """Play a transcript in a namespace that is made for it."""
    steps = transcripts.parse((HERE / name).read_text())
    shell.kubectl("create", "namespace", shell.space)
    try:
        shell.kubectl("config", "set-context", "--current", "--namespace", shell.space)
        assert transcripts.play(steps, version, shell.folder, shell.environment) > 0
    finally:
        shell.kubectl("delete", "namespace", shell.space, "--wait=false")


def rows() -> list[object]:
    return [
        pytest.param(version, group, id=f"{version}-{group}", marks=() if small else BIG)
        for version in clients.KUBECTL
        for group in GROUPS
        for small in [version == NEWEST and group in SMALL]
    ]


@pytest.mark.parametrize(("version", "group"), rows())
def test_kubectl_says_and_does_what_it_should(version: str, group: str, lab: DemoLab, tmp_path: Path) -> None:
    program = clients.fetched(clients.KUBECTL[version])
    played(f"kubectl/{group}.txt", version, Shell(tmp_path, lab, (program,), f"{group}-{version.replace('.', '-')}"))


@pytest.mark.clients
@pytest.mark.long
@pytest.mark.parametrize("version", clients.HELM)
def test_helm_keeps_releases(version: str, lab: DemoLab, tmp_path: Path) -> None:
    programs = (clients.fetched(clients.HELM[version]), clients.fetched(clients.KUBECTL[NEWEST]))
    played("helm/release.txt", version, Shell(tmp_path, lab, programs, f"helm-{version.replace('.', '-')}"))


def test_the_table_is_long_enough() -> None:
    steps = [step for group in GROUPS for step in transcripts.parse((HERE / f"kubectl/{group}.txt").read_text())]
    for version in clients.KUBECTL:
        meant = [s for s in steps if s.meant_for(transcripts.release(version)) and (s.wanted or s.unwanted or s.status)]
        assert len(meant) >= 300, version
