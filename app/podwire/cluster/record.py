"""The file in a cluster's run directory that records the cluster's configuration."""

from __future__ import annotations

from . import config


def save(cluster: config.ClusterConfig) -> None:
    cluster.record.write_text(cluster.to_json())


def load(name: str) -> config.ClusterConfig | None:
    """Return the record of a cluster that runs or was not removed, None if there is no record."""
    try:
        return config.parse((config.BASE / name / "cluster.json").read_text())
    except (OSError, UnicodeDecodeError):
        return None
