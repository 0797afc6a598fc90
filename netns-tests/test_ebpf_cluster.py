"""A whole cluster with the proxy backend ebpf: the hooks serve the pods of each node, restarts lose nothing, and
nothing stays behind.
"""

from __future__ import annotations

import contextlib
import re
import urllib.request
from collections.abc import Iterator

import pytest

from lab.cluster import EXAMPLES, cluster
from lab.patience import patient, wait_until
from podwire.cluster import cgroups
from podwire.cluster.hooks import BYPASS
from podwire.demo import checks_services
from podwire.demo.checks_control import restart_proxies
from podwire.demo.lab import DemoLab
from podwire.demo.rows import Check
from podwire_base.kernel.netns import call_in
from podwire_proxy.ebpf import hooks, maps, native, places
from podwire_proxy.ebpf.maps import Client

CHECKS = [restart_proxies, *(pytest.param(check, marks=pytest.mark.long) for check in checks_services.CHECKS)]


@contextlib.contextmanager
def with_bypass() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(BYPASS, "1")
        yield


@pytest.fixture(scope="module")
def lab() -> Iterator[DemoLab]:
    if native.code("sock") is None:
        pytest.skip("the eBPF programs are not built: no clang at the build")
    with (
        with_bypass(),
        cluster(2, outside=True, bridge_nf=1, proxy_backend="ebpf", watched=True) as made,
    ):
        made.run_tool("apply", "-f", str(EXAMPLES))
        made.wait_pods("MyApp", 4)
        made.wait_pods("client", 3)
        yield made
    path = cgroups.of_cluster(made.config.name)
    assert path is not None
    assert not path.exists()
    assert not (made.config.run_dir / "bpf").exists()


def passed(lab: DemoLab, node: str) -> int:
    """Return the packets that passed the node's stack by."""

    def read() -> str:
        with urllib.request.urlopen("http://127.0.0.1:10249/metrics", timeout=patient(3)) as page:
            return str(page.read().decode())

    found = re.search(r"^podwire_proxy_bypass_packets_total (\d+)", call_in(lab.node_netns(node), read), re.MULTILINE)
    assert found, "the bypass is on"
    return int(found[1])


def test_pods_of_a_node_reach_each_other_past_its_stack(lab: DemoLab) -> None:
    """The policy role is on: a pod becomes fast after it is judged."""
    servers = {pod.node: pod for pod in lab.pods("MyApp")}
    client = next(pod for pod in lab.pods("client") if pod.node in servers)
    server = servers[client.node]

    def by() -> bool:
        before = passed(lab, client.node)
        assert lab.tcp(client.netns, server.address, 9376).ok
        return passed(lab, client.node) >= before + 6

    wait_until(by, "packets of the pods pass the stack by", 30)


def clients(lab: DemoLab, node: str) -> set[Client]:
    found = call_in(lab.node_netns(node), places.folders)
    return hooks.observed_clients(found[0][1]) if found else set()


def test_pods_become_clients_of_their_nodes_hooks(lab: DemoLab) -> None:
    for node in lab.config.node_names():
        own = call_in(lab.node_netns(node), places.cookie)
        assert Client(own, maps.NODE) in clients(lab, node)
        wait_until(
            lambda node=node: any(client.who == maps.POD and client.ip for client in clients(lab, node)),  # type: ignore[misc]  # binds the loop variable
            "pod wiring names the pods to the proxy",
            30,
        )


@pytest.mark.parametrize("check", CHECKS)
def test_what_the_demo_proves_of_services(lab: DemoLab, check: Check) -> None:
    rows = list(check(lab))
    assert rows
    assert not [f"{r.sent} from {r.source}: {r.back} {r.detail}" for r in rows if not r.ok]
