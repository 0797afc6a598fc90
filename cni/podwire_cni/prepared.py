"""Makes the plan of one ADD. Plain pods differ in few values, so they share a template that was made from one plan.

A plain pod requests no routes, MAC or bandwidth of its own. For every other pod, plan.add_plan makes the plan directly.
If the kernel refuses a step of a plain pod, plan.add_plan also gives the name of the step.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from . import program
from .plan import LONGEST_ALIAS, NodeNet, Plan, add_plan, alias_of, host_veth, mac_for
from .result import merge, to_json
from .template import Template, cut
from .types import Attachment, Call, IPAddress, NetConf, Range, Result

MOST_KINDS = 64
ALIAS = 32  # bytes; the kernel ends an alias at its first NUL


class Prepared(NamedTuple):
    """The templates for all pods of one kind: the program that attaches a pod, the number of the program's messages to
    the node's socket, and the text of the result.
    """

    program: Template
    messages: int
    text: Template


class Example(NamedTuple):
    """One made-up pod. addresses: each address with its range."""

    call: Call
    addresses: Sequence[tuple[IPAddress, Range]]
    pod_fd: int


class PodPlan:
    """The plan of one pod, and the encoded program that attaches the pod. `plan` is computed at its first use."""

    def __init__(self, call: Call, conf: NetConf, node: NodeNet, addresses: Sequence[tuple[IPAddress, Range]]) -> None:
        self.call, self.conf, self.node, self.addresses = call, conf, node, addresses
        self.prepared = prepared(call, conf, node, addresses)

    @functools.cached_property
    def plan(self) -> Plan:
        return add_plan(self.call, self.conf, self.node, self.addresses)

    def program(self, pod_fd: int) -> tuple[bytes, int] | None:
        """Returns the encoded program and the number of its messages to the node's socket (see program.py). Returns
        None if there is no template for this pod.
        """
        if self.prepared is None:
            return None
        return self.prepared.program.fill(_binary(Example(self.call, self.addresses, pod_fd))), self.prepared.messages

    def text(self) -> bytes:
        """Returns the plugin's output: the result in the requested cniVersion."""
        if self.prepared is not None:
            return self.prepared.text.fill(_words(Example(self.call, self.addresses, 0)))
        return printed(self.plan.result, self.conf)


def printed(result: Result, conf: NetConf) -> bytes:
    whole = merge(conf.prev_result, result) if conf.prev_result else result
    return json.dumps(to_json(whole, conf.version)).encode() + b"\n"


def _room(alias: bytes) -> int:
    """Returns the number of bytes for the alias, a multiple of ALIAS, so that there are few templates."""
    return min(-(-len(alias) // ALIAS) * ALIAS, LONGEST_ALIAS)


def prepared(call: Call, conf: NetConf, node: NodeNet, addresses: Sequence[tuple[IPAddress, Range]]) -> Prepared | None:
    """Returns the templates for this pod; None if the pod is not plain."""
    if not conf.plain or not node.routed:
        return None
    room, homes = _room(alias_of(call).encode()), [home for _, home in addresses]
    # For a routed pod, only the gateway of the range matters. (Hashing an address object takes longer than hashing an
    # int.)
    kind = (call.attachment.ifname, conf.version, conf.mtu, room, *((r.gateway.version, int(r.gateway)) for r in homes))
    found = node.prepared.get(kind, False)
    if found is False:
        if len(node.prepared) >= MOST_KINDS:
            node.prepared.clear()
        found = node.prepared[kind] = _prepare(call.attachment.ifname, conf, node, homes, room)
    assert found is None or isinstance(found, Prepared)
    return found


def _prepare(ifname: str, conf: NetConf, node: NodeNet, homes: Sequence[Range], room: int) -> Prepared | None:
    one, other = (_example(ifname, homes, room, n) for n in (0, 1))

    def plan(pod: Example) -> Plan:
        return add_plan(pod.call, conf, node, pod.addresses)

    wires = cut(lambda pod: program.program(plan(pod).ops, pod.pod_fd)[0], _binary, one, other)
    text = cut(lambda pod: printed(plan(pod).result, conf), _words, one, other)
    return None if wires is None or text is None else Prepared(wires, program.program(plan(one).ops, 0)[1], text)


def _example(ifname: str, homes: Sequence[Range], room: int, which: int) -> Example:
    """Returns a made-up pod whose values are easy to find in the encoded bytes."""
    letter, number = "qj"[which], (0x6B1D8F42, 0x93E7254C)[which]
    call = Call("ADD", Attachment(letter * (room - len(ifname) - 1), ifname), f"/{letter}/netns/{number:x}")
    made: list[tuple[IPAddress, Range]] = []
    for n, home in enumerate(homes, 1):
        value = number * (2 * n + 1) % (1 << 32)
        six = IPv6Address(0x7D << 120 | (number ^ n) << 60 | value)
        made.append((IPv4Address(value) if home.subnet.version == 4 else six, home))
    return Example(call, made, number ^ 0x55AA55AA)


def _binary(pod: Example) -> list[bytes]:
    """Returns the values by which the programs of two pods differ. A MAC is derived from the tail of an address, so the
    tail of an IPv6 address is a separate value.
    """
    alias = alias_of(pod.call).encode()
    values = [
        host_veth(pod.call.attachment).encode(),
        alias.ljust(_room(alias), b"\0"),
        pod.pod_fd.to_bytes(4, sys.byteorder),
    ]
    for address, _ in pod.addresses:
        packed = address.packed
        values += [packed] if len(packed) == 4 else [packed[:12], packed[12:]]
    return values


def _words(pod: Example) -> list[bytes]:
    """Returns the values by which the printed results of two pods differ."""
    mac = mac_for(pod.addresses[0][0])
    words = [host_veth(pod.call.attachment), mac, mac.replace(":58:", ":59:", 1), json.dumps(pod.call.netns)[1:-1]]
    return [word.encode() for word in [*words, *(str(address) for address, _ in pod.addresses)]]
