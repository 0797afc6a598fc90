"""Why a packet was dropped or refused, as a code that the deciding rule itself carries. Pure.

A rule's code is the last word of its comment, in brackets: "refused at once [no-endpoints]". A reader of the reason
takes the code of the rule that ended the packet's path; the words before it are for people and may change. Object names
in a comment never contain a bracket, so none can be mistaken for a code.
"""

from __future__ import annotations

import re
from enum import StrEnum


class Reason(StrEnum):
    """The last two are no refusals: rules carry them so that their packets are counted."""

    NO_ENDPOINTS = "no-endpoints"  # the Service has no usable endpoint anywhere
    NO_LOCAL_ENDPOINTS = "no-local-endpoints"  # its traffic policy is Local, and its endpoints are on other nodes
    SOURCE_RANGE = "source-range"  # outside spec.loadBalancerSourceRanges
    UNALLOCATED_ADDRESS = "unallocated-address"  # in the Service range, but no Service has it
    WRONG_PORT = "wrong-port"  # an address of a Service that has no such port
    ENDPOINT_GONE = "endpoint-gone"  # a segment of a flow that was reset because its endpoint left
    SLOT_MISSING = "slot-missing"  # the chosen endpoint no longer exists
    LOOPBACK_MARTIAN = "loopback-martian"  # 127.0.0.0/8 from the wire
    INVALID_STATE = "invalid-state"  # invalid for conntrack
    SPOOFED = "spoofed"  # a pod claims an address or a part that is not its own
    POLICY = "policy"  # a network policy
    LOCALHOST_NODE_PORT = "localhost-node-port"  # a connection to a NodePort on 127.0.0.1


_CODE = re.compile(r" ?\[([a-z-]+)\](?= #[0-9a-f]+$|$)")


def carrying(words: str, reason: Reason) -> str:
    """The comment of a rule that acts because of `reason`."""
    return f"{words} [{reason}]"


def reason_of(comment: str) -> Reason | None:
    """The code in a rule's comment; a digest may follow it (" #1a2b3c4d"). None: no known code."""
    found = _CODE.search(comment)
    try:
        return Reason(found[1]) if found else None
    except ValueError:
        return None


def without_reason(comment: str) -> str:
    """The comment's words."""
    return _CODE.sub("", comment)
