"""Converts a KubeProxyConfiguration (kubeproxy.config.k8s.io/v1alpha1) to fields of ProxyConfig. Pure.

The module accepts the file of an existing cluster. It uses settings with a counterpart in podwire, and reports settings
without a counterpart and unknown keys. Zero values ("", null, 0, "0s") mean kube-proxy's defaults. In the section
`conntrack` a zero means the kernel's value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from podwire_base.kube.errors import ConfigError
from podwire_base.kube.times import duration

from .config import CONNTRACK

MODES, DEFAULT_MODE = ("iptables", "ipvs", "nftables"), "iptables"  # the modes of kube-proxy
REFERENCE_MODE = "nftables"  # podwire behaves like this mode with every backend
API, KIND = "kubeproxy.config.k8s.io/v1alpha1", "KubeProxyConfiguration"
OOM_SCORE_ADJ = -999
_SECTION = {"masqueradeBit", "masqueradeAll", "syncPeriod", "minSyncPeriod"}
KNOWN: dict[str, set[str]] = {
    "": {
        "apiVersion",
        "kind",
        "featureGates",
        "clientConnection",
        "logging",
        "hostnameOverride",
        "bindAddress",
        "healthzBindAddress",
        "metricsBindAddress",
        "bindAddressHardFail",
        "enableProfiling",
        "showHiddenMetricsForVersion",
        "mode",
        "iptables",
        "ipvs",
        "nftables",
        "winkernel",
        "detectLocalMode",
        "detectLocal",
        "clusterCIDR",
        "nodePortAddresses",
        "oomScoreAdj",
        "conntrack",
        "configSyncPeriod",
        "portRange",
        "windowsRunAsService",
        "externalIPsOnNodes",
        "externalIPsReservedPorts",
    },
    "clientConnection": {"kubeconfig", "acceptContentTypes", "contentType", "qps", "burst"},
    "detectLocal": {"bridgeInterface", "interfaceNamePrefix"},
    "iptables": _SECTION | {"localhostNodePorts"},
    "nftables": _SECTION,
    "ipvs": {
        "syncPeriod",
        "minSyncPeriod",
        "scheduler",
        "excludeCIDRs",
        "strictARP",
        "tcpTimeout",
        "tcpFinTimeout",
        "udpTimeout",
    },
    "conntrack": {
        "maxPerCore",
        "min",
        "tcpEstablishedTimeout",
        "tcpCloseWaitTimeout",
        "tcpBeLiberal",
        "udpTimeout",
        "udpStreamTimeout",
    },
}
# Settings that podwire can ignore without loss: it has another encoding, no bind of NodePorts, no packet mark ...
HARMLESS = {
    "clientConnection.acceptContentTypes",
    "clientConnection.contentType",
    "clientConnection.qps",
    "clientConnection.burst",
    "bindAddress",
    "iptables.masqueradeBit",
    "nftables.masqueradeBit",
    "portRange",
    "configSyncPeriod",
    "logging",
    "windowsRunAsService",
    "winkernel",
    "ipvs",
}
SYSCTLS = {
    "tcpEstablishedTimeout": "nf_conntrack_tcp_timeout_established",
    "tcpCloseWaitTimeout": "nf_conntrack_tcp_timeout_close_wait",
    "udpTimeout": "nf_conntrack_udp_timeout",
    "udpStreamTimeout": "nf_conntrack_udp_timeout_stream",
}


def seconds(where: str, text: Any) -> float:
    """Converts a Go duration ("1h30m", "500ms") to seconds. Raises ConfigError."""
    try:
        return duration(str(text))
    except ValueError as err:
        raise ConfigError(f"{where}: {err}") from None


def _is_default(value: Any) -> bool:
    return value in (None, "", 0, False, "0s", [], {})


class Reader:
    """Removes known keys from the document. The remaining keys are unknown."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.document = document
        self.notes: list[str] = []
        self.taken: set[str] = set()

    def take(self, path: str, kind: type | tuple[type, ...] = str) -> Any:
        """Returns the value at "section.key"; None for a default. Raises ConfigError for a value of another type."""
        self.taken.add(path)
        section, _, key = path.rpartition(".")
        holder = self.document.get(section) if section else self.document
        value = holder.get(key) if isinstance(holder, Mapping) else None
        if _is_default(value):
            return None
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
            names = kind.__name__ if isinstance(kind, type) else " or ".join(k.__name__ for k in kind)
            raise ConfigError(f"{path}: {value!r} should be of type {names}")
        return value

    def duration(self, path: str) -> float | None:
        value = self.take(path)
        return None if value is None else seconds(path, value)

    def left(self) -> list[str]:
        """Returns notes about unknown keys, and about known keys whose value has no effect in podwire."""
        notes = list(self.notes)
        for section, known in KNOWN.items():
            holder = self.document.get(section) if section else self.document
            if not isinstance(holder, Mapping):
                if not _is_default(holder):
                    notes.append(f"{section}: should be a mapping; left out")
                continue
            for key, value in holder.items():
                path = f"{section}.{key}" if section else str(key)
                if key not in known:
                    notes.append(f"{path}: is not a key of {KIND}; left out")
                elif not (
                    path in self.taken
                    or path in HARMLESS
                    or section in HARMLESS
                    or path in KNOWN
                    or path in ("apiVersion", "kind")
                    or _is_default(value)
                ):
                    notes.append(f"{path}: is not supported; {value!r} has no effect")
        return notes


def read(document: Any, served: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Returns (fields of ProxyConfig that the file sets, notes).

    served: names of the backends, the default first. Raises ConfigError for another kind or a value of a wrong type.
    """
    if not isinstance(document, Mapping) or (document.get("apiVersion"), document.get("kind")) != (API, KIND):
        raise ConfigError(f"the file is not a {KIND} of {API}")
    reader = Reader(document)
    fields: dict[str, Any] = {}

    def put(name: str, value: Any, convert: Callable[[Any], Any] = lambda x: x) -> None:
        if value is not None:
            fields[name] = convert(value)

    put("kubeconfig", reader.take("clientConnection.kubeconfig"))
    put("node_name", reader.take("hostnameOverride"))
    put("healthz_address", reader.take("healthzBindAddress"))
    put("metrics_address", reader.take("metricsBindAddress"))
    put("cluster_cidrs", reader.take("clusterCIDR"), lambda text: tuple(part.strip() for part in text.split(",")))
    put("node_port_addresses", reader.take("nodePortAddresses", list), lambda items: tuple(map(str, items)))
    # Not in kube-proxy, which leaves out keys that it does not know.
    put("external_ips_on_nodes", reader.take("externalIPsOnNodes"))
    ports = reader.take("externalIPsReservedPorts", list)
    put("external_ips_reserved_ports", ports, lambda items: tuple(map(str, items)))
    _mode(reader, fields, served)
    put("detect_local", reader.take("detectLocalMode"))
    for mode, key in (("BridgeInterface", "bridgeInterface"), ("InterfaceNamePrefix", "interfaceNamePrefix")):
        value = reader.take(f"detectLocal.{key}")
        if fields.get("detect_local") == mode:
            put("local_interface", value)
    put("localhost_node_ports", reader.take("iptables.localhostNodePorts", bool))
    _conntrack(reader, put)
    put("bind_hard_fail", reader.take("bindAddressHardFail", bool))
    put("oom_score_adj", reader.take("oomScoreAdj", int))
    return fields, reader.left()


def _conntrack(reader: Reader, put: Callable[[str, Any], None]) -> None:
    """Reads the section `conntrack`. Its keys are pointers in kube-proxy: null means the default, and a zero leaves the
    kernel's value.
    """
    section = reader.document.get("conntrack")
    if not isinstance(section, Mapping):
        return
    timeouts = dict(CONNTRACK)
    for key, name in SYSCTLS.items():
        value = reader.duration(f"conntrack.{key}")
        if value:
            timeouts[name] = max(1, int(value))
        elif section.get(key) not in (None, ""):
            timeouts.pop(name, None)
    if reader.take("conntrack.tcpBeLiberal", bool):
        timeouts["nf_conntrack_tcp_be_liberal"] = 1
    if (settings := tuple(timeouts.items())) != CONNTRACK:
        put("conntrack", settings)
    for key, name in (("maxPerCore", "conntrack_max_per_core"), ("min", "conntrack_min")):
        number = reader.take(f"conntrack.{key}", int)
        put(name, 0 if number is None and section.get(key) == 0 else number)


def silent(document: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of ProxyConfig for what the file does not say, where kube-proxy's default is another than
    podwire's without a file. Source: SetDefaults_KubeProxyConfiguration of kubeproxy.config.k8s.io/v1alpha1.
    """
    v6 = ":" in str(document.get("bindAddress") or "")
    return {
        "cluster_cidrs": (),  # no source counts as a pod
        "healthz_address": "::" if v6 else "0.0.0.0",
        "metrics_address": "::1" if v6 else "127.0.0.1",
        **({"oom_score_adj": OOM_SCORE_ADJ} if document.get("oomScoreAdj") is None else {}),
    }


def _mode(reader: Reader, fields: dict[str, Any], served: Sequence[str]) -> None:
    """Reads kube-proxy's mode and the section of that mode.

    In every mode, podwire behaves like kube-proxy's mode `nftables`.
    """
    mode = reader.take("mode") or ""
    if mode and mode not in MODES:
        raise ConfigError(f"mode: {mode!r} is none of {', '.join(MODES)}")
    if mode in served:
        fields["backend"] = mode
        if mode != REFERENCE_MODE:
            reader.notes.append(f"mode: {mode} is served with the behaviour of kube-proxy's {REFERENCE_MODE} mode")
    else:
        reader.notes.append(
            f"mode: {mode or f'the default, {DEFAULT_MODE},'} is served by the {served[0]} backend"
            + ("" if mode else f"; --backend {DEFAULT_MODE}")
        )
    mode = mode or DEFAULT_MODE
    for section in (name for name in MODES if "masqueradeAll" in KNOWN[name]):
        masquerade = reader.take(f"{section}.masqueradeAll", bool)
        period, least = (reader.duration(f"{section}.{key}") for key in ("syncPeriod", "minSyncPeriod"))
        if section == mode:
            fields.update({"masquerade_all": True} if masquerade else {})
            fields.update({"healthz_timeout": 2 * period} if period else {})
            fields.update({"min_interval": least} if least else {})


def write(config: Any) -> dict[str, Any]:
    """Returns the current ProxyConfig in the format of the file, for /configz."""
    interface = {"BridgeInterface": "bridgeInterface", "InterfaceNamePrefix": "interfaceNamePrefix"}.get(
        config.detect_local
    )
    settings = dict(config.conntrack)
    sections: dict[str, dict[str, Any]] = {
        "nftables": {},
        "iptables": {"localhostNodePorts": config.localhost_node_ports},
    }
    sections.setdefault(config.backend, {}).update(
        masqueradeAll=config.masquerade_all,
        minSyncPeriod=f"{config.min_interval}s",
        syncPeriod=f"{config.healthz_timeout / 2}s",
    )
    return {
        "apiVersion": API,
        "kind": KIND,
        "mode": config.backend,
        "hostnameOverride": config.node_name,
        "clientConnection": {"kubeconfig": config.kubeconfig or ""},
        "clusterCIDR": ",".join(config.cluster_cidrs),
        "healthzBindAddress": config.healthz_address,
        "metricsBindAddress": config.metrics_address,
        "bindAddressHardFail": config.bind_hard_fail,
        "oomScoreAdj": config.oom_score_adj,
        "nodePortAddresses": list(config.node_port_addresses),
        "externalIPsOnNodes": config.external_ips_on_nodes,
        "externalIPsReservedPorts": list(config.external_ips_reserved_ports),
        "detectLocalMode": config.detect_local,
        "detectLocal": {interface: config.local_interface} if interface else {},
        **sections,
        "conntrack": {
            "maxPerCore": config.conntrack_max_per_core,
            "min": config.conntrack_min,
            **{key: f"{settings.get(name, 0)}s" for key, name in SYSCTLS.items()},
            "tcpBeLiberal": "nf_conntrack_tcp_be_liberal" in settings,
        },
    }
