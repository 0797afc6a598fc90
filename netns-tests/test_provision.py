"""vagrant/provision.sh on three fresh Debian machines of the lab: they become one cluster (`make test-provision`)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lab.cnicluster import plug
from lab.cninode import wait_until
from lab.machine import Machine, debian_root, environment, in_root, package_folders
from lab.netns import Lab

pytestmark = pytest.mark.long
ROOT = Path(__file__).resolve().parents[1]
ADDRESSES = {f"node{n}": f"192.168.56.{10 + n}" for n in (1, 2, 3)}
TOKEN = "provision-" * 4
PROVISION = ["bash", "/podwire/vagrant/provision.sh"]
KUBECONFIG = "/var/lib/podwire/admin.kubeconfig"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A root in which the script has installed packages and podwire: all that needs the registries."""
    folder = tmp_path_factory.mktemp("machines")
    root = debian_root(folder, ROOT)
    done = in_root(root, PROVISION, environment(PODWIRE_STEPS="packages install"), package_folders())
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert done.stdout.rstrip().endswith("ready")
    yield root
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module", params=["auto", "always"])
def machines(request: pytest.FixtureRequest, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Machine]]:
    """Three, on one link; the script runs on all at once, as `vagrant up` may do it. With routes, and with VXLAN."""
    with Lab() as lab:
        switch = lab.netns("switch")
        switch.netlink(lambda ipr: ipr.link("add", ifname="sw0", kind="bridge"))
        switch.netlink(lambda ipr: ipr.link("set", index=ipr.link_lookup(ifname="sw0")[0], state="up"))
        made: list[Machine] = []
        try:
            for name, address in ADDRESSES.items():
                ns = lab.netns(name)
                lab.wire(switch, name, ns, "eth1", "", f"{address}/24")
                plug(switch, name)
                ns.netlink(lambda ipr: ipr.route("add", dst="default", gateway="192.168.56.1"))
                made.append(Machine(name, ns, base, tmp_path_factory.mktemp(name)))
            with ThreadPoolExecutor(3) as pool:
                said = list(pool.map(lambda m: provision(m, request.param), made))
            assert all("ready" in text.splitlines()[-1] for text in said)
            yield made
        finally:
            for machine in made:
                machine.power_off()


def provision(machine: Machine, overlay: str) -> str:
    return machine.run(PROVISION, PODWIRE_STEPS="cluster", PODWIRE_ADDRESS=ADDRESSES[machine.name],
                       PODWIRE_CONTROL=ADDRESSES["node1"], PODWIRE_JOIN_TOKEN=TOKEN, PODWIRE_OVERLAY=overlay)


def podwire(machine: Machine, *words: str) -> str:
    return machine.run(["podwire", *words], KUBECONFIG=KUBECONFIG)


def _get(machine: Machine, *words: str) -> list[dict[str, object]]:
    found = json.loads(podwire(machine, "get", *words, "-o", "json"))
    return list(found["items"])


def test_a_cluster_of_three_machines(machines: list[Machine]) -> None:
    first = machines[0]
    nodes = podwire(first, "get", "nodes")
    assert all(name in nodes for name in ADDRESSES) and nodes.count("Ready") == 3 and "NotReady" not in nodes
    podwire(first, "apply", "-f", "/podwire/examples/")
    wait_until(lambda: _running(first) >= 6, "the examples' pods run", 90)
    pods = podwire(first, "get", "pods", "-o", "wide")
    assert all(name in pods for name in ADDRESSES), "on every machine"
    for machine in machines:  # Services and names, from each machine, to endpoints on all
        wait_until(lambda machine=machine: _asks(machine), f"my-service answers on {machine.name}", 30)  # type: ignore[misc]
    seen = {_asks(machine) for machine in machines for _ in range(8)} - {""}
    assert len(seen) > 1, "more than one endpoint answers"
    tunnels = ["podwire-vxlan" in machine.run(["ip", "-brief", "link"]) for machine in machines]
    assert tunnels == ["always" in machine.run(["cat", "/etc/podwire/agent.env"]) for machine in machines]


def _running(machine: Machine) -> int:
    return podwire(machine, "get", "pods").count("Running")


def _asks(machine: Machine) -> str:
    """The host name that answers at my-service, asked by its name at this machine's own DNS."""
    name = machine.run(["dig", "+short", "+time=1", "+tries=1", "@10.96.0.10", "my-service.default.svc.cluster.local"],
                       check=False)
    if not name.strip():
        return ""
    answer = machine.run(["curl", "-s", "-m", "2", f"http://{name.strip()}/"], check=False)
    return str(json.loads(answer)["host"]) if answer.startswith("{") else ""


def test_a_second_run_changes_nothing(machines: list[Machine]) -> None:
    overlay = "always" if "always" in (machines[1].run(["cat", "/etc/podwire/agent.env"])) else "auto"
    before = podwire(machines[0], "get", "pods", "-o", "wide")
    said = provision(machines[1], overlay)
    assert "joined already" in said and "installed already" in said
    wait_until(lambda: _asks(machines[1]), "it answers again", 30)
    after = podwire(machines[0], "get", "pods", "-o", "wide")
    names = [line.split()[0] for line in before.splitlines()]
    assert names == [line.split()[0] for line in after.splitlines()], "the same pods"


def test_a_machine_that_is_gone_takes_only_its_own_pods(machines: list[Machine]) -> None:
    machines[2].power_off()
    for machine in machines[:2]:
        wait_until(lambda machine=machine: _asks(machine), f"{machine.name} goes on", 60)  # type: ignore[misc]  # bound
