"""Reads the configuration file of the proxy role, and shows the rules that the role would write."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from podwire_base.kube import meta
from podwire_base.kube.client.config import load
from podwire_base.kube.client.http import ApiClient
from podwire_base.kube.errors import ConfigError
from podwire_base.role import logs

from . import backends
from .backend import dry_run as written
from .changes import Tracker
from .config import NODES, ProxyConfig, claimable
from .settings import SERVICE_LABELS, SERVICES, SLICE_LABELS, SLICES, merged, of_file

log = logs.get("proxy")


async def dry_run(config: ProxyConfig) -> list[str]:
    """Returns one line for each step of a first sync into an empty kernel. Raises ApiError, ConfigError."""
    backends.check(config)
    async with ApiClient(load(config.kubeconfig)) as api:
        nodes = (await api.get(NODES))["items"]
        services = await api.get(SERVICES, labelSelector=SERVICE_LABELS)
        slices = await api.get(SLICES, labelSelector=SLICE_LABELS)
    made = config.node(next((node for node in nodes if meta.name(node) == config.node_name), None))
    tracker = Tracker(replace(made, claimable=claimable(config, nodes)))
    for obj in services["items"]:
        tracker.service(meta.key(obj), obj)
    for obj in slices["items"]:
        tracker.slice(meta.key(obj), obj)
    tracker.flush()
    for service, problems in tracker.refusals.items():
        for problem in problems:
            log.warn("externalIP of a Service is refused", service=service, problem=problem)
    return list(written(backends.configured(config), tracker.dataplane))


def configured(file: Path | None, flags: Mapping[str, Any]) -> ProxyConfig:
    """Merges a KubeProxyConfiguration file and flags, and logs notes. Raises ConfigError.

    A given flag overrides the file.
    """
    fields: dict[str, Any] = {}
    if file is not None:
        try:
            document = yaml.safe_load(file.read_text())
            fields = of_file(
                document, backends.names(), lambda note: log.warn("configuration", file=str(file), note=note)
            )
        except (OSError, yaml.YAMLError, UnicodeDecodeError, ConfigError) as err:
            raise ConfigError(f"{file}: {err}") from err
        fields = {**fields, "node_name": fields.get("node_name") or socket.gethostname().strip().lower()}
    return merged(fields, flags)
