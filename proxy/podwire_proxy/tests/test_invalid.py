"""Packets that are invalid for conntrack are dropped in `forward`, unless the administrator made conntrack liberal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from podwire_proxy.config import ProxyConfig, node_info
from podwire_proxy.nftables.layout import Layout, static_rules
from podwire_proxy.testing import scenarios as s


@pytest.mark.parametrize(
    ("settings", "dropped"),
    [((), True), ((("nf_conntrack_tcp_be_liberal", 1),), False), ((("nf_conntrack_tcp_be_liberal", 0),), True)],
)
def test_a_liberal_conntrack_needs_no_drop(settings: tuple[tuple[str, int], ...], dropped: bool) -> None:
    config = ProxyConfig("n1", None, Path("/run/podwire"), conntrack=settings)
    node = node_info(config, None, ())
    assert node.drop_invalid is dropped
    for family in ("ip", "ip6"):
        made = static_rules(Layout(family), replace(s.INFO, drop_invalid=node.drop_invalid))
        assert ("forward" in made.chains) is ("forward" in made.rules) is dropped
