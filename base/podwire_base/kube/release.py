"""The release of Kubernetes whose API podwire speaks, and the version that clients see."""

from __future__ import annotations

from typing import Final

from ..version import VERSION

KUBERNETES: Final = "v1.36.2"


def git_version() -> str:
    """Return gitVersion of /version and kubeletVersion of a Node: Kubernetes' release, and ours as build metadata."""
    return f"{KUBERNETES}+podwire.{VERSION}"
