"""docs/api.md agrees with the registry."""

from __future__ import annotations

from podwire_base.kube.registry import BUILTIN, Registry

from ..kindtable import page
from ..testing.kindpage import PAGE


def test_the_page_is_current() -> None:
    assert PAGE.read_text() == page(BUILTIN), "run `python -m podwire_controlplane.testing.kindpage`"


def test_every_kind_has_a_row() -> None:
    text = page(BUILTIN)
    assert all(f"| {row.kind} | `{row.plural}" in text for row in BUILTIN.resources)
    assert text.count("| cluster |") + text.count("| namespace |") == len(BUILTIN.resources)
    fewer = page(Registry(BUILTIN.resources[1:]))
    assert fewer != text
