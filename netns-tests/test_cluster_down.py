"""`podwire down` in a machine where other programs use mounts too. Each test has a mount namespace with a /run of its
own. The clusters here are small: namespaces and a process, without the control plane."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lab.patience import patient
from podwire.cluster import lifecycle, mounts, network, record
from podwire.cluster.config import BASE, MARKER, NETNS, ClusterConfig
from podwire.demo.lab import wait_for
from podwire_base.kernel.netns import CLONE_NEWNET, in_thread, unshare

MS_REC, MS_PRIVATE, MS_SHARED = 16384, 1 << 18, 1 << 20
CONFIG = ClusterConfig(name="downtest", nodes=2)
OLD = replace(CONFIG, layout=1)


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
    return done.stdout


def own_run(propagation: int, test: Callable[[], None]) -> None:
    """Run `test` in a mount namespace of its own, with an empty /run. propagation: of /run; systemd makes it shared."""

    def body() -> None:
        unshare(mounts.CLONE_NEWNS)
        mounts._mount("none", "/", MS_REC | MS_PRIVATE)
        run("mount", "-t", "tmpfs", "-o", "size=1m", "none", "/run")
        mounts._mount("none", "/run", propagation)
        test()

    in_thread(body)


def _make_old(config: ClusterConfig, name: str) -> None:
    """Make a namespace as podwire 0.2.0 did."""
    with (config.run_dir / "netns").open("a") as file:
        file.write(config.namespace(name) + "\n")
    NETNS.mkdir(parents=True, exist_ok=True)

    def work() -> None:
        unshare(CLONE_NEWNET)
        mounts.pin(config.netns(name))

    in_thread(work)


@contextlib.contextmanager
def small(config: ClusterConfig) -> Iterator[subprocess.Popen[bytes]]:
    config.run_dir.mkdir(parents=True)
    record.save(config)
    environment = {**os.environ, MARKER: str(config.run_dir)}
    make = _make_old if config.layout == 1 else network.create
    for name in (network.SWITCH, *config.node_names()):
        make(config, name)
    network.netlink(config.netns(network.SWITCH), lambda ipr: ipr.link("add", ifname=network.BRIDGE, kind="bridge"))
    children = [
        subprocess.Popen(["nsenter", f"--net={config.netns(node)}", "sleep", "100"], env=environment)
        for node in config.node_names()
    ]
    try:
        for child in children:
            wait_for(lambda child=child: Path(f"/proc/{child.pid}/comm").read_text() == "sleep\n", 10, 0.002)  # type: ignore[misc]  # the loop's child
        yield children[0]
    finally:
        for child in children:
            child.kill()
            child.wait()


def gone(config: ClusterConfig) -> None:
    assert not config.run_dir.exists()
    assert not list(NETNS.glob(f"{config.name}-*")) if NETNS.exists() else True
    text = Path("/proc/thread-self/mountinfo").read_text()
    assert config.name not in text, text


def nothing(_: ClusterConfig) -> None:
    pass


def netns_add(_: ClusterConfig) -> None:
    run("ip", "netns", "add", "other")
    assert "downtest-node1" in run("ip", "netns", "list")
    assert "lo" in run("ip", "netns", "exec", "downtest-node1", "ip", "link")


def netns_add_and_del(config: ClusterConfig) -> None:
    netns_add(config)
    run("ip", "netns", "del", "other")


def netns_del_ours(_: ClusterConfig) -> None:
    run("ip", "netns", "del", "downtest-node1")


def netns_add_and_del_ours(config: ClusterConfig) -> None:
    netns_add(config)
    subprocess.run(["ip", "netns", "del", "downtest-node1"], check=False, capture_output=True)


def umount_netns(config: ClusterConfig) -> None:
    netns_add(config)
    run("umount", "-l", "/run/netns")


def umount_ours(config: ClusterConfig) -> None:
    run("umount", "-l", str(config.netns("node1")))
    subprocess.run(["umount", "-l", str(config.ns_dir)], check=False, capture_output=True)


def hidden_netns(_: ClusterConfig) -> None:
    run("mount", "-t", "tmpfs", "none", "/run/netns")


def copied_below(_: ClusterConfig) -> None:
    Path("/run/copy").mkdir()
    run("mount", "--rbind", "/run", "/run/copy")


def no_run_dir(config: ClusterConfig) -> None:
    subprocess.run(["rm", "-rf", str(config.run_dir)], check=False, capture_output=True)
    assert not config.record.exists()


def no_links(config: ClusterConfig) -> None:
    subprocess.run(["rm", "-rf", "/run/netns"], check=False, capture_output=True)


def full_disk(config: ClusterConfig) -> None:
    with contextlib.suppress(OSError), (config.run_dir / "fill").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(65536))
    assert os.statvfs(config.run_dir).f_bavail == 0


def foreign_mount(config: ClusterConfig) -> None:
    """Files of another file system below the run directory are not the cluster's."""
    Path("/run/kept").mkdir()
    Path("/run/kept/file").touch()
    (config.run_dir / "nodes").mkdir()
    run("mount", "--bind", "/run/kept", str(config.run_dir / "nodes"))


HABITS = (
    nothing,
    netns_add,
    netns_add_and_del,
    netns_del_ours,
    netns_add_and_del_ours,
    umount_netns,
    umount_ours,
    hidden_netns,
    copied_below,
    no_run_dir,
    no_links,
    full_disk,
    foreign_mount,
)


@pytest.mark.parametrize("propagation", [MS_PRIVATE, MS_SHARED], ids=["private", "shared"])
@pytest.mark.parametrize("config", [CONFIG, OLD], ids=["now", "0.2.0"])
@pytest.mark.parametrize("habit", HABITS, ids=lambda h: h.__name__)
def test_down_works_whatever_others_did(
    habit: Callable[[ClusterConfig], None], config: ClusterConfig, propagation: int
) -> None:
    def test() -> None:
        with small(config) as child:
            habit(config)
            others = bool(mounts.points(str(NETNS / "other")))
            told: list[str] = []
            assert lifecycle.down(config, told.append) == []
            assert child.wait(patient(5)) == -9
            gone(config)
            if others:
                run("ip", "netns", "exec", "other", "true")
            if habit is foreign_mount:
                assert Path("/run/kept/file").exists()
            assert lifecycle.down(config) == []
            assert len(told) == len(set(told))

    own_run(propagation, test)


def test_a_copy_in_another_mount_namespace_does_not_keep_a_namespace() -> None:
    def test() -> None:
        with small(CONFIG):
            wanted = f"net:[{CONFIG.netns('node1').stat().st_ino}]"
            holder = subprocess.Popen(["unshare", "-m", "--propagation", "private", "sleep", "100"])
            try:
                copied = Path(f"/proc/{holder.pid}/mountinfo")
                wait_for(lambda: "sleep" in Path(f"/proc/{holder.pid}/comm").read_text(), 10, 0.002)
                assert wanted in copied.read_text()
                assert lifecycle.down(CONFIG) == []
                assert wanted not in copied.read_text()
            finally:
                holder.kill()
                holder.wait()

    own_run(MS_PRIVATE, test)


def test_two_at_once() -> None:
    def test() -> None:
        answers: list[list[str]] = []
        for _ in range(5):
            with small(CONFIG):
                every = [threading.Thread(target=lambda: answers.append(lifecycle.down(CONFIG))) for _ in range(3)]
                for one in every:
                    one.start()
                for one in every:
                    one.join()
                gone(CONFIG)
        assert answers == [[]] * 15

    own_run(MS_PRIVATE, test)


def test_what_stays_is_named_with_the_command_that_removes_it() -> None:
    def test() -> None:
        with small(CONFIG):
            run("mount", "-o", "remount,ro", "/run")
            (line,) = {line for line in lifecycle.down(CONFIG) if str(CONFIG.run_dir) in line}
            assert "Read-only file system" in line and f"`rm -r {CONFIG.run_dir}`" in line
            run("mount", "-o", "remount,rw", "/run")
            assert lifecycle.down(CONFIG) == []
            gone(CONFIG)

    own_run(MS_PRIVATE, test)


def test_neighbours_and_files_of_others_stay() -> None:
    neighbour = replace(CONFIG, name="downtest-two", nodes=1)

    def test() -> None:
        with small(CONFIG), small(neighbour) as child:
            run("ip", "netns", "add", "downtest-mine")
            assert lifecycle.down(CONFIG) == []
            assert child.poll() is None
            assert set(run("ip", "netns", "list").split()) == {
                "downtest-two-switch",
                "downtest-two-node1",
                "downtest-mine",
            }
            run("ip", "netns", "exec", "downtest-two-node1", "true")
            assert BASE.exists()

    own_run(MS_PRIVATE, test)
