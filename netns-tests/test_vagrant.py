"""The Vagrantfile is valid. `vagrant` checks it if vagrant is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

VAGRANT = Path(__file__).resolve().parents[1] / "vagrant"


@pytest.mark.skipif(shutil.which("vagrant") is None, reason="vagrant is not installed")
def test_vagrantfile_is_valid(tmp_path: Path) -> None:
    copy = shutil.copytree(VAGRANT, tmp_path / "vagrant", ignore=shutil.ignore_patterns(".vagrant"))
    done = subprocess.run(
        ["vagrant", "validate", "--ignore-provider"],
        cwd=copy,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HOME": str(tmp_path), "VAGRANT_HOME": str(tmp_path / "home")},
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_provisioning_script_is_a_script() -> None:
    subprocess.run(["bash", "-n", str(VAGRANT / "provision.sh")], check=True)
    assert os.access(VAGRANT / "provision.sh", os.X_OK)
    assert "make demo" in (VAGRANT / "provision.sh").read_text()
