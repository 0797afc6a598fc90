"""The last steps on a node: the pod's link, the rules inside the pod, and the socket that receives the packet. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from podwire_base.kernel.nft.judge import certain, judge

from .facts import Facts, Inside, Route
from .packets import Asked, first_seen
from .steps import Step, Way, fault

if TYPE_CHECKING:
    from podwire_base.kernel.listening import Listener


def arrive(facts: Facts, way: Way, protocol: str, route: Route, *, reply: str) -> Way:
    """Completes a way whose packet passed all rules of the node: it is at a pod here, at the node, or goes on."""
    inside = facts.inside(way.ip)
    if route.kind == "local":
        way.end = "node"
        way.verdict = "deliver"
        who = f"node {facts.name}" if facts.name else "the node"
        return way if reply else _socket(way, protocol, facts.listeners, who)
    if inside is None:
        way.end = "wire"
        return way
    way.end, way.pod, way.verdict = "pod", inside.pod, "deliver"
    if problem := broken(facts, inside, route):
        way.verdict, way.reason, way.cause = "drop", fault.NO_INTERFACE, problem
        return way
    way.gaps += gaps([(route.dev, way.mtu), *_sizes(facts, inside)])
    if reply or _refused_inside(way, inside, protocol):
        return way
    return _socket(way, protocol, inside.listeners, f"pod {inside.pod}" if inside.pod else "")


def at_home(asked: Asked, sender: Inside) -> Way:
    """Returns the way of a packet that a pod sends to itself, which never leaves its namespace."""
    way = Way(asked.dst, asked.port, asked.src, verdict="deliver", end="pod", pod=sender.pod, origin="pod")
    way.route = "inside the pod itself"
    return way if asked.reply else _socket(way, asked.protocol, sender.listeners, "the pod itself")


def broken(facts: Facts, inside: Inside, route: Route) -> str:
    """Returns what is wrong with the pod's link, "" if nothing is."""
    who = f"pod {inside.pod}" if inside.pod else f"the pod with {inside.ip}"
    if inside.problem:
        return f"{who}: {inside.problem}"
    if inside.port:
        port = facts.links.get(inside.port)
        if port is None:
            return f"{who} has no link to its node: {inside.port}, the node's end of its veth, is gone"
        if not port.up:
            return f"{inside.port}, the node's end of the veth of {who}, is down"
        if route.dev not in (port.master, inside.port):
            return f"{inside.port}, the node's end of the veth of {who}, is not a port of {route.dev}"
    others = [link for link in inside.links.values() if link.name != "lo"]
    if not others:
        return f"{who} has no interface: its eth0 is gone"
    if inside.ip not in inside.addresses:
        return f"{who} does not have the address {inside.ip} on any interface: {', '.join(inside.addresses) or 'none'}"
    down = [link.name for link in others if not link.up]
    if len(down) == len(others):
        return f"{', '.join(down)} inside {who} is down"
    return ""


def _sizes(facts: Facts, inside: Inside) -> list[tuple[str, int]]:
    """Returns (link, MTU) in the order in which a packet to the pod passes them."""
    found = [(inside.port, facts.links[inside.port].mtu)] if inside.port in facts.links else []
    return found + [(f"{link.name} in the pod", link.mtu) for link in inside.links.values() if link.name != "lo"][:1]


def gaps(way: Iterable[tuple[str, int]]) -> list[str]:
    """Returns the places where a link sends packets that the next one does not take. Nobody tells the sender of them: a
    bridge and the other end of a veth drop them silently, and only a router answers with ICMP.
    """
    found, before = [], ("", 0)
    for name, mtu in way:
        if mtu and before[1] > mtu:
            found.append(f"{before[0]} sends packets of {before[1]} bytes, and {name} takes {mtu}")
        before = (name, mtu) if mtu else before
    return found


def leaving(facts: Facts, sender: Inside, dst: str, dev: str) -> tuple[str, str, list[str]]:
    """Returns (reason, what is wrong with a pod that sends, the gaps of its link)."""
    if problem := broken(facts, sender, Route("unicast", dev)):
        return fault.NO_INTERFACE, problem, []
    route = sender.route(dst, "", "")
    if not route.good:
        who = f"pod {sender.pod}" if sender.pod else f"the pod with {sender.ip}"
        return fault.NO_ROUTE, f"{who} has no route to {dst}: {route.error or route.kind}", []
    sizes = [(name, mtu) for name, mtu in reversed(_sizes(facts, sender))]
    return "", "", gaps([*sizes, (dev, facts.links[dev].mtu if dev in facts.links else 0)])


def _refused_inside(way: Way, inside: Inside, protocol: str) -> bool:
    """Judges the rules inside the pod's own namespace, of a sidecar or of the pod itself."""
    asked = Asked(way.src, way.ip, protocol, way.port)
    name = next((name for name in inside.links if name != "lo"), "")
    seen = first_seen(inside.addresses, inside.links, asked, name)
    for table in inside.tables:
        for chain in table.chains.values():
            if chain.hook in ("prerouting", "input") and table.family in (asked.family, "inet") and chain.type != "nat":
                verdict = certain(judge(table, chain, seen))
                if verdict in ("drop", "reject"):
                    way.verdict, way.reason = verdict, fault.FOREIGN_RULE
                    way.cause = f"a rule inside the pod ({table}, chain {chain.name}) {verdict}s the packet"
                    return True
    return False


def _socket(way: Way, protocol: str, listening: Iterable[Listener], who: str) -> Way:
    at = f"[{way.ip}]:{way.port}" if ":" in way.ip else f"{way.ip}:{way.port}"
    if protocol == "ICMP":
        return way
    if protocol == "SCTP":
        way.notes.append(f"{at}: cannot tell whether a server listens: SCTP's sockets are not listed")
        return way
    listed = [one for one in listening if (one.protocol, one.port) == (protocol, way.port)]
    if any(one.hears(protocol, way.ip, way.port) for one in listed):
        way.steps.append(Step("endpoint", f"{at}: a server listens{f' in {who}' if who else ''}", "accept"))
        return way
    way.verdict, way.reason = "reject", fault.NOTHING_LISTENS
    way.cause = f"the rules are right; {at} itself refuses: nothing listens there"
    if listed:
        only = ", ".join(sorted({one.ip for one in listed}))
        way.cause = f"the rules are right; {at} itself refuses: its server listens on {only} only"
    if who:
        way.cause += f" ({who})"
    return way
