"""Which UDP flows end when a pod with a hostPort comes: those that began before the port led to a pod."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from podwire_base.kernel.conntrack.codec import Flow, Tuple
from podwire_cni.firewall import _began_before
from podwire_cni.types import PortMapping

NODE, OTHER, POD, ENDPOINT = "192.0.2.1", "192.0.2.9", "10.244.1.7", "10.244.2.8"
OWN = frozenset({NODE, "fd00::1"})


def flow(dialled: str, answers: str, port: int = 8053) -> Flow:
    return Flow("ip", 17, Tuple(OTHER, 999, dialled, 8053), Tuple(answers, port, OTHER, 999))


@pytest.mark.parametrize(
    ("what", "gone"),
    [
        (flow(NODE, NODE), True),
        (flow("127.0.0.1", "127.0.0.1"), True),
        (flow(NODE, POD, 53), False),
        (flow(NODE, ENDPOINT, 53), False),
        (flow(NODE, NODE, 53), False),
        (flow(OTHER, OTHER), False),
    ],
    ids=["to the node", "to localhost", "to this pod", "of a NodePort", "of a host-network endpoint", "only forwarded"],
)
def test_flows_that_were_not_translated_end(what: Flow, gone: bool) -> None:
    port = PortMapping(8053, 53, "udp")
    assert _began_before(port, OWN, what) is gone
    on_one = PortMapping(8053, 53, "udp", ip_address(NODE))
    assert _began_before(on_one, OWN, what) is (gone and what.original.destination == NODE)
