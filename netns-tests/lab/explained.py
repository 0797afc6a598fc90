"""Random Services, rules of other programs and packets, to compare what `explain` says with what happens.

The world is that of serviceworld.py. Everything is drawn from one seed, so a failure can be repeated.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

from podwire.explain.answer import Answer as Explained
from podwire.explain.ask import explain
from podwire.explain.catalogue import Catalogue
from podwire.explain.names import parse, source, target
from podwire.explain.onnode import Place
from podwire.explain.reach import Local
from podwire_base.kube.meta import Object
from podwire_proxy.testing import scenarios as s
from podwire_proxy.testing.builders import endpoint, endpoint_slice, port, service

from .netns import NetNS
from .serviceworld import V6, Answer, World

PODS = {s.POD_A: ("a", s.NODE), s.POD_B: ("b", s.NODE), s.POD_C: ("c", "n2")}
SOURCES = (s.POD_A, s.POD_B, s.NODE_IP, s.OUTSIDE)
VIPS = (s.VIP, s.VIP2)


def cluster(objects: tuple[Object, ...]) -> Catalogue:
    """The world's pods and nodes, with these Services and EndpointSlices."""
    pods = tuple(
        {
            "kind": "Pod",
            "metadata": {"name": name, "namespace": "default", "labels": {}},
            "spec": {"nodeName": s.NODE, "containers": [{"name": "x"}]},  # all are wired to one machine
            "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}, {"ip": V6[ip]}]},
        }
        for ip, (name, _) in PODS.items()
    )
    ready = [{"type": "Ready", "status": "True"}]
    node = {
        "kind": "Node",
        "metadata": {"name": s.NODE, "labels": {"topology.kubernetes.io/zone": "zone-a"}},
        "status": {
            "addresses": [{"type": "InternalIP", "address": ip} for ip in (s.NODE_IP, V6[s.NODE_IP])],
            "conditions": ready,
        },
    }
    kinds: dict[str, tuple[Object, ...]] = {"Pod": pods, "Node": (node,), "Event": ()}
    for kind in ("Service", "EndpointSlice"):
        kinds[kind] = tuple(one for one in objects if one["kind"] == kind)
    return Catalogue(kinds)


def announcing(folder: Path) -> Path:
    """A run directory whose role lb answers for every address of a load balancer: the world routes them to the node."""
    both = [at for ip in (s.BALANCER, s.BALANCER2) for at in (ip, s._v6(ip))]
    body = {"ready": True, "message": "", "figures": {"mine": both}}
    (folder / "status").mkdir(exist_ok=True)
    (folder / "status" / "lb.json").write_text(json.dumps(body))
    return folder


def reach(world: World, run_dir: Path) -> Local:
    inside = {ip: ns.path for v4, ns in world.pods.items() for ip in (v4, V6[v4])}
    return Local(lambda name: Place(world.node.path, name or s.NODE, run_dir, inside))


def interface_of(src: str) -> str:
    """The node's link by which a source's packets come."""
    return next((link for ip, link in s.INTERFACES.items() if src in (ip, s._v6(ip))), "")


def explained(
    world: World, run_dir: Path, objects: tuple[Object, ...], src: str, dst: str, number: int, protocol: str = "TCP"
) -> Explained:
    """What explain says of one packet in the world."""
    catalogue = cluster(objects)
    at = f"[{dst}]" if ":" in dst else dst
    words = f"{at}/icmp" if protocol == "ICMP" else f"{at}:{number}/{protocol.lower()}"
    sender = source(src, catalogue)
    if not sender.node:
        sender = replace(sender, node=s.NODE)
    found = target(parse(words), catalogue, sender)
    return explain(sender, found, catalogue, reach(world, run_dir), interface=interface_of(src))


# ---- drawing


@dataclass(frozen=True, slots=True)
class Drawn:
    """One random cluster of one IP family. rules: for `nft -f`; iptables: commands of another program."""

    objects: tuple[Object, ...]
    rules: str
    iptables: tuple[tuple[str, ...], ...]
    family: str = "IPv4"

    @property
    def program(self) -> s.Scenario:
        """What the proxy is to serve."""
        made = s.Scenario("random", (), {})  # the node's facts are those of the family
        return replace(made.v6() if self.family == "IPv6" else made, objects=self.objects)

    def v6(self) -> Drawn:
        """The same cluster in IPv6."""
        changed = s.Scenario("random", self.objects, {}).v6()
        rules = _rules_v6(self.rules)
        commands = tuple(tuple(_word_v6(word) for word in command) for command in self.iptables)
        return Drawn(changed.objects, rules, commands, "IPv6")


_WORDS_V6 = {
    "table ip ": "table ip6 ", "ip daddr": "ip6 daddr", "ip saddr": "ip6 saddr", "ip ttl": "ip6 hoplimit",
    "ip protocol": "meta l4proto", "10.244.2.0/24": "fd00:244:2::/64", "198.51.100.0/24": "2001:db8:51::/64",
}  # fmt: skip


def _rules_v6(rules: str) -> str:
    for old, new in _WORDS_V6.items():
        rules = rules.replace(old, new)
    return s._v6(rules)


def _word_v6(word: str) -> str:
    return word.replace("iptables-", "ip6tables-") if word.startswith("iptables-") else s._v6(word)


def draw(random: Random) -> Drawn:
    made: list[Object] = []
    for index, ip in enumerate(VIPS):
        made += _service(random, f"s{index}", ip)
    kind = random.choice(["none", "none", "nft", "nft", "iptables"])
    drawn = Drawn(
        tuple(made),
        _table(random) if kind == "nft" else "",
        _iptables(random) if kind == "iptables" else (),
    )
    return random.choice([drawn, drawn.v6()])


def _service(random: Random, name: str, ip: str) -> list[Object]:
    protocol = random.choice(["TCP", "TCP", "UDP"])
    kind = random.choice(["ClusterIP", "NodePort", "LoadBalancer"])
    spec: dict[str, Any] = {"type": kind}
    for field in ("internalTrafficPolicy", "externalTrafficPolicy"):
        spec[field] = random.choice(["Cluster", "Cluster", "Local"])
    if random.random() < 0.3 and name == "s0":
        spec["externalIPs"] = [s.EXTERNAL]
    if kind == "LoadBalancer":
        spec["ingress"] = [{"ip": s.BALANCER if name == "s0" else s.BALANCER2}]
        spec["loadBalancerSourceRanges"] = random.choice([[], [f"{s.OUTSIDE}/32"], ["10.244.0.0/16"]])
    node_port = s.NODE_PORT + int(name[1:]) if kind != "ClusterIP" else 0
    places = random.sample(list(PODS), random.randint(0, 3))
    found = [endpoint(one, PODS[one][1], ready=random.random() > 0.2) for one in places]
    targets = random.choice([s.TARGET, s.TARGET, s.TARGET, 1234])  # nothing listens at 1234
    return [
        service(name, ip, [port(s.PORT, protocol, node_port=node_port)], **spec),
        endpoint_slice(name, found, [("", protocol, targets)]),
    ]


def _match(random: Random) -> str:
    return random.choice(
        [
            f"ip daddr {s.POD_B}",
            f"ip daddr {s.POD_C} tcp dport {s.TARGET}",
            f"ip saddr {s.POD_A} ip daddr 10.244.0.0/16",
            "ip daddr { 10.244.1.3, 10.244.2.0/24 }",
            f"meta l4proto udp ip saddr {s.OUTSIDE}",
            f"tcp dport {{ 80, 1000-2000, {s.TARGET} }}",
            "ct state new iifname veth0",
            "ct status dnat",
            'iifname "veth*" ip daddr 10.244.2.2',
            f"ip daddr . tcp dport {{ {s.POD_B} . {s.TARGET}, {s.VIP} . 80 }}",
            f"ip saddr != {s.NODE_IP} ip protocol tcp",
            "fib daddr type local",
            "tcp flags syn / syn,ack ip ttl > 0",
            "meta mark 0x7",
        ]
    )


def _table(random: Random) -> str:
    """A table of another program: two base chains, a jump, a verdict map, and marks."""
    lines = []
    for number in range(random.randint(1, 2)):
        hook = random.choice(["prerouting", "input", "forward", "forward", "output", "postrouting"])
        priority = random.choice([-350, -150, -10, 5]) if hook != "postrouting" else random.choice([-10, 150])
        policy = "accept"
        body = []
        if random.random() < 0.3:
            body.append("meta mark set 0x7")
        verdict = random.choice(["drop", "counter drop", "reject", "accept", "jump more", "goto more", "return"])
        if verdict == "reject" and hook not in ("input", "forward", "output"):
            verdict = "drop"
        body.append(f"{_match(random)} {verdict}")
        if random.random() < 0.3:
            body.append(f"ip daddr vmap {{ {s.POD_C} : drop, {s.POD_B} : accept, 198.51.100.0/24 : continue }}")
        if random.random() < 0.15:
            policy = "drop"
            body.append("accept" if random.random() < 0.5 else f"{_match(random)} accept")
        told = "\n".join(f"    {line}" for line in body)
        lines.append(
            f"  chain c{number} {{\n    type filter hook {hook} priority {priority}; policy {policy};\n{told}\n  }}"
        )
    inner = f"  chain more {{\n    {_match(random)} drop\n    {_match(random)} return\n    counter\n  }}"
    family = random.choice(["ip", "inet"])
    return "\n".join([f"table {family} foreign {{", inner, *lines, "}"])


def _iptables(random: Random) -> tuple[tuple[str, ...], ...]:
    matches = [
        ("-d", s.POD_B), ("-s", s.OUTSIDE), ("-p", "tcp", "--dport", str(s.TARGET)), ("-p", "udp"),
        ("-m", "conntrack", "--ctstate", "NEW", "-d", s.POD_C), ("-m", "conntrack", "--ctstate", "ESTABLISHED"),
        ("-m", "comment", "--comment", "a word", "-i", "veth0"), ("-m", "addrtype", "--dst-type", "LOCAL"),
        ("-p", "tcp", "-m", "multiport", "--dports", f"22,{s.TARGET}:{s.TARGET + 1}"), ("-p", "tcp", "--syn"),
    ]  # fmt: skip
    targets = [("-j", "DROP"), ("-j", "REJECT"), ("-j", "ACCEPT"), ("-j", "OTHER")]
    variant = random.choice(["iptables-nft", "iptables-legacy"])
    chains = ["FORWARD", "FORWARD", "INPUT", "OUTPUT"]
    made = [(variant, "-N", "OTHER"), (variant, "-A", "OTHER", *random.choice(matches), "-j", "DROP")]
    for _ in range(random.randint(1, 2)):
        chain = random.choice(chains)
        options = [m for m in matches if not ("-i" in m and chain == "OUTPUT")]
        made.append((variant, "-A", chain, *random.choice(options), *random.choice(targets)))
    if random.random() < 0.2:
        made.append((variant, "-P", "FORWARD", "DROP"))
    return tuple(made)


def install(world: World, drawn: Drawn) -> None:
    if drawn.rules:
        world.node.run(["nft", "-f", "-"], input=drawn.rules)
    for command in drawn.iptables:
        world.node.run(list(command))


def remove(node: NetNS, drawn: Drawn) -> None:
    for family in ("ip", "ip6", "inet") if drawn.rules else ():
        node.run(["nft", "delete", "table", family, "foreign"], check=False)
    for variant in {command[0] for command in drawn.iptables}:
        for words in (("-P", "FORWARD", "ACCEPT"), ("-F",), ("-X",)):
            node.run([variant, *words], check=False)


def packet(random: Random, family: str = "IPv4") -> tuple[str, str, int, str]:
    """A source, a destination, a port and a protocol."""
    at, number = random.choice(
        [
            *((ip, s.PORT) for ip in VIPS * 3),
            *((s.NODE_IP, s.NODE_PORT + n) for n in (0, 1)),
            (s.BALANCER, s.PORT), (s.BALANCER2, s.PORT), (s.EXTERNAL, s.PORT),
            (s.POD_B, s.TARGET), (s.POD_C, s.TARGET), (s.POD_C, 1234), (s.VIP, 81), (s.UNUSED, s.PORT),
            (s.NODE_IP, 81), (s.HOST, s.TARGET),
        ]
    )  # fmt: skip
    src = random.choice(SOURCES)
    if family == "IPv6":
        src, at = s._v6(src), s._v6(at)
    return src, at, number, random.choice(["TCP", "TCP", "UDP"])


def undecided(said: Explained) -> bool:
    """Whether explain has a doubt, or the packet leaves the world, where anything may answer."""
    passes = said.verdict == "pass" and bool(said.ends) and all(end.verdict == "pass" for end in said.ends)
    return bool(said.doubts) or passes


def disagreement(said: Explained, got: Answer, src: str) -> str:
    """How the answer of the network differs from what explain said, "" if it does not. said: not an undecided one."""
    result = {"ok": "forward", "timeout": "drop"}.get(got.result, "reject")
    if got.result == "EPERM":  # the node's own datagram, which a rule of output dropped or rejected
        result = said.verdict if said.verdict in ("drop", "reject") else result
    if said.verdict == "unknown":
        return "explain could not tell"
    kinds = {end.verdict for end in said.ends} or {said.verdict}
    if said.verdict in ("drop", "reject") and not said.ends:
        kinds = {said.verdict}
    if result not in kinds:
        return f"{got.result} is none of {sorted(kinds)}"
    if result == "forward":
        fitting = [end for end in said.ends if (end.ip, end.port) == got.server]
        if not fitting:
            return f"answered by {got.server}"
        if (got.peer == src) == fitting[0].masquerade and got.server[0] != got.peer:
            return f"the server saw {got.peer}"
    return ""


def told(drawn: Drawn, said: Explained) -> str:
    """All that a failure needs."""
    objects = "\n".join(json.dumps(one["spec"] if "spec" in one else one["endpoints"]) for one in drawn.objects)
    return "\n".join([drawn.family, drawn.rules, "\n".join(map(" ".join, drawn.iptables)), objects, *said.lines()])
