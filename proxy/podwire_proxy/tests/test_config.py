"""Configuration: KubeProxyConfiguration files, detectors, NodePort addresses, and values derived from the Node."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from podwire_base.kube.errors import ConfigError
from podwire_proxy import backends, kubeproxyfile, main, offline
from podwire_proxy.backends import check
from podwire_proxy.changes import Tracker
from podwire_proxy.config import ProxyConfig, eligible, service_cidrs, wanted_flows
from podwire_proxy.dataplane import HealthCheck
from podwire_proxy.hostfacts import Foreign, ForeignChain, HostFacts, findings, leftovers
from podwire_proxy.iptables.leftovers import both_variants
from podwire_proxy.testing import scenarios as s
from podwire_proxy.testing.builders import endpoint, endpoint_slice, port, service

HEAD = {"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration"}
SERVED = backends.names()
BASE = ProxyConfig("n1", None, Path("/nowhere"))
# As kubeadm writes it, nothing left out.
KUBEADM = """
apiVersion: kubeproxy.config.k8s.io/v1alpha1
bindAddress: 0.0.0.0
bindAddressHardFail: false
clientConnection: {acceptContentTypes: "", burst: 0, contentType: "", qps: 0,
  kubeconfig: /var/lib/kube-proxy/kubeconfig.conf}
clusterCIDR: 10.244.0.0/16,fd00:244::/56
configSyncPeriod: 0s
conntrack: {maxPerCore: null, min: null, tcpBeLiberal: false, tcpCloseWaitTimeout: null, tcpEstablishedTimeout: null,
  udpStreamTimeout: 0s, udpTimeout: 0s}
detectLocal: {bridgeInterface: "", interfaceNamePrefix: ""}
detectLocalMode: ""
enableProfiling: false
healthzBindAddress: ""
hostnameOverride: ""
iptables: {localhostNodePorts: null, masqueradeAll: false, masqueradeBit: null, minSyncPeriod: 0s, syncPeriod: 0s}
ipvs: {excludeCIDRs: null, minSyncPeriod: 0s, scheduler: "", strictARP: false, syncPeriod: 0s, tcpFinTimeout: 0s,
  tcpTimeout: 0s, udpTimeout: 0s}
kind: KubeProxyConfiguration
logging: {flushFrequency: 0, options: {json: {infoBufferSize: "0"}}, verbosity: 0}
metricsBindAddress: ""
mode: ""
nftables: {masqueradeAll: false, masqueradeBit: null, minSyncPeriod: 0s, syncPeriod: 0s}
nodePortAddresses: null
oomScoreAdj: null
portRange: ""
showHiddenMetricsForVersion: ""
winkernel: {enableDSR: false, forwardHealthCheckVip: false, networkName: "", rootHnsEndpointName: "", sourceVip: ""}
"""


def test_kubeadms_file_is_taken_as_it_is() -> None:
    fields, notes = kubeproxyfile.read(yaml.safe_load(KUBEADM), SERVED)
    assert fields == {
        "kubeconfig": "/var/lib/kube-proxy/kubeconfig.conf",
        "cluster_cidrs": ("10.244.0.0/16", "fd00:244::/56"),
    }
    assert notes == ["mode: the default, iptables, is served by the nftables backend; --backend iptables"]


@pytest.mark.parametrize(
    ("mode", "backend", "words"),
    [
        ("iptables", "iptables", "behaviour of kube-proxy's nftables mode"),
        ("nftables", "nftables", ""),
        ("ipvs", "nftables", "served by the nftables backend"),
    ],
)
def test_the_mode_chooses_the_backend(mode: str, backend: str, words: str) -> None:
    section = {"masqueradeAll": True, "syncPeriod": "5s"} if mode != "ipvs" else {}
    fields, notes = kubeproxyfile.read({**HEAD, "mode": mode, mode: section}, SERVED)
    config = replace(BASE, **fields)
    check(config)
    assert config.backend == backend
    assert len(notes) == bool(words)
    assert all(words in note for note in notes)
    if mode != "ipvs":
        again, _ = kubeproxyfile.read(kubeproxyfile.write(config), SERVED)
        assert replace(config, **again) == config


@pytest.mark.parametrize("wrong", [{"backend": "ipvs"}, {"iptables_variant": "xt"}])
def test_a_backend_that_is_none_is_named(wrong: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))}: .* is not known; use"):
        check(replace(BASE, **wrong))  # type: ignore[arg-type]  # the fields are text


def test_every_setting_with_a_counterpart_carries_over() -> None:
    fields, notes = kubeproxyfile.read(
        {
            **HEAD,
            "mode": "nftables",
            "hostnameOverride": "worker",
            "healthzBindAddress": "0.0.0.0:10256",
            "metricsBindAddress": "127.0.0.1:10249",
            "nodePortAddresses": ["192.0.2.0/24"],
            "detectLocalMode": "BridgeInterface",
            "detectLocal": {"bridgeInterface": "cni0", "interfaceNamePrefix": "veth"},
            "nftables": {"masqueradeAll": True, "syncPeriod": "1m30s", "minSyncPeriod": "500ms"},
            "iptables": {"masqueradeAll": False, "syncPeriod": "7s", "localhostNodePorts": True},
            "conntrack": {
                "tcpEstablishedTimeout": "24h0m0s",
                "tcpCloseWaitTimeout": "1h",
                "tcpBeLiberal": True,
                "maxPerCore": 1000,
                "min": 5000,
            },
        },
        SERVED,
    )
    assert notes == []
    config = replace(BASE, **fields)
    check(config)
    assert config == replace(
        BASE,
        node_name="worker",
        backend="nftables",
        healthz_address="0.0.0.0:10256",
        metrics_address="127.0.0.1:10249",
        node_port_addresses=("192.0.2.0/24",),
        detect_local="BridgeInterface",
        local_interface="cni0",
        masquerade_all=True,
        healthz_timeout=180.0,
        localhost_node_ports=True,
        conntrack_max_per_core=1000,
        conntrack_min=5000,
        min_interval=0.5,
        conntrack=(
            ("nf_conntrack_tcp_timeout_established", 86400),
            ("nf_conntrack_tcp_timeout_close_wait", 3600),
            ("nf_conntrack_tcp_be_liberal", 1),
        ),
    )
    again, _ = kubeproxyfile.read(kubeproxyfile.write(config), SERVED)
    assert replace(BASE, **again).detect_local == "BridgeInterface", "/configz is itself such a file"
    assert again["localhost_node_ports"] is True


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"nodePortAdresses": ["10.0.0.0/8"]}, "nodePortAdresses: is not a key"),
        ({"conntrack": {"maximum": 5}}, "conntrack.maximum: is not a key"),
        ({"featureGates": {"X": True}}, "featureGates: is not supported"),
        ({"iptables": 7}, "iptables: should be a mapping"),
    ],
)
def test_what_has_no_effect_is_named(part: dict[str, Any], words: str) -> None:
    _, notes = kubeproxyfile.read({**HEAD, "mode": "nftables", **part}, SERVED)
    assert [note[: len(words)] for note in notes] == [words]


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ([], "KubeProxyConfiguration"),
        ({**HEAD, "kind": "KubeletConfiguration"}, "KubeProxyConfiguration"),
        ({**HEAD, "mode": "userspace"}, "mode: 'userspace'"),
        ({**HEAD, "clusterCIDR": 7}, "clusterCIDR: 7"),
        ({**HEAD, "nodePortAddresses": "10.0.0.0/8"}, "nodePortAddresses"),
        ({**HEAD, "nftables": {"syncPeriod": "30"}}, "syncPeriod"),
        ({**HEAD, "conntrack": {"tcpBeLiberal": "yes"}}, "tcpBeLiberal"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused(document: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        kubeproxyfile.read(document, SERVED)


@pytest.mark.parametrize("content", ["a: [", "kind: Pod", "\x00", ""])
def test_a_bad_file_gets_one_line(tmp_path: Path, content: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(content)
    done = CliRunner().invoke(main.command, ["--config", str(file), "--node-name", "n1", "--dry-run"])
    assert done.exit_code == 1
    assert str(file) in done.output
    assert "Traceback" not in done.output


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(KUBEADM.replace('hostnameOverride: ""', "hostnameOverride: worker"))
    config = offline.configured(
        file, {"cluster_cidrs": ("10.1.0.0/16",), "masquerade_all": False, "run_dir": Path("/r")}
    )
    assert (config.node_name, config.cluster_cidrs, config.run_dir) == ("worker", ("10.1.0.0/16",), Path("/r"))


def test_a_file_without_clustercidr_knows_no_pods_as_with_kube_proxy(tmp_path: Path) -> None:
    """The default range must not apply: in a cluster with another one, every pod would count as off the cluster and be
    masqueraded.
    """
    file = tmp_path / "config.yaml"
    file.write_text("".join(line for line in KUBEADM.splitlines(keepends=True) if not line.startswith("clusterCIDR")))
    given = {"node_name": "n1", "run_dir": Path("/r")}
    assert offline.configured(file, given).node(NODE).pod_cidrs == ()
    assert offline.configured(file, {**given, "cluster_cidrs": ("10.1.0.0/16",)}).cluster_cidrs == ("10.1.0.0/16",)
    assert offline.configured(None, given).cluster_cidrs == BASE.cluster_cidrs


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"detect_local": "Magic"}, "detect_local"),
        ({"detect_local": "BridgeInterface"}, "local_interface"),
        ({"detect_local": "InterfaceNamePrefix", "local_interface": "x" * 16}, "local_interface"),
        ({"node_port_addresses": ("primary", "10.0.0.0/8")}, "node_port_addresses"),
        ({"node_port_addresses": ()}, "node_port_addresses"),
        ({"node_port_addresses": ("eth0",)}, "node_port_addresses"),
        ({"healthz_address": "10256"}, "healthz_address"),
    ],
)
def test_a_config_names_its_bad_field(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=f"^{words}: "):
        check(replace(BASE, **change))


NODE: dict[str, Any] = {
    "metadata": {"name": "n1"},
    "spec": {"podCIDRs": ["10.244.1.0/24", "fd00:244:1::/64"]},
    "status": {"addresses": [{"type": "InternalIP", "address": "172.30.0.11"}]},
}


@pytest.mark.parametrize(
    ("mode", "interface", "pods", "wanted"),
    [
        ("ClusterCIDR", "", ("10.244.0.0/16",), ""),
        ("NodeCIDR", "", ("10.244.1.0/24", "fd00:244:1::/64"), ""),
        ("BridgeInterface", "cni0", (), "cni0"),
        ("InterfaceNamePrefix", "veth", (), "veth*"),
    ],
)
def test_detectors(mode: str, interface: str, pods: tuple[str, ...], wanted: str) -> None:
    info = replace(BASE, detect_local=mode, local_interface=interface).node(NODE)
    assert (info.pod_cidrs, info.pod_interface) == (pods, wanted)


@pytest.mark.parametrize(
    ("spec", "pods"),
    [
        ({}, ()),
        ({"podCIDR": "10.244.1.7/24"}, ("10.244.1.0/24",)),
        ({"podCIDRs": ["abc", None, 7, "10.244.1.0/24"]}, ("10.244.1.0/24",)),
        ({"podCIDRs": ["10.244.1.0/33"]}, ()),
    ],
)
def test_a_nodes_own_range_is_one_that_rules_can_have(spec: dict[str, Any], pods: tuple[str, ...]) -> None:
    assert replace(BASE, detect_local="NodeCIDR").node({**NODE, "spec": spec}).pod_cidrs == pods


def test_an_address_of_the_node_that_cannot_be_read_hides_no_other() -> None:
    addresses = [5, None, "x", {"type": "InternalIP", "address": [7]}, {"type": "InternalIP", "address": "172.30.0.11"}]
    assert BASE.node({**NODE, "status": {"addresses": addresses}}).addresses == ("172.30.0.11",)


def test_node_port_addresses() -> None:
    local = ("127.0.0.1", "172.30.0.11", "192.0.2.7", "fe80::1", "fd00:30::11")
    assert BASE.node(NODE, local).node_port_ips == ("172.30.0.11",)
    some = replace(BASE, node_port_addresses=("192.0.2.0/24", "fd00::/8"))
    assert some.node(NODE, local).node_port_ips == ("192.0.2.7", "fd00:30::11")
    everywhere = replace(BASE, node_port_addresses=("0.0.0.0/0",))
    assert everywhere.node(NODE, local).node_port_ips == ("172.30.0.11", "192.0.2.7"), "never on loopback"


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ({}, True),
        ({"spec": {"taints": [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]}}, False),
        ({"spec": {"taints": [{"key": "other"}]}}, True),
        ({"spec": {"taints": [5, None]}}, True),
        ({"metadata": {"name": "n1", "deletionTimestamp": "2026-01-01T00:00:00Z"}}, False),
    ],
)
def test_load_balancers_leave_a_node_that_goes(part: dict[str, Any], expected: bool) -> None:
    assert eligible({**NODE, **part}) is expected
    assert not eligible(None)


def test_a_node_with_only_an_external_address_serves_node_ports_there() -> None:
    only = {**NODE, "status": {"addresses": [{"type": "ExternalIP", "address": "203.0.113.5"}]}}
    assert BASE.node(only).node_port_ips == ("203.0.113.5",)
    mixed = [{"type": "ExternalIP", "address": ip} for ip in ("203.0.113.5", "2001:db8::5")]
    both = {**NODE, "status": {"addresses": [*mixed, {"type": "InternalIP", "address": "192.0.2.5"}]}}
    assert set(BASE.node(both).node_port_ips) == {"192.0.2.5", "2001:db8::5"}


def test_health_checks_count_ready_endpoints_of_this_node() -> None:
    tracker = Tracker(s.INFO)
    local: dict[str, Any] = {
        "type": "LoadBalancer",
        "externalTrafficPolicy": "Local",
        "healthCheckNodePort": 30500,
        "ingress": [{"ip": s.BALANCER}],
    }
    tracker.service("default/x", service("x", s.VIP, [port(80, name="a"), port(81, name="b")], **local))
    found = [
        endpoint(s.POD_A, s.NODE),
        endpoint(s.POD_B, s.NODE, ready=False, serving=True, terminating=True),
        endpoint(s.POD_C, "n2"),
    ]
    tracker.slice("s", endpoint_slice("x", found, [("a", "TCP", 80), ("b", "TCP", 81)]))
    tracker.flush()
    assert tracker.dataplane.health == {"default/x": HealthCheck(30500, 1)}
    assert tracker.dataplane.no_local_endpoints == [0, 0, 0, 0]
    tracker.slice("s", endpoint_slice("x", found[2:], [("a", "TCP", 80), ("b", "TCP", 81)]))
    tracker.flush()
    assert tracker.dataplane.health == {"default/x": HealthCheck(30500, 0)}
    assert tracker.dataplane.no_local_endpoints == [0, 2, 0, 0]
    tracker.service(
        "default/x", service("x", s.VIP, [port(80, name="a")], **{**local, "externalTrafficPolicy": "Cluster"})
    )
    tracker.flush()
    assert (tracker.dataplane.health, tracker.dataplane.no_local_endpoints) == ({}, [0, 0, 0, 0])


def test_service_cidr_objects() -> None:
    assert service_cidrs([], ("10.96.0.0/16",)) == ((), [])
    assert service_cidrs(
        [("10.97.0.7/24",), ("fd00:97::/112", "10.96.0.0/16", "x", 7, ["10.0.0.0/8"])], ("10.96.0.0/16",)
    ) == (("10.96.0.0/16", "10.97.0.0/24"), ["fd00:97::/112", "x", "7", "['10.0.0.0/8']"])


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (HostFacts(), []),
        (HostFacts(conntrack_count=89, conntrack_max=100, foreign=(Foreign(tables=("ip podwire", "ip nat")),)), []),
        (HostFacts(forwarding=False), ["ip_forward=1"]),
        (HostFacts(conntrack_count=90, conntrack_max=100), ["90 of 100"]),
        (
            HostFacts(foreign=(Foreign(drop_chains=("ip filter FORWARD", "inet firewalld filter_FORWARD")),)),
            ["chain FORWARD of table ip filter", "chain filter_FORWARD of table inet firewalld"],
        ),
        (HostFacts(foreign=(Foreign(tables=("ip kube-proxy",)),)), ["kube-proxy --cleanup"]),
        (
            HostFacts(
                foreign=(
                    Foreign(
                        chains=(
                            ForeignChain("iptables-legacy, IPv4", "nat", "KUBE-SERVICES"),
                            ForeignChain("iptables-legacy, IPv4", "nat", "KUBE-SVC-X"),
                            ForeignChain("iptables-legacy, IPv4", "filter", "KUBE-FIREWALL"),
                        )
                    ),
                )
            ),
            ["KUBE-SERVICES, KUBE-SVC-X; they"],
        ),
        (HostFacts(foreign=(Foreign(), Foreign(findings=("rules of both",)))), ["rules of both"]),
        (HostFacts(strict_rp_filter=True), ["rp_filter"]),
    ],
)
def test_what_is_told_of_the_host(facts: HostFacts, words: list[str]) -> None:
    found = findings(facts)
    assert len(found) == len(words)
    assert all(word in line for word, line in zip(words, found, strict=True))


def test_rules_of_both_variants_of_iptables_are_told() -> None:
    docker = ForeignChain("iptables-legacy, IPv4", "filter", "DOCKER-USER")
    (line,) = both_variants([docker, ForeignChain("iptables-nft, IPv4", "filter", "KUBE-KUBELET-CANARY")])
    assert "filter of Docker" in line
    assert not list(both_variants([docker, docker]))


def test_leftovers_are_named_by_their_owners() -> None:
    names = (
        "KUBE-SVC-1",
        "KUBE-ROUTER-INPUT",
        "KUBE-KUBELET-CANARY",
        "cali-FORWARD",
        "FLANNEL-FWD",
        "CNI-HOSTPORT-DNAT",
        "DOCKER",
        "MINE",
        "FORWARD",
    )
    found = leftovers(ForeignChain("iptables-nft, IPv6", "nat", name) for name in names)
    assert {owner: one.chains for one in found for owner in [one.owner]} == {
        "": ("FORWARD", "MINE"),
        "CNI plugins (portmap, bridge)": ("CNI-HOSTPORT-DNAT",),
        "Calico": ("cali-FORWARD",),
        "Docker": ("DOCKER",),
        "flannel": ("FLANNEL-FWD",),
        "kube-proxy": ("KUBE-SVC-1",),
        "kube-router": ("KUBE-ROUTER-INPUT",),
        "kubelet": ("KUBE-KUBELET-CANARY",),
    }
    assert str(found[0]) == "2 chains of table nat (iptables-nft, IPv6): FORWARD, MINE"


def test_room_for_flows() -> None:
    assert wanted_flows(BASE, 2) == 131072
    assert wanted_flows(BASE, 16) == 16 * 32768
    fields, _ = kubeproxyfile.read({**HEAD, "conntrack": {"maxPerCore": 0}}, SERVED)
    assert wanted_flows(replace(BASE, **fields), 16) == 0, "left as it is"
    assert findings(HostFacts(conntrack_max=1000, conntrack_wanted=1000)) == []
    (line,) = findings(HostFacts(conntrack_max=1000, conntrack_wanted=2000))
    assert "nf_conntrack_max=2000" in line
