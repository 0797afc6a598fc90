"""The parts of vagrant/qemu.py that need no VM: the commands it starts, and how it reads the results."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def qemu() -> ModuleType:
    spec = importlib.util.spec_from_file_location("vagrant_qemu", ROOT / "vagrant" / "qemu.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TESTS = """import pytest
@pytest.mark.parametrize("n", [1, 2])
def test_good(n): pass
def test_bad(): assert 0
@pytest.mark.skip(reason="none here")
def test_none(): pass
@pytest.fixture
def broken(): raise OSError
def test_setup(broken): pass
@pytest.fixture
def unclean():
    yield
    raise OSError
def test_both(unclean): assert 0
"""


def test_what_pytest_wrote_is_counted(qemu: ModuleType, tmp_path: Path) -> None:
    """Each test once, including one that fails and then fails again in its teardown."""
    (tmp_path / "test_it.py").write_text(TESTS)
    junit = tmp_path / "junit.xml"
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={junit}", "test_it.py"],
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    found = qemu.outcome("test_it", junit.read_text())
    assert (found.passed, found.skipped, sorted(found.problems)) == (2, 1, ["test_bad", "test_both", "test_setup"])
    assert str(found).startswith("2 passed, 1 skipped, test_")
    assert "FAILED" in qemu.table("6.1", [found])


def test_a_run_that_did_not_end_is_no_success(qemu: ModuleType) -> None:
    for text in ("", "\n", "cat: broken", '<testsuites><testsuite><testcase name="a"'):
        assert qemu.outcome("x", text).problems


def test_a_run_that_was_stopped_is_no_success_but_what_passed_counts(qemu: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text("def test_one(): pass\ndef test_two(): raise KeyboardInterrupt\n")
    junit = tmp_path / "junit.xml"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={junit}", "test_it.py"],
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    found = qemu.outcome("test_it", qemu.ended(junit.read_text(), done.returncode))
    assert (found.passed, found.problems) == (1, ("the run was stopped",))
    assert qemu.ended(junit.read_text(), 1) == junit.read_text()  # failed tests are listed by name


class OneFile:
    """A VM that does nothing."""

    def __init__(self, boots: bool = True) -> None:
        self.boots, self.up = boots, False

    def start(self, _accel: str) -> None:
        if not self.boots:
            raise RuntimeError("no answer")
        self.up = True

    def stop(self) -> None:
        self.up = False


def test_vms_share_the_files(qemu: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """Each file once, on any available VM; the results keep the requested order."""
    names = [f"test_{n}" for n in range(20)]
    vms = [OneFile(), OneFile(boots=False), OneFile()]

    def run(vm: OneFile, what: str) -> object:
        assert vm.up
        return qemu.Outcome(what, 1)

    assert [o.what for o in qemu.share(names, vms, "tcg", run)] == names
    assert not any(vm.up for vm in vms)
    assert "no answer" in capsys.readouterr().err
    assert qemu.share(names, [OneFile(boots=False)], "tcg", run) == []


def test_all_is_run_where_nothing_is_named(qemu: ModuleType) -> None:
    found = qemu.wanted([], False)
    assert found[:2] == ["provision", "demo"]
    assert {f"netns-tests/{Path(__file__).name}", "cni", "dns", "vagrant/test_managers.py"} < set(found)
    assert all((ROOT / name).exists() for name in found[2:])
    assert qemu.wanted(["dns"], False) == ["provision", "dns"]
    assert qemu.wanted(["dns"], True) == ["provision", "demo", "dns"]
    assert "PODWIRE_PATIENCE=7 " in qemu.command("dns", 7, 60)
    for what in ("provision", "demo", "dns"):
        subprocess.run(["bash", "-n"], input=qemu.command(what, 10, 60), text=True, check=True)


@pytest.mark.parametrize("accel", ["kvm", "tcg"])
def test_the_vm_is_reached_from_this_machine_alone(qemu: ModuleType, tmp_path: Path, accel: str) -> None:
    words = qemu.qemu_command(tmp_path, accel, 2299)
    assert any("hostfwd=tcp:127.0.0.1:2299-:22" in word for word in words)
    assert words[words.index("-accel") + 1].startswith(accel)
    assert ("-icount" in words) == (accel == "tcg")


def test_kvm_only_where_the_cpu_can(qemu: ModuleType) -> None:
    assert qemu.accelerator("processor : 0\nflags : fpu hypervisor svm_lock vmxx\nbugs : vmx\n") == "tcg"
