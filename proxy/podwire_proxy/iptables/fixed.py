"""Defines the rules that do not depend on Services, as data. layout.py has the rules of one frontend."""

from __future__ import annotations

from podwire_base.kernel import nflog
from podwire_base.kernel.ip import Family
from podwire_base.kernel.reasons import Reason

from ..model import LOCALHOST, NodeInfo, is_v6
from .layout import (
    BIT,
    ENDS,
    FILTER,
    LAYOUT,
    MARK,
    PREFIX,
    SERVICES,
    Chain,
    Rules,
    cidr,
    cluster_ips,
    pods,
    quoted,
    same_address,
)

LOGGED = 100  # refused packets of one chain that are logged each second, and at once


def static_rules(family: Family, node: NodeInfo, *, logs: bool = True) -> dict[Chain, Rules]:
    """Returns the rules that do not depend on Services, including the ends of SERVICES and FILTER. logs: refused
    packets are logged, for the role `observe`.
    """
    v6 = family == "ip6"
    detected = pods("::" if v6 else "0.0.0.0", node)
    off_cluster: list[str] = []
    if node.masquerade_all:
        off_cluster = ["-j PODWIRE-MARK"]
    elif detected:
        off_cluster = [*(f"{match} -j RETURN" for match in detected), "-j PODWIRE-MARK"]
    ranges = [cidr(c) for c in node.service_cidrs if is_v6(c) == v6]
    on_localhost = (
        f"-m conntrack --ctorigdst {LOCALHOST} -m connmark --mark {BIT} "
        f"{quoted('NodePorts on 127.0.0.1', Reason.LOCALHOST_NODE_PORT)} -j PODWIRE-MASQUERADE"
    )  # like the rules below, with a counter
    loopback: dict[Chain, Rules] = {}
    if not v6 and node.localhost:
        loopback[Chain("raw", "PODWIRE-LOOPBACK")] = tuple(
            f"{side} 127.0.0.0/8 {quoted(f'a loopback {words} from the wire', Reason.LOOPBACK_MARTIAN)} -j DROP"
            for side, words in (("-d", "destination"), ("-s", "source"))
        )
    return {
        **loopback,
        Chain("nat", f"{PREFIX}LAYOUT-{LAYOUT}"): (),
        Chain("nat", SERVICES): (),
        Chain("nat", "PODWIRE-MARK"): (f"-j CONNMARK --set-xmark {BIT}",),
        Chain("nat", "PODWIRE-UNMARK"): (f"-j CONNMARK --set-xmark 0x0/{MARK:#x}",),
        Chain("nat", "PODWIRE-OFF-CLUSTER"): tuple(off_cluster),
        Chain("nat", "PODWIRE-POSTROUTING"): (
            *([on_localhost] if not v6 and node.localhost else []),
            f"{same_address(family)} {quoted('hairpin')} -j PODWIRE-MASQUERADE",
            f"-m connmark --mark {BIT} -j PODWIRE-MASQUERADE",
        ),
        Chain("nat", "PODWIRE-MASQUERADE"): ("-j PODWIRE-UNMARK", "-j MASQUERADE --random-fully"),
        Chain("filter", FILTER): (
            (
                f"-m set --match-set {cluster_ips(family)} dst {quoted('other ports of a Service address')} "
                f"-j {ENDS[Reason.WRONG_PORT]}"
            ),
            *(
                f"-d {c} -m addrtype ! --dst-type LOCAL {end}"
                for c in ranges
                for end in (
                    *_logging(Reason.UNALLOCATED_ADDRESS, logs),
                    f"{quoted('unallocated Service addresses', Reason.UNALLOCATED_ADDRESS)} -j DROP",
                )
            ),
        ),
        Chain("filter", "PODWIRE-FORWARD"): (
            "-m conntrack --ctstate INVALID "
            + (
                f"{quoted('invalid for conntrack, would pass untranslated', Reason.INVALID_STATE)} -j DROP"
                if node.drop_invalid
                else "-j RETURN"
            ),
            f"-m conntrack ! --ctstate DNAT -j {FILTER}",
        ),
        **_ends(v6, logs),
    }


def _ends(v6: bool, logs: bool) -> dict[Chain, Rules]:
    """Returns the chains that end a refused packet."""
    reset = "REJECT --reject-with tcp-reset"
    unreachable = f"REJECT --reject-with {'icmp6' if v6 else 'icmp'}-port-unreachable"
    rules: dict[Reason, tuple[tuple[str, str, str], ...]] = {  # (match, words, target)
        **dict.fromkeys(
            (Reason.NO_ENDPOINTS, Reason.WRONG_PORT),
            (("-p tcp ", "refused at once", reset), ("", "port unreachable", unreachable)),
        ),
        Reason.ENDPOINT_GONE: (("-p tcp ", "of a flow whose endpoint is gone", reset),),
        Reason.NO_LOCAL_ENDPOINTS: (("", "a Local traffic policy, endpoints only elsewhere", "DROP"),),
        Reason.SOURCE_RANGE: (("", "not in the source ranges of the load balancer", "DROP"),),
    }
    return {
        Chain("filter", ENDS[reason]): (
            *_logging(reason, logs and reason is not Reason.ENDPOINT_GONE),  # that was a connection, and is told as one
            *(f"{match}{quoted(words, reason)} -j {target}" for match, words, target in made),
        )
        for reason, made in rules.items()
    }


def _logging(reason: Reason, logs: bool) -> Rules:
    """Returns the rule that logs a packet that the next rule refuses or drops. It is a rule of its own, because its
    limit would end the rule that refuses.
    """
    if not logs:
        return ()
    words = f'--nflog-prefix "{nflog.prefix(reason)}" --nflog-group {nflog.GROUP} --nflog-size {nflog.LENGTH}'
    return (f"-m limit --limit {LOGGED}/sec --limit-burst {LOGGED} -j NFLOG {words}",)


def trial() -> str:
    """Returns the input of iptables-restore that succeeds only if the kernel can log refused packets. The chain is gone
    afterwards.
    """
    name = f"{PREFIX}TRY"
    rules = "".join(f"-A {name} {rule}\n" for rule in _logging(Reason.NO_ENDPOINTS, True))
    return f"*filter\n:{name} - [0:0]\n{rules}COMMIT\n*filter\n:{name} - [0:0]\n-X {name}\nCOMMIT\n"
