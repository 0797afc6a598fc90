"""A new user's hour: `make up`, the README and the pages word for word, nine breakages, `make down`, on one cluster.

The output on the pages is that of this cluster: each `explain` and `dns query` of debug-a-service.md, and every metric.
`make test` has it from the tree that it tests, `make test-long` from a clean clone.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from lab.cluster import EXAMPLES, watched_nodes
from lab.patience import patient
from podwire.cluster.config import ClusterConfig
from podwire.cluster.record import load
from podwire.demo.lab import DemoLab, NotYet, wait_for
from podwire.demo.run import find_tool
from podwire_base.kernel.netns import call_in

ROOT = EXAMPLES.parent
DOCS = ROOT / "docs"
PAGE = (DOCS / "debug-a-service.md").read_text()
README = (ROOT / "README.md").read_text().split("To play with a cluster:")[1].split("\n`podwire open`")[0]
MADE = ("make up", "export KUBECONFIG=/run/podwire/podwire/kubeconfig PATH=$PWD/.venv/bin:$PATH")
CAPTIONS = ("...",)
NAME = f"hour{os.getpid()}"
pytestmark = pytest.mark.story  # the pages' own order: what is made up is asked about, and `make down` is the last


@dataclass(frozen=True)
class Step:
    """A command of a page (an indented line), and what the page prints behind it ("" for nothing)."""

    number: int
    command: str
    printed: str = ""


def steps(page: str) -> list[Step]:
    """The commands of a page in their order. A block behind a command, with nothing between, is its output."""
    found: list[Step] = []
    block: list[str] | None = None
    last = ""
    for line in page.splitlines():
        if line.startswith("```"):
            if block is not None and last == "command":
                found[-1] = replace(found[-1], printed="\n".join(block))
            last, block = ("block" if block is not None else last), ([] if block is None else None)
        elif block is not None:
            block.append(line)
        elif line.startswith("    "):
            found.append(Step(len(found), line.strip()))
            last = "command"
        elif line.strip():
            last = "text"
    return found


STEPS = steps(PAGE)


def plain(text: str) -> str:
    """The text without what differs from cluster to cluster: addresses, nodes, times, digests, counts, widths."""
    for what, word in (
        (r"\d+\.\d+\.\d+\.\d+(/\d+)?", "IP"),
        (r"node\d", "NODE"),
        (r"[\d.]+ ms", "TIME"),
        (r"in pod \S+", "in POD"),
        (r" \(and \d+ more alike\)", ""),
        (r"sources-\w+", "SOURCES"),
        (r"#[0-9a-f]{8}", "DIGEST"),
        (r"\b\d+(/\d+)?\b", "N"),
        (r"[ \t]+", " "),
        (r"\b(SYN_SENT|ESTABLISHED|TIME_WAIT|LAST_ACK|CLOSE_WAIT|FIN_WAIT|CLOSE)\b", "STATE"),
    ):
        text = re.sub(what, word, text)
    return "\n".join(line.strip() for line in text.splitlines())


def settled(look: Callable[[], bool]) -> None:
    """Pods were ready only a moment ago: each node learns of it by itself."""
    with contextlib.suppress(NotYet):
        wait_for(look, 15)


class Shell:
    """One shell for a whole hour, as its user has: variables of a step are there for the next ones."""

    def __init__(self, tree: Path) -> None:
        keep = {k: v for k, v in os.environ.items() if k not in ("KUBECONFIG", "COLUMNS")}
        self._shell = subprocess.Popen(
            ["bash"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**keep, "PODWIRE_NAME": NAME},
            cwd=tree,
        )

    def run(self, command: str) -> tuple[int, str]:
        """Run a line of a page; return its exit status and what it printed."""
        command = command.replace("/run/podwire/podwire/", f"{ClusterConfig(name=NAME).run_dir}/")
        assert self._shell.stdin and self._shell.stdout
        self._shell.stdin.write(f"{{ {command}\n}} < /dev/null; status=$?; echo; echo =END=$status\n")
        self._shell.stdin.flush()
        lines: list[str] = []
        for line in self._shell.stdout:
            if line.startswith("=END="):
                return int(line[5:]), "".join(lines).rstrip("\n")
            lines.append(line)
        raise AssertionError(f"the shell ended in {command!r}")

    def does(self, command: str) -> str:
        status, said = self.run(command)
        assert status == 0, f"{command}: {said}"
        return said

    def close(self) -> None:
        assert self._shell.stdin and self._shell.stdout
        self._shell.stdin.close()
        self._shell.wait()
        self._shell.stdout.close()


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    tree = ROOT
    if os.environ.get("PODWIRE_LONG"):
        tree = tmp_path_factory.mktemp("clone") / "podwire"
        subprocess.run(["git", "clone", "-q", "--no-local", ROOT, tree], check=True)
    made = Shell(tree)
    try:
        yield made
    finally:
        made.run("make down")
        made.close()


@pytest.fixture(scope="module")
def lab(shell: Shell) -> Iterator[DemoLab]:
    """The README's first lines, until its pods are ready."""
    assert [step.command for step in steps(README)][:2] == list(MADE)
    up = shell.does(MADE[0])
    assert f"cluster {NAME} with 3 nodes is ready" in up, up
    shell.does(MADE[1])
    config = load(NAME)
    assert config is not None
    made = DemoLab(config, *find_tool())
    try:
        with watched_nodes(made):
            shell.does(spoken(steps(README)[2].command))
            made.wait_pods("MyApp", 4)
            made.wait_pods("client", 3)
            yield made
    finally:
        made.close()


def spoken(line: str) -> str:
    """The command of a line of the README; without kubectl the one that its comment has."""
    command, _, other = line.partition("# or: ")
    return other if other and not shutil.which("kubectl") else command.partition("  #")[0]


@pytest.mark.parametrize("line", [step.command for step in steps(README)[3:-1]], ids=lambda line: line[:40])
def test_the_readme_as_it_stands(shell: Shell, lab: DemoLab, line: str) -> None:
    seen: list[tuple[int, str]] = []

    def works() -> bool:
        seen[:] = [shell.run(spoken(line))]
        return seen[0][0] == 0

    settled(works)
    status, said = seen[0]
    assert status == 0, said
    if "podwire open" in line:  # what a browser of this machine does with it
        with urllib.request.urlopen(said.split()[-1], timeout=patient(5)) as answer:
            said = answer.read().decode()
    if "podwire open" in line or "curl" in line:
        assert json.loads(said)["host"] in {pod.name for pod in lab.pods("MyApp")}
    if "nft list" in line:
        assert "counter packets" in said and 'comment "' in said


def test_the_page_has_all_of_its_steps() -> None:
    assert (STEPS[0].command, STEPS[1].command) == MADE
    assert [step.command for step in steps(README)][-1].startswith("make down")
    assert sum("podwire explain" in step.command for step in STEPS) == 6
    assert sum("dns query" in step.command for step in STEPS) == 3
    assert sum(bool(step.printed) for step in STEPS) >= 12


@pytest.mark.parametrize("step", [s for s in STEPS if s.command not in MADE], ids=lambda s: s.command[:60])
def test_the_page_as_it_stands(shell: Shell, lab: DemoLab, step: Step) -> None:
    """Every line of the page's block is printed, in whatever order the endpoints are; every command succeeds."""
    if "debug-a-service.yaml" in step.command:
        shell.does(step.command)
        lab.wait_pods("single", 1)
        return
    if "for-some" in step.command:
        wait_for(lambda: lab.get("Service", "for-some")["status"].get("loadBalancer", {}).get("ingress"), 15)
    lines = [line for line in plain(step.printed).splitlines() if line.strip() and line.strip() not in CAPTIONS]
    lines = [line for line in lines if not line.startswith(("route", "NAT", "reply", "endpoint"))]
    seen: list[tuple[int, str]] = []

    def all_of_it() -> bool:
        seen[:] = [shell.run(step.command)]
        return seen[0][0] == 0 and set(lines) <= set(plain(seen[0][1]).splitlines())

    settled(all_of_it)
    status, said = seen[0]
    assert status == 0, said
    assert [line for line in lines if line not in plain(said).splitlines()] == [], said


METRICS = (DOCS / "metrics.md").read_text()


def test_the_page_of_metrics_as_it_stands(shell: Shell) -> None:
    """The commands of the page for a cluster on this machine."""
    commands = re.findall(r"`(podwire (?:node|status)[^`]*)`", METRICS)
    assert len(commands) >= 2
    for command in commands:
        _, said = shell.run(command)
        if "status" in command:
            nodes = json.loads(said)["nodes"]
            assert all(node["roles"][role]["message"] for node in nodes for role in ("wiring", "lb"))
        else:
            listed = set(re.findall(r"^\| `(\w+)` \| (\w+) \|", METRICS, re.M))
            assert set(re.findall(r"^# TYPE (\S+) (\S+)$", said, re.M)) <= listed and "# TYPE kubeproxy_" in said


def test_pods_by_other_names(shell: Shell, lab: DemoLab) -> None:
    status, said = shell.run("podwire exec deploy/client -c shell -- cat /proc/sys/kernel/hostname")
    assert status == 0 and said in {pod.name for pod in lab.pods("client")}
    assert shell.run("echo hello | podwire exec -i deploy/client -c shell -- cat") == (0, "hello")
    assert shell.run("echo hello | podwire exec deploy/client -c shell -- cat") == (0, "")
    for words in ("deploy/none", "svc/lonely"):
        status, said = shell.run(f"podwire exec {words} -- true")
        assert status == 1 and ("there is no deployment/none" in said or "service/lonely has no pods" in said)
    status, said = shell.run("podwire logs -l app=MyApp --tail 1")
    assert status == 0 and set(re.findall(r"^\[(\S+)\]", said, re.M)) <= {pod.name for pod in lab.pods("MyApp")}


@pytest.mark.parametrize("port", [10249, 9153], ids=["proxy", "dns"])
def test_every_node_shows_the_metrics_that_the_page_lists(lab: DemoLab, port: int) -> None:
    listed = set(re.findall(r"^\| `(\w+)` \| (\w+) \|", (DOCS / "metrics.md").read_text(), re.M))

    def page() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=patient(5)) as answer:
            return str(answer.read().decode())

    for node in lab.config.node_names():
        found = set(re.findall(r"^# TYPE (\S+) (\S+)$", call_in(lab.node_netns(node), page), re.M))
        assert len(found) > 20
        assert found <= listed


# ---- nine breakages: what a new user does, and where the cause is named


@dataclass(frozen=True)
class Breakage:
    """harm, mend: lines of a shell. look: the command that names the cause. cause: what is printed, whatever the line
    breaks; $NODE, $POD and $VETH as in the shell. The shell's $POD runs on $NODE, and $VETH is its link there.
    """

    name: str
    harm: str
    look: str
    cause: tuple[str, ...]
    mend: str = "true"


MANY = "; ".join(
    (
        "for i in $(seq 33); do echo '---'",
        "echo '{apiVersion: v1, kind: Service, metadata: {name: full-'$i'}, '",
        "echo ' spec: {type: LoadBalancer, selector: {app: none}, ports: [{port: 80}]}}'",
        "done",
    )
)
WRONG = "{apiVersion: v1, kind: Service, metadata: {name: wrong}, spec: {selector: {app: MyApp}, "
WRONG += "ports: [{port: 80, targetPort: 1234}]}}"
DROP = "add table inet fw; add chain inet fw c { type filter hook forward priority 0; }; add rule inet fw c drop"
BREAKAGES = (
    Breakage(
        "proxy stopped",
        "kill -STOP $PROXY",
        "podwire status",
        ("! proxy on $NODE: NoProgress: no progress for ",),
        "kill -CONT $PROXY",
    ),
    Breakage(
        "DNS address removed",
        "podwire node $NODE -- ip addr del 10.96.0.10/32 dev lo",
        "podwire status",
        ("; mended: address 10.96.0.10 on lo, ",),
    ),
    Breakage(
        "tables flushed",
        "podwire node $NODE -- nft flush ruleset",
        "podwire status",
        (
            "; mended: Service rules (",
            "; mended: table bridge podwire-cni was gone, ",
            "; mended: nft table ip podwire-dns",
        ),
    ),
    Breakage(
        "veth deleted",
        "podwire node $NODE -- ip link del $VETH",
        "podwire status",
        ("; mended: $VETH of default/$POD, ",),
    ),
    Breakage(
        "uplink down",
        "podwire node $NODE -- ip link set eth0 down",
        "podwire status",
        ("! wiring on $NODE: LinkDown: the uplink eth0 is down; ",),
        "podwire node $NODE -- ip link set eth0 up",
    ),
    Breakage(
        "pool full",
        f"{{ {MANY}; }} | podwire apply -f -",
        "podwire status",
        ("! Service default/full-", " has no load balancer address: no free address in 172.30.0.192/27 of "),
        f"{{ {MANY}; }} | podwire delete -f -",
    ),
    Breakage(
        "foreign drop",
        f"podwire node $NODE -- nft '{DROP}'",
        "podwire explain pod/$POD my-service:80",
        ("the rule with handle 2 of chain inet fw c (forward) drops the packet",),
        "podwire node $NODE -- nft delete table inet fw",
    ),
    Breakage(
        "wrong targetPort",
        f"echo '{WRONG}' | podwire apply -f -",
        "podwire explain pod/$POD wrong:80",
        ("the rules are right; ", ":1234 itself refuses: nothing listens there"),
        "podwire delete service wrong",
    ),
    Breakage(
        "API server stopped",
        "kill -STOP $API",
        "podwire status",
        ("! the API server does not answer: ", "! apiserver on the machine: no progress for "),
        "kill -CONT $API",
    ),
)
SECONDS = 15


@pytest.fixture
def victim(shell: Shell, lab: DemoLab) -> dict[str, str]:
    """What the breakages hit, as variables of the shell."""
    shell.does(f"podwire status --wait={patient(60):.0f}")
    pod = lab.pods("client")[0]
    (peer,) = re.findall(r"eth0@if(\d+):", lab.in_netns(pod.netns, "ip", "-o", "link", "show", "eth0"))
    (veth,) = re.findall(rf"^{peer}: (\w+)@", lab.in_netns(lab.node_netns(pod.node), "ip", "-o", "link"), re.M)
    found = {"POD": pod.name, "NODE": pod.node, "VETH": veth}
    numbers = {"PROXY": str(lab.supervised(pod.node, "proxy")), "API": str(lab.supervised(None, "apiserver"))}
    shell.does("; ".join(f"{name}={value}" for name, value in (found | numbers).items()))
    return found


@pytest.mark.parametrize("broken", BREAKAGES, ids=lambda one: one.name)
def test_the_cause_of_a_breakage_is_named(shell: Shell, victim: dict[str, str], broken: Breakage) -> None:
    said: list[str] = []
    wanted = [re.sub(r"\$(\w+)", lambda found: victim[found[1]], cause) for cause in broken.cause]

    def named() -> bool:
        said[:] = [" ".join(shell.run(broken.look)[1].split())]
        return all(cause.strip() in said[0] for cause in wanted)

    try:
        shell.does(broken.harm)
        began = time.monotonic()
        wait_for(named, SECONDS)
        took = time.monotonic() - began
        assert took < patient(SECONDS), f"named after {took:.0f} s"
    except NotYet:
        raise AssertionError(f"{broken.look} does not say {wanted}:\n{said[0]}") from None
    finally:
        shell.does(broken.mend)
    shell.does(f"podwire status --wait={patient(60):.0f}")  # it is whole again, by itself or by the mending


def test_the_node_has_events_of_what_was_mended(lab: DemoLab) -> None:
    """`kubectl describe node` shows them; the namespace is that of the kubelet's Events."""

    def told() -> bool:
        found = [one for one in lab.items("Event") if one["reason"] == "KernelStateMended"]
        assert all(one["involvedObject"]["kind"] == "Node" for one in found)
        return {one["source"]["component"] for one in found} >= {"podwire-proxy", "podwire-wiring", "podwire-dns"}

    wait_for(told, 15)


def test_make_down_leaves_nothing(shell: Shell, lab: DemoLab) -> None:
    (line,) = [step.command for step in steps(README) if step.command.startswith("make down")]
    assert f"cluster {NAME} is down" in shell.does(spoken(line))
    assert not lab.config.run_dir.exists()
    assert not list(Path("/run/netns").glob(f"{NAME}-*"))
