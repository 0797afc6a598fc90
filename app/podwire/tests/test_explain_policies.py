"""What `podwire explain` says of policies: who judges, by which rule, and where nobody does."""

from __future__ import annotations

from typing import Any

import pytest

from podwire.explain import policies
from podwire.explain.answer import Answer, End
from podwire_base.kube.meta import Object
from podwire_policy.overview import Overview

from .explain_cluster import NODES, PODS, catalogue

WEB, CLIENT, NODE1 = "10.244.1.2", "10.244.1.9", NODES["node1"][0]


def policy(own: str, **spec: Any) -> Object:
    return {"metadata": {"name": own, "namespace": "default"}, "spec": {"podSelector": {}, **spec}}


CLIENTS = policy(
    "clients",
    podSelector={"matchLabels": {"app": "web"}},
    ingress=[{"from": [{"podSelector": {"matchLabels": {"app": "client"}}}], "ports": [{"port": 8080}]}],
)
CLOSED = policy("closed", policyTypes=["Ingress"])


def told(src: str, dst: str, *some: Object, node: str = "node1", verdict: str = "forward") -> Answer:
    overview = Overview()
    overview.take("pods", PODS)
    overview.take("policies", some)
    answer = Answer("a", "b", "TCP", src, dst, 8080, node)
    answer.ends = [End(dst, 8080, verdict, node="node1")]
    policies.tell(answer, overview, catalogue())
    return answer


def steps(answer: Answer) -> list[str]:
    return [step.text for end in answer.ends for _, step in end.steps]


@pytest.mark.parametrize("labels", [{"app": "web"}], ids=["web"])
def test_the_rule_that_allows_is_named(labels: dict[str, str]) -> None:
    assert next(pod for pod in PODS if pod["metadata"]["name"] == "web-5d4-a")["metadata"]["labels"] == labels
    answer = told(CLIENT, WEB, CLIENTS, CLOSED)
    assert steps(answer) == ["ingress of default/web-5d4-a: rule 0 of default/clients allows it"]
    assert not answer.warnings


def test_who_denies_is_named_in_both_directions() -> None:
    assert steps(told(CLIENT, WEB, CLOSED, verdict="drop")) == [
        "ingress of default/web-5d4-a: no rule of default/closed allows it"
    ]
    egress = policy("shut", policyTypes=["Egress"])
    assert steps(told(CLIENT, WEB, egress, verdict="drop")) == [
        "egress of default/client: no rule of default/shut allows it"
    ]


def test_a_node_that_does_not_know_yet_is_a_warning() -> None:
    (warning,) = told(CLIENT, WEB, CLOSED).warnings
    assert "deny what the nodes let pass to 10.244.1.2:8080" in warning


@pytest.mark.parametrize(
    ("src", "dst"), [(NODE1, WEB), (CLIENT, NODE1), (CLIENT, "10.96.0.10")], ids=["to a pod", "of a pod", "its DNS"]
)
def test_nobody_judges_a_pod_and_its_own_node(src: str, dst: str) -> None:
    closed = policy("all", policyTypes=["Ingress", "Egress"])
    assert steps(told(src, dst, closed)) == []


def test_without_policies_there_is_nothing_to_tell() -> None:
    assert steps(told(CLIENT, WEB)) == []
