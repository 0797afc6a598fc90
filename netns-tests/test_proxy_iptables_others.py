"""The iptables backend beside other programs that write iptables: their lock and their changes."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.fakeapi import FakeApi
from lab.netns import Lab
from lab.proxyrole import Running, until
from lab.serviceworld import World, ask
from podwire_proxy import backends
from podwire_proxy.iptables import kernel
from podwire_proxy.iptables.programs import ProgramBusy
from podwire_proxy.testing import scenarios as s
from test_proxy_health import get
from test_proxy_live import BOTH, NODE, my_service, my_slice

LEGACY = ("--backend", "iptables", "--iptables-variant", "legacy")
PORT = 10256


@pytest.fixture
def world(lab: Lab) -> Iterator[World]:
    made = World(lab)
    yield made
    made.close()


@pytest.fixture
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The lock of legacy iptables, this test's own."""
    monkeypatch.setenv("XTABLES_LOCKFILE", str(tmp_path / "xtables.lock"))
    return tmp_path / "xtables.lock"


def test_a_lock_that_others_hold_stops_nothing_but_the_rules(world: World, tmp_path: Path, lock: Path) -> None:
    """Health and status continue, the log reports it once, and changes made meanwhile are written when the lock is
    free.
    """
    with FakeApi(world.node) as api:
        api.apply(NODE, my_service(), my_slice(BOTH[0]))
        proxy = Running(
            world.node,
            api.kubeconfig(tmp_path / "kubeconfig"),
            tmp_path,
            *LEGACY,
            "--healthz-address",
            f"127.0.0.1:{PORT}",
        )
        until(proxy.ready, "the first sync")
        with lock.open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            api.apply(my_slice(BOTH[1]))
            until(lambda: not proxy.ready(), "the status says that the rules are not up to date")
            tried = failures(proxy)
            until(lambda: failures(proxy) > tried + 2, "it tries on")
            assert get(world.node, PORT, "/livez")[0] == 200
            assert "lock" in json.loads(proxy.status_file.read_text())["message"]
            assert ask(world.client(s.POD_A), s.VIP, s.PORT).server[0] == s.POD_B, "the rules are as they were"
        until(
            lambda: ask(world.client(s.POD_A), s.VIP, s.PORT).server[0] == s.POD_C, "the change, once the lock is free"
        )
        until(proxy.ready, "the status")
        log = proxy.stop()
    assert log.count("sync failed") == 1, log
    assert "Traceback" not in log


def failures(proxy: Running) -> int:
    return int(json.loads(proxy.status_file.read_text())["figures"]["failures"])


def test_another_backends_rules_go_when_the_lock_is_free(world: World, tmp_path: Path, lock: Path) -> None:
    legacy = backends.proxier(s.INFO, world.node.fd, "iptables-legacy")
    row = next(iter(s.localhost()))
    tracker = row.tracker()
    tracker.flush()
    legacy.sync(tracker.dataplane, None)
    legacy.close()
    with FakeApi(world.node) as api:
        api.apply(NODE, my_service(), my_slice(BOTH[0]))
        with lock.open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            with pytest.raises(ProgramBusy):
                kernel.cleanup(world.node.fd, wait=0)
            proxy = Running(world.node, api.kubeconfig(tmp_path / "kubeconfig"), tmp_path)
            until(proxy.ready, "nftables asks for no lock")
            assert kernel.existing(world.node.fd)
        until(lambda: not kernel.existing(world.node.fd), "what the other backend left is removed")
        assert "removed what another backend left" in proxy.stop()
