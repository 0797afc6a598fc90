"""The release of Kubernetes whose API podwire speaks, and the version that clients see."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Final

KUBERNETES: Final = "v1.36.2"


@cache
def git_version() -> str:
    """Return gitVersion of /version and kubeletVersion of a Node: Kubernetes' release, and ours as build metadata."""
    try:
        own = version("podwire")
    except PackageNotFoundError:  # a source tree that is not installed
        own = "0"
    return f"{KUBERNETES}+podwire.{own}"
