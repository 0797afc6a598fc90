"""netns-tests need root; without it they are left out and the run says so (make test does, and runs the rest).

    pytest netns-tests                                          everything; Service behaviours on each of podwire's
    dataplanes pytest netns-tests --dataplane podwire-nftables             the Service behaviours alone, on that
    dataplane pytest netns-tests --dataplane external --dataplane-hook F  the same, on whatever the program F drives
    (lab/dataplane.py)
        --dataplane-report DIR                                  write the table of what held as Markdown and SVG

When a test fails, the state of its namespaces (rules, routes, neighbours, conntrack, packets) is kept under --evidence.
"""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from lab import evidence
from lab.dataplane import ALIASES, OURS, Dataplane, make
from lab.debian import Absent
from lab.matrix import Cell, Matrix, sampled
from lab.netns import Lab
from podwire_proxy.testing.scenarios import Affinity, Scenario

HERE = Path(__file__).parent
CELLS = pytest.StashKey[list[Cell]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("podwire", "what the packets pass through")
    group.addoption(
        "--dataplane",
        action="append",
        choices=[*OURS, *ALIASES, "external"],
        help="run the Service behaviours alone, on this dataplane; may be given several times",
    )
    group.addoption("--dataplane-hook", type=Path, help="the program that applies Services for --dataplane external")
    group.addoption(
        "--all-rows",
        action="store_true",
        help="every IPv6 row of the conformance table, not a third of them",
    )
    group.addoption("--dataplane-report", type=Path, help="folder for conformance.md and conformance.svg")
    group.addoption(
        "--evidence", type=Path, default=HERE / ".evidence", help="folder for what failed tests leave to read"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[CELLS] = []
    config.pluginmanager.register(_Cells(config.stash[CELLS]))
    external, hook = "external" in (config.getoption("--dataplane") or ()), config.getoption("--dataplane-hook")
    if external and not hook:
        raise pytest.UsageError(
            "--dataplane external needs --dataplane-hook PROGRAM (see netns-tests/lab/dataplane.py)"
        )
    if hook and not external:
        raise pytest.UsageError(f"--dataplane-hook {hook} is not asked without --dataplane external")
    if hook and not (hook.is_file() and os.access(hook, os.X_OK)):
        raise pytest.UsageError(f"--dataplane-hook {hook} is no program that can be run (chmod +x)")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "dataplane" in metafunc.fixturenames:
        given = metafunc.config.getoption("--dataplane") or list(OURS)
        names = dict.fromkeys(name for one in given for name in ALIASES.get(one, [one]))
        metafunc.parametrize("dataplane", names, indirect=True, scope="module")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    mine = [item for item in items if HERE in item.path.parents]
    if not (config.getoption("--all-rows") or os.environ.get("PODWIRE_LONG")):
        spared = {item for item in mine if not all(map(sampled, _rows(item)))}
        config.hook.pytest_deselected(items=list(spared))
        items[:] = [item for item in items if item not in spared]
        mine = [item for item in mine if item not in spared]
    if os.geteuid():
        mark = pytest.mark.skip(reason="network namespaces need root")
        for item in mine:
            item.add_marker(mark)
    if config.getoption("--dataplane"):
        others = [item for item in mine if "dataplane" not in getattr(item, "fixturenames", ())]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item not in set(others)]


def _rows(item: pytest.Item) -> list[str]:
    """Names of the rows of the conformance table that a test covers."""
    params = item.callspec.params.values() if hasattr(item, "callspec") else ()
    return [value.name for value in params if isinstance(value, Scenario | Affinity)]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report: pytest.TestReport = yield  # type: ignore[assignment]  # the hook's result, which stubs do not know
    if report.failed and HERE in item.path.parents:
        phase = "" if report.when == "call" else f" {report.when}"
        kept = evidence.keep(item.config.getoption("--evidence"), item.nodeid + phase)
        if kept:
            report.sections.append(("evidence", "\n".join(str(path) for path in kept)))
    where = getattr(item, "callspec", None)
    if where is not None and "dataplane" in where.params and (report.when == "call" or report.failed):
        why = str(call.excinfo.value) if call.excinfo else ""
        report.user_properties.append(("cell", asdict(_cell(item, where.params, report, why))))
    return report  # type: ignore[return-value]


def _cell(item: pytest.Item, params: dict[str, object], report: pytest.TestReport, why: str) -> Cell:
    """The row is the name of the scenario, or else that of the test."""
    named = [value.name for key, value in params.items() if key != "dataplane" and hasattr(value, "name")]
    row = str(named[0]) if named else getattr(item, "originalname", item.name).removeprefix("test_").replace("_", " ")
    family = "IPv6" if row.endswith(" (IPv6)") or params.get("family") == "IPv6" else "IPv4"
    result = "passed" if report.passed else "lacking" if report.skipped else "failed"
    note = " ".join(why.split())
    module = item.path.stem.removeprefix("test_").replace("_", " ")
    return Cell(module, row.removesuffix(" (IPv6)"), str(params["dataplane"]), family, result, note[:200])  # type: ignore[arg-type]


class _Cells:
    """Collects the cells from the reports, also from those of other processes (pytest -n)."""

    def __init__(self, cells: list[Cell]) -> None:
        self.cells = cells

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.cells += [Cell(**value) for name, value in report.user_properties if name == "cell"]  # type: ignore[arg-type]  # as _cell made it


def pytest_sessionfinish(session: pytest.Session) -> None:
    folder, cells = session.config.getoption("--dataplane-report"), session.config.stash[CELLS]
    if folder and cells and not hasattr(session.config, "workerinput"):
        folder.mkdir(parents=True, exist_ok=True)
        matrix = Matrix(cells, f"Service behaviours, on packets (Linux {platform.release()})")
        (folder / "conformance.md").write_text(matrix.markdown())
        (folder / "conformance.svg").write_text(matrix.svg())


@contextlib.contextmanager
def _skipped_where_absent() -> Iterator[None]:
    """A program that this Debian release does not have affects only its own tests, which are skipped by name."""
    try:
        yield
    except Absent as err:
        pytest.skip(str(err))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Iterator[None]:
    with _skipped_where_absent():
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    with _skipped_where_absent():
        yield


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


@pytest.fixture(scope="module")
def dataplane(request: pytest.FixtureRequest) -> Dataplane:
    return make(request.param, request.config.getoption("--dataplane-hook"))


@pytest.fixture(scope="session", autouse=True)
def _own_lock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Programs of legacy iptables share one lock of the machine, which namespaces do not separate: parallel tests get a
    lock each.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XTABLES_LOCKFILE", str(tmp_path_factory.mktemp("lock") / "xtables.lock"))
        yield


@pytest.fixture(autouse=True)
def _fresh_evidence() -> None:
    """Packets of an earlier test are no evidence for this one."""
    evidence.forget()
