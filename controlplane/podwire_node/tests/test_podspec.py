"""A container's settings from its pod's spec, and a pod's status computed from its containers."""

from __future__ import annotations

from typing import Any

import pytest

from podwire_base.kube.meta import Object
from podwire_base.testing.builders import NOW, pod, stored
from podwire_node import environment, podspec, podstatus
from podwire_node.podstatus import ContainerState

DNS = podspec.NodeDns(("10.96.0.10",), upstream=("192.0.2.1", "192.0.2.2"))
CLUSTER = "search default.svc.cluster.local svc.cluster.local cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n"
NODE = "nameserver 192.0.2.1\nnameserver 192.0.2.2\n"
OWN: Object = {
    "nameservers": ["1.1.1.1"],
    "searches": ["a.example"],
    "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}],
}


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ({}, CLUSTER),
        ({"dnsPolicy": "ClusterFirst"}, CLUSTER),
        ({"dnsPolicy": "Default"}, NODE),
        ({"hostNetwork": True}, NODE),
        ({"dnsPolicy": "ClusterFirstWithHostNet", "hostNetwork": True}, CLUSTER),
        ({"dnsPolicy": "None", "dnsConfig": OWN}, "search a.example\nnameserver 1.1.1.1\noptions ndots:2 edns0\n"),
        (
            {"dnsConfig": OWN},
            (
                "search default.svc.cluster.local svc.cluster.local cluster.local a.example\n"
                "nameserver 10.96.0.10\nnameserver 1.1.1.1\noptions ndots:2 edns0\n"
            ),
        ),
        (
            {"dnsPolicy": "Default", "dnsConfig": {"nameservers": ["192.0.2.2", "3.3.3.3", "4.4.4.4"]}},
            NODE + "nameserver 3.3.3.3\n",
        ),
    ],
    ids=str,
)
def test_resolv_conf(spec: Object, text: str) -> None:
    assert podspec.resolv_conf(pod(**spec), DNS) == text


def test_hosts() -> None:
    made = pod(hostname="db-0", subdomain="db", hostAliases=[{"ip": "192.0.2.9", "hostnames": ["x", "y"]}])
    lines = podspec.hosts(made, ["10.0.0.2", "fd00::2"], "cluster.local").splitlines()
    assert "10.0.0.2\tdb-0.db.default.svc.cluster.local\tdb-0" in lines and "192.0.2.9\tx y" in lines
    assert "fd00::2\tdb-0.db.default.svc.cluster.local\tdb-0" in lines and "127.0.0.1\tlocalhost" in lines
    assert "10.0.0.2\tp1" in podspec.hosts(pod(), ["10.0.0.2"], "cluster.local").splitlines()
    assert podspec.hostname(pod("a" * 62 + ".b")) == "a" * 62


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("a", "a"),
        ("a:1", "a"),
        ("a/b:1", "a/b"),
        ("host:5000/b", "host:5000/b"),
        ("host:5000/b:2", "host:5000/b"),
        ("a@sha256:0", "a"),
        ("a:1@sha256:0", "a"),
        ("host:5000/b@sha256:0", "host:5000/b"),
    ],
)
def test_image_names(image: str, name: str) -> None:
    assert podspec.image_name(image) == name


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("$(A)", "1"),
        ("$$(A)", "$(A)"),
        ("$(B)", "$(B)"),
        ("x$(A)y$(A)", "x1y1"),
        ("$A", "$A"),
        ("$$$(A)", "$$(A)"),
        ("$(", "$("),
    ],
)
def test_expansion(text: str, result: str) -> None:
    assert podspec.expand(text, {"A": "1"}) == result


def _env(*rows: Object, **container: Any) -> dict[str, str]:
    made = stored(pod(nodeName="n1"), annotations={"a.io/b": "note"})

    def field(path: str) -> str:
        return podspec.field_ref(made, path, "10.0.0.2,fd00::2", "172.30.0.11")

    return environment.environment(
        made, {"name": "c", "env": list(rows), **container}, {}, {}, field, environment.Room(2, 1 << 30)
    )


def test_environment() -> None:
    def field(path: str) -> Object:
        return {"name": "F", "valueFrom": {"fieldRef": {"fieldPath": path}}}

    env = _env(
        {"name": "A", "value": "1"}, {"name": "B", "value": "$(A)$(C)"}, {"name": "C", "value": "late"}, {"name": "D"}
    )
    assert (env["B"], env["D"]) == ("1$(C)", "")
    for path, value in (
        ("metadata.name", "p1"),
        ("metadata.namespace", "default"),
        ("spec.nodeName", "n1"),
        ("metadata.uid", "uid-p1"),
        ("status.podIP", "10.0.0.2"),
        ("status.podIPs", "10.0.0.2,fd00::2"),
        ("status.hostIP", "172.30.0.11"),
        ("metadata.labels['app']", "web"),
        ("metadata.annotations['a.io/b']", "note"),
        ("metadata.labels['none']", ""),
    ):
        assert _env(field(path))["F"] == value
    secret = {"name": "S", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}
    whole = {"envFrom": [{"secretRef": {"name": "s"}}]}
    for rows, more in (([field("spec.secrets")], {}), ([], whole), ([secret], {})):
        with pytest.raises(podspec.Refused) as caught:
            _env(*rows, **more)
        assert caught.value.reason == "CreateContainerConfigError" and str(caught.value)


def test_commands_and_refusals() -> None:
    echo = {"name": "c", "image": "podwire.io/echo:1", "args": ["-p", "$(P)"]}
    assert podspec.command(echo, {"P": "80"}, ["/echo"]) == ["/echo", "-p", "80"]
    assert podspec.command({**echo, "command": ["sh"]}, {"P": "80"}, ["/echo"]) == ["sh", "-p", "80"]
    for container, path, reason, word in (
        ({"name": "c", "image": "nginx"}, ["/echo"], "ErrImageNeverPull", "nginx"),
        ({"name": "c", "image": "podwire.io/host"}, ["/echo"], "CreateContainerConfigError", "command"),
    ):
        with pytest.raises(podspec.Refused, match=word) as caught:
            podspec.command(container, {}, path)
        assert caught.value.reason == reason


# ---- status


def state(what: str, own: str = "c") -> ContainerState:
    if what == "running":
        return ContainerState(own, running_since=NOW, ready=True, waiting="", id="1")
    if what == "backoff":
        return ContainerState(own, waiting="CrashLoopBackOff", restarts=2, exit_code=1)
    if what == "waiting":
        return ContainerState(own)
    return ContainerState(own, waiting="", exit_code=int(what), finished=NOW, last_started=NOW)


@pytest.mark.parametrize(
    ("policy", "states", "phase"),
    [
        ("Always", ["waiting"], "Pending"),
        ("Always", ["running", "waiting"], "Running"),
        ("Always", ["backoff"], "Running"),
        ("Always", ["0"], "Running"),
        ("Never", ["0", "0"], "Succeeded"),
        ("Never", ["0", "1"], "Failed"),
        ("Never", ["1"], "Failed"),
        ("Never", ["0", "running"], "Running"),
        ("OnFailure", ["0", "0"], "Succeeded"),
        ("OnFailure", ["0", "1"], "Running"),
        ("OnFailure", ["1"], "Running"),
        ("OnFailure", ["0", "backoff"], "Running"),
        ("Never", [], "Pending"),
    ],
)
def test_phases(policy: str, states: list[str], phase: str) -> None:
    assert podstatus.phase(policy, [state(s) for s in states]) == phase


def _status(
    made: Object, *states: ContainerState, now: float = NOW, addresses: tuple[str, ...] = ("10.0.0.2",)
) -> Object:
    return podstatus.pod_status(made, [], list(states), list(addresses), "172.30.0.11", "", now)


def _conditions(status: Object) -> dict[str, tuple[str, str]]:
    return {c["type"]: (c["status"], c["lastTransitionTime"]) for c in status["conditions"]}


def test_a_transition_time_changes_with_the_status_only() -> None:
    made = stored(pod())
    first = _status(made, state("running"))
    assert _conditions(first)["Ready"] == ("True", "2027-01-15T08:00:00Z") and first["podIPs"] == [{"ip": "10.0.0.2"}]
    second = _status({**made, "status": first}, state("running"), now=NOW + 60)
    assert _conditions(second) == _conditions(first) and second["startTime"] == first["startTime"]
    third = _status({**made, "status": second}, state("backoff"), now=NOW + 120)
    assert _conditions(third)["Ready"] == ("False", "2027-01-15T08:02:00Z")
    assert _conditions(third)["PodScheduled"] == ("True", "2027-01-15T08:00:00Z")
    ready = next(c for c in third["conditions"] if c["type"] == "Ready")
    assert ready["reason"] == "ContainersNotReady" and "c" in ready["message"]


def test_other_numbers_are_no_news() -> None:
    """A node agent sends changed numbers with its next heartbeat, and any other change at once."""

    def told(before: list[Object], status: bool, reason: str, message: str) -> list[Object]:
        return podstatus.conditions(
            {"status": {"conditions": before}}, {"PodwireProxy": (status, reason, message)}, NOW
        )

    other: list[Object] = [{"type": "Ready", "status": "True"}]
    before = told(other, True, "Ready", "12 Services, 30 endpoints")
    assert before[0] == other[0]
    for after, news in (
        (told(before, True, "Ready", "13 Services, 9 endpoints"), False),
        (told(before, True, "Ready", "12 Services"), True),
        (told(before, False, "Ready", "12 Services, 30 endpoints"), True),
        (told(before, True, "Late", "12 Services, 30 endpoints"), True),
    ):
        assert podstatus.new_words(before, after) is news
    assert podstatus.new_words([], before)


def test_a_node_tells_when_it_last_reported() -> None:
    """`kubectl describe node` shows the time; without news it is no change."""
    rows = podstatus.conditions({}, {"Ready": (True, "NodeReady", "")}, NOW)
    foreign = {"type": "DiskSlow", "status": "False", "lastHeartbeatTime": "t"}
    first, later = (podstatus.beaten([*rows, foreign], NOW + wait) for wait in (1, 9))
    assert first[0]["lastHeartbeatTime"] < later[0]["lastHeartbeatTime"]
    assert first[1] == later[1] == foreign
    assert podstatus.quiet(first) == podstatus.quiet(later)
    assert podstatus.quiet(first)[0] == rows[0]


def test_the_quality_of_service_is_the_servers() -> None:
    """The API server computes it from the requests and limits of a pod when the pod is created."""
    assert "qosClass" not in _status(stored(pod()), state("running"))


def test_readiness_gates_and_foreign_conditions() -> None:
    made = stored(pod(readinessGates=[{"conditionType": "x.io/gate"}]))
    assert _conditions(_status(made, state("running")))["Ready"][0] == "False"
    made["status"] = {"conditions": [{"type": "x.io/gate", "status": "True", "lastTransitionTime": "t"}]}
    status = _status(made, state("running"))
    assert _conditions(status)["Ready"][0] == "True" and _conditions(status)["x.io/gate"] == ("True", "t")


def test_container_states() -> None:
    killed = ContainerState("c", waiting="", exit_code=137, exit_signal=9, finished=NOW, last_started=NOW - 5)
    assert podstatus.container_status(killed)["state"]["terminated"] == {
        "exitCode": 137,
        "reason": "Error",
        "signal": 9,
        "startedAt": "2027-01-15T07:59:55Z",
        "finishedAt": "2027-01-15T08:00:00Z",
    }
    assert podstatus.container_status(state("backoff"))["state"] == {"waiting": {"reason": "CrashLoopBackOff"}}
    alive = podstatus.container_status(state("running"))
    assert alive["containerID"] == "podwire://1" and alive["started"] and "running" in alive["state"]


def test_backoff_and_restarts() -> None:
    waits = [podstatus.backoff(n) for n in range(14)]
    assert waits[0] == 0 and waits[1] == podstatus.BACKOFF_FIRST and max(waits) == podstatus.BACKOFF_LAST
    assert waits == sorted(waits)
    table = {(p, code): podstatus.restart_wanted(p, code) for p in ("Always", "OnFailure", "Never") for code in (0, 1)}
    assert [k for k, v in table.items() if v] == [("Always", 0), ("Always", 1), ("OnFailure", 1)]


def test_bandwidth() -> None:
    def pod(**rates: str) -> Object:
        return {"metadata": {"annotations": {f"kubernetes.io/{way}-bandwidth": rate for way, rate in rates.items()}}}

    assert podspec.bandwidth(pod()) == {}
    assert podspec.bandwidth(pod(ingress="10M")) == {"ingressRate": 10**7, "ingressBurst": 10**6}
    assert podspec.bandwidth(pod(ingress="1e7")) == podspec.bandwidth(pod(ingress="10M")), "any quantity"
    assert podspec.bandwidth(pod(egress="1.5Gi", ingress="1000")) == {
        "egressRate": 3 * 2**29,
        "egressBurst": 3 * 2**29 // 10,
        "ingressRate": 1000,
        "ingressBurst": 100,
    }
    for bad in ("", "fast", "-1M", "999", "2P", "10 M", "10m"):
        with pytest.raises(podspec.Refused, match="egress-bandwidth"):
            podspec.bandwidth(pod(egress=bad))


def test_host_ports() -> None:
    spec: Object = {
        "containers": [
            {"name": "a", "ports": [{"containerPort": 80, "hostPort": 8080}, {"containerPort": 81}]},
            {"name": "b", "ports": [{"containerPort": 53, "hostPort": 53, "protocol": "UDP", "hostIP": "192.0.2.1"}]},
        ]
    }
    assert podspec.host_ports({"spec": spec}) == [
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": ""},
        {"hostPort": 53, "containerPort": 53, "protocol": "udp", "hostIP": "192.0.2.1"},
    ]
    assert podspec.host_ports({"spec": {**spec, "hostNetwork": True}}) == []


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ({"hostAliases": [{"ip": "10.0.0.1", "hostnames": ["a\n6.6.6.6 api"]}]}, "spec.hostAliases"),
        ({"hostAliases": [{"ip": "10.0.0.1\n6.6.6.6", "hostnames": ["a"]}]}, "spec.hostAliases"),
        ({"hostname": "a\n6.6.6.6 api"}, "spec.hostname"),
        ({"subdomain": "a b"}, "spec.subdomain"),
        ({"dnsConfig": {"nameservers": ["1.1.1.1\nnameserver 6.6.6.6"]}}, "spec.dnsConfig.nameservers"),
        ({"dnsConfig": {"searches": ["a\nnameserver 6.6.6.6"]}}, "spec.dnsConfig.searches"),
        ({"dnsConfig": {"options": [{"name": "ndots", "value": "5\nnameserver 6.6.6.6"}]}}, "spec.dnsConfig.options"),
        ({"dnsConfig": {"options": [{"name": "a\rb"}]}}, "spec.dnsConfig.options"),
    ],
    ids=["alias name", "alias ip", "hostname", "subdomain", "server", "search", "option value", "option name"],
)
def test_no_word_of_a_pod_becomes_a_line_of_its_files(spec: dict[str, Any], named: str) -> None:
    asked: Object = {"metadata": {"name": "p", "namespace": "default", "uid": "u"}, "spec": spec}
    with pytest.raises(podspec.Refused, match=named):
        podspec.hosts(asked, ["10.1.0.2"], "cluster.local")
        podspec.resolv_conf(asked, DNS)
