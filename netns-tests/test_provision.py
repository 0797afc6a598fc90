"""Fresh Debian machines of the lab. The commands of README.md work on one, word for word.

vagrant/provision.sh makes two of them a cluster, through VXLAN. `make test-provision` also makes one of three machines,
with routes and with VXLAN, and runs `make demo`. Everything is installed once, into a root file system that mmdebstrap
made. Each machine is an overlay of it, with its own processes, name and network. PODWIRE_RELEASE is the code name of
another Debian than this machine's: `make test-provision RELEASE=trixie`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lab.cnicluster import plug
from lab.cninode import wait_until
from lab.machine import Machine, NotMade, archives_answer, debian_root, environment, in_root, package_folders
from lab.netns import Lab

ROOT = Path(__file__).resolve().parents[1]
ADDRESSES = {f"node{n}": f"192.168.56.{10 + n}" for n in (1, 2, 3)}
TOKEN = "provision-" * 4
PROVISION = ["bash", "/podwire/vagrant/provision.sh"]
KUBECONFIG = "/var/lib/podwire/admin.kubeconfig"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A root in which the script has installed packages and podwire: everything that needs the registries."""
    if shutil.which("mmdebstrap") is None:
        pytest.skip("mmdebstrap is not installed, which makes the fresh Debian")
    folder = tmp_path_factory.mktemp("machines")
    try:
        root = debian_root(folder, ROOT, os.environ.get("PODWIRE_RELEASE", ""))
        done = in_root(
            root, PROVISION, environment(PODWIRE_STEPS="packages install", PIP_RETRIES="10"), package_folders()
        )
        if done.returncode:
            raise NotMade(done.stdout[-4000:] + done.stderr[-4000:])
    except NotMade:
        if not archives_answer():
            pytest.skip("the archives of Debian packages do not answer, nothing can be installed")
        raise
    assert done.stdout.rstrip().endswith("ready")
    yield root
    shutil.rmtree(folder, ignore_errors=True)


# ---- README.md


def typed(page: str, after: str) -> list[str]:
    """The indented commands after these words on a page; of "this  # or: that" the second, which needs no kubectl."""
    block = page.split(after, 1)[1].lstrip("\n").split("\n\n", 1)[0]
    assert all(line.startswith("    ") for line in block.splitlines()), block
    commands = [line.strip().partition("# or: ")[2] or line.partition("  #")[0].strip() for line in block.splitlines()]
    assert not [command for command in commands if command.startswith("kubectl")]
    return commands


@pytest.fixture
def laptop(base: Path, tmp_path: Path) -> Iterator[Machine]:
    """A machine without a network: `make` cannot download anything."""
    with Lab() as lab:
        made = Machine("laptop", lab.netns("laptop"), base, tmp_path)
        try:
            yield made
        finally:
            made.power_off()


def shell(machine: Machine, commands: list[str]) -> str:
    return machine.run(["bash", "-exc", "cd /podwire\n" + "\n".join(commands)], timeout=180)


def test_what_the_readme_says(laptop: Machine) -> None:
    page = (ROOT / "README.md").read_text()
    commands = typed(page, "To play with a cluster:")
    settings = [command for command in commands if command.startswith("export")]
    first = next(n for n, command in enumerate(commands) if command.startswith("podwire exec"))
    assert commands[0] == "make up"
    assert commands[-1] == "make down"
    said = shell(laptop, commands[:first])
    assert "with 3 nodes is ready after" in said
    assert re.search(r"^node3 +Ready", said, re.M)
    wait_until(
        lambda: shell(laptop, [*settings, "podwire get pods"]).count("Running") == 7, "the examples' pods run", 60
    )
    service = commands[first].replace("curl -s", "curl -s --retry 20 --retry-all-errors --retry-delay 1")
    shell(laptop, [*settings, service])  # running pods may not be ready yet, and each node learns of it by itself
    said = shell(laptop, [*settings, *commands[first:-1]])
    assert '{"host":"web-' in said
    assert re.search(r"reject with tcp reset .*comment", said)
    pod = shell(laptop, [*settings, "podwire get pods -l app=client -o name"]).split("\n")[-2]
    trouble = re.findall(r"`(podwire [^`]+)`", page.split("## When something does not work", 1)[1].split("\n## ", 1)[0])
    mends = ("podwire up", "podwire down")  # what they do with a cluster in trouble has tests of its own
    asked = [c.replace(" pod NAME", f" {pod}").replace(" POD ", f" {pod} ") for c in trouble if c not in mends]
    asked = [c.replace("podwire drops", "podwire drops --for 1") for c in asked]
    assert len(asked) == len(trouble) - len(mends) >= 6
    said = shell(laptop, [*settings, *asked])
    assert "as explained" in said
    assert "comes from Service default/my-service" in said
    said = shell(laptop, [*settings, commands[-1], "podwire down", "ls -A /run"])
    assert not {"podwire", "netns"} & set(said.split("+ ls -A /run", 1)[1].split()), (
        "and `podwire down` can be repeated"
    )


@pytest.mark.long
def test_the_demo(laptop: Machine) -> None:
    said = laptop.run(["make", "-C", "/podwire", "demo"], timeout=400)
    held = re.search(r"(\d+) of (\d+) rows held", said)
    assert held
    assert held[1] == held[2], said[-5000:]


# ---- vagrant/provision.sh


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((2, "always"), id="two, VXLAN"),
        pytest.param((3, "auto"), id="three, routes", marks=pytest.mark.long),
        pytest.param((3, "always"), id="three, VXLAN", marks=pytest.mark.long),
    ],
)
def machines(
    request: pytest.FixtureRequest, base: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Machine]]:
    """On one link; the script runs on all at once, as `vagrant up` may do it."""
    count, overlay = request.param
    with Lab() as lab:
        switch = lab.netns("switch")
        switch.netlink(lambda ipr: ipr.link("add", ifname="sw0", kind="bridge"))
        switch.netlink(lambda ipr: ipr.link("set", index=ipr.link_lookup(ifname="sw0")[0], state="up"))
        made: list[Machine] = []
        try:
            for name, address in list(ADDRESSES.items())[:count]:
                ns = lab.netns(name)
                lab.wire(switch, name, ns, "eth1", "", f"{address}/24")
                plug(switch, name)
                ns.netlink(lambda ipr: ipr.route("add", dst="default", gateway="192.168.56.1"))
                made.append(Machine(name, ns, base, tmp_path_factory.mktemp(name)))
            with ThreadPoolExecutor(count) as pool:
                said = list(pool.map(lambda m: provision(m, overlay), made))
            assert all("ready" in text.splitlines()[-1] for text in said)
            yield made
        finally:
            for machine in made:
                machine.power_off()


def provision(machine: Machine, overlay: str) -> str:
    return machine.run(
        PROVISION,
        PODWIRE_STEPS="cluster",
        PODWIRE_ADDRESS=ADDRESSES[machine.name],
        PODWIRE_CONTROL=ADDRESSES["node1"],
        PODWIRE_JOIN_TOKEN=TOKEN,
        PODWIRE_OVERLAY=overlay,
    )


def podwire(machine: Machine, *words: str) -> str:
    return machine.run(["podwire", *words], KUBECONFIG=KUBECONFIG)


def test_the_machines_are_a_cluster(machines: list[Machine]) -> None:
    first = machines[0]
    nodes = podwire(first, "get", "nodes")
    assert all(machine.name in nodes for machine in machines)
    assert nodes.count("Ready") == len(machines)
    assert "NotReady" not in nodes
    podwire(first, "apply", "-f", "/podwire/examples/")
    wait_until(lambda: podwire(first, "get", "pods").count("Running") == 7, "the examples' pods run", 90)
    pods = podwire(first, "get", "pods", "-o", "wide")
    assert all(machine.name in pods for machine in machines), "on every machine"
    for machine in machines:  # Services and names, from each machine, to endpoints on all
        wait_until(lambda machine=machine: _asks(machine), f"my-service answers on {machine.name}", 30)  # type: ignore[misc]
    seen = {_asks(machine) for machine in machines for _ in range(8)} - {""}
    assert len(seen) > 1, "more than one endpoint answers"
    tunnels = ["podwire-vxlan" in machine.run(["ip", "-brief", "link"]) for machine in machines]
    assert tunnels == ["always" in machine.run(["cat", "/etc/podwire/agent.env"]) for machine in machines]


def _asks(machine: Machine) -> str:
    """The host name that my-service returns, resolved by this machine's own DNS."""
    name = machine.run(
        ["dig", "+short", "+time=1", "+tries=1", "@10.96.0.10", "my-service.default.svc.cluster.local"], check=False
    )
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
    *stay, last = machines
    last.power_off()
    for machine in stay:
        wait_until(lambda machine=machine: _asks(machine), f"{machine.name} goes on", 60)  # type: ignore[misc]  # bound
