"""Build hook of hatchling: compiles the C (tools/nativebuild/) into the packages that carry it, and writes
the schema of Kubernetes' API (tools/kubeschema/).

Without a compiler or headers the install still works: Python replaces the missing parts, slower, and `podwire status`
reports that. The parts that were built determine the wheel's tag.
"""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class NativeBuild(BuildHookInterface[Any]):
    """Hatchling calls `initialize` for wheels and for editable installs alike."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        root = Path(self.root)
        sys.path[:0] = [str(root / "tools"), str(root / "base")]  # hatchling loads this file alone
        try:
            import kubeschema
            from nativebuild import builder, units
        finally:
            del sys.path[:2]
        built, warnings = builder.build(root)
        for warning in warnings:
            self.app.display_warning(warning)
        texts = [unit.missing for unit in units.EVERYTHING if unit not in built]
        build_data["artifacts"] += kubeschema.build(root)
        build_data["artifacts"] += [*(unit.output for unit in built), *texts]
        tag = units.wheel_tag(built, sysconfig.get_platform())
        if tag is not None and version != "editable":
            build_data["pure_python"] = False
            build_data["tag"] = tag
