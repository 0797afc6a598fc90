"""Reason codes: why a rule drops or refuses a packet. The code is a part of the rule's comment. Pure.

The code is the last word of the comment, in brackets: "refused at once [no-endpoints]". A program that needs the reason
reads the code of the rule that ended the packet's path. The words before the code are for people and may change. Names
of objects never contain a bracket, so a name cannot be mistaken for a code.
"""

from __future__ import annotations

import re
from enum import StrEnum

PODS_FORWARDED = "podwire: pods are forwarded"  # begins the comment of a rule of wiring in a chain of the host's


class Reason(StrEnum):
    """The codes. LOCALHOST_NODE_PORT and STAGED are no refusals: their rules have the codes only so that packets are
    counted.
    """

    NO_ENDPOINTS = "no-endpoints"  # the Service has no usable endpoint anywhere
    NO_LOCAL_ENDPOINTS = "no-local-endpoints"  # the traffic policy is Local; all endpoints are on other nodes
    SOURCE_RANGE = "source-range"  # the source is outside spec.loadBalancerSourceRanges
    UNALLOCATED_ADDRESS = "unallocated-address"  # the address is in the Service range, but no Service has it
    WRONG_PORT = "wrong-port"  # the address belongs to a Service that does not have this port
    ENDPOINT_GONE = "endpoint-gone"  # a segment of a flow that was reset because its endpoint was removed
    SLOT_MISSING = "slot-missing"  # the chosen endpoint no longer exists
    LOOPBACK_MARTIAN = "loopback-martian"  # an address of 127.0.0.0/8 arrived from another machine
    INVALID_STATE = "invalid-state"  # conntrack classifies the packet as invalid
    SPOOFED = "spoofed"  # a pod claims an address or a part that is not its own
    UNLEASED = "unleased"  # no pod has this address of the node's podCIDR
    POLICY = "policy"  # a network policy
    STAGED = "staged"  # a network policy that is not in force would drop it
    LOCALHOST_NODE_PORT = "localhost-node-port"  # a connection to a NodePort on 127.0.0.1


_CODE = re.compile(r" ?\[([a-z-]+)\](?= #[0-9a-f]+$|$)")


def carrying(words: str, reason: Reason) -> str:
    """Returns the comment of a rule with the code of `reason`."""
    return f"{words} [{reason}]"


def reason_of(comment: str) -> Reason | None:
    """Returns the code in a rule's comment; None if the comment has no known code. A digest may follow the code ("
    #1a2b3c4d").
    """
    found = _CODE.search(comment)
    try:
        return Reason(found[1]) if found else None
    except ValueError:
        return None


def without_reason(comment: str) -> str:
    """Returns the words of the comment without the code."""
    return _CODE.sub("", comment)
