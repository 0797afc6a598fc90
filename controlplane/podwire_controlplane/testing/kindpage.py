"""Writes docs/api.md: `python -m podwire_controlplane.testing.kindpage`."""

from __future__ import annotations

from pathlib import Path

from podwire_base.kube.registry import BUILTIN

from ..kindtable import page

PAGE = Path(__file__).parents[3] / "docs" / "api.md"

if __name__ == "__main__":
    PAGE.write_text(page(BUILTIN))
