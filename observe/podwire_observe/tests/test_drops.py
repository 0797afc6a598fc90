"""A refused packet is a connection that failed, told by the node where it began."""

from __future__ import annotations

import pytest

from podwire_base.kernel.dropped import Packet
from podwire_base.kernel.nflog import Logged
from podwire_base.kernel.reasons import Reason

from ..drops import flow_of
from ..record import DROPPED, REFUSED, End
from .test_names import WEB, made


@pytest.mark.parametrize(
    ("reason", "verdict"),
    [
        (Reason.NO_ENDPOINTS, REFUSED),
        (Reason.WRONG_PORT, REFUSED),
        (Reason.NO_LOCAL_ENDPOINTS, DROPPED),
        (Reason.POLICY, DROPPED),
    ],
)
def test_what_the_client_saw(reason: Reason, verdict: str) -> None:
    logged = Logged(reason, Packet("10.244.0.2", "10.96.0.10", 6, 40000, 5432))
    flow = flow_of(made(), logged, 150.0)
    assert flow is not None
    assert (flow.verdict, flow.reason, flow.ends.source) == (verdict, reason.value, WEB)
    assert flow.ends.service.words == "shop/db:sql"
    assert flow.ends.target == End("service", "shop", "db"), "no endpoint was chosen"
    assert (flow.packets, flow.bytes) == (1, None)


def test_another_node_tells_of_its_own_pods() -> None:
    assert flow_of(made(), Logged(Reason.POLICY, Packet("10.244.1.3", "10.244.0.2", 6, 1, 80)), 150.0) is None
