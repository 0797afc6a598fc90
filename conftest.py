"""Shared by all test folders: how many examples the property tests draw (`make test`: a tenth of `make test-long`), and
where PODWIRE_PATIENCE says that the machine is slow, a tenth of that. Those of `make test` are the same each time, so
that it judges the change and not the draw; `make test-long` looks for new ones. At the end, how long each part's tests
took."""

from __future__ import annotations

import os
import re
from collections import Counter

import pytest
from hypothesis import HealthCheck, settings

from podwire_base.patience import FACTOR

_QUIET = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
settings.register_profile("ci", max_examples=50, deadline=None, suppress_health_check=_QUIET, derandomize=True)
settings.register_profile("long", max_examples=500, deadline=None, suppress_health_check=_QUIET)
settings.register_profile("slow", max_examples=5, deadline=None, suppress_health_check=_QUIET, derandomize=True)
settings.load_profile("long" if os.environ.get("PODWIRE_LONG") else "slow" if FACTOR > 1 else "ci")

# The part whose tests a file has; the first that matches. What is left: the cluster, the lab and its documents.
_PARTS = (
    ("CNI", r"cni/|test_(cni|chains|runtimes|podman|pause|native)"),
    ("proxy", r"proxy/|test_(proxy|nft|service)"),
    ("DNS", r"dns/|test_dns"),
    ("control plane", r"controlplane/|base/|app/"),
    ("the rest", ""),
)
_TOOK: Counter[str] = Counter()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    part = next(name for name, files in _PARTS if re.search(files, report.nodeid))
    _TOOK[part] += report.duration


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if sum(_TOOK.values()) > 60:
        took = ", ".join(f"{name} {seconds / 60:.1f}" for name, seconds in _TOOK.most_common())
        terminalreporter.write_line(f"minutes: {took}")
