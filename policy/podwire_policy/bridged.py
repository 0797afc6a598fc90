"""Whether another program's bridge carries frames from pod to pod past the tables. I/O."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address
from pathlib import Path

from podwire_base.kernel.netlink import rtnetlink as nl
from podwire_base.kernel.netlink.socket import RouteSocket

SYSCTL = {4: "bridge-nf-call-iptables", 6: "bridge-nf-call-ip6tables"}
_FOLDER = Path("/proc/sys/net/bridge")
FEW = 8  # pods of each family that are looked at


def passing(pods: Iterable[str]) -> list[str]:
    """Returns a line for each bridge that leads to one of these addresses, and whose frames no table judges; for the
    calling thread's network namespace. Raises OSError.
    """
    passing_by, every = dict[str, None](), list(pods)
    with RouteSocket() as sock:
        for version in (4, 6):
            those = [ip for text in every if (ip := ip_address(text)).version == version][:FEW]
            if not those or _judged(version):
                continue
            for ip in those:
                answers = [body for found, body in sock.request(*nl.route_question(ip)) if found == nl.NEWROUTE]
                index = nl.route_answer(answers[0])[1] if answers else 0
                if not index:
                    continue
                (link,) = sock.ask([nl.get_link(index)])
                if nl.kind_of(link) == "bridge":
                    name = nl.link_of(link)[0]
                    passing_by[f"frames between pods pass {name} unjudged: net.bridge.{SYSCTL[version]} is not 1"] = (
                        None
                    )
    return list(passing_by)


def _judged(version: int) -> bool:
    """Whether the kernel shows bridged frames to the tables of IP (br_netfilter)."""
    try:
        return (_FOLDER / SYSCTL[version]).read_text().strip() == "1"
    except FileNotFoundError:  # the module is not loaded
        return False
