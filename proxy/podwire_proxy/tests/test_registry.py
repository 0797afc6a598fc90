"""Adding a backend touches backends.py and the backend's own folder: no other module names one, and an unknown third
one works with the registry, the driver and the settings.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from podwire_base.kernel.reasons import Reason
from podwire_base.kube.errors import ConfigError
from podwire_proxy import backends
from podwire_proxy.backend import dry_run
from podwire_proxy.config import ProxyConfig
from podwire_proxy.metrics import Metrics
from podwire_proxy.model import NodeInfo
from podwire_proxy.testing import scenarios as s

from .toy import Toy

ROOT = Path(__file__).parents[3]
PARTS = ("app", "base", "cni", "controlplane", "dns", "policy", "proxy")
# The names of backends outside their folders, each with the reason why a new backend need not be named there.
ALLOWED = {
    ("cni/podwire_cni/bridgeplugin.py", "nftables"): "a value of a key of the reference bridge plugin",
    ("app/podwire/cluster/config.py", "nftables"): "the default of a setting",
    ("app/podwire/explain/observe.py", "iptables"): "reads tables of iptables-legacy, whoever wrote them",
    ("app/podwire/explain/legacy.py", "iptables"): "parses rules of iptables-legacy, whoever wrote them",
    ("app/podwire/deploy/image.py", "iptables"): "the name of Debian's package",
    ("app/podwire/compiled.py", "ebpf"): "the folder of a program that clang compiles",
    ("app/podwire/drops/watch.py", "ebpf"): "a tracer that is made of eBPF, whatever the proxy's backend is",
    ("app/podwire/cluster/hooks.py", "ebpf"): "it makes what this backend alone needs: cgroups and a bpffs",
    ("app/podwire/report/collect.py", "iptables"): "the program, whose version a report tells",
    ("proxy/podwire_proxy/config.py", "nftables"): "the default of a setting",
    ("proxy/podwire_proxy/kubeproxyfile.py", "nftables"): "a section of kube-proxy's own format",
    ("proxy/podwire_proxy/kubeproxyfile.py", "iptables"): "a section of kube-proxy's own format",
}


def shipped() -> Iterator[Path]:
    for part in PARTS:
        for path in (ROOT / part).rglob("*.py"):
            own = path.parent.parent.name == "podwire_proxy" and path.parent.name in backends.names()
            if not own and "tests" not in path.parts and path.name != "backends.py":
                yield path


def named(tree: ast.AST) -> Iterator[str]:
    """Backends that a module imports, or names in a string."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            words = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            yield from (part for word in words for part in word.split(".") if part in backends.names())
        elif isinstance(node, ast.Constant) and node.value in backends.names():
            yield str(node.value)


def test_no_backend_is_named_outside_of_its_folder_and_the_registry() -> None:
    found = set()
    for path in shipped():
        text = path.read_text()
        if any(name in text for name in backends.names()):  # most files name none and need no syntax tree
            found |= {(str(path.relative_to(ROOT)), name) for name in named(ast.parse(text))}
    assert found == set(ALLOWED)


def test_the_scan_sees_imports_and_names() -> None:
    text = 'from podwire_proxy.iptables import plan\nfrom . import nftables\nif x == "iptables":\n    pass\n'
    assert sorted(named(ast.parse(text))) == ["iptables", "iptables", "nftables"]


@dataclass(frozen=True)
class WithToy(ProxyConfig):
    toy_colour: str = "red"


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Toy:
    made = Toy()
    monkeypatch.setattr(backends, "ALL", (*backends.ALL, made))
    return made


def config(**fields: str) -> WithToy:
    return WithToy("n1", None, Path("/nowhere"), **fields)  # type: ignore[arg-type]  # fields of text


def test_a_backend_that_is_none_is_refused_by_name() -> None:
    for wrong in ("ipvs", "nftables-legacy", "", "iptables-xt"):
        with pytest.raises(ConfigError, match="is none of nftables, iptables, iptables-nft, iptables-legacy"):
            backends.chosen(wrong)


def test_a_third_backend_is_chosen_checked_and_planned(toy: Toy) -> None:
    assert backends.names()[-1] == "toy"
    assert backends.choices()[-2:] == ("toy", "toy-blue")
    assert backends.chosen("toy-blue") == {"backend": "toy", "iptables_variant": "auto", "toy_colour": "blue"}
    backends.check(config(backend="toy", toy_colour="blue"))
    with pytest.raises(ConfigError, match="toy_colour: 'green' is not known; use 'red' or 'blue'"):
        backends.check(config(backend="toy", toy_colour="green"))
    assert backends.configured(config(backend="toy")) is toy
    assert "toy chest" in backends.places()
    tracker = s.SCENARIOS[0].tracker()
    tracker.flush()
    assert len(list(dry_run(toy, tracker.dataplane))) == 1 + len(tracker.dataplane.frontends)


def test_a_third_backend_goes_through_the_driver(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    """sync, sweep, watch, count, retire and close, without a kernel."""
    tracker = s.SCENARIOS[0].tracker()
    tracker.flush()
    proxier = backends.proxier(s.INFO, choice="toy")
    done = proxier.sync(tracker.dataplane, None)
    assert (done.full, done.elements) == (True, len(tracker.dataplane.frontends))
    assert proxier.flows.pending, "flows are checked after the first sync"
    assert not proxier.unswept
    proxier.sweep_rules()
    assert proxier.watch() == []
    assert proxier.counted() == {Reason.INVALID_STATE: 7}
    assert proxier.rule_counts() == {("ip", "toy"): len(tracker.dataplane.frontends)}
    metrics = Metrics(names=toy.metrics, rules=proxier.rule_counts, seen=proxier.counted())
    page = metrics.render()
    assert 'toy_rules{ip_family="IPv4",table="toy"}' in page
    assert 'toy_failures{ip_family="IPv4"} 0' in page
    assert "podwire_proxy_ct_state_invalid_dropped_packets_total 7" in page
    other = Toy()
    other.name = "another toy"
    other.chest.states["ip"] = toy.chest.states["ip"]
    monkeypatch.setattr(backends, "ALL", (other, toy))
    live = backends.observe()
    assert live is not None
    assert live.place == "a toy"
    assert backends.existing() == [f"{len(tracker.dataplane.frontends)} toys"] * 2
    assert backends.retire(proxier) == [f"{len(tracker.dataplane.frontends)} toys", "an older toy"]
    assert backends.foreign()[0].findings == ("a foreign toy",)
    proxier.close()
    assert toy.chest.closed
    assert backends.cleanup() == [f"{len(tracker.dataplane.frontends)} toys"]


def test_a_change_goes_through_the_driver(toy: Toy) -> None:
    node = NodeInfo("n1", (s.NODE_IP,), "", s.INFO.pod_cidrs, s.INFO.service_cidrs)
    tracker = s.SCENARIOS[0].tracker()
    tracker.flush()
    proxier = backends.proxier(node, choice="toy")
    proxier.sync(tracker.dataplane, None)
    proxier.flows.look()
    tracker.service("default/my-service", None)
    done = proxier.sync(tracker.dataplane, tracker.flush())
    assert (done.full, done.elements, toy.chest.states["ip"].frontends) == (False, 4, {})
    assert proxier.flows.pending
