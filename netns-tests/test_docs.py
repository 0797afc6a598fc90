"""The output on the pages is that of a real cluster: each `explain` and `dns query` of debug-a-service.md, and every
metric.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from lab.cluster import EXAMPLES, cluster
from lab.patience import patient
from podwire.demo.lab import DemoLab, NotYet, wait_for
from podwire_base.kernel.netns import call_in

ROOT = EXAMPLES.parent
DOCS = ROOT / "docs"
PAGE = (DOCS / "debug-a-service.md").read_text()
# What a page's first commands do is done by the fixture, with a cluster of another name.
MADE = ("make up", "podwire apply -f examples/ -f docs/debug-a-service.yaml")
CAPTIONS = ("...",)


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


@pytest.fixture(scope="module")
def lab() -> Iterator[DemoLab]:
    with cluster(3, name="docs", watched=True) as made:
        made.run_tool("apply", "-f", str(EXAMPLES))
        made.run_tool("apply", "-f", str(DOCS / "debug-a-service.yaml"))
        made.wait_pods("MyApp", 4)
        made.wait_pods("client", 3)
        made.wait_pods("single", 1)
        yield made


def podwire(lab: DemoLab, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "podwire.main", *words],
        capture_output=True,
        text=True,
        check=False,
        env=lab.environment,
        timeout=patient(30),
    )
    return done.stdout + done.stderr


def settled(look: Callable[[], bool]) -> None:
    """Pods were ready only a moment ago: each node learns of it by itself."""
    with contextlib.suppress(NotYet):
        wait_for(look, 15)


class Shell:
    """One shell for a whole page, as its reader has: variables of a step are there for the next ones."""

    def __init__(self, lab: DemoLab) -> None:
        keep = {k: v for k, v in os.environ.items() if k not in ("KUBECONFIG", "COLUMNS")}
        self._shell = subprocess.Popen(
            ["bash"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=keep,
            cwd=ROOT,
        )
        self._lab = lab
        self.run(f"export PATH={Path(sys.executable).parent}:$PATH")

    def run(self, command: str) -> tuple[int, str]:
        """Run a line of a page; return its exit status and what it printed."""
        command = command.replace("/run/podwire/podwire/", f"{self._lab.config.run_dir}/")
        assert self._shell.stdin and self._shell.stdout
        self._shell.stdin.write(f"{{ {command}\n}} < /dev/null; status=$?; echo; echo =END=$status\n")
        self._shell.stdin.flush()
        lines: list[str] = []
        for line in self._shell.stdout:
            if line.startswith("=END="):
                return int(line[5:]), "".join(lines).rstrip("\n")
            lines.append(line)
        raise AssertionError(f"the shell ended in {command!r}")

    def close(self) -> None:
        assert self._shell.stdin and self._shell.stdout
        self._shell.stdin.close()
        self._shell.wait()
        self._shell.stdout.close()


@pytest.fixture(scope="module")
def shell(lab: DemoLab) -> Iterator[Shell]:
    made = Shell(lab)
    try:
        yield made
    finally:
        made.close()


def test_the_page_has_all_of_its_steps() -> None:
    assert (STEPS[0].command, STEPS[2].command) == MADE
    assert sum("podwire explain" in step.command for step in STEPS) == 6
    assert sum("dns query" in step.command for step in STEPS) == 3
    assert sum(bool(step.printed) for step in STEPS) >= 12


@pytest.mark.parametrize("step", [s for s in STEPS if s.command not in MADE], ids=lambda s: s.command[:60])
def test_the_page_as_it_stands(shell: Shell, lab: DemoLab, step: Step) -> None:
    """Every line of the page's block is printed, in whatever order the endpoints are; every command succeeds."""
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
