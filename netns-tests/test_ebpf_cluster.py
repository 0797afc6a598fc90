"""A whole cluster with the proxy backend ebpf: the hooks serve the pods of each node, restarts lose nothing, and
nothing stays behind.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab.cluster import EXAMPLES, cluster
from lab.patience import wait_until
from podwire.cluster import cgroups
from podwire.demo import checks_services
from podwire.demo.checks_control import restart_proxies
from podwire.demo.lab import DemoLab
from podwire.demo.rows import Check
from podwire_base.kernel.netns import call_in
from podwire_proxy.ebpf import hooks, maps, native, places
from podwire_proxy.ebpf.maps import Client

CHECKS = [restart_proxies, *(pytest.param(check, marks=pytest.mark.long) for check in checks_services.CHECKS)]


@pytest.fixture(scope="module")
def lab() -> Iterator[DemoLab]:
    if native.code("sock") is None:
        pytest.skip("the eBPF programs are not built: no clang at the build")
    with cluster(2, outside=True, bridge_nf=1, proxy_backend="ebpf", watched=True) as made:
        made.run_tool("apply", "-f", str(EXAMPLES))
        made.wait_pods("MyApp", 4)
        made.wait_pods("client", 3)
        yield made
    path = cgroups.of_cluster(made.config.name)
    assert path is not None
    assert not path.exists()
    assert not (made.config.run_dir / "bpf").exists()


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
