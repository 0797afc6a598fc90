"""What `podwire proxy` is told, from its flags and a kube-proxy file; and what it would do, without doing it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from podwire_base.kube import meta
from podwire_base.kube.client.config import ConfigError, load
from podwire_base.kube.client.http import ApiClient
from podwire_base.role import logs

from . import backends, kubeproxyfile
from .changes import Tracker
from .config import ProxyConfig, check

log = logs.get("proxy")
SERVICES, SLICES = "/api/v1/services", "/apis/discovery.k8s.io/v1/endpointslices"
SERVICE_LABELS, SLICE_LABELS = "!service.kubernetes.io/service-proxy-name", "!service.kubernetes.io/headless"


async def dry_run(config: ProxyConfig) -> list[str]:
    """What a first sync would write into an empty kernel, one line a step. Raises ApiError, ConfigError."""
    check(config)
    async with ApiClient(load(config.kubeconfig)) as api:
        node = await api.get("/api/v1/nodes", fieldSelector=f"metadata.name={config.node_name}")
        services = await api.get(SERVICES, labelSelector=SERVICE_LABELS)
        slices = await api.get(SLICES, labelSelector=SLICE_LABELS)
    tracker = Tracker(config.node(next(iter(node["items"]), None)))
    for obj in services["items"]:
        tracker.service(meta.key(obj), obj)
    for obj in slices["items"]:
        tracker.slice(meta.key(obj), obj)
    tracker.flush()
    return list(backends.choose(config.backend, config.iptables_variant).plan(tracker.dataplane))


def configured(file: Path | None, flags: Mapping[str, Any]) -> ProxyConfig:
    """A KubeProxyConfiguration file and flags; a flag that is given wins. Raises ConfigError; notes are logged."""
    fields: dict[str, Any] = {}
    if file is not None:
        try:
            fields, notes = kubeproxyfile.read(yaml.safe_load(file.read_text()))
        except (OSError, yaml.YAMLError, UnicodeDecodeError) as err:
            raise ConfigError(f"{file}: {err}") from err
        except ConfigError as err:
            raise ConfigError(f"{file}: {err}") from err
        for note in notes:
            log.warn("configuration", file=str(file), note=note)
        fields.setdefault("cluster_cidrs", ())  # to kube-proxy, no clusterCIDR means that nobody counts as a pod
    fields = {"node_name": "", "kubeconfig": None, **fields, **{name: value for name, value in flags.items() if value}}
    if not fields["node_name"]:
        raise ConfigError("node_name: missing; give --node-name, or hostnameOverride in the file")
    return ProxyConfig(**fields)
