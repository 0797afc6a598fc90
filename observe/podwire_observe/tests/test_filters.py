"""Filters agree with an oracle that is written from their descriptions and shares no code with them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ..filters import NAMES, BadFilter, Filters, check, from_json
from ..record import VERDICTS, End, Ends, Flow, Service
from ..record import from_json as flow_from_json

spaces, pods, services = ("shop", "bank"), ("web-1", "web-2", "db-1"), ("web", "db")
ips = ("10.244.0.2", "10.244.1.3", "10.96.0.10", "192.0.2.1")
ports = (80, 443, 40000)


def end(draw: st.DrawFn) -> End:
    kind = draw(st.sampled_from(("pod", "node", "outside")))
    if kind == "pod":
        return End(
            "pod", draw(st.sampled_from(spaces)), draw(st.sampled_from(pods)), draw(st.sampled_from(("n1", "n2")))
        )
    return End("node", "", "n1", "n1") if kind == "node" else End("outside", "", "192.0.2.1")


@st.composite
def flows(draw: st.DrawFn) -> Flow:
    one = st.sampled_from
    service = Service(draw(one(spaces)), draw(one(services)), "http") if draw(st.booleans()) else Service()
    return Flow(
        1, draw(one(("n1", "n2"))), 0.0, 0.0, draw(one(("tcp", "udp"))), draw(one(ips)), draw(one(ports)),
        draw(one(ips)), draw(one(ports)), draw(one(ips)), draw(one(ports)),
        Ends(end(draw), end(draw), service, draw(st.booleans())),
        draw(one(VERDICTS)), draw(one(("", "policy", "no-endpoints"))),
    )  # fmt: skip


VALUES: dict[str, tuple[str, ...]] = {
    "pod": ("shop/web-1", "web", "bank/", "shop/db-1"),
    "service": ("shop/web", "db", "bank/"),
    "namespace": spaces,
    "ip": ("10.244.0.2", "10.244.0.0/16", "192.0.2.1"),
    "port": ("80", "40000"),
    "exact": ("shop/web-1", "bank/db-1"),
    "protocol": ("tcp", "UDP"),
    "verdict": ("refused", "DROPPED", "forwarded"),
    "reason": ("policy", "no-endpoints"),
    "node-name": ("n1", "n2"),
}
BEHIND = {"shop/web": ("shop/web-1", "shop/web-2"), "db": ("shop/db-1", "bank/db-1"), "bank/": ("bank/web-1",)}


def oracle(name: str, value: str, flow: dict[str, Any]) -> bool:
    """What the help says, over the flow's JSON."""
    side, dash, what = name.partition("-")
    if not dash or side not in ("from", "to"):
        if name in ("protocol", "verdict"):
            return str(flow[name]).lower() == value.lower()
        if name == "reason":
            return bool(flow["reason"] == value)
        if name == "node-name":
            return value in {flow["node"], flow["source"]["node"], flow["target"]["node"]}
        return oracle(f"from-{name}", value, flow) or oracle(f"to-{name}", value, flow)
    who = flow["source" if side == "from" else "target"]
    whole = f"{who['namespace']}/{who['name']}" if who["kind"] == "pod" else None
    service = flow["service"] or {"namespace": None, "name": None}
    if what == "pod":
        return whole is not None and (whole if "/" in value else who["name"]).startswith(value)
    if what == "exact":
        return whole == value
    if what == "namespace":
        return value in ([who["namespace"]] if side == "from" else [who["namespace"], service["namespace"]])
    if what == "service" and side == "from":
        return whole in BEHIND[value]
    if what == "service":
        whole = f"{service['namespace']}/{service['name']}"
        return flow["service"] is not None and (whole if "/" in value else service["name"]).startswith(value)
    if what == "port":
        return int(value) in ([flow["source_port"]] if side == "from" else [flow["port"], flow["endpoint_port"]])
    assert what == "ip"
    prefix = {"10.244.0.2": "10.244.0.2", "10.244.0.0/16": "10.244.", "192.0.2.1": "192.0.2.1"}[value]
    found = [flow["source_ip"]] if side == "from" else [flow["ip"], flow["endpoint_ip"]]
    return any(ip.startswith(prefix) for ip in found)


def values(name: str) -> tuple[str, ...]:
    return VALUES[name if name in VALUES else name.partition("-")[2]]


chosen = st.dictionaries(st.sampled_from(NAMES), st.integers(1, 3), max_size=3)


@given(st.data(), flows(), chosen, chosen, st.booleans())
def test_filters_are_what_the_help_says(
    data: st.DataObject, flow: Flow, allow: dict[str, int], deny: dict[str, int], probes: bool
) -> None:
    def fill(names: dict[str, int]) -> dict[str, tuple[str, ...]]:
        return {
            x: tuple(data.draw(st.lists(st.sampled_from(values(x)), min_size=1, max_size=n))) for x, n in names.items()
        }

    wanted, unwanted = fill(allow), fill(deny)
    told = flow.to_json()
    expected = all(any(oracle(x, v, told) for v in vs) for x, vs in wanted.items())
    expected = expected and not [x for x, vs in unwanted.items() for v in vs if oracle(x, v, told)]
    expected = expected and (probes or not told["probe"])
    made = Filters(wanted, unwanted, probes, BEHIND)
    assert made.wants(flow) == expected
    assert from_json(json.loads(json.dumps(made.to_json()))) == made
    assert flow_from_json(json.loads(json.dumps(told))) == flow


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("from-ip", "10.0.0.300", "from-ip: '10.0.0.300' is neither an address nor a CIDR"),
        ("port", "http", "port: 'http' is not a port number"),
        ("to-port", "70000", "to-port: '70000' is not a port number"),
        ("verdict", "lost", "verdict: 'lost' is none of open, forwarded, refused, reset, dropped, unanswered"),
        ("reason", "policies", "reason: 'policies' is none of no-endpoints"),
        ("protocol", "quic", "protocol: 'quic' is none of icmp, tcp, udp, icmpv6, sctp"),
        ("color", "red", "color: no such filter; there are from-pod"),
    ],
)
def test_a_value_that_never_matches_is_refused(name: str, value: str, why: str) -> None:
    with pytest.raises(BadFilter) as err:
        check(name, value)
    assert str(err.value).startswith(why)


@pytest.mark.parametrize("bad", [{"allow": 3}, {"allow": {"pod": 3}}, {"deny": {"verdict": ["lost"]}}])
def test_misshapen_filters(bad: dict[str, Any]) -> None:
    with pytest.raises(BadFilter):
        from_json(bad)
