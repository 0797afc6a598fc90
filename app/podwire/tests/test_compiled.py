"""The list of parts that are not compiled gives the reason and the cost, and `podwire status` finds every part."""

from __future__ import annotations

from pathlib import Path

import pytest

from nativebuild import units
from podwire import compiled
from podwire.compiled import Missing
from podwire_base.native import Library
from podwire_base.role import native as role
from podwire_cni import native as cni
from podwire_cni.native import attach
from podwire_dns import native as dns
from podwire_node import runtime
from podwire_proxy.ebpf import native as ebpf

PARTS = [
    "podwire-cni",
    "podwire-pause",
    "podwire-beat",
    "podwire-echo",
    "bypass.bpf",
    "drops.bpf",
    "sock.bpf",
    "the attach module",
    "the packets module",
]


def test_nothing_is_said_where_all_is_compiled() -> None:
    assert compiled.lines([]) == []


def test_a_reason_that_several_have_stands_once() -> None:
    no_header = "no Python.h (Debian: python3-dev)"
    found = [
        Missing("podwire-cni", "20 ms", "musl-gcc: cannot execute 'as'\nmore words"),
        Missing("the attach module", "slower pods", no_header),
        Missing("the packets module", "slower DNS", no_header),
    ]
    text = compiled.lines(found)
    assert "slower" in text[0] and compiled.REMEDY in text[-1]
    assert text[1:-1] == [
        "  podwire-cni (20 ms): musl-gcc: cannot execute 'as'",
        f"  the attach module (slower pods), the packets module (slower DNS): {no_header}",
    ]


def test_every_part_of_the_build_is_looked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cni, "FOLDER", tmp_path)
    monkeypatch.setattr(runtime, "NATIVE", tmp_path)
    monkeypatch.setattr(role, "FOLDER", tmp_path)
    monkeypatch.setattr(ebpf, "FOLDER", tmp_path)
    for module in (attach, dns):
        monkeypatch.setattr(module, "library", lambda: Library(None, "it is stale"))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "podwire-cni.missing").write_text("no C compiler\n")
    found = compiled.missing()
    assert [part.name for part in found] == PARTS
    assert len(found) == len(units.EVERYTHING)
    assert (found[0].why, found[7].why) == ("no C compiler", "it is stale")
