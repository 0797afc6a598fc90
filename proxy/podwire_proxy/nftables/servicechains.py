"""The chains that are added and removed with Services, as data: balancers, affinity, source ranges."""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterable
from functools import lru_cache

from podwire_base.kernel.ip import packed
from podwire_base.kernel.nft import ruleset as nft
from podwire_base.kernel.nft.expr import R0, RTN_LOCAL, Expr
from podwire_base.kernel.reasons import Reason, carrying

from ..dataplane import Balance, Frontend, Key, Sticky
from ..model import PROTOCOLS, NodeInfo
from .layout import AFFINITY, LOCAL_SLOTS, MAX_BACKENDS, Layout, as_rules, is_pod


@lru_cache(maxsize=1 << 12)
def balancer(layout: Layout, count: int, local: bool) -> tuple[nft.Chain, tuple[nft.Rule, ...]]:
    """Returns the chain that balances over `count` destinations of the cluster set or the local set."""
    chain = nft.Chain(layout.table, f"{'local' if local else 'lb'}{count}")
    return chain, as_rules(
        chain,
        [
            (f"one of {count}", layout.balance(count, LOCAL_SLOTS if local else 0)),
            # If a slot is missing, the packet must neither leak to the default route nor get a refusal. The client
            # tries again.
            (carrying("slot missing", Reason.SLOT_MISSING), [nft.Counter(), nft.drop()]),
        ],
    )


def _who(layout: Layout, sticky: Sticky) -> tuple[Expr, ...]:
    """Loads Service port . client, the key of the affinity maps, into consecutive registers."""
    w, port = layout.words, sticky.port
    return (
        nft.Immediate(packed(port.ip), R0),
        nft.Immediate(bytes((PROTOCOLS[port.protocol],)), R0 + w),
        nft.Immediate(port.port.to_bytes(2, "big"), R0 + w + 1),
        layout.saddr(R0 + w + 2),
    )


def _name(service: str, port: Key) -> str:
    # nft's identifiers have no colon
    return f"{service}/{port.ip.replace(':', '_')}/{port.protocol.lower()}/{port.port}"


def sticky(layout: Layout, service: str, treatment: Balance, external: bool) -> tuple[nft.Chain, tuple[nft.Rule, ...]]:
    """Returns the chain that sends a remembered client to its endpoint and balances other clients.

    external: the chain is for the map `outside`.
    """
    assert treatment.sticky is not None
    suffix = ("-local" if treatment.sticky.local else "") + ("-outside" if external else "")
    chain = nft.Chain(layout.table, f"sticky-{_name(service, treatment.sticky.port)}{suffix}")
    target = R0 + 2 * layout.words + 2
    others, _ = balancer(layout, min(len(treatment.destinations), MAX_BACKENDS), external)
    return chain, as_rules(
        chain,
        [
            (
                "as last time",
                [
                    *_who(layout, treatment.sticky),
                    nft.Lookup(AFFINITY[treatment.sticky.local], dreg=target),
                    nft.Dnat(layout.family, target, target + layout.words),
                ],
            ),
            ("not seen lately", [nft.goto(others.name)]),
        ],
    )


def remember(layout: Layout, frontend: Frontend, node: NodeInfo) -> tuple[nft.Chain, tuple[nft.Rule, ...]] | None:
    """Returns the chain that records a client's endpoint, from the translated packet.

    Returns None if the frontend has nothing to record.
    """
    internal, external = (a.sticky if isinstance(a, Balance) else None for a in (frontend.internal, frontend.external))
    port = (internal or external or Sticky(frontend.key, False, 0)).port
    if not internal and not external:
        return None
    rules: list[tuple[str, Iterable[Expr]]] = []
    if frontend.external is not None:
        cases = (("pod", is_pod(layout, node)), ("this node", (nft.FibType("saddr"), nft.Cmp(nft.host32(RTN_LOCAL)))))
        for words, case in cases:
            if case and internal:
                rules.append((words, [*case, *_note(layout, internal)]))
            if case:
                rules.append((f"{words}, done", [*case, nft.ret()]))
    last = internal if frontend.external is None else external
    if last:
        rules.append(("client", _note(layout, last)))
    suffix = ("-local" if internal and internal.local else "") + ("-outside" if frontend.external is not None else "")
    chain = nft.Chain(layout.table, f"remember-{_name(frontend.service, port)}{suffix}")
    return chain, as_rules(chain, rules)


def _note(layout: Layout, sticky: Sticky) -> tuple[Expr, ...]:
    data = R0 + 2 * layout.words + 2
    return (
        *_who(layout, sticky),
        layout.daddr(data),
        nft.Payload("transport", 2, 2, data + layout.words),
        nft.Update(AFFINITY[sticky.local], sticky.seconds, data=data),
    )


@lru_cache(maxsize=1 << 10)
def sources(layout: Layout, cidrs: tuple[str, ...]) -> tuple[nft.Chain, tuple[nft.Rule, ...]]:
    """Returns the chain that accepts only these sources. The content determines the name of the chain.

    Services with equal ranges share a chain.
    """
    chain = nft.Chain(layout.table, f"sources-{hashlib.sha256(' '.join(sorted(cidrs)).encode()).hexdigest()[:16]}")
    networks = [ipaddress.ip_network(cidr) for cidr in sorted(cidrs)]
    return chain, as_rules(
        chain,
        [
            *(
                (
                    str(n),
                    [
                        layout.saddr(),
                        nft.Bitwise(n.netmask.packed, bytes(layout.width)),
                        nft.Cmp(n.network_address.packed),
                        nft.ret(),
                    ],
                )
                for n in networks
            ),
            (carrying("not in the load balancer's source ranges", Reason.SOURCE_RANGE), [nft.Counter(), nft.drop()]),
        ],
    )
