"""Leases when their surroundings change: another podCIDR, a full or read-only disk, an earlier CNI plugin."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.cninode import CniNode, ask, peer_server, put_node, wait_until
from lab.fakeapi import FakeApi
from lab.netns import Lab, NetNS
from podwire_cni.testing.cri import listing, runtime

NODE, OUTSIDE = "192.0.2.1", "192.0.2.42"


class Place:
    def __init__(self, lab: Lab, folder: Path, api: FakeApi, ns: NetNS, outside: NetNS) -> None:
        self.lab, self.folder, self.api, self.ns, self.outside = lab, folder, api, ns, outside


@pytest.fixture
def place(lab: Lab, tmp_path: Path) -> Iterator[Place]:
    ns, outside = lab.netns("node"), lab.netns("outside")
    lab.wire(ns, "eth0", outside, "eth0", f"{NODE}/24", f"{OUTSIDE}/24")
    with FakeApi(ns) as api:
        put_node(api, "n1", "10.244.1.0/24", NODE)
        yield Place(lab, tmp_path, api, ns, outside)


def pod(node: CniNode, lab: Lab, name: str) -> tuple[NetNS, str]:
    made = lab.netns(name)
    answer = node.cni("ADD", name, made)
    assert answer.status == 0, answer.out + node.log()
    return made, answer.address


def our_routes(ns: NetNS) -> set[str]:
    return ns.netlink(
        lambda ipr: {f"{r.get('RTA_DST')}/{r['dst_len']}" for r in ipr.get_routes(table=254) if r["proto"] == 143}
    )


@pytest.mark.parametrize("restart", [False, True])
def test_pods_of_an_earlier_podcidr_work_until_their_end(place: Place, restart: bool) -> None:
    node = CniNode(place.ns, place.folder / "run", "n1", place.api)
    node.start()
    try:
        old, old_ip = pod(node, place.lab, "old")
        other, other_ip = pod(node, place.lab, "other")
        if restart:
            node.stop(kill=True)
        put_node(place.api, "n1", "10.244.9.0/24", NODE)
        if restart:
            node.start()
        wait_until(lambda: "10.244.9.0/24" in node.status()["message"], "the agent follows the Node")
        new, new_ip = pod(node, place.lab, "new")
        assert (old_ip, new_ip) == ("10.244.1.2", "10.244.9.2")
        assert our_routes(place.ns) == {"10.244.9.0/24", f"{old_ip}/32", f"{other_ip}/32"}
        for source, mine in ((old, old_ip), (new, new_ip)):
            for target, address in ((old, old_ip), (new, new_ip), (other, other_ip)):
                with peer_server(target, address) as port:
                    assert ask(source, address, port) == mine
            with peer_server(place.outside, OUTSIDE) as port:
                assert ask(source, OUTSIDE, port) == NODE, "masqueraded"
        with peer_server(old, old_ip) as port:
            assert ask(place.ns, old_ip, port) == "10.244.9.1"
        assert node.cni("DEL", "old", old).status == 0
        assert set(node.leases()) == {other_ip, new_ip} and our_routes(place.ns) == {"10.244.9.0/24", f"{other_ip}/32"}
        for name in ("other", "new"):
            assert node.cni("DEL", name).status == 0
        assert node.leases() == {} and our_routes(place.ns) == {"10.244.9.0/24"} and node.table_elements() == 0
    finally:
        node.close()


class SmallDisk(CniNode):
    """Its leases are on a separate file system that only its agent sees."""

    @property
    def directory(self) -> Path:
        return self.run_dir / "cni" / "leases"

    def start(self, *, wait: bool = True) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        flags = [
            "--node-name",
            self.name,
            "--kubeconfig",
            str(self.kubeconfig),
            "--run-dir",
            str(self.run_dir),
            *self.flags,
        ]
        agent = shlex.join([sys.executable, "-c", "from podwire_cni.main import command; command()", *flags])
        mounts = f"mount -t tmpfs -o size=64k none {self.directory} && exec {agent}"
        with open(self.run_dir / "agent.log", "a") as log:
            self.agent = self.ns.popen(["unshare", "-m", "--", "sh", "-c", mounts], stdout=log, stderr=log)
        wait_until(self.ready, f"agent ready: {self.log()}")

    def inside(self, command: str) -> str:
        """A shell command where the agent is; its output."""
        assert self.agent is not None
        return subprocess.run(
            ["nsenter", f"--target={self.agent.pid}", "--mount", "--root", "--", "sh", "-c", command],
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    def held(self) -> set[str]:
        return set(self.inside(f"ls {self.directory}").split())


@pytest.fixture
def small(place: Place) -> Iterator[SmallDisk]:
    node = SmallDisk(place.ns, place.folder / "run", "n1", place.api)
    node.start()
    yield node
    node.close()


def test_a_full_disk(place: Place, small: SmallDisk) -> None:
    first, address = pod(small, place.lab, "first")
    second = place.lab.netns("second")
    small.inside(f"dd if=/dev/zero of={small.directory}/.fill bs=4k 2>/dev/null || true")
    answer = small.cni("ADD", "second", second)
    assert (answer.status, answer.body["code"]) == (1, 5), answer.out
    assert "No space left on device" in answer.body["msg"] and str(small.directory) in answer.body["msg"]
    assert small.held() == {address} and len([n for n in small.links() if n.startswith("veth")]) == 1
    assert small.cni("DEL", "first", first).status == 0, "an end needs no room"
    assert small.held() == set()
    small.inside(f"rm {small.directory}/.fill")
    assert small.cni("ADD", "second", second).status == 0


def test_a_read_only_disk(place: Place, small: SmallDisk) -> None:
    first, address = pod(small, place.lab, "first")
    second = place.lab.netns("second")
    small.inside(f"mount -o remount,ro {small.directory}")
    for command, name, netns in (("ADD", "second", second), ("DEL", "first", first)):
        answer = small.cni(command, name, netns)
        assert (answer.status, answer.body["code"]) == (1, 5), answer.out
        assert "Read-only file system" in answer.body["msg"] and "writable" in answer.body["details"]
    assert small.held() == {address}, "no lease is lost"
    assert not second.netlink(lambda ipr: ipr.link_lookup(ifname="eth0")), "what failed leaves nothing"
    small.inside(f"mount -o remount,rw {small.directory}")
    assert small.cni("DEL", "first", first).status == 0 and small.held() == set()
    assert small.cni("ADD", "second", second).status == 0


def test_leases_of_host_local_are_taken_over(place: Place) -> None:
    theirs = place.folder / "networks"
    theirs.mkdir()
    for last, name in ((2, "a"), (3, "b")):
        (theirs / f"10.244.1.{last}").write_text(f"{name}\r\neth0")
    node = CniNode(place.ns, place.folder / "run", "n1", place.api, flags=("--host-local", str(theirs)))
    try:
        for _ in range(2):  # a restart finds the same
            node.start()
            assert node.leases() == {"10.244.1.2": "a", "10.244.1.3": "b"}
            node.stop()
        assert 'lease="10.244.1.2 of a/eth0: taken over"' in node.log() and not list(theirs.glob("10.*"))
        node.start()
        made = [pod(node, place.lab, f"p{n}")[1] for n in range(3)]
        assert made == ["10.244.1.4", "10.244.1.5", "10.244.1.6"]
        assert node.cni("DEL", "a").status == 0
        kept = {"cni.dev/valid-attachments": [{"containerID": f"p{n}", "ifname": "eth0"} for n in range(3)]}
        assert node.cni("GC", "", None, node.conf("1.1.0", **kept)).status == 0
        assert set(node.leases()) == set(made), "DEL and GC free them like any other"
    finally:
        node.close()


QUICK = "from podwire_cni import following, takeback; following.RESYNC_SECONDS = 0.2; takeback.AGAIN = 0.6"


def test_leases_of_nobody_are_taken_back(place: Place) -> None:
    """Of three pods that vanished without a DEL the runtime knows one, and the namespace of another lives."""
    path = place.folder / "cri.sock"
    node = CniNode(place.ns, place.folder / "run", "n1", place.api, flags=("--runtime-socket", str(path)))
    node.first = QUICK
    with runtime(path, listing(("known", "other"))) as asked:
        node.start()
        try:
            pods = {name: pod(node, place.lab, name) for name in ("dead", "known", "alive", "well")}
            for name in ("dead", "known"):
                pods[name][0].close()
            wait_until(lambda: pods["dead"][1] not in node.leases(), "the lease of nobody is free")
            time.sleep(1)
            assert set(node.leases()) == {pods[name][1] for name in ("known", "alive", "well")}
            assert "dead: its namespace is gone, and the runtime does not know its sandbox" in node.log()
            assert asked and node.cni("DEL", "dead").status == 0 and node.cni("DEL", "known").status == 0
        finally:
            node.close()


def test_without_a_runtime_one_source_takes_no_lease(place: Place) -> None:
    node = CniNode(place.ns, place.folder / "run", "n1", place.api)
    node.first = QUICK
    node.start()
    try:
        dead, address = pod(node, place.lab, "dead")
        dead.close()
        wait_until(lambda: not [name for name in node.links() if name.startswith("veth")], "its link goes")
        time.sleep(1.5)
        assert set(node.leases()) == {address}
        node.stop()
        node.start()
        assert node.leases() == {}, "at the start its link and the file of its namespace are gone"
    finally:
        node.close()


def test_an_address_rests_after_its_pod(place: Place) -> None:
    put_node(place.api, "n1", "10.244.1.0/29", NODE)
    node = CniNode(place.ns, place.folder / "run", "n1", place.api, flags=("--quarantine", "3600"))
    node.start()
    try:
        for name in ("a", "b"):
            pod(node, place.lab, name)
            assert node.cni("DEL", name).status == 0
        node.stop(kill=True)
        node.start()
        made = [pod(node, place.lab, f"p{n}")[1].rsplit(".")[-1] for n in range(5)]
        assert made == ["4", "5", "6", "2", "3"], "the last two rested, the longest first"
    finally:
        node.close()
