"""The output on the pages is that of a real cluster: each `explain` and `dns query` of debug-a-service.md, and every
metric.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator

import pytest

from lab.cluster import EXAMPLES, cluster
from lab.patience import patient
from podwire.demo.lab import DemoLab, NotYet, wait_for
from podwire_base.kernel.netns import call_in

DOCS = EXAMPLES.parent / "docs"
PAGE = (DOCS / "debug-a-service.md").read_text()
# (the command, the output on the page), from an indented command and the block after it
EXPLAINED: list[tuple[str, str]] = re.findall(
    r"^    podwire explain \$POD (\S+) --send[^\n]*\n\n```\n(.*?)```", PAGE, re.M | re.S
)
QUERIED: list[tuple[str, str]] = re.findall(r"^(\S+)\. (A: (?:NOERROR|NXDOMAIN)\n(?:  .*\n)+?)(?=\S)", PAGE, re.M)


def plain(text: str) -> str:
    """The text without parts that differ from cluster to cluster: addresses, nodes, times, digests."""
    for what, word in (
        (r"\d+\.\d+\.\d+\.\d+", "IP"),
        (r"node\d", "NODE"),
        (r"[\d.]+ ms", "TIME"),
        (r"in pod \S+", "in POD"),
        (r" \(and \d+ more alike\)", ""),
        (r"sources-\w+", "SOURCES"),
    ):
        text = re.sub(what, word, text)
    return text


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


def test_the_page_asks_all_of_it() -> None:
    assert len(EXPLAINED) == 6
    assert len(QUERIED) == 3


@pytest.mark.parametrize(("asked", "printed"), EXPLAINED, ids=[asked for asked, _ in EXPLAINED])
def test_explain_says_what_the_page_says(lab: DemoLab, asked: str, printed: str) -> None:
    """Every line of the page's block, in whatever order the endpoints are."""
    if asked.startswith("172."):
        given = wait_for(lambda: lab.get("Service", "for-some")["status"].get("loadBalancer", {}).get("ingress"), 15)
        asked = f"{given[0]['ip']}:80"
    pod = next(pod for pod in lab.pods("client") if pod.node != "node3")  # node3 has the Local policy's endpoint
    lines = [line for line in plain(printed).splitlines() if line != "..." and not line.startswith(("route", "NAT"))]
    assert len(lines) > 1
    said = list[str]()

    def all_of_it() -> bool:
        said[:] = plain(podwire(lab, "explain", f"pod/{pod.name}", asked, "--send")).splitlines()
        return set(lines) <= set(said)

    settled(all_of_it)
    assert [line for line in lines if line not in said] == [], "\n".join(said)


@pytest.mark.parametrize(("name", "printed"), QUERIED, ids=[name for name, _ in QUERIED])
def test_a_query_says_what_the_page_says(lab: DemoLab, name: str, printed: str) -> None:
    said = ""

    def the_same() -> bool:
        nonlocal said
        said = podwire(lab, "node", "node1", "--", sys.executable, "-m", "podwire_dns.main", "query", name)
        return plain(said) == plain(f"{name}. {printed}")

    settled(the_same)
    assert plain(said) == plain(f"{name}. {printed}")


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
