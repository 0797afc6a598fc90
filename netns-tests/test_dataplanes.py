"""The suite against another proxy, called on the command line as a user would, and the files that a failed row
leaves."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from scapy.layers.inet import TCP
from scapy.utils import PcapNgReader

from lab.dataplane import OURS
from lab.evidence import pcapng
from lab.matrix import Cell, Matrix, sampled
from lab.patience import patient
from podwire_proxy.testing import scenarios as s

HERE = Path(__file__).parent
HOOK = HERE / "hooks" / "clusterip-only"


def suite(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words],
        cwd=HERE.parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=patient(120),
    )


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run against a proxy that implements ClusterIPs only: some rows pass, and others must be reported as failed."""
    folder = tmp_path_factory.mktemp("stub")
    done = suite(
        str(HERE),
        "--all-rows",
        "--dataplane",
        "external",
        "--dataplane-hook",
        str(HOOK),
        "--dataplane-report",
        str(folder),
        "--evidence",
        str(folder / "evidence"),
        "-k",
        "test_real_packets and ((hairpin and not Local) or (endpoint and outside and not policy) or alone)",
    )
    assert done.returncode == 1, done.stdout + done.stderr
    return folder, done.stdout


def test_another_proxy_is_judged_by_the_same_rows(stub: tuple[Path, str]) -> None:
    table = (stub[0] / "conformance.md").read_text()
    rows = {
        line.split(" | ")[0].strip("| "): line.split("|")[2:-1] for line in table.splitlines() if line.startswith("| ")
    }
    assert [cell.strip() for cell in rows["an endpoint outside the cluster"]] == ["✓", "✓"]
    assert [cell.strip() for cell in rows["pod to pod is left alone"]] == ["✓", "✓"]
    assert [cell.strip() for cell in rows["hairpin"]] == ["✗", "✗"]  # it never masquerades
    assert "external IPv4, hairpin: failed:" in table
    svg = (stub[0] / "conformance.svg").read_text()
    assert (svg.count("#2da44e"), svg.count("#cf222e")) == (4 + 1, 2 + 1), "and the legend"


def test_a_failed_row_leaves_its_packets_and_rules(stub: tuple[Path, str]) -> None:
    folder, said = stub
    (where,) = [path for path in (folder / "evidence").iterdir() if path.name.endswith("external-hairpin")]
    assert str(where) in said
    rules = (where / "node.txt").read_text()
    assert "table inet stub" in rules
    assert "$ ip route show table all" in rules
    with PcapNgReader(str(where / "node.pcapng")) as reader:
        seen = [packet for packet in reader if TCP in packet]
    assert any(packet[TCP].dport == 80 for packet in seen)
    assert {packet.sniffed_on for packet in seen} >= {"veth1"}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--dataplane", "external"], "--dataplane-hook"),
        (["--dataplane", "other"], "podwire-nftables"),
        (["--dataplane", "external", "--dataplane-hook", "/no/such"], "/no/such"),
        (["--dataplane", "external", "--dataplane-hook", str(HERE / "README.md")], "chmod +x"),
        (["--dataplane-hook", str(HOOK)], "without --dataplane external"),
    ],
)
def test_wrong_options_are_named(words: list[str], told: str) -> None:
    done = suite(str(HERE / "test_proxy_conformance.py"), "-k", "hairpin", *words)
    assert done.returncode != 0
    assert told in done.stdout + done.stderr


def test_frames_are_kept_with_interface_and_time(tmp_path: Path) -> None:
    frames = [
        ("eth0", 1_700_000_000_000_000_001, b"\x02" * 60),
        ("lo", 1_700_000_000_000_000_500, b"\x04" * 61),
        ("eth0", 1_700_000_001_000_000_000, b"\x06" * 14),
    ]
    path = tmp_path / "frames.pcapng"
    path.write_bytes(pcapng(frames))
    with PcapNgReader(str(path)) as reader:
        got = [(p.sniffed_on, bytes(p), float(p.time)) for p in reader]
    assert [(name, data) for name, data, _ in got] == [(name, data) for name, _, data in frames]
    assert [round(when) for _, _, when in got] == [1_700_000_000, 1_700_000_000, 1_700_000_001]


def test_a_row_holds_when_all_its_tests_do() -> None:
    one = Cell("g", "row", "a", "IPv4", "passed")
    table = Matrix(
        [
            one,
            Cell("g", "row", "a", "IPv4", "failed", "why"),
            Cell("g", "row", "b", "IPv4", "lacking", "no SCTP"),
            Cell("g", "other", "a", "IPv4", "passed"),
        ],
        "T",
    )
    assert (table.counts(("a", "IPv4")), table.counts(("b", "IPv4"))) == ((1, 1, 0), (0, 0, 1))
    assert "| row | ✗ | – |" in table.markdown()
    assert "- b IPv4, row: lacking: no SCTP" in table.markdown()
    assert "| other | ✓ |   |" in table.markdown()


def test_the_committed_table_is_of_this_suite() -> None:
    """`make conformance` draws it again: it has every dataplane and exactly the tested behaviours."""
    lines = (HERE.parent / "docs" / "conformance.md").read_text().splitlines()
    heads = {cell.strip().rpartition(" ")[0] for cell in lines[2].split("|")[2:-1]}
    assert heads == set(OURS)
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[5:] if line.startswith("| ")]
    asked = {row.name for row in s.SCENARIOS} | {row.name for row in s.AFFINITY}
    for file in ("test_proxy_conformance.py", "test_service_packets.py"):
        tests = re.findall(r"^def test_(\w+)\(([^)]*)\)", (HERE / file).read_text(), re.M)
        asked |= {name.replace("_", " ") for name, takes in tests if "dataplane:" in takes and ": s." not in takes}
    assert {row[0] for row in cells if not row[0].startswith("**")} == asked
    assert not [row for row in cells if {"✗", "–"} & set(row)]
    assert (HERE.parent / "docs" / "conformance.svg").read_text().count("#2da44e") == sum(
        row.count("✓") for row in cells
    ) + 1


def test_a_third_of_the_ipv6_rows_stands_for_all() -> None:
    rows = [*(row.name for row in s.SCENARIOS), *(row.name for row in s.AFFINITY)]
    six = [f"{name} (IPv6)" for name in rows if sampled(f"{name} (IPv6)")]
    assert all(map(sampled, rows)), "every IPv4 row is judged"
    assert len(rows) / 4 < len(six) < len(rows) / 2
    assert (six[0], "Cluster/Cluster, TCP (IPv6)" in six) == ("externalTrafficPolicy Local (IPv6)", False), (
        "always these"
    )
