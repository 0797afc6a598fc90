"""The file in a cluster's run directory that says how it was started."""

from __future__ import annotations

from . import config


def save(cluster: config.ClusterConfig) -> None:
    cluster.record.write_text(cluster.to_json())


def load(name: str) -> config.ClusterConfig | None:
    """The record of a cluster that is (or was) up; None if there is none."""
    try:
        return config.parse((config.BASE / name / "cluster.json").read_text())
    except (OSError, UnicodeDecodeError):
        return None
