"""docs/metrics.md and the Grafana dashboard against a real Prometheus: it takes both pages, and answers every
expression of panels and alerts."""

from __future__ import annotations

import http.server
import json
import re
import socket
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from lab import debian
from lab.netns import Lab, NetNS
from lab.patience import patient, wait_until
from podwire.tests.test_docs import METRIC, ROOT, dns_page, observe_page, proxy_page
from podwire_base.kube.meta import Object

PORTS = {"proxy": 10249, "dns": 9153, "observe": 9155}
BROWSER = 9090
NAMED = "podwire_proxy_services|podwire_dns_answers|podwire_observe_connections"  # one family of each page
CONFIG = """
global: {scrape_interval: 1s, scrape_timeout: 1s}
rule_files: [rules.yml]
scrape_configs:
  - {job_name: proxy, static_configs: [{targets: ["127.0.0.1:10249"]}]}
  - {job_name: dns, static_configs: [{targets: ["127.0.0.1:9153"]}]}
  - {job_name: observe, static_configs: [{targets: ["127.0.0.1:9155"]}]}
"""


class Page(http.server.BaseHTTPRequestHandler):
    text = ""

    def do_GET(self) -> None:
        body = self.text.encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def pages(ns: NetNS) -> Iterator[None]:
    """The pages as roles show them, on their ports."""
    servers = []
    texts = {"proxy": proxy_page("nftables") + proxy_page("iptables"), "dns": dns_page(), "observe": observe_page()}
    for name, text in texts.items():
        handler = type(f"Page{name}", (Page,), {"text": _once(text)})
        sock = ns.call(partial(socket.create_server, ("127.0.0.1", PORTS[name])))
        server = http.server.ThreadingHTTPServer(("127.0.0.1", PORTS[name]), handler, bind_and_activate=False)
        server.socket.close()
        server.socket = sock
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
    try:
        yield
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


def _once(text: str) -> str:
    """Two pages as one: a series that both have, once."""
    seen: set[str] = set()
    lines = []
    for line in text.splitlines():
        series = line if line.startswith("#") else line.rpartition(" ")[0]
        if series not in seen:
            seen.add(series)
            lines.append(line)
    return "\n".join(lines) + "\n"


def alerts() -> list[tuple[str, str]]:
    text = (ROOT / "docs/metrics.md").read_text().partition("## Alerts")[2]
    return [(m[1], m[2]) for m in re.finditer(r"^\| ([^|]+) \| `([^`]+)`", text, re.M) if METRIC.search(m[2])]


def panels() -> list[tuple[str, str]]:
    board = json.loads((ROOT / "docs/grafana/podwire.json").read_text())
    return [(panel["title"], t["expr"]) for panel in board["panels"] for t in panel.get("targets", ())]


def filled(expression: str) -> str:
    """As Grafana sends it: with the values of its variables."""
    for name, value in (("$instance", ".*"), ("$__rate_interval", "1m"), ("$__range", "1h"), ("$__interval", "15s")):
        expression = expression.replace(name, value)
    assert "$" not in expression, expression
    return expression


def asked(ns: NetNS, path: str, **query: str) -> Object:
    def work() -> Object:
        url = f"http://127.0.0.1:{BROWSER}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        try:
            with urllib.request.urlopen(url, timeout=patient(5)) as answer:
                found: Object = json.load(answer)
        except urllib.error.HTTPError as error:
            found = json.load(error)
        return found

    return ns.call(work)


@pytest.fixture
def prometheus(lab: Lab, tmp_path: Path) -> Iterator[NetNS]:
    try:
        root = debian.unpack("prometheus")
    except (debian.Absent, debian.Unreachable) as error:
        pytest.skip(str(error))
    rows = [{"alert": f"a{i}", "expr": expression} for i, (_, expression) in enumerate(alerts())]
    (tmp_path / "prometheus.yml").write_text(CONFIG)
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "podwire", "interval": "1s", "rules": rows}]}))
    ns = lab.netns("prometheus")
    with pages(ns), open(tmp_path / "log", "w") as log:
        process = ns.popen(
            [
                str(debian.program(root, "prometheus")),
                f"--config.file={tmp_path}/prometheus.yml",
                f"--storage.tsdb.path={tmp_path}/data",
                f"--web.listen-address=127.0.0.1:{BROWSER}",
            ],
            stdout=log,
            stderr=log,
        )
        try:
            wait_until(lambda: _up(ns), (tmp_path / "log").read_text(), 30)
            yield ns
        finally:
            process.terminate()
            process.wait(timeout=patient(20))


def _up(ns: NetNS) -> bool:
    try:
        targets = asked(ns, "targets")["data"]["activeTargets"]
    except (OSError, ValueError):  # it starts, and says so in plain text
        return False
    for target in targets:
        assert target["health"] != "down", f"{target['labels']['job']}: {target['lastError']}"
    return len(targets) == len(PORTS) and all(target["health"] == "up" for target in targets)


def test_prometheus_takes_the_pages_and_every_expression_of_dashboard_and_alerts(prometheus: NetNS) -> None:
    assert len(panels()) > 20 and len(alerts()) > 8
    time.sleep(2.5)  # a rate needs two samples
    empty = []
    for title, expression in panels():
        answer = asked(prometheus, "query", query=filled(expression))
        assert answer["status"] == "success", f"{title}: {expression}: {answer}"
        if not answer["data"]["result"]:
            empty.append((title, expression))
    labels = asked(prometheus, "series", **{"match[]": f'{{__name__=~"{NAMED}"}}'})
    assert {one["instance"] for one in labels["data"]} == {f"127.0.0.1:{port}" for port in PORTS.values()}
    assert not empty, "a panel would say that it has no data"
    (group,) = asked(prometheus, "rules")["data"]["groups"]
    assert [rule["health"] for rule in group["rules"]] == ["ok"] * len(alerts()), group
