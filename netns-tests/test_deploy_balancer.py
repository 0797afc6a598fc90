"""Load balancer addresses on a stock cluster: deploy/overlays/load-balancer-only as processes, with exactly the rights
of its roles and no more capabilities than its manifests say."""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from lab.cnicluster import plug
from lab.cninode import wait_until
from lab.incluster import ACCOUNTS, AGENT, STATUS_ALSO, GuardedApi, WorkloadPod, rights_of
from lab.netns import Lab, NetNS
from podwire.tests import kustomize
from podwire_base.kube import loadbalancer as lb
from podwire_base.kube.errors import StatusError
from podwire_base.kube.meta import Object
from podwire_base.kube.registry import of
from podwire_base.testing import recorded
from podwire_controlplane.server.writes import Scope
from podwire_proxy.l2.election import rank

OVERLAY = Path(__file__).resolve().parents[1] / "deploy" / "overlays" / "load-balancer-only"
CONTROL, CONTROLLER, CLIENT = "172.30.9.1", "172.30.9.20", "172.30.9.30"
NODES = {"n1": "172.30.9.11", "n2": "172.30.9.12"}
CONFIG = ("ConfigMap", "podwire-load-balancer", "kube-system")
GIVER = f"{ACCOUNTS}podwire-load-balancer"
POOL, FIRST = "172.30.9.200-172.30.9.203", "172.30.9.200"
VERSION = 812_345_678_901


class Site:
    """Two nodes, a client, the controller's pod and a control plane on one link."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.objects = kustomize.build(OVERLAY)
        self.made: set[str] = set()
        switch, self.client = lab.netns("switch"), lab.netns("client")
        switch.netlink(lambda ipr: ipr.link("add", ifname="sw0", kind="bridge"))
        machines = {"client": CLIENT, "control": CONTROL, "controller": CONTROLLER, **NODES}
        spaces = {"client": self.client, **{name: lab.netns(name) for name in machines if name != "client"}}
        for name, ns in spaces.items():
            lab.wire(switch, name, ns, "eth0", "", f"{machines[name]}/24")
            plug(switch, name)
        switch.netlink(lambda ipr: ipr.link("set", index=ipr.link_lookup(ifname="sw0")[0], state="up"))
        granted = {AGENT: rights_of("podwire", self.objects), GIVER: rights_of("podwire-load-balancer", self.objects)}
        self.api = GuardedApi(spaces["control"], [CONTROL], granted, [NODES["n2"], CONTROLLER])
        self.nodes = {name: self._pod(spaces[name], name, folder, "DaemonSet") for name in NODES}
        self.controller = self._pod(spaces["controller"], "controller", folder, "Deployment")

    def _pod(self, ns: NetNS, name: str, folder: Path, kind: str) -> WorkloadPod:
        return WorkloadPod(ns, name, NODES.get(name, CONTROLLER), self.objects, folder / name, self.api, kind)

    def start(self) -> None:
        for space in ("default", "kube-system"):
            self.api.create("Namespace", {"metadata": {"name": space}})
        for n, (name, address) in enumerate(NODES.items()):
            node = recorded.node(name, address, f"10.244.{n}.0/24", VERSION + n)
            del node["metadata"]["labels"]["node.kubernetes.io/exclude-from-external-load-balancers"]
            self.api.create("Node", node)
        (config,) = [o for o in self.objects if (o["kind"], o["metadata"]["name"]) == CONFIG[:2]]
        self.api.create("ConfigMap", config, "kube-system")
        for token, account in (("agents", AGENT), ("giver", GIVER)):
            self.api.replace_token(token, account)
        for pod in (*self.nodes.values(), self.controller):
            pod.write_account("giver" if pod is self.controller else "agents")
            self.run(pod)

    def run(self, pod: WorkloadPod) -> None:
        pod.start(PODWIRE_API_SERVERS=f"https://{CONTROL}:6443")

    def balancer(self, name: str, **spec: object) -> None:
        """A Service as a client creates it."""
        made = recorded.service(name, "", VERSION)
        made["spec"] |= {"clusterIP": "", "clusterIPs": [], "type": "LoadBalancer", **spec}
        self.api.create("Service", made, "default")
        self.made.add(name)

    def pool(self, addresses: str) -> None:
        self.api.patch(*CONFIG, {"data": {"addresses": addresses}})

    def clear(self) -> None:
        """Delete the Services that a test has created. Their addresses are free afterwards."""
        for name in filter(self.exists, self.made):
            self.delete(name)
        self.until(lambda: not any(map(self.exists, self.made)), "the controller lets the Services go")
        self.made.clear()

    def given(self, name: str) -> list[str]:
        status: Object = self.api.get("Service", name, "default")["status"]
        return [i["ip"] for i in (status.get("loadBalancer") or {}).get("ingress") or []]

    def answers(self, ip: str) -> str:
        """The node whose MAC the client gets for the address, "" if no node answers."""
        self.client.run(["ip", "neigh", "flush", "all"])
        self.client.call(lambda: _knock(ip))
        macs = {pod.ns.netlink(_mac): name for name, pod in self.nodes.items()}
        deadline = time.monotonic() + 1
        while time.monotonic() < deadline:
            for row in json.loads(self.client.run(["ip", "-j", "neigh", "show", ip]).stdout or "[]"):
                if row.get("lladdr"):
                    return macs[row["lladdr"]]
            time.sleep(0.05)
        return ""

    def podwire(self, pod: WorkloadPod, *words: str) -> str:
        """The output of a command inside a pod, with the rights of its service account."""
        env = {"PODWIRE_SERVICE_ACCOUNT_DIR": str(pod.account), "PODWIRE_API_SERVERS": f"https://{CONTROL}:6443"}
        env["PATH"] = os.environ["PATH"]
        return pod.ns.run([f"{sys.prefix}/bin/podwire", *words], env=env, check=False, timeout=60).stdout

    def delete(self, name: str) -> None:
        self.api.do(self.api.objects.delete(Scope(of("Service"), "default", name), {}))

    def exists(self, name: str) -> bool:
        try:
            self.api.get("Service", name, "default")
        except StatusError:
            return False
        return True

    def until(self, condition: Callable[[], object], what: str, seconds: float = 60) -> None:
        try:
            wait_until(condition, what, seconds)
        except AssertionError as err:
            logs = "\n".join(pod.log()[-1500:] for pod in (*self.nodes.values(), self.controller))
            raise AssertionError(f"{err}\n{logs}") from None


def _knock(ip: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"?", (ip, 9))


def _mac(ipr: object) -> str:
    # IPRoute
    return str(ipr.get_links(ipr.link_lookup(ifname="eth0")[0])[0].get("IFLA_ADDRESS"))  # type: ignore[attr-defined]


def status(pod: WorkloadPod) -> Object:
    path = pod.path("/run/podwire/status/lb.json")
    found: Object = json.loads(path.read_text()) if path.exists() else {"ready": False, "message": ""}
    return found


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with Lab() as lab, tempfile.TemporaryDirectory(prefix="podwire-balancer-") as folder:
        Path(folder).chmod(0o755)  # the controller is no root
        made = Site(lab, Path(folder))
        with made.api:
            made.start()
            try:
                yield made
            finally:
                for pod in (*made.nodes.values(), made.controller):
                    if pod.processes:
                        pod.stop()


@pytest.fixture
def pooled(site: Site) -> Iterator[Site]:
    """A pool, and the Service `web` with its first address. A test's Services are gone after it."""
    try:
        site.pool(POOL)
        site.balancer("web")
        site.until(lambda: site.given("web") == [FIRST], "an address")
        site.until(lambda: site.answers(FIRST) != "", "a node answers")
        yield site
    finally:
        site.clear()


def test_without_pools_nothing_is_given_and_with_pools_one_node_answers(site: Site) -> None:
    site.pool("")
    site.until(
        lambda: all(status(pod)["message"] == "no load balancer pools" for pod in site.nodes.values()),
        "the responders run, in vain",
    )
    try:
        site.balancer("web")
        assert site.given("web") == [] and site.answers(FIRST) == ""
        site.pool(POOL)
        site.until(lambda: site.given("web") == [FIRST], "an address")
        site.until(lambda: FIRST in site.controller.log(), "it reports the address of each Service")
        site.until(lambda: site.answers(FIRST) != "", "somebody answers")
    finally:
        site.clear()


def test_the_rights_are_what_is_used_and_nothing_more(pooled: Site) -> None:
    site = pooled
    site.balancer("local", externalTrafficPolicy="Local")  # so that responders need the nodes of endpoints
    # so that the controller must report that it is in no pool
    site.balancer("elsewhere", loadBalancerIP="198.51.100.1")
    found = site.podwire(site.nodes["n1"], "status", "-o", "json", "--wait=30")  # list of the Leases
    assert [set(n["roles"]) for n in json.loads(found)["nodes"]] == [{"lb"}, {"lb"}]
    for account in (AGENT, GIVER):
        asked, granted = site.api.asked[account], site.api.granted[account]
        site.until(partial(set.issuperset, asked, granted), f"all are used: {granted - asked}")
        assert asked - (STATUS_ALSO - granted) == granted


def test_another_node_takes_over_and_it_comes_back(pooled: Site) -> None:
    site = pooled
    owner, other = sorted(NODES, key=lambda name: rank(FIRST, name), reverse=True)
    site.until(lambda: site.answers(FIRST) == owner, "the elected one answers")
    assert site.nodes[owner].stop() == 0
    try:
        site.until(lambda: site.answers(FIRST) == other, "the other one answers")
    finally:
        site.run(site.nodes[owner])
    site.until(lambda: site.answers(FIRST) == owner, "the elected one again")


def test_the_controller_restarts_and_addresses_stay(pooled: Site) -> None:
    site = pooled
    site.balancer("local", externalTrafficPolicy="Local")
    site.until(lambda: len(site.given("local")) == 1, "an address")
    before = {name: site.given(name) for name in ("web", "local")}
    assert site.controller.stop() == 0
    try:
        site.balancer("meanwhile")
        site.until(lambda: site.answers(FIRST) != "", "addresses that are allocated do not need it")
    finally:
        site.run(site.controller)
    site.until(lambda: len(site.given("meanwhile")) == 1, "the waiting Service gets one")
    assert {name: site.given(name) for name in before} == before
    assert site.given("meanwhile") not in before.values()


def test_a_right_that_is_missing_is_told(site: Site) -> None:
    pod, granted = site.nodes["n1"], site.api.granted[AGENT]
    site.until(lambda: status(pod)["ready"], "it runs")
    assert pod.stop() == 0
    site.api.granted[AGENT] = {right for right in granted if "namespaces" not in right[2]}
    try:
        site.run(pod)
        site.until(lambda: "is not granted" in status(pod)["message"], "it says what")
        assert not status(pod)["ready"]
    finally:
        site.api.granted[AGENT] = granted
    site.until(lambda: status(pod)["ready"], "it goes on by itself")


def test_no_service_stays_terminating(pooled: Site, tmp_path: Path) -> None:
    """The finalizer is set with the right to patch services/status alone, and taken off by the controller, or by
    deploy/cleanup once the controller is gone. That of another controller stays.
    """
    site = pooled
    site.balancer("first")
    site.balancer("second")
    site.balancer("elsewhere", loadBalancerIP="198.51.100.1")
    for name in ("first", "second"):
        site.until(lambda name=name: site.given(name), "it has an address")  # type: ignore[misc]  # bound
        assert site.api.get("Service", name, "default")["metadata"]["finalizers"] == [lb.FINALIZER]
    assert site.exists("elsewhere") and "finalizers" not in site.api.get("Service", "elsewhere", "default")["metadata"]
    site.delete("first")
    site.until(lambda: not site.exists("first"), "the controller lets it go")
    assert site.controller.stop() == 0
    try:
        _without_controller(site, tmp_path)
    finally:
        if site.exists("foreign"):
            site.api.patch("Service", "foreign", "default", {"metadata": {"finalizers": None}})
        site.run(site.controller)


def _without_controller(site: Site, folder: Path) -> None:
    site.delete("second")
    site.balancer("foreign", loadBalancerClass="example.com/other")
    site.api.patch("Service", "foreign", "default", {"metadata": {"finalizers": [lb.FINALIZER]}})
    time.sleep(0.5)
    assert site.exists("second"), "nobody is there to take it off"
    objects = kustomize.build(OVERLAY.parents[1] / "cleanup")
    account = f"{ACCOUNTS}podwire-cleanup"
    site.api.granted[account] = rights_of("podwire-cleanup", objects)
    site.api.replace_token("cleanup", account)
    job = WorkloadPod(site.controller.ns, "controller", CONTROLLER, objects, folder, site.api, "Job")
    job.write_account("cleanup")
    (container,) = job.spec["containers"]
    said = site.podwire(job, *container["args"])
    assert "Service default/second" in said and "foreign" not in said, said
    site.until(lambda: not site.exists("second"), "it is gone")
    assert site.api.get("Service", "foreign", "default")["metadata"]["finalizers"] == [lb.FINALIZER]
    assert site.given("web"), "addresses stay until another controller writes its own"
    assert site.api.asked[account] == site.api.granted[account]
