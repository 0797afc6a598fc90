"""Shared by all test folders: how many examples the property tests draw (`make test-long`: 500, `make test`: 25, and
where PODWIRE_PATIENCE says that the machine is slow, 5). Those of `make test` are the same each time, so
that it judges the change and not the draw; `make test-long` looks for new ones.

`make test-long` also draws the order of the files and of the tests in each, but not in a file with the mark `story`,
whose tests are steps that build on each other; PODWIRE_ORDER=NUMBER repeats one. Otherwise the files that take longest
come first, so that of two processes that share the files neither waits long for the other.

At the end, how long each part's tests took.
"""

from __future__ import annotations

import gc
import os
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

import kubeschema
from podwire_base.patience import FACTOR
from podwire_base.role import logs

_QUIET = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
settings.register_profile("ci", max_examples=25, deadline=None, suppress_health_check=_QUIET, derandomize=True)
settings.register_profile("long", max_examples=500, deadline=None, suppress_health_check=_QUIET)
settings.register_profile("slow", max_examples=5, deadline=None, suppress_health_check=_QUIET, derandomize=True)
settings.load_profile("long" if os.environ.get("PODWIRE_LONG") else "slow" if FACTOR > 1 else "ci")

ROOT = Path(__file__).parent
if not (ROOT / kubeschema.SCHEMA).exists():  # a tree whose installation is older than the schema
    kubeschema.build(ROOT)

# The part of the tree that a file's tests belong to; the first match counts. The rest: the cluster, the lab and its
# documents.
_PARTS = (
    ("CNI", r"cni/|test_(cni|chains|runtimes|podman|pause|echo|sanitized)"),
    ("proxy", r"proxy/|test_(proxy|nft|service)"),
    ("DNS", r"dns/|test_dns"),
    ("control plane", r"controlplane/|base/|app/"),
    ("the rest", ""),
)
_TOOK: Counter[str] = Counter()

# Files with much work (30 seconds with packets, 10 without) by `pytest --durations=0`; the others follow by name.
_LONGEST = (
    "dns/podwire_dns/tests/test_survival.py",
    "policy/podwire_policy/tests/test_mutations.py",
    "proxy/podwire_proxy/tests/test_backends.py",
    "policy/podwire_policy/tests/test_table.py",
    "app/podwire/tests/test_deploy.py",
    "base/podwire_base/tests/test_watching.py",
    "app/podwire/tests/test_walls.py",
    "dns/podwire_dns/tests/test_rights.py",
    "controlplane/podwire_controlplane/tests/test_recordings.py",
    "base/podwire_base/tests/test_written_once.py",
    "app/podwire/tests/test_kubeconfigs.py",
    "tools/nativebuild/tests/test_build.py",
    "controlplane/podwire_controlplane/tests/test_watchers.py",
    "app/podwire/tests/test_identity.py",
    "app/podwire/tests/test_join.py",
    "controlplane/podwire_controlplane/tests/test_records.py",
    "controlplane/podwire_controlplane/tests/test_more_workloads.py",
    "proxy/podwire_proxy/tests/test_l2.py",
    "netns-tests/test_provision.py",
    "netns-tests/test_proxy_conformance.py",
    "netns-tests/test_proxy_iptables.py",
    "netns-tests/test_cluster.py",
    "netns-tests/test_upgrade.py",
    "netns-tests/test_proxy_live.py",
    "netns-tests/test_cni_crashes.py",
    "netns-tests/test_dns_settings.py",
    "netns-tests/test_dns_upstreams.py",
    "netns-tests/test_proxy_faults.py",
    "netns-tests/test_proxy_balancers.py",
    "netns-tests/test_dataplanes.py",
    "netns-tests/test_proxy_iptables_cluster.py",
)


def pytest_configure(config: pytest.Config) -> None:
    gc.disable()  # until the tests are collected
    if os.environ.get("PODWIRE_LONG"):  # from the environment, so that every process of a run uses the same order
        os.environ.setdefault("PODWIRE_ORDER", str(random.SystemRandom().randrange(10**6)))
    if worker := os.environ.get("PYTEST_XDIST_WORKER"):
        share = int(worker.removeprefix("gw")) / int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
        config.args = _from(share, config.args)


def _from(share: float, args: list[str]) -> list[str]:
    """Return the test files of folders, beginning after a share of them. pytest compiles each file with its own
    `assert`, which takes more time than all imports. Processes that begin at different files find those of the others
    compiled (`make test` keeps them in .venv).
    """
    folders = [Path(arg) for arg in args]
    if not all(folder.is_dir() for folder in folders):
        return args
    files = [str(file) for folder in folders for file in sorted(folder.rglob("test_*.py"))]
    first = round(share * len(files))
    return files[first:] + files[:first]


@pytest.hookimpl(tryfirst=True)  # pytest then groups tests that share an expensive fixture
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    files: defaultdict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        files[item.nodeid.split("::")[0]].append(item)
    order = sorted(files, key=lambda name: (_LONGEST.index(name) if name in _LONGEST else len(_LONGEST), name))
    if drawn := os.environ.get("PODWIRE_ORDER"):
        draw = random.Random(drawn)
        draw.shuffle(order)
        for name in order:
            if not any(item.get_closest_marker("story") for item in files[name]):
                draw.shuffle(files[name])
    items[:] = [item for name in order for item in files[name]]


def pytest_collection_finish() -> None:
    """The modules and tests, some million objects, stay until the end: the garbage collector passes them over. While
    they were made it did not run, and would have found nothing.
    """
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def _own_log_settings() -> Iterator[None]:
    """A command that a test calls in this process sets the format of the log; the next test begins without it."""
    yield
    logs.configure()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    part = next(name for name, files in _PARTS if re.search(files, report.nodeid))
    _TOOK[part] += report.duration


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if drawn := os.environ.get("PODWIRE_ORDER"):
        terminalreporter.write_line(f"order: PODWIRE_ORDER={drawn}")
    if sum(_TOOK.values()) > 60:
        took = ", ".join(f"{name} {seconds / 60:.1f}" for name, seconds in _TOOK.most_common())
        terminalreporter.write_line(f"minutes: {took}")
