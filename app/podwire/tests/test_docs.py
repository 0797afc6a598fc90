"""Compares the pages with the code: commands, flags, metrics, links, files and functions, the tests behind each "yes",
names in drawings."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import click
import pytest
from click.testing import CliRunner

from podwire.main import cli
from podwire_base.kernel.reasons import Reason
from podwire_base.role.metrics import Histogram, ProcessFigures
from podwire_base.version import VERSION
from podwire_dns import metrics_page
from podwire_dns.cache import Cache
from podwire_dns.feed import ApiCalls
from podwire_dns.metrics import BOUNDS, HEALTH_BOUNDS, PROGRAMMING_BOUNDS, Tally
from podwire_dns.testing.builders import CONFIG, conformance_zone
from podwire_observe import metrics as observed
from podwire_observe.record import End, Service
from podwire_observe.sums import Pair
from podwire_policy import metrics as policies
from podwire_policy.counted import Row
from podwire_proxy import tally as tallies
from podwire_proxy.backend import dry_run
from podwire_proxy.backends import choose
from podwire_proxy.dataplane import Frontend, Key
from podwire_proxy.metrics import Metrics
from podwire_proxy.testing import table
from podwire_proxy.testing.builders import endpoint_slice, port, service
from podwire_proxy.verdict import NO_ENDPOINTS

ROOT = Path(__file__).parents[3]
ROOMS = (
    "app",
    "base",
    "cni",
    "controlplane",
    "deploy",
    "dns",
    "docs",
    "examples",
    "netns-tests",
    "proxy",
    "vagrant",
    "bench",
)
PAGES = sorted([*ROOT.glob("*.md"), *(page for room in ROOMS for page in (ROOT / room).rglob("*.md"))])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
METRIC = re.compile(r"\b(?:kubeproxy|coredns|podwire|process)_[a-z0-9_]+\b")
LINK = re.compile(r"""\]\(([^)\s]*)(?:\s+"([^"]*)")?\)""")
ADDED_BY_PROMETHEUS = {"le", "instance", "job"}


def code(page: Path) -> Iterator[str]:
    """All code on a page: fenced and indented lines, and spans in backticks (which may continue on the next line)."""
    prose, fenced = [], False
    for line in page.read_text().splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            yield line
        else:
            prose.append(line)
    yield from (span.replace("\n", " ") for span in re.findall(r"`([^`]+)`", "\n".join(prose)))


def calls(text: str) -> Iterator[list[str]]:
    """The words after each `podwire`, up to the end of its own arguments."""
    for found in re.finditer(r"(?<![\w.=-])podwire +(?=[a-z-])([^|;&#`)]*)", text):
        before = text[: found.start()].split()
        if not before or before[-1] not in {"ip", "ip6", "table", "bridge", "-l", "tables"}:
            yield found[1].split()


def unknown(words: list[str]) -> str:
    """The first of these words that the command line does not know; "" if it knows all."""
    command: click.Command = cli
    context = click.Context(cli)
    for index, word in enumerate(words):
        if word == "--":
            return ""  # the rest belongs to another program
        if isinstance(command, click.Group) and re.fullmatch(r"[a-z-]+,?", word) and not word.startswith("-"):
            below = command.get_command(context, word.rstrip(","))
            if below is None:
                return word
            command = below
        elif word.startswith("--"):
            flag = word.partition("=")[0].strip("'\",.:[]")
            known = {name for p in command.params for name in (*p.opts, *p.secondary_opts)} | {"--help", "--version"}
            if flag not in known:
                return f"{flag} of {' '.join(words[:index])}"
    return ""


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_command_and_flag_that_a_page_names_is_there(page: Path) -> None:
    assert [bad for text in code(page) for words in calls(text) if (bad := unknown(words))] == []


def test_a_command_or_flag_that_is_not_there_is_found() -> None:
    text = (
        "x; podwire up --nodes 3; podwire down --nope; podwire frobnicate; podwire dns query --bad; "
        "podwire exec P -- x --y"
    )
    assert [unknown(words) for words in calls(text)] == ["", "--nope of down", "frobnicate", "--bad of dns query", ""]


def commands(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from commands(found, f"{path} {name}")


@pytest.mark.parametrize(("path", "command"), list(commands(cli, "podwire")))
def test_help_says_what_every_command_and_option_is(path: str, command: click.Command) -> None:
    assert command.help, path
    assert [p.name for p in command.params if isinstance(p, click.Option) and not p.hidden and not p.help] == []


@pytest.mark.parametrize("words", [["explain", "a-pod", "10.96.0.1:443"], ["cleanup", "--dry-run", "--node", "node1"]])
@pytest.mark.parametrize("option", ["--name", "--cluster"])
def test_the_cluster_is_named_alike_everywhere_and_by_the_earlier_name(words: list[str], option: str) -> None:
    done = CliRunner().invoke(cli, [*words, option, "nowhere"], env={"KUBECONFIG": "/nonexistent/other/kubeconfig"})
    assert done.exit_code == 1
    assert "no cluster 'nowhere' on this machine" in " ".join(done.output.split())


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ +(.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    text = page.read_text()
    targets = [target for target, _ in LINK.findall(text)] + re.findall(r'(?:src|srcset|href)="([^"]+)"', text)
    for target in targets:
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        where = page.parent / path if path else page
        assert where.exists(), target
        assert not anchor or where.suffix != ".md" or anchor in anchors(where), target


NAMED = re.compile(
    r"`((?:app|base|bench|cni|controlplane|deploy|dns|netns-tests|proxy|tools)/[\w./-]*\.\w+)(?::([\w.]+))?`"
)


def named(path: str, name: str) -> bool:
    """Whether the file exists, and has a function, class or method `name` ("Class.method")."""
    if not (ROOT / path).is_file():
        return False
    body: list[ast.stmt] = ast.parse((ROOT / path).read_text()).body if name else []
    for part in name.split(".") if name else ():
        found = [each for each in body if getattr(each, "name", "") == part]
        if not found:
            return False
        body = getattr(found[0], "body", [])
    return True


@pytest.mark.parametrize("page", ["ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_every_file_and_function_that_a_page_names_is_there(page: str) -> None:
    found = NAMED.findall((ROOT / page).read_text())
    assert found
    assert [f"{path}:{name}" for path, name in found if not named(path, name)] == []


def test_a_function_that_is_not_there_is_found() -> None:
    here = "app/podwire/tests/test_docs.py"
    assert NAMED.findall(f"`{here}:named`, `{here}`") == [(here, "named"), (here, "")]
    assert named(here, "") and named(here, "named") and named("cni/podwire_cni/types.py", "Call.pod")
    assert not named(here, "gone") and not named(here, "named.gone") and not named("app/gone.py", "")


def test_every_yes_of_the_feature_table_names_a_test() -> None:
    section = (ROOT / "README.md").read_text().partition("## Beside others")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in section.splitlines() if line.startswith("| ")]
    head, body = rows[0], rows[1:]
    assert head[1] == "podwire"
    assert len(body) > 20
    for row in body:
        assert len(row) == len(head), row
        said, where = row[1], LINK.findall(row[1])
        if said.startswith(("yes", "[yes")):
            assert where, f"{row[0]}: no test behind the yes"
        for path, name in where:
            assert re.search(rf"^ *(?:async )?def {re.escape(name)}\(", (ROOT / path).read_text(), re.M), (
                row[0],
                path,
                name,
            )


def test_every_place_says_the_same_version() -> None:
    """pyproject.toml, the newest version of CHANGELOG.md, VERSION, the pause program; test_deploy.py has the images."""
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    assert version
    newest = re.findall(r"^## \[(\d[^]]*)\] - \d{4}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(), re.M)[0]
    pause = re.findall(r'"podwire-pause (.+)"', (ROOT / "cni/podwire_cni/native/pause.c").read_text())
    assert (newest, VERSION, pause) == (version[1], version[1], [version[1]])


def test_the_changelog_has_the_form_it_names() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## (.+)$", text, re.M)
    assert versions[0] == "[Unreleased]" and len(versions) == len(set(versions))
    for part in re.split(r"^## .+$", text, flags=re.M)[1:]:
        sections = re.findall(r"^### (.+)$", part, re.M)
        assert sections == [each for each in ("Added", "Changed", "Fixed", "Security") if each in sections]
        assert "- " not in part.partition("###")[0]  # every change is in a section


# Metrics


def exposed(page: str) -> dict[str, tuple[str, set[str]]]:
    """Name -> (type, labels) of the metrics on a page of /metrics."""
    found = {name: (kind, set[str]()) for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", page, re.M)}
    for name, labels in re.findall(r"^([a-z_]+)(?:\{(.*)\})? \S+$", page, re.M):
        family = name if name in found else re.sub(r"_(bucket|sum|count)$", "", name)
        found[family][1].update(label for label in re.findall(r'(\w+)="', labels) if label != "le")
    return found


def proxy_page(backend: str) -> str:
    made = Metrics(names=choose(backend).metrics, rules=lambda: {("ip", "nat"): 1}, mended=lambda: {"wiring": 1})
    made.healthz[200] = made.livez[200] = 1
    key = Key("10.96.0.20", "TCP", 80)
    web = Frontend(key, "ClusterIP", "default/web", NO_ENDPOINTS, None, "off-cluster")
    counted = tallies.Tallies((tallies.Tally(key, None, "", 1),), 1, {"unserved": 1}, 1)
    made.own = (*tallies.metrics(counted, {key: web}.get), *tallies.passed(1, 60))
    return made.render()


def policy_page() -> str:
    rows = [(Row(reason, "ingress", "default/deny", ""), 1) for reason in (Reason.POLICY, Reason.STAGED)]
    return policies.page(rows, policies.Figures({"admin": 1}, 0, 0, 1, 1, 0), ProcessFigures())


def observe_page() -> str:
    totals = observed.Totals()
    web = Pair(End("pod"), End("pod"), Service("default", "web", "80"), "tcp", "forwarded")
    totals.judged(web)
    totals.judged(web._replace(verdict="refused", reason=Reason.NO_ENDPOINTS))
    totals.passed(web, 1, 1)
    return observed.page(totals, observed.Figures(), ProcessFigures())


def dns_page() -> str:
    tally = Tally()
    tally.types[1], tally.rcodes[0, "kubernetes"] = 1, 1
    to = ("192.0.2.1:53", "NOERROR")
    over = {(to[0], "udp"): 1}
    forwarding = metrics_page.Forwarding({to: 1}, {to: Histogram(BOUNDS)}, {}, {to[0]: True}, over, over, 0, 0)
    api = ApiCalls((("GET", "200", "a:1", 1),), (("GET", "a:1", (0,) * 12, 0.0),))
    return metrics_page.render(
        metrics_page.ServerState(
            "1",
            {"udp": tally},
            forwarding,
            Cache(),
            conformance_zone(),
            CONFIG,
            "digest",
            0,
            0,
            True,
            Histogram(PROGRAMMING_BOUNDS),
            Histogram(HEALTH_BOUNDS),
            0,
            0.0,
            0,
            0.0,
            (1, 1.0),
            api,
        )
    )


def everything() -> dict[str, tuple[str, set[str]]]:
    return (
        exposed(proxy_page("nftables"))
        | exposed(proxy_page("iptables"))
        | exposed(dns_page())
        | exposed(policy_page())
        | exposed(observe_page())
    )


def test_the_page_of_metrics_lists_exactly_what_is_exposed() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|([^|]*)\| (.+) \|$", (ROOT / "docs/metrics.md").read_text(), re.M)
    assert {name: (kind, set(labels.replace(",", " ").split())) for name, kind, labels, _ in rows} == everything()


def check_expression(text: str, known: dict[str, tuple[str, set[str]]]) -> None:
    bare = re.sub(r'"[^"]*"', '""', text)
    used = METRIC.findall(bare)
    assert used, text
    labels = set(ADDED_BY_PROMETHEUS)
    for name in used:
        family = name if name in known else re.sub(r"_(bucket|sum|count)$", "", name)
        assert family in known, f"{name} is not exposed"
        assert name == family or known[family][0] == "histogram", name
        labels |= known[family][1]
    asked = set(re.findall(r'(\w+)\s*(?:=~|!~|!=|=)\s*""', bare))
    for group in re.findall(r"(?:by|on|without)\s*\(([^)]*)\)", bare):
        asked |= set(group.replace(",", " ").split())
    assert asked <= labels, f"{text}: {asked - labels}"


def test_every_expression_of_dashboard_and_alerts_uses_what_is_exposed() -> None:
    known = everything()
    board = json.loads((ROOT / "docs/grafana/podwire.json").read_text())
    expressions = [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
    alerts = (ROOT / "docs/metrics.md").read_text().partition("## Alerts")[2]
    expressions += [text for text in re.findall(r"`([^`]+)`", alerts) if METRIC.search(text)]
    assert len(expressions) > 30
    for text in expressions:
        check_expression(text, known)


@pytest.mark.parametrize(
    "wrong",
    [
        "sum(podwire_nothing_total)",
        "podwire_dns_answers_count",
        'podwire_dns_answers{no="1"}',
        "sum by (code) (podwire_dns_answers)",
    ],
)
def test_an_expression_that_cannot_work_is_found(wrong: str) -> None:
    with pytest.raises(AssertionError):
        check_expression(wrong, everything())


def test_the_dashboard_can_be_imported() -> None:
    """Grafana's requirements: panels have different numbers, do not overlap, and use the chosen data source."""
    board = json.loads((ROOT / "docs/grafana/podwire.json").read_text())
    assert board["schemaVersion"] >= 39
    assert [v["type"] for v in board["templating"]["list"]] == ["datasource", "query"]
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        covered = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not covered & cells, panel["title"]
        cells |= covered
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "${datasource}"
            assert panel["targets"]


# Drawings


def rules(backend: str) -> str:
    """Rules of a Service with every feature, as the backend would write them."""
    whole = table.everything(
        sessionAffinity="ClientIP",
        sessionAffinityConfig={"clientIP": {"timeoutSeconds": 60}},
        loadBalancerSourceRanges=["192.0.2.0/24"],
        externalTrafficPolicy="Local",
    )
    plain = service("plain", "10.96.0.77", [port(80)])
    slices = table.some_slice(*table.BOTH), endpoint_slice("plain", table.BOTH, [("", "TCP", 80)])
    tracker = table.Scenario("all", (whole, plain, *slices), {}).tracker()
    tracker.flush()
    return "\n".join(dry_run(choose(backend), tracker.dataplane))


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_a_drawing_names_chains_and_maps_as_they_are(backend: str) -> None:
    drawing = ElementTree.parse(ROOT / f"docs/packet-{backend}.svg").getroot()
    names = [
        each.text or "" for each in drawing.iter("{http://www.w3.org/2000/svg}tspan") if each.get("class") == "name"
    ]
    written = rules(backend)
    assert len(names) > 8
    for name in names:  # only the beginning of "sources-…" is the same for all Services
        assert re.search(rf"(?<![\w-]){re.escape(name.rstrip('…N'))}", written), name


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_a_drawing_shows_every_step_and_keeps_its_frames(backend: str) -> None:
    """No later box hides a step's number; boxes lie inside their node with room around them."""

    def box(each: ElementTree.Element) -> tuple[float, ...]:
        x, y, wide, high = (float(each.get(key, "0")) for key in ("x", "y", "width", "height"))
        return x, y, x + wide, y + high

    shapes = [
        (e.tag.rpartition("}")[2], e.get("class"), e)
        for e in ElementTree.parse(ROOT / f"docs/packet-{backend}.svg").getroot().iter()
    ]
    nodes = [box(e) for _, kind, e in shapes if kind == "node"]
    boxes = [(at, box(e)) for at, (_, kind, e) in enumerate(shapes) if kind in ("box", "hook", "bad")]
    assert [e.text for _, kind, e in shapes if kind == "step"] == ["1", "2", "3", "4", "5"]
    for at, (tag, _, e) in enumerate(shapes):
        x, y = float(e.get("cx", "0")), float(e.get("cy", "0"))
        assert tag != "circle" or not [b for later, b in boxes if later > at and b[0] < x < b[2] and b[1] < y < b[3]], (
            x,
            y,
        )
    for _, b in boxes:
        assert any(n[0] + 4 <= b[0] and n[1] + 4 <= b[1] and b[2] <= n[2] - 4 and b[3] <= n[3] - 4 for n in nodes), b
