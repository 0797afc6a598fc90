"""Services that share a load balancer's address on different ports."""

from __future__ import annotations

import pytest

from podwire_proxy.testing.builders import endpoint, endpoint_slice, port, service

from .test_l2 import IPS, view


@pytest.mark.parametrize(
    ("elder", "younger", "nodes"),
    [
        (None, ["n1"], ["n1"]),
        (["n1"], None, ["n1"]),
        (["n1", "n2"], ["n2", "n3"], ["n2"]),
        (["n1"], ["n2"], ["n1"]),
        ([], ["n2"], ["n2"]),
        (["n1"], [], ["n1"]),
        (None, [], None),
        ([], None, None),
        (None, None, None),
    ],
)
def test_a_shared_address_is_for_the_nodes_that_serve_all_its_services(
    elder: list[str] | None, younger: list[str] | None, nodes: list[str] | None
) -> None:
    """Services on different ports of one address; None: a Service that every node can serve."""
    for names in ("ab", "ba"):
        made = view()
        for name, time_, here in zip(names, ("2026-01-01", "2026-01-02"), (elder, younger), strict=True):
            policy = "Cluster" if here is None else "Local"
            ingress = [{"ip": IPS[0]}]
            obj = service(
                name, "10.96.0.1", [port(80)], type="LoadBalancer", ingress=ingress, externalTrafficPolicy=policy
            )
            obj["metadata"]["creationTimestamp"] = f"{time_}T00:00:00Z"
            made.service(f"default/{name}", obj)
            made.slice(name, endpoint_slice(name, [endpoint("10.244.1.2", node) for node in here or ()]))
        assert made.addresses() == {IPS[0]: None if nodes is None else frozenset(nodes)}
        assert made.holder(IPS[0]) == f"default/{names[0]}"
