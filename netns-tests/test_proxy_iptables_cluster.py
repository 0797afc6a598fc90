"""A whole cluster whose nodes serve Services with iptables: the demo's proofs of Services, and restarts under
traffic."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab.cluster import EXAMPLES, cluster
from lab.flowlog import REFUSALS, Refusal, refused
from podwire.demo import checks_services
from podwire.demo.checks_control import restart_proxies
from podwire.demo.lab import DemoLab
from podwire.demo.rows import Check
from podwire_base.kernel.netns import call_in
from podwire_proxy import backends

CHECKS: tuple[Check, ...] = (*checks_services.CHECKS, restart_proxies)
KINDS = [
    pytest.param(kind, marks=() if "legacy" in kind else pytest.mark.long) for kind in backends.choices() if "-" in kind
]


@pytest.fixture(scope="module", params=KINDS)
def lab(request: pytest.FixtureRequest) -> Iterator[DemoLab]:
    """bridge_nf: packets of one node's pods pass the rules of the bridge as well, as on a stock Kubernetes node."""
    with cluster(2, outside=True, bridge_nf=1, proxy_backend=request.param, watched=True) as made:
        made.run_tool("apply", "-f", str(EXAMPLES))
        made.wait_pods("MyApp", 4)
        made.wait_pods("client", 3)
        for node in made.config.node_names():
            found = call_in(made.node_netns(node), backends.existing)
            assert any(f"({request.param}, IPv4)" in line for line in found), found
            assert not any("table" in line and "podwire" in line for line in found), "nftables has no part in it"
        yield made


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_what_the_demo_proves_of_services(lab: DemoLab, check: Check) -> None:
    rows = list(check(lab))
    assert rows
    assert not [f"{r.sent} from {r.source}: {r.back} {r.detail}" for r in rows if not r.ok]


@pytest.mark.parametrize("case", REFUSALS, ids=str)
def test_what_a_rule_refuses_is_told_with_its_reason(lab: DemoLab, case: Refusal) -> None:
    refused(lab, case)
