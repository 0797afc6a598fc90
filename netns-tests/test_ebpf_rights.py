"""Each part of the eBPF backend without its capability: what still works, and what is told."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lab import hookworld
from lab.dataplane import Hooks
from lab.netns import Lab
from lab.rights import with_only
from lab.serviceworld import V6, World, ask
from podwire_base.role import files, podspaces
from podwire_base.role.features import BPF_DROP_REASONS, BPF_TCX, CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON, CAP_SYS_ADMIN
from podwire_base.role.podspaces import PodSpace
from podwire_base.testing import features
from podwire_proxy.backend import OFF
from podwire_proxy.decide import Packet
from podwire_proxy.ebpf import kernel, native, places
from podwire_proxy.ebpf.dropping import Tracer
from podwire_proxy.model import Destination
from podwire_proxy.proxier import Proxier
from podwire_proxy.testing import scenarios as s
from podwire_proxy.testing.builders import endpoint, endpoint_slice, port, service

pytestmark = pytest.mark.skipif(native.code("sock") is None, reason="no clang at the build")
ENDING = "ending sockets of endpoints that are gone: off, this process lacks CAP_SYS_ADMIN"
SERVED = "socket hooks: on, for 3 namespaces"  # the node, and two pods
CASES = {
    "all": ({CAP_BPF, CAP_NET_ADMIN, CAP_SYS_ADMIN}, [SERVED, "bypass: on, for 0 pods"]),
    "SYS_ADMIN in place of BPF": ({CAP_NET_ADMIN, CAP_SYS_ADMIN}, [SERVED, "bypass: on, for 0 pods"]),
    "no SYS_ADMIN": ({CAP_BPF, CAP_NET_ADMIN}, [SERVED, ENDING, "bypass: off, this process lacks CAP_SYS_ADMIN"]),
    "no BPF": (
        {CAP_NET_ADMIN, CAP_PERFMON},
        [f"{OFF}, nftables serves everything: this process lacks CAP_BPF"],
    ),
}


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with Lab() as lab:
        made = World(lab)
        try:
            yield made
        finally:
            made.close()


@pytest.fixture
def run_dir(world: World, tmp_path: Path) -> Iterator[Path]:
    """A node's directory, where pod wiring has named POD_A and POD_B."""
    spaces = []
    for ip in hookworld.CLIENTS:
        at = os.fstat(world.pods[ip].fd)
        spaces.append(PodSpace(at.st_dev, at.st_ino, f"/proc/self/fd/{world.pods[ip].fd}", (ip, V6[ip])))
    files.write(podspaces.path(tmp_path), podspaces.encode(spaces))
    yield tmp_path
    Hooks().clean(world)


def scenario() -> s.Scenario:
    slices = endpoint_slice("my-service", [endpoint(s.POD_B, s.NODE)], [("t", "TCP", s.TARGET)])
    return s.Scenario("rights", (service("my-service", s.VIP, [port(s.PORT, "TCP", "t")]), slices), {})


@pytest.mark.parametrize("case", CASES)
def test_each_part_without_its_capability_is_off_and_told(world: World, run_dir: Path, case: str) -> None:
    """The pods' first connection is served whatever is missing: by the hooks, or by nftables."""
    rights, told = CASES[case]
    backend = replace(hookworld.backend(world), run_dir=str(run_dir), bypass=True, require=False)
    one = scenario()

    def run() -> list[str]:
        tracker = one.tracker()
        tracker.flush()
        with contextlib.closing(Proxier(backend, one.node)) as proxier:
            proxier.sync(tracker.dataplane, None)
            proxier.sweep()
            return list(proxier.told)

    with features.needed(BPF_TCX):
        assert with_only(rights, world.node.fd, run) == told
    assert ask(world.client(s.POD_A), s.VIP, s.PORT).result == "ok"
    counts = kernel.observed_tallies(world.node.fd)
    assert (counts.served if counts else 0) == (told[0] == SERVED)


@pytest.mark.parametrize(
    ("rights", "why"),
    [({CAP_NET_ADMIN}, "this process lacks CAP_BPF"), ({CAP_BPF, CAP_PERFMON}, "this process lacks CAP_NET_ADMIN")],
    ids=["no BPF", "no NET_ADMIN"],
)
def test_the_hooks_name_what_they_lack(world: World, rights: set[int], why: str) -> None:
    backend = hookworld.backend(world)

    def run() -> str:
        kernel.load(backend.cgroup, backend.bpffs, None).close()
        return "loaded"

    assert with_only(rights, world.node.fd, run) == why
    Hooks().clean(world)


def test_required_hooks_that_cannot_run_refuse_the_start(world: World) -> None:
    backend = hookworld.backend(world)
    assert backend.require

    def run() -> str:
        Proxier(backend, s.INFO).close()
        return "started"

    told = "--require-ebpf: socket hooks: this process lacks CAP_BPF"
    assert with_only({CAP_NET_ADMIN}, world.node.fd, run) == told
    Hooks().clean(world)


@pytest.mark.skipif(native.code("drops") is None, reason="no clang at the build")
@pytest.mark.parametrize(
    ("rights", "lacks"),
    [
        ({CAP_BPF, CAP_PERFMON}, ""),
        ({CAP_SYS_ADMIN}, ""),
        ({CAP_BPF}, "CAP_PERFMON"),
        ({CAP_PERFMON}, "CAP_BPF"),
    ],
    ids=["BPF and PERFMON", "SYS_ADMIN", "no PERFMON", "no BPF"],
)
def test_dropped_packets_are_shown_with_two_capabilities(world: World, rights: set[int], lacks: str) -> None:
    def run() -> str:
        Tracer(None).close()
        return "shown"

    told = with_only(rights, world.node.fd, run)
    with features.needed(BPF_DROP_REASONS):
        if lacks:
            assert told.endswith(f"this process lacks {lacks}")
        else:
            assert told == "shown"


def test_a_number_of_a_namespace_needs_no_right_to_enter(world: World) -> None:
    fd = world.pods[s.POD_A].fd
    assert with_only((), world.node.fd, lambda: places.cookie(fd)) == world.pods[s.POD_A].call(places.cookie)


@pytest.mark.parametrize("asked", [True, False], ids=["asked", "walked"])
def test_an_explanation_has_the_kernel_run_the_program(
    world: World, run_dir: Path, monkeypatch: pytest.MonkeyPatch, asked: bool
) -> None:
    """Without the object the maps are walked, with the same result."""
    one, pods = scenario(), replace(hookworld.backend(world), run_dir=str(run_dir))
    tracker = one.tracker()
    tracker.flush()
    with contextlib.closing(Proxier(pods, one.node, world.node.fd)) as proxier:
        proxier.sync(tracker.dataplane, None)
    if not asked:
        monkeypatch.setattr(native, "code", lambda _: None)
    live = kernel.observed(world.node.fd)
    assert live is not None
    (trace,) = live.traces(Packet(s.POD_A, s.VIP, "TCP", s.PORT), one.node)
    by = "the program's answer" if asked else "map services"
    assert trace.steps == (f"socket hook: {by}: {s.VIP} TCP {s.PORT} : 1 endpoints",)
    assert trace.verdict.to == {(Destination(s.POD_B, s.TARGET), False)}
