"""SRC and DST as people write them."""

from __future__ import annotations

import pytest

from podwire.explain.lookup import entering
from podwire.explain.names import BadName, Target, parse, source, target

from .explain_cluster import catalogue


def dial(text: str, src: str = "client", proto: str = "", *, v6: bool = False, space: str = "default") -> Target:
    objects = catalogue()
    return target(parse(text, proto), objects, source(src, objects, space), space, v6)


@pytest.mark.parametrize(
    ("text", "kind", "node", "ip"),
    [
        ("client", "pod", "node1", "10.244.1.9"),
        ("pod/client", "pod", "node1", "10.244.1.9"),
        ("default/client", "pod", "node1", "10.244.1.9"),
        ("data/db-0", "pod", "node2", "10.244.2.3"),
        ("data/pod/db-0", "pod", "node2", "10.244.2.3"),
        ("deploy/web", "pod", "node1", "10.244.1.2"),  # of its pods the ready one
        ("deployment.apps/web", "pod", "node1", "10.244.1.2"),
        ("data/sts/db", "pod", "node2", "10.244.2.3"),
        ("node/node2", "node", "node2", "172.30.0.12"),
        ("node1", "node", "node1", "172.30.0.11"),
        ("172.30.0.12", "node", "node2", "172.30.0.12"),
        ("10.244.2.2", "pod", "node2", "10.244.2.2"),
        ("host", "node", "node2", "172.30.0.12"),  # the network of the node
        ("192.0.2.7", "outside", "", "192.0.2.7"),
    ],
)
def test_a_source_is_found_by_every_name(text: str, kind: str, node: str, ip: str) -> None:
    found = source(text, catalogue())
    assert (found.kind, found.node, found.ips[0]) == (kind, node, ip)


def test_the_node_that_a_packet_enters_can_be_named() -> None:
    assert source("192.0.2.7", catalogue(), node="node2").node == "node2"
    assert source("node", catalogue(), node="node2").ips == ("172.30.0.12", "fd00:30::12")
    assert source("node", catalogue()).node == ""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nobody", "no pod 'nobody' in namespace 'default'"),
        ("deploy/nobody", "Deployment default/nobody has no pod that runs"),
        ("svc/web", "a Service sends nothing"),
        ("node/node9", "the nodes are node1, node2"),
        ("a/b/c/d", "expected [NAMESPACE/]NAME"),
    ],
)
def test_a_source_that_is_nothing_is_refused_by_name(text: str, words: str) -> None:
    with pytest.raises(BadName) as told:
        source(text, catalogue())
    assert words in str(told.value)


@pytest.mark.parametrize(
    ("text", "kind", "points", "protocol"),
    [
        ("10.96.0.20:80", "address", (("10.96.0.20", 80),), "TCP"),
        ("10.96.0.20:80/UDP", "address", (("10.96.0.20", 80),), "UDP"),
        ("10.96.0.20:http", "address", (("10.96.0.20", 80),), "TCP"),
        ("[fd00::1]:53/udp", "address", (("fd00::1", 53),), "UDP"),
        ("web:80", "Service", (("10.96.0.20", 80),), "TCP"),
        ("web:http", "Service", (("10.96.0.20", 80),), "TCP"),
        ("svc/web:metrics", "Service", (("10.96.0.20", 9090),), "TCP"),
        ("default/web:81", "Service", (("10.96.0.20", 81),), "TCP"),  # the rules say that it has no such port
        ("one", "Service", (("10.96.0.22", 8080),), "TCP"),
        ("udp:161", "Service", (("10.96.0.23", 161),), "UDP"),  # it has the number for UDP alone
        ("http://web", "Service", (("10.96.0.20", 80),), "TCP"),
        ("http://web:9090/path", "Service", (("10.96.0.20", 9090),), "TCP"),
        ("web.default:80", "Service", (("10.96.0.20", 80),), "TCP"),
        ("web.default.svc:80", "Service", (("10.96.0.20", 80),), "TCP"),
        ("web.default.svc.cluster.local:80", "Service", (("10.96.0.20", 80),), "TCP"),
        ("WEB.default.svc.cluster.local.:80", "Service", (("10.96.0.20", 80),), "TCP"),
        ("kube-dns.kube-system:dns", "Service", (("10.96.0.10", 53),), "UDP"),
        ("kube-system/kube-dns:53", "Service", (("10.96.0.10", 53),), "TCP"),
        ("db.data:5432", "headless", (("10.244.2.3", 5432),), "TCP"),
        ("db-0.db.data:5432", "pod", (("10.244.2.3", 5432),), "TCP"),
        ("10-244-2-3.data.pod.cluster.local:5432", "pod", (("10.244.2.3", 5432),), "TCP"),
        ("alias:5432", "headless", (("10.244.2.3", 5432),), "TCP"),
        ("pod/web-5d4-a", "pod", (("10.244.1.2", 9376),), "TCP"),
        ("pod/web-5d4-a:http", "pod", (("10.244.1.2", 9376),), "TCP"),
        ("data/db-0:5432", "pod", (("10.244.2.3", 5432),), "TCP"),
        ("deploy/web:http", "pod", (("10.244.1.2", 9376), ("10.244.2.2", 9376)), "TCP"),
        ("node/node2:30080", "node", (("172.30.0.12", 30080),), "TCP"),
        ("node2:30080", "node", (("172.30.0.12", 30080),), "TCP"),
        ("web/icmp", "Service", (("10.96.0.20", 0),), "ICMP"),
        ("172.30.0.12/icmp", "address", (("172.30.0.12", 0),), "ICMP"),
    ],
)
def test_a_destination_is_found_by_every_name(
    text: str, kind: str, points: tuple[tuple[str, int], ...], protocol: str
) -> None:
    found = dial(text)
    assert (found.kind, found.points, found.protocol, found.problem) == (kind, points, protocol, "")


def test_a_short_name_goes_through_the_search_path_of_the_pod() -> None:
    assert dial("web:80").names == ("web.default.svc.cluster.local: Service default/web",)
    told = dial("kube-dns.kube-system:53").names
    assert told[0].startswith("kube-dns.kube-system.default.svc.cluster.local: NXDOMAIN")
    assert told[-1] == "kube-dns.kube-system.svc.cluster.local: Service kube-system/kube-dns"
    other = dial("web:80", "data/db-0")  # of another namespace: the name is not there
    assert (other.kind, other.reason, other.points) == ("nothing", "no-such-name", ())
    assert other.problem.endswith("there is no Service data/web; Service default/web is there: ask for web.default")
    assert dial("www.example.test:443").names[-1].startswith("www.example.test: not a name of the cluster")


@pytest.mark.parametrize(
    ("text", "reason", "words"),
    [
        ("empty:80", "no-endpoints", "headless Service default/empty has no ready endpoint"),
        ("nothing.default.svc.cluster.local:80", "no-such-name", "there is no Service default/nothing"),
        ("nothing:80", "no-such-name", "there is no Service default/nothing"),
        ("db-7.db.data:5432", "no-such-name", "no endpoint with the hostname db-7"),
        ("loop:80", "alias-circle", "aliases go in a circle"),
        ("number:80", "no-such-name", "an alias (CNAME) must be a name"),
        ("away:443", "not-resolved", ""),
    ],
)
def test_a_name_that_leads_nowhere_says_why(text: str, reason: str, words: str) -> None:
    found = dial(text)
    assert (found.points, found.reason) == ((), reason)
    assert words in found.problem


def test_nothing_translates_the_port_of_a_headless_service() -> None:
    found = dial("db.data:5432")
    assert found.notes == ()
    services = catalogue().of("Service")
    changed = tuple(
        {**one, "spec": {**one["spec"], "ports": [{"port": 80, "targetPort": 5432}]}}
        if one["metadata"]["name"] == "db"
        else one
        for one in services
    )
    objects = catalogue(Service=changed)
    found = target(parse("db.data:80"), objects, source("client", objects))
    assert found.points == (("10.244.2.3", 80),)
    assert not found.notes or "80 stays 80" in found.notes[0]


def test_of_two_families_the_wanted_one_is_taken() -> None:
    assert dial("pod/web-5d4-a:80", v6=True).points == (("fd00:244::2", 80),)
    assert dial("node/node1:80", v6=True).points == (("fd00:30::11", 80),)
    assert dial("web:80", v6=True).points == (("10.96.0.20", 80),), "it has only this one"
    with pytest.raises(BadName, match="has no IPv6 address"):
        source("192.0.2.7", catalogue()).address(True)


@pytest.mark.parametrize(
    ("text", "proto", "words"),
    [
        ("10.96.0.20", "", "DST:PORT"),
        ("web", "", "name one port of Service default/web: 80/TCP http, 9090/TCP metrics"),
        ("web:nope", "", "no port named 'nope': 80/TCP http"),
        ("web:0", "", "a port from 1 to 65535"),
        ("web:70000", "", "a port from 1 to 65535"),
        ("web:80/udp", "tcp", "leave one of them out"),
        ("web:80/icmp", "", "ICMP has no ports"),
        ("ftp://web", "", "only http:// and https://"),
        ("svc/nope:80", "", "there is no Service default/nope"),
        ("pod/client", "", "a port is missing"),
        ("[fd00::1", "", "[ADDRESS]:PORT"),
        ("a:b:c", "", "expected DST:PORT"),
        ("node/node1:http", "", "a port of a node needs a number"),
        ("192.0.2.1:http", "", "its port is a number"),
    ],
)
def test_a_destination_that_cannot_be_read_names_the_fix(text: str, proto: str, words: str) -> None:
    with pytest.raises(BadName) as told:
        dial(text, proto=proto)
    assert words in str(told.value)


def test_a_node_needs_no_search_path() -> None:
    assert dial("web:80", "node1").kind == "Service"
    assert dial("client:80", "node1").kind == "pod"
    assert dial("web.default.svc.cluster.local:80", "node1").kind == "Service"


def test_the_node_that_a_packet_meets_first() -> None:
    objects = catalogue()
    at = target(parse("172.30.0.12:30080"), objects, source("192.0.2.7", objects))
    vip = target(parse("10.96.0.20:80"), objects, source("192.0.2.7", objects))

    def enters(src: str, wanted: Target, here: str | None, node: str = "") -> str:
        return entering(source(src, objects, node=node), wanted, objects, here).node

    assert enters("192.0.2.7", at, "laptop") == "node2", "the node that it dials"
    assert enters("192.0.2.7", vip, "laptop") == "node1", "else the first one"
    assert enters("192.0.2.7", vip, "node2") == "node2", "else the one that this machine is"
    assert enters("192.0.2.7", at, "laptop", "node1") == "node1", "the one that the user names"
    assert enters("client", vip, "laptop") == "node1"
    assert enters("node", vip, None) == "", "the machine of a cluster in namespaces"
    assert enters("node", vip, "node2") == ""
    with pytest.raises(
        BadName, match=r"this machine .laptop. is no node of the cluster; use node/NAME of node1, node2"
    ):
        enters("node", vip, "laptop")
