"""The manifests of deploy/ on a stock cluster: the agent runs in-cluster, with exactly the rights of its ClusterRoles,
with an API server of several addresses. And the removal."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.cnicluster import plug
from lab.cninode import Answer, CniNode, ask, peer_server, wait_until
from lab.incluster import ACCOUNTS, AGENT, STATUS_ALSO, GuardedApi, WorkloadPod, rights_of
from lab.netns import Lab, NetNS
from lab.patience import patient
from podwire.tests import kustomize
from podwire_base.kube import statuslease
from podwire_base.kube.meta import Object
from podwire_base.role.standing import Standing
from podwire_base.testing import recorded

DEPLOY = Path(__file__).resolve().parents[1] / "deploy"
CONTROL, NODES = ["172.30.9.1", "172.30.9.2"], {"n1": "172.30.9.11", "n2": "172.30.9.12"}
DEAD = "172.30.9.99"
VERSION = 812_345_678_901


class Kubeconfigs:
    """CniNode's place for a kubeconfig; this agent has none."""

    def kubeconfig(self, path: Path) -> Path:
        return path


class Cluster:
    def __init__(self, lab: Lab, api: GuardedApi, folder: Path, objects: list[Object]) -> None:
        self.lab, self.api = lab, api
        self.nodes: dict[str, NetNS] = {}
        self.pods: dict[str, WorkloadPod] = {}
        self.folder, self.objects = folder, objects

    def agent(self, name: str, ns: NetNS) -> WorkloadPod:
        self.nodes[name] = ns
        self.pods[name] = WorkloadPod(ns, name, NODES[name], self.objects, self.folder / name, self.api)
        return self.pods[name]

    def caller(self, name: str) -> CniNode:
        """The container runtime's part of a node: it calls the plugin that the init container installed."""
        pod = self.pods[name]
        # the only attribute that it uses
        node = CniNode(pod.ns, pod.path("/run/podwire"), name, Kubeconfigs())  # type: ignore[arg-type]
        node.client = pod.path("/opt/cni/bin/podwire-cni")
        return node

    def add(self, name: str, container: str) -> tuple[NetNS, str]:
        caller, pod = self.caller(name), self.lab.netns(container)
        conflist = json.loads((self.pods[name].path("/etc/cni/net.d") / "10-podwire.conflist").read_text())
        answer: Answer = caller.cni(
            "ADD", container, pod, {"cniVersion": "1.0.0", "name": conflist["name"], **conflist["plugins"][0]}
        )
        assert answer.status == 0, answer.out + self.pods[name].log()
        return pod, answer.address


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes and a control plane on one link. The Nodes are in a kubelet's shape."""
    objects = kustomize.build(DEPLOY)
    granted = {AGENT: rights_of("podwire", objects)}
    with Lab() as lab:
        switch, control = lab.netns("switch"), lab.netns("control")
        switch.netlink(lambda ipr: ipr.link("add", ifname="sw0", kind="bridge"))
        machines = {"control": control, **{name: lab.netns(name) for name in NODES}}
        addresses = {"control": CONTROL[0], **NODES}
        for name, ns in machines.items():
            lab.wire(switch, name, ns, "eth0", "", f"{addresses[name]}/24")
            plug(switch, name)
        switch.netlink(lambda ipr: ipr.link("set", index=ipr.link_lookup(ifname="sw0")[0], state="up"))
        control.netlink(
            lambda ipr: ipr.addr("add", index=ipr.link_lookup(ifname="eth0")[0], address=CONTROL[1], prefixlen=24)
        )
        with GuardedApi(control, CONTROL, granted, [NODES["n2"]]) as api:
            for space in ("default", "kube-system"):
                api.create("Namespace", {"metadata": {"name": space}})
            for n, (name, address) in enumerate(NODES.items()):
                api.create("Node", recorded.node(name, address, f"10.244.{n}.0/24", VERSION + n))
            made = Cluster(lab, api, tmp_path_factory.mktemp("cluster"), objects)
            api.replace_token("first")
            try:
                for name in NODES:
                    pod = made.agent(name, machines[name])
                    pod.write_account("first")
                    pod.path("/etc/cni/net.d").mkdir(parents=True)
                    pod.path("/etc/cni/net.d/05-other.conflist").write_text("{}")
                    pod.maps = {
                        own: {**data, **({"PODWIRE_TAKE_OVER": "true"} if "PODWIRE_ROLE" in data else {})}
                        for own, data in pod.maps.items()
                    }
                    pod.run_init()
                    # the first address does not answer, as that of a control plane's machine that is down
                    pod.start(PODWIRE_API_SERVERS=" ".join(f"https://{ip}:6443" for ip in (DEAD, *CONTROL)))
                yield made
            finally:
                for pod in made.pods.values():
                    if pod.processes:
                        pod.stop()


def _ready(pod: WorkloadPod) -> bool:
    places = [pod.path(place) for place in ("/run/podwire/status", "/run/podwire/services/status")]
    found = {p.stem: json.loads(p.read_text())["ready"] for place in places for p in place.glob("*.json")}
    return set(found) >= {"wiring", "proxy", "dns-feeder", "dns"} and all(found.values())


def _serve(cluster: Cluster, name: str, address: str, port: int, node: str, **spec: object) -> str:
    """A Service with one endpoint, in the shape of a real API server's; its ClusterIP."""
    fields = {"clusterIP": "", "clusterIPs": [], **spec}
    made = cluster.api.create(
        "Service", recorded.service(name, "", VERSION, port=port, target=port, **fields), "default"
    )
    cluster.api.create("EndpointSlice", recorded.endpoint_slice(name, [address], port, VERSION, node), "default")
    return str(made["spec"]["clusterIP"])


def test_pods_services_and_names_work(cluster: Cluster) -> None:
    for pod in cluster.pods.values():
        # bound
        wait_until(lambda pod=pod: _ready(pod), f"all roles ready: {pod.log()[-3000:]}", 40)  # type: ignore[misc]
        for probe in ("readinessProbe", "livenessProbe"):
            wait_until(lambda pod=pod, probe=probe: pod.probe(probe), probe)  # type: ignore[misc]  # bound
        assert sorted(p.name for p in pod.path("/etc/cni/net.d").iterdir()) == [
            "05-other.conflist.before-podwire",
            "10-podwire.conflist",
        ]
    client, _ = cluster.add("n1", "client")
    server, address = cluster.add("n2", "server")
    assert address.startswith("10.244.1.")
    with peer_server(server, address) as port:
        ip = _serve(cluster, "web", address, port, "n2")
        wait_until(lambda: _asks(client, ip, port), "the Service answers from another node")
        assert ask(client, ip, port).startswith("10.244.0."), "the client's own address"
        wait_until(lambda: _name(client, "web.default.svc.cluster.local") == ip, "the name leads to it")


def _name(client: NetNS, name: str, server: str = "10.96.0.10") -> str:
    return client.run(["dig", "+short", "+time=1", f"@{server}", name], check=False).stdout.strip()


def _asks(client: NetNS, ip: str, port: int) -> bool:
    try:
        return bool(ask(client, ip, port, 1))
    except OSError:
        return False


def test_the_rights_are_what_is_used_and_nothing_more(cluster: Cluster) -> None:
    """Everything that a role may ever request is made to happen; then the used rights must equal the granted ones."""
    taken = cluster.nodes["n1"].call(lambda: socket.create_server((NODES["n1"], 31999)))
    with taken:  # so the proxy must write an Event that the Service's health check cannot be served
        _serve(
            cluster,
            "local",
            "10.244.0.200",
            80,
            "n1",
            type="LoadBalancer",
            externalTrafficPolicy="Local",
            healthCheckNodePort=31999,
        )
        asked, granted = cluster.api.asked[AGENT], cluster.api.granted[AGENT]
        code, found = _status(cluster, "--wait=30")
        assert code == 0, found["problems"]
        wait_until(lambda: ("create", "", "events") in asked, f"an Event: {cluster.pods['n1'].log()[-2000:]}")
    wait_until(lambda: asked >= granted, f"all are used: {granted - asked}", 30)
    assert asked - STATUS_ALSO == granted


def _status(cluster: Cluster, *words: str) -> tuple[int, Object]:
    """`podwire status` inside the agent's pod of n1, with the rights of its service account."""
    pod = cluster.pods["n1"]
    env = {
        "PATH": os.environ["PATH"],
        "PODWIRE_SERVICE_ACCOUNT_DIR": str(pod.account),
        "PODWIRE_API_SERVERS": f"https://{CONTROL[0]}:6443",
    }
    done = pod.ns.run([f"{sys.prefix}/bin/podwire", "status", "-o", "json", *words], env=env, check=False, timeout=60)
    assert done.stdout, done.stderr
    found: Object = json.loads(done.stdout)
    return done.returncode, found


def test_one_command_shows_the_roles_of_all_nodes(cluster: Cluster) -> None:
    """Each agent publishes a Lease with its own rights; a role that hangs on another node shows within seconds."""
    code, found = _status(cluster, "--wait=40")
    assert code == 0, found["problems"]
    roles = {"wiring", "proxy", "dns-feeder", "dns"}
    assert [set(n["roles"]) for n in found["nodes"]] == [roles, roles]
    assert found["nodes"][1]["source"] == "Lease podwire-n2, signed by podwire-n2-x7k2p"
    wait_until(
        lambda: _status(cluster)[1]["nodes"][1]["roles"]["proxy"]["figures"]["services"] >= 1,
        "figures in the Lease",
        30,
    )
    assert found["pods"] is None and "not granted" in found["unreadable"]["pods"]
    state = json.loads((cluster.pods["n2"].path("/run/podwire") / "agent.json").read_text())
    hangs = state["roles"]["proxy"]["pid"]
    os.kill(hangs, signal.SIGSTOP)
    began = time.monotonic()
    try:
        told = "proxy on n2: NoProgress: no progress for"
        wait_until(lambda: any(p.startswith(told) for p in _status(cluster)[1]["problems"]), "it shows")
        assert time.monotonic() - began < patient(7)
    finally:
        os.kill(hangs, signal.SIGCONT)
    assert _status(cluster, "--wait=30")[0] == 0


def test_a_forged_or_old_report_is_shown_as_what_it_is(cluster: Cluster) -> None:
    """The agent of n2 is stopped, and a taken agent writes its Lease."""
    agent = cluster.pods["n2"].processes["agent"]
    state = json.loads((cluster.pods["n2"].path("/run/podwire") / "agent.json").read_text())
    reporter = state["roles"]["status"]["pid"]
    os.kill(agent.pid, signal.SIGSTOP)  # or it would start the role again
    os.kill(reporter, signal.SIGSTOP)
    try:
        forged = statuslease.lease(
            "n2", "evil\x1b[2J", {"proxy": Standing(True, "Ready", "all\x1b]0;x\x07 well")}, time.time() - 100
        )
        cluster.api.patch("Lease", "podwire-n2", "kube-system", {k: forged[k] for k in ("metadata", "spec")})
        code, found = _status(cluster)
        assert code == 1
        assert any(p.startswith("n2: its agent's last report is 10") and "evil" in p for p in found["problems"])
        pod = cluster.pods["n1"]
        env = {"PODWIRE_SERVICE_ACCOUNT_DIR": str(pod.account), "PODWIRE_API_SERVERS": f"https://{CONTROL[0]}:6443"}
        page = pod.ns.run(
            [f"{sys.prefix}/bin/podwire", "status"], env={"PATH": os.environ["PATH"], **env}, check=False
        ).stdout
        assert "evil\\x1b[2J" in page and "\x1b" not in page and "\x07" not in page
    finally:
        os.kill(reporter, signal.SIGCONT)
        os.kill(agent.pid, signal.SIGCONT)
    assert _status(cluster, "--wait=30")[0] == 0


def test_a_renewed_token_and_restarts(cluster: Cluster) -> None:
    """The kubelet renews the token in the volume; agents that restart with it continue, and nothing in the kernel
    changed.
    """
    client, server = cluster.add("n1", "client2")[0], cluster.add("n2", "server2")
    for pod in cluster.pods.values():
        pod.write_account("second")
    cluster.api.replace_token("second")
    with peer_server(*server) as port:
        ip = _serve(cluster, "after", server[1], port, "n2")
        wait_until(lambda: _asks(client, ip, port), "news come with the new token")
        pod = cluster.pods["n1"]
        assert pod.stop() == 0
        assert ask(client, ip, port), "rules and routes outlive the agent"
        pod.start(PODWIRE_API_SERVERS=f"https://{CONTROL[1]}:6443")
        wait_until(lambda: _ready(pod), "ready again")
        assert ask(client, ip, port)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A directory that other users reach."""
    made = Path(tempfile.mkdtemp(prefix="podwire-deploy-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


def test_dns_as_a_deployment(cluster: Cluster, folder: Path) -> None:
    """A pod of the Deployment, in a pod's network, with a service account that may only list and watch the zone's
    sources. None of its processes has a privilege.
    """
    objects = kustomize.build(DEPLOY / "overlays" / "dns-deployment")
    server, address = cluster.add("n1", "dns")
    client, _ = cluster.add("n2", "client3")
    pod = WorkloadPod(server, "n1", address, objects, folder, cluster.api, "Deployment")
    account = f"{ACCOUNTS}{pod.spec['serviceAccountName']}"
    pod.write_account("dns")
    cluster.api.replace_token("dns", account)
    cluster.api.granted[account] = rights_of("podwire-dns", objects)
    try:
        pod.start(PODWIRE_API_SERVERS=f"https://{CONTROL[0]}:6443")
        wait_until(lambda: pod.probe("readinessProbe"), f"it is ready: {pod.log()}")
        wait_until(lambda: pod.probe("livenessProbe"), "livenessProbe")
        ip = _serve(cluster, "named", "10.244.0.201", 80, "n1")
        wait_until(
            lambda: _name(client, "named.default.svc.cluster.local", address) == ip, "a client elsewhere is answered"
        )
        assert ("watch", "", "services") in cluster.api.asked[account] <= cluster.api.granted[account]
        (process,) = pod.processes.values()
        every = [process.pid, *children(process.pid)]
        assert len(every) >= 3, "the supervisor, the feeder and the server"
        for pid in every:
            rows = dict(row.split(":\t", 1) for row in Path(f"/proc/{pid}/status").read_text().splitlines())
            assert rows["Uid"].split() == rows["Gid"].split() == ["64053"] * 4 and rows["NoNewPrivs"] == "1"
            assert not int(rows["CapEff"], 16) & 1 << 10, "no CAP_NET_BIND_SERVICE"
            assert int(rows["CapBnd"], 16) in (0, 1 << 2), "nothing but what a checkout of root's alone needs"
    finally:
        assert pod.stop() == 0


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_uninstall_leaves_nothing_and_puts_back_what_was_there(cluster: Cluster) -> None:
    pod = cluster.pods["n2"]
    assert pod.stop() == 0

    def kept() -> tuple[list[str], list[str], list[str]]:
        tables = pod.ns.run(["nft", "list", "tables"]).stdout.splitlines()
        links = [str(x.get("IFLA_IFNAME")) for x in pod.ns.netlink(lambda ipr: ipr.get_links())]
        text = pod.ns.run(["ip", "-j", "route"]).stdout + pod.ns.run(["ip", "-j", "address", "show", "lo"]).stdout
        return tables, links, [a for a in ("10.244.", "10.96.0.10") if a in text]

    assert "podwire0" in kept()[1] and len(kept()[0]) > 2 and len(kept()[2]) == 2
    done = pod.ns.run([f"{sys.prefix}/bin/podwire", "uninstall", "--root", str(pod.folder), "--kernel"])
    assert "nft table" in done.stdout
    tables, links, addresses = kept()
    assert tables == [] and sorted(set(links) - {"lo", "eth0"}) == [] and addresses == []
    assert [p.name for p in pod.path("/etc/cni/net.d").iterdir()] == ["05-other.conflist"]
    assert list(pod.path("/opt/cni/bin").iterdir()) == []
