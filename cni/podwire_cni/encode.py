"""Encodes ops (the steps of attaching a pod) as rtnetlink messages. Pure."""

from __future__ import annotations

from typing import Protocol

from podwire_base.kernel.netlink import rtnetlink as nl

from . import shaping
from .ops import (
    AddAddress,
    AddForwarding,
    AddNeighbour,
    AddRoute,
    CreateIfb,
    CreateVeth,
    DeleteLink,
    DeleteNeighbour,
    DeleteRoute,
    JoinBridge,
    LimitRate,
    Op,
    Redirect,
    SetUp,
)
from .types import PORT_GROUP


class Indices(Protocol):
    """Maps the name of a link to its index."""

    def __getitem__(self, name: str, /) -> int: ...


def encode(op: Op, index: Indices, pod_fd: int) -> tuple[bytes, ...]:
    """Returns the netlink messages of one op. `index` has the link index of every name in the op."""
    match op:
        case AddNeighbour():
            return (nl.new_neighbour(index[op.link], op.address, op.mac),)
        case AddRoute():
            return (
                nl.new_route(
                    index[op.link],
                    op.dst,
                    via=op.via,
                    mtu=op.mtu,
                    advmss=op.advmss,
                    priority=op.priority,
                    table=op.table,
                    scope=op.scope,
                ),
            )
        case SetUp():
            up = nl.link_up(index[op.link], alias=op.alias, group=PORT_GROUP if op.port else None)
            return (nl.no_ipv6_address(index[op.link]), up) if op.quiet else (up,)
        case CreateVeth():
            return (nl.new_veth(op.host, op.host_mac, op.peer, op.peer_mac, pod_fd, op.mtu, PORT_GROUP),)
        case AddAddress():
            return (nl.new_address(index[op.link], op.address.ip, op.address.network.prefixlen),)
        case JoinBridge():
            return nl.set_master(index[op.link], index[op.bridge]), nl.port_flags(index[op.link], learning=op.learning)
        case AddForwarding():
            return (nl.new_fdb(index[op.link], op.mac, sticky=op.sticky),)
        case CreateIfb():
            return (shaping.new_ifb(op.link, op.mtu),)
        case LimitRate():
            return (shaping.token_bucket(index[op.link], op.rate, op.burst, op.queue, op.packet),)
        case Redirect():
            return shaping.ingress_queue(index[op.link]), shaping.redirect(index[op.link], index[op.to])
        case _:
            return (removal(op, index[op.link]),)


def removal(op: Op, index: int) -> bytes:
    """Returns the netlink message of one deletion. `index` is the index of the op's link. Raises ValueError for other
    ops.
    """
    match op:
        case DeleteLink():
            return nl.delete_link(index)
        case DeleteNeighbour():
            return nl.delete_neighbour(index, op.address)
        case DeleteRoute():
            return nl.delete_route(index, op.dst)
        case _:
            raise ValueError(f"not a deletion: {op}")
