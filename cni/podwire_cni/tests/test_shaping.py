"""Sizes of token buckets, and the bursts that runtimes ask for."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire_cni import shaping
from podwire_cni.capabilities import bandwidth
from podwire_cni.errors import CNIError
from podwire_cni.ipam.ranges import podcidr_range
from podwire_cni.ops import LimitRate
from podwire_cni.plan import NodeNet, add_plan
from podwire_cni.types import Attachment, Call, Limit, NetConf

TICKS = (1 << 32) * shaping.TICK_NS  # nanoseconds


def limit(**asked: int) -> Limit | None:
    return bandwidth({f"ingress{key}": value for key, value in asked.items()}, "bandwidth").ingress


@pytest.mark.parametrize("burst", [(1 << 31) - 1, (1 << 32) - 1, ((1 << 32) - 1) * 8])
def test_a_burst_that_nobody_chose_is_the_default(burst: int) -> None:
    assert limit(Rate=10**7, Burst=burst) == Limit(10**7, 10**6, burst)
    assert limit(Rate=0, Burst=burst) is None
    assert bandwidth({"IngressRate": 10**7, "IngressBurst": burst}, "bandwidth").cut()


def test_a_burst_up_to_a_second_is_honoured() -> None:
    for burst in (1, 10**6, 10**7):
        assert limit(Rate=10**7, Burst=burst) == Limit(10**7, burst, burst)
    assert limit(Rate=10**7, Burst=10**7 + 1) == Limit(10**7, 10**7, 10**7 + 1)
    assert limit(Rate=10**7) == Limit(10**7, 10**6)
    fast = 40 * 10**9  # containerd's number is less than a second here
    assert limit(Rate=fast, Burst=(1 << 32) - 1) == Limit(fast, (1 << 32) - 1, (1 << 32) - 1)


def test_the_log_names_the_burst_that_is_cut() -> None:
    both = bandwidth(
        {"ingressRate": 10**7, "ingressBurst": 10**9, "egressRate": 1000, "egressBurst": 1000}, "bandwidth"
    )
    assert both.cut() == "ingressBurst 1000000000 is cut to 10000000 bits, the rate is 10000000 a second"


@given(st.integers(1000, 10**15), st.integers(0, 1 << 62), st.integers(68, 65535))
def test_sizes(rate: int, burst: int, mtu: int) -> None:
    asked = limit(Rate=rate, Burst=burst)
    assert asked is not None
    bytes_a_second = rate // 8
    if bytes_a_second < shaping.slowest(mtu):
        assert mtu > 34_000
        return
    found, packet = shaping.sizes(bytes_a_second, asked.burst // 8, mtu), mtu + shaping.FRAME
    assert packet <= found.burst <= max(bytes_a_second, packet)
    assert 2 * packet <= found.queue <= max(bytes_a_second / 40, 2 * packet)
    assert found.burst * 10**9 // bytes_a_second < TICKS and max(found[:2]) < 1 << 32
    assert found.packet in (0, packet) and (found.packet or found.queue >= shaping.WHOLE)


def steps(mtu: int, **asked: Any) -> list[LimitRate]:
    conf = NetConf("1.0.0", "podwire", mtu=mtu, bandwidth=bandwidth(asked, "runtimeConfig.bandwidth"))
    home = podcidr_range(ip_network("10.244.1.0/24"))
    pod = add_plan(Call("ADD", Attachment("c", "eth0")), conf, NodeNet(((home,),)), [(home.end, home)])
    return [op for op in pod.ops if isinstance(op, LimitRate)]


def test_a_rate_at_which_one_packet_takes_minutes_is_refused() -> None:
    assert [op.rate for op in steps(1500, ingressRate=1000)] == [125]
    with pytest.raises(CNIError, match=r"egressRate: 1000 is not at least 1912 bits a second.*MTU of 65535"):
        steps(65535, egressRate=1000)
    assert [op.burst for op in steps(65535, egressRate=1912)] == [65535 + shaping.FRAME]
