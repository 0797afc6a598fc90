"""A text of thousands of digits where a number belongs is refused like every other bad number, without a traceback.
int() raises ValueError for it, and str.isdecimal() lets it pass.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from podwire import settings
from podwire.cluster.config import BadConfig as BadCluster
from podwire.cluster.config import ClusterConfig
from podwire.cluster.publications import BadPublication, parse, parse_place
from podwire.main import cli
from podwire_base.kube.client.reflector import _newer
from podwire_base.kube.errors import ConfigError
from podwire_base.kube.quantity import BadQuantity
from podwire_base.kube.quantity import parse as parse_quantity
from podwire_controlplane.controllers import workloads as controllers
from podwire_controlplane.rules.cron import BadSchedule
from podwire_controlplane.rules.cron import parse as parse_schedule
from podwire_controlplane.rules.workloads import at_most_all
from podwire_dns import corefile, exchange
from podwire_dns.config import BadConfig, DnsConfig
from podwire_proxy import backends, kubeproxyfile
from podwire_proxy.config import ProxyConfig

LONG = "9" * 5000
REFUSED = (BadCluster, BadConfig, BadPublication, ConfigError, settings.BadSetting)


def dns(text: str) -> Callable[[], object]:
    return lambda: corefile.apply(text, DnsConfig("n", None, Path("/r")))


def proxy(**fields: object) -> Callable[[], object]:
    return lambda: backends.check(ProxyConfig("n", None, Path("/r"), **fields))  # type: ignore[arg-type]  # many types


@pytest.mark.parametrize(
    "use",
    [
        dns(f".:{LONG} {{\n forward . 192.0.2.1\n}}"),
        dns(f". {{\n forward . 192.0.2.1:{LONG}\n}}"),
        dns(f". {{\n cache {LONG}\n}}"),
        dns(f"10.0.0.0/{LONG} {{\n forward . 192.0.2.1\n}}"),
        dns(f"(x) {{\n ready 127.0.0.1:{{args.{LONG}}}\n}}\n. {{\n import x 1\n}}"),
        dns(f'. {{\n template IN A a.b {{\n answer "{{{{ .Name }}}} {LONG} IN A 192.0.2.1"\n}}\n}}'),
        lambda: DnsConfig("n", None, Path("/r"), upstreams=(f"192.0.2.1#{LONG}",)).routes(),
        lambda: ClusterConfig(upstream_dns=(f"192.0.2.1#{LONG}",)),
        lambda: parse(f"{LONG}:web:80"),
        lambda: parse(f"80:web:{LONG}"),
        lambda: parse_place(f"127.0.0.1:{LONG}"),
        proxy(metrics_address=f"192.0.2.1:{LONG}"),
        proxy(external_ips_reserved_ports=(f"1-{LONG}",)),
        proxy(node_port_addresses=(f"10.0.0.0/{LONG}",)),
        lambda: kubeproxyfile.read({"metricsBindAddress": f"0.0.0.0:{LONG}"}, backends.names()),
        lambda: settings.override(DnsConfig("n", None, Path("/r")), "dns", settings.assignments([f"dns.ttl={LONG}"])),
    ],
)
def test_a_setting(use: Callable[[], object]) -> None:
    with pytest.raises(REFUSED):
        use()


@pytest.mark.parametrize(
    "words",
    [
        ["explain", "192.0.2.1", f"192.0.2.2:{LONG}"],
        ["apiserver", "--data", "/tmp", "--listen", f"192.0.2.1:{LONG}"],
        ["join", f"https://192.0.2.1:{LONG}", "--token", "t" * 40],
        ["init", "--advertise", f"192.0.2.1:{LONG}"],
    ],
)
def test_a_command(words: list[str]) -> None:
    done = CliRunner().invoke(cli, words)
    assert done.exit_code and isinstance(done.exception, SystemExit), done.exception


def test_what_other_programs_say() -> None:
    """A resourceVersion of no server, and a scope that is no link."""
    versions = [{"metadata": {"resourceVersion": text}} for text in (LONG, "7")]
    assert _newer(versions[0], versions[1]) and _newer(versions[1], versions[0])
    with pytest.raises(OSError):
        exchange.socket_address(f"fe80::1%{LONG}", 53)


def test_an_object() -> None:
    """The API server refuses it, and what an older one stored stops no controller."""
    for text in (LONG, f"1.{LONG}", f"{LONG}Mi"):
        with pytest.raises(BadQuantity, match="digits"):
            parse_quantity(text)
    with pytest.raises(BadSchedule):
        parse_schedule(f"*/{LONG} * * * *")
    assert [cause.field for cause in at_most_all("maxUnavailable", f"{LONG}%")] == ["maxUnavailable"]
    assert controllers.resolve(f"{LONG}%", 2, up=True) > 0
    stored = {"metadata": {"annotations": {controllers.REVISION: LONG}}}
    assert controllers._revision(stored) == 0
