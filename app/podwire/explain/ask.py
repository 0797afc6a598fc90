"""Explains one packet: resolves nothing and sends nothing, but asks the nodes on its way and puts their walks together.
Pure: `Reach` does the I/O.

    answer = explain(source, target, catalogue, reach)

Every caller uses this function: `podwire explain`, `podwire check`, and whoever needs the reason of a failure.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, cast

from podwire_base.kernel.reasons import Reason
from podwire_base.kube.meta import Object, key
from podwire_proxy.decide import Packet, source
from podwire_proxy.model import Destination, Protocol
from podwire_proxy.verdict import PASS, Kind, Verdict, forward

from . import diagnose
from .answer import Answer, End
from .catalogue import Catalogue, cluster_ips, counts
from .dnsnames import asks_the_cluster
from .expected import differs, expected, node_info, proxy_state
from .names import Source, Target
from .packets import Asked
from .steps import Step, Unreachable, Walk, Way, fault

if TYPE_CHECKING:
    from .reach import Looked, Reach

_ORIGINS = {"pod": "a pod's address", "node": "this node itself", "outside": "outside the cluster"}
_SILENT = ("drop", "reject")
# the reasons of the Service proxy's own rules
_PROXYS = {
    Reason.NO_ENDPOINTS, Reason.NO_LOCAL_ENDPOINTS, Reason.SOURCE_RANGE, Reason.UNALLOCATED_ADDRESS, Reason.WRONG_PORT,
    fault.NO_PODS, fault.NOT_READY, fault.NO_NAMED_PORT,
}  # fmt: skip
_FOLLOWED = 6  # ways back that are followed one by one


@dataclass(slots=True)
class _Inquiry:
    """One packet under inquiry, with what was learned."""

    sender: Source
    target: Target
    catalogue: Catalogue
    reach: Reach
    interface: str
    answer: Answer
    told: dict[str, Any] = field(default_factory=dict)  # node -> what it says of itself

    def look(self, node: str, asks: list[Asked]) -> list[Walk]:
        """Asks a node. Raises Unreachable."""
        looked: Looked = self.reach.look(node, asks)
        self.told[node] = looked.node
        return looked.walks


def explain(
    sender: Source, target: Target, catalogue: Catalogue, reach: Reach, *, interface: str = "", replies: bool = True
) -> Answer:
    """Returns what becomes of the packets of `sender` to `target`. interface: the link by which they enter the node, ""
    for that of the source. replies: also follow the answer's way back. Raises Unreachable if the first node
    cannot be asked, BadName if the families differ.
    """
    answer = Answer(sender.words, target.words, target.protocol, node=sender.node)
    answer.heads = [Step("DNS", line) for line in target.names]
    answer.warnings = list(target.notes)
    if not target.points:
        return _nowhere(answer, target, catalogue)
    inquiry = _Inquiry(sender, target, catalogue, reach, interface, answer)
    v6 = ":" in target.points[0][0]
    answer.src = sender.address(v6) if sender.ips else ""
    answer.dst, answer.port = target.points[0]
    _resolver(inquiry, v6)
    if answer.reason:
        return answer
    walks = inquiry.look(sender.node, [_asked(inquiry, ip, port) for ip, port in target.points])
    answer.src = walks[0].src
    _head(inquiry, walks[0])
    for (ip, port), walk in zip(target.points, walks, strict=True):
        _take(inquiry, walk, ip, port)
    if replies:
        _replies(inquiry)
    _conclude(inquiry)
    return answer


def _nowhere(answer: Answer, target: Target, catalogue: Catalogue) -> Answer:
    answer.verdict, answer.reason, answer.cause = "drop", target.reason, target.problem
    if target.reason == "not-resolved":
        answer.verdict, answer.cause = (
            "unknown",
            "the name is not the cluster's: give the address that it has",
        )
    if target.service is not None and target.reason == "no-endpoints":
        reason, cause = diagnose.no_endpoint(target.service, catalogue, answer.port)
        if reason:
            answer.reason, answer.cause = reason, f"{target.problem}; {cause}"
    return answer


def _asked(inquiry: _Inquiry, ip: str, port: int) -> Asked:
    protocol = inquiry.target.protocol
    holder = inquiry.catalogue.at(ip, protocol, port)
    claim = (key(holder), *counts(inquiry.catalogue.slices(key(holder)))) if holder else None
    return Asked(inquiry.answer.src, ip, protocol, port, interface=inquiry.interface, claim=claim)


def _resolver(inquiry: _Inquiry, v6: bool) -> None:
    """Whether the cluster DNS answers the sender on its node, for a name that the sender must resolve first."""
    answer, pod = inquiry.answer, inquiry.sender.pod
    if not inquiry.target.names or inquiry.sender.kind != "pod" or pod is None:
        return
    if not asks_the_cluster(pod):
        answer.warnings.append(
            "the pod's dnsPolicy leads its resolver past the cluster DNS: it does not know this name"
        )
        return
    dns = inquiry.catalogue.find("Service", "kube-system", "kube-dns")
    ip = next((one for one in (cluster_ips(dns) if dns else []) if (":" in one) == v6), "")
    if not ip:
        return
    (walk,) = inquiry.look(inquiry.sender.node, [Asked(inquiry.sender.address(v6), ip, "UDP", 53)])
    way = walk.ways[0] if walk.ways else None
    # what stops every packet is explained with the packet itself; questions to the DNS pass conntrack by
    if way is not None and way.verdict in _SILENT and way.reason not in (fault.NO_INTERFACE, fault.CONNTRACK_FULL):
        answer.verdict = "drop"
        answer.reason = fault.FOREIGN_RULE if way.reason == fault.FOREIGN_RULE else fault.DNS_ADDRESS
        where = f"node {inquiry.sender.node}" if inquiry.sender.node else "the node"
        answer.cause = f"the cluster DNS at {ip} does not answer on {where}: {way.cause}"
        answer.steps += [(walk.node, step) for step in walk.steps]


def _head(inquiry: _Inquiry, walk: Walk) -> None:
    """The lines that stand for all points."""
    answer, ways = inquiry.answer, walk.ways
    origin = next((way.origin for way in ways if way.origin), "")
    if not inquiry.told[inquiry.sender.node].get("rules"):  # no rules know the pods' addresses
        origin = inquiry.sender.kind
    if not origin:
        told = inquiry.told[inquiry.sender.node]
        info = node_info(inquiry.sender.node, told, inquiry.catalogue)
        local = answer.src in (told.get("addresses") or [])
        origin = source(Packet(answer.src, answer.dst, "TCP", 0, node=local), info)
    answer.heads.append(Step("source", f"{answer.src}: {_ORIGINS[origin]}"))
    holder = inquiry.catalogue.at(answer.dst, answer.protocol, answer.port)
    shown = holder or inquiry.target.service
    if shown is not None:
        answer.service = key(shown)
        total, ready = counts(inquiry.catalogue.slices(key(shown)))
        if holder is not None or answer.protocol != "ICMP":
            named = holder is not None or inquiry.target.kind == "headless"
            answer.heads += [Step("Service", f"{key(shown)}: {ready} of {total} endpoints ready")] * named


def _take(inquiry: _Inquiry, walk: Walk, ip: str, port: int) -> None:
    """Adds the ends of the ways from one dialled address."""
    answer = inquiry.answer
    if not answer.steps:
        answer.steps = [(walk.node, step) for step in walk.steps]
    answer.doubts += [doubt for doubt in walk.doubts if doubt not in answer.doubts]
    answer.warnings += [_great(gap) for gap in walk.gaps if _great(gap) not in answer.warnings]
    further: dict[str, list[tuple[End, Way]]] = {}
    for way in walk.ways:
        end = _end(way, walk.node)
        answer.ends.append(end)
        if way.verdict:
            _note(answer, way)
            continue
        node = diagnose.node_of(way.ip, way.via, inquiry.catalogue)
        if not node or node == inquiry.sender.node:
            end.verdict, end.node = "pass", ""
            continue
        further.setdefault(node, []).append((end, way))
    for node, ends in further.items():
        _arrive(inquiry, node, ends)


def _great(gap: str) -> str:
    return f"greater packets vanish without a word (MTU): {gap}"


def _end(way: Way, node: str) -> End:
    verdict = {"deliver": "forward", "": "unknown"}.get(way.verdict, way.verdict)
    return End(
        way.ip, way.port, verdict, way.reason, way.cause, node, way.pod, way.masquerade, way.translated, way.src,
        way.route, [(node, step) for step in way.steps],
    )  # fmt: skip


def _note(answer: Answer, way: Way) -> None:
    answer.warnings += [line for line in (*way.notes, *map(_great, way.gaps)) if line not in answer.warnings]


def _arrive(inquiry: _Inquiry, node: str, ends: list[tuple[End, Way]]) -> None:
    """Follows ways to the node at their end."""
    protocol, answer = inquiry.target.protocol, inquiry.answer
    try:
        walks = inquiry.look(node, [Asked(way.src, way.ip, protocol, way.port, origin="link") for _, way in ends])
    except Unreachable as err:
        for end, _ in ends:
            end.verdict, end.node = "forward", node
        answer.doubts.append(f"the way goes on at node {node}, where nobody could look: {err}")
        return
    for (end, way), walk in zip(ends, walks, strict=True):
        last = walk.ways[0]
        end.node, end.pod = node, last.pod
        end.steps += [(node, step) for step in (*walk.steps, *last.steps) if not _nothing(step)]
        end.verdict = {"deliver": "forward", "": "pass"}.get(last.verdict, last.verdict)
        end.reason, end.cause = last.reason, last.cause
        if last.verdict == "":
            end.verdict, end.reason = "drop", fault.NOT_DELIVERED
            end.cause = f"node {node} sends the packet on ({last.route}) instead of delivering it"
        answer.doubts += [f"node {node}: {doubt}" for doubt in walk.doubts if doubt not in answer.doubts]
        if way.mtu and walk.entry[1] and way.mtu > walk.entry[1]:
            there = f"{walk.entry[0]} of {node} takes {walk.entry[1]}"
            last.gaps.append(f"{way.dev} of the first node sends packets of {way.mtu} bytes, and {there}")
        _note(answer, last)


def _nothing(step: Step) -> bool:
    """Whether a step of the second node says nothing: the packet is for no Service any more."""
    return step.stage == "rules"


def _replies(inquiry: _Inquiry) -> None:
    """Follows back what answers or refuses, of one endpoint of a kind on each node."""
    seen: dict[tuple[str, ...], tuple[str, str]] = {}
    for end in inquiry.answer.ends:
        answered = end.verdict == "forward" and not end.reason
        refused = end.verdict == "reject" and end.reason not in (fault.NO_ROUTE, fault.NO_REPLY)
        if not (answered or refused) or end.route == "inside the pod itself":
            continue
        by_rule = refused and end.reason != fault.NOTHING_LISTENS
        # an answer is judged by its addresses, and endpoints of one node differ in them
        kind = (end.node, end.ip, end.src, str(by_rule))
        if kind not in seen:
            if len(seen) >= _FOLLOWED:
                continue
            seen[kind] = _back(inquiry, end, by_rule=by_rule)
        verdict, cause = seen[kind]
        if verdict not in _SILENT:
            continue
        what = "the answer" if answered else "the refusal"
        before = f"the packet arrives at {end.at}" if answered else end.cause
        end.verdict, end.reason = "drop", fault.NO_REPLY
        end.cause = f"{before}, and {what} is lost on its way back to {inquiry.answer.src}: {cause}"


def _back(inquiry: _Inquiry, end: End, *, by_rule: bool) -> tuple[str, str]:
    """Returns (verdict, cause) of what comes back from an end. by_rule: a rule of the first node refuses, else the
    endpoint's own network does.
    """
    answer, came, protocol = inquiry.answer, inquiry.sender.node, inquiry.target.protocol
    kind: Literal["answer", "refusal"] = "answer" if end.verdict == "forward" or protocol == "TCP" else "refusal"
    try:
        if by_rule:
            ask = Asked(answer.dst, answer.src, protocol, answer.port, "node", reply="refusal")
            way = _one_back(inquiry, came, ask)
            return way.verdict, way.cause
        # where the source was translated the first node translates it back before it asks for the route
        here = end.node == came
        ask = Asked(end.ip, answer.src if here else end.src, protocol, end.port, reply=kind, translated=end.translated)
        way = _one_back(inquiry, end.node, ask)
        if here or way.verdict:
            return way.verdict, way.cause
        back = diagnose.node_of(end.src, way.via, inquiry.catalogue)
        if back and back != came:
            return "drop", f"node {end.node} sends it to node {back}, not to {came}"
        if back:
            ask = replace(ask, dst=answer.src, origin="link")
            way = _one_back(inquiry, came, ask)
        return way.verdict, way.cause
    except Unreachable:
        return "", ""


def _one_back(inquiry: _Inquiry, node: str, ask: Asked) -> Way:
    (walk,) = inquiry.look(node, [ask])
    told = [f"on the way back: {doubt}" for doubt in walk.doubts]
    inquiry.answer.doubts += [doubt for doubt in told if doubt not in inquiry.answer.doubts]
    return walk.ways[0]


# ---- the conclusion


def _conclude(inquiry: _Inquiry) -> None:
    answer = inquiry.answer
    bad = [end for end in answer.ends if end.verdict in _SILENT]
    good = [end for end in answer.ends if end.verdict not in _SILENT]
    holder = inquiry.catalogue.at(answer.dst, answer.protocol, answer.port)
    for end in bad:
        if end.reason == fault.NOTHING_LISTENS:
            pod = inquiry.catalogue.pod_at(end.ip)
            end.cause += diagnose.refused_by_pod(pod, end.port, answer.protocol)
    if good:
        _passed(inquiry, good, bad)
    else:
        kinds = {end.verdict for end in bad}
        answer.verdict = kinds.pop() if len(kinds) == 1 else "drop"
        answer.reason, answer.cause = bad[0].reason, bad[0].cause
        if len(bad) > 1:
            answer.cause = f"none of {len(bad)} endpoints gets it: {bad[0].cause}"
        _why_none(inquiry, holder or inquiry.target.service)
    _behind(inquiry, holder)
    _shadow(inquiry, holder)
    _announced(inquiry, holder)
    if told := diagnose.without_address(holder or inquiry.target.service, inquiry.catalogue):
        answer.warnings.append(told)
    if answer.verdict in ("forward", "pass") and not answer.reason:
        great = [line for line in answer.warnings if "(MTU)" in line]
        answer.reason = fault.MTU if great else ""
        answer.cause += f"; {great[0]}" if great else ""


def _passed(inquiry: _Inquiry, good: list[End], bad: list[End]) -> None:
    answer = inquiry.answer
    total = len(answer.ends)
    if any(end.translated for end in good):
        answer.verdict, answer.cause = "forward", f"to one of {total} endpoint{'s' * (total > 1)}"
    elif good[0].verdict == "pass":
        answer.verdict, answer.cause = "pass", "no Service has this address; routed as it is"
        if any(step.text.endswith("no proxy has run") for _, step in answer.steps):
            answer.cause = "routed as it is"
    else:
        who = f"pod {good[0].pod}" if good[0].pod else f"node {good[0].node}" if good[0].node else "the node"
        answer.verdict, answer.cause = "forward", f"delivered to {who}"
        if total > 1:
            answer.cause = f"to one of {total} pods"
    if bad:
        answer.reason = bad[0].reason
        answer.cause += f"; {len(bad)} of {total} fail: {bad[0].cause}"


def _why_none(inquiry: _Inquiry, service: Object | None) -> None:
    """Adds why a Service has no endpoint, and why its rules are missing."""
    answer = inquiry.answer
    if service is not None and answer.reason in (Reason.NO_ENDPOINTS, Reason.WRONG_PORT):
        reason, cause = diagnose.no_endpoint(service, inquiry.catalogue, answer.port)
        if reason and answer.reason == Reason.NO_ENDPOINTS:
            answer.reason, answer.cause = reason, f"{answer.cause}: {cause}"


def _packet(inquiry: _Inquiry) -> Packet:
    answer, told = inquiry.answer, inquiry.told[inquiry.sender.node]
    local = answer.src in (told.get("addresses") or [])
    protocol = cast(Protocol, answer.protocol)  # a target has no other
    return Packet(answer.src, answer.dst, protocol, answer.port, node=local, interface=inquiry.interface)


def _behind(inquiry: _Inquiry, holder: Object | None) -> None:
    """Compares the rules with the API's objects."""
    answer, node = inquiry.answer, inquiry.sender.node
    hidden = holder is not None and "service.kubernetes.io/service-proxy-name" in (
        holder["metadata"].get("labels") or {}
    )
    proxys = _PROXYS
    translated = [end for end in answer.ends if end.translated]
    stopped = answer.verdict in _SILENT and not translated and answer.reason not in proxys
    if (holder is None and not translated) or hidden or (stopped and answer.reason != fault.NO_ROUTE):
        return
    told = inquiry.told[node]
    info = node_info(node, told, inquiry.catalogue)
    wanted = expected(info, _packet(inquiry), inquiry.catalogue)
    if wanted is None:
        return
    found = PASS
    if translated:
        found = forward((Destination(end.ip, end.port), end.masquerade) for end in translated)
    elif answer.reason in proxys:
        found = Verdict(Kind(answer.verdict))
    difference = differs(wanted, found)
    if not difference:
        return
    state = proxy_state(told, node, inquiry.catalogue)
    who = f"node {node}" if node else "this node"
    if not told.get("rules"):
        answer.reason = fault.NO_RULES
        answer.cause = (
            f"no rules of a proxy are on {who}, so Service {key(holder) if holder else ''} is not served there; {state}"
        )
        return
    answer.reason, answer.cause = fault.PROXY_BEHIND, f"the proxy of {who} is behind the API: {difference}; {state}"


def _shadow(inquiry: _Inquiry, holder: Object | None) -> None:
    answer = inquiry.answer
    told = diagnose.shadowed(answer.dst, answer.port, answer.protocol, inquiry.catalogue, holder)
    if told:
        answer.warnings.append(told)
        if not answer.reason or answer.verdict in _SILENT:
            answer.reason, answer.cause = fault.HOSTPORT_SHADOWED, f"{answer.cause}; {told}"


def _announced(inquiry: _Inquiry, holder: Object | None) -> None:
    """Whether a node answers for a load balancer's address, which clients on the link need."""
    answer = inquiry.answer
    if inquiry.sender.kind != "outside" or not diagnose.is_balancer(holder, answer.dst):
        return
    told = dict(inquiry.told)
    for node in diagnose.all_nodes(inquiry.catalogue):
        if node not in told:
            try:
                inquiry.look(node, [])
            except Unreachable as err:
                answer.doubts.append(f"node {node} was not asked whether it answers for {answer.dst}: {err}")
            told = dict(inquiry.told)
    named = {node: one for node, one in told.items() if node}
    if named and (cause := diagnose.announcer(answer.dst, named)):
        answer.verdict, answer.reason, answer.cause = "drop", fault.NO_ANNOUNCER, cause
