"""Merges the flags of `podwire proxy` with a kube-proxy file. Pure; offline.py reads the file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from podwire_base.kube.errors import ConfigError

from . import kubeproxyfile
from .config import ProxyConfig

SERVICES, SLICES = "/api/v1/services", "/apis/discovery.k8s.io/v1/endpointslices"
SERVICE_LABELS, SLICE_LABELS = "!service.kubernetes.io/service-proxy-name", "!service.kubernetes.io/headless"


def of_file(document: Any, served: Sequence[str], note: Callable[[str], None]) -> dict[str, Any]:
    """Returns the fields that a KubeProxyConfiguration sets, with kube-proxy's defaults. Raises ConfigError.

    served: names of the backends, the default first. note: gets each setting that podwire handles differently.
    """
    fields, notes = kubeproxyfile.read(document, served)
    for one in notes:
        note(one)
    return {**kubeproxyfile.silent(document), **fields}


def merged(fields: Mapping[str, Any], flags: Mapping[str, Any]) -> ProxyConfig:
    """Returns the settings. A given flag overrides the field of the file. Raises ConfigError."""
    given = {name: value for name, value in flags.items() if value}
    config = {"node_name": "", "kubeconfig": None, **fields, **given}
    if not config["node_name"]:
        raise ConfigError("node_name: missing; give --node-name, or hostnameOverride in the file")
    return ProxyConfig(**config)
