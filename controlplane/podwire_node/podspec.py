"""The settings of a container that depend only on the pod's spec: command, environment, resolv.conf, hosts, refusals.
This module does no I/O.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from podwire_base.kube.meta import Object, annotations_of, labels, name, namespace, uid
from podwire_base.kube.quantity import BadQuantity, parse

ECHO, HOST = "podwire.io/echo", "podwire.io/host"
_REFERENCE = re.compile(r"\$(\$)?\(([A-Za-z_][A-Za-z0-9_.-]*)\)")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Refused(Exception):
    """This runtime cannot run the container now. reason: the waiting reason in the pod's status. again: seconds until
    it is worth another try.
    """

    def __init__(self, reason: str, message: str, again: float = 5.0) -> None:
        super().__init__(message)
        self.reason, self.again = reason, again


@dataclass(frozen=True, slots=True)
class NodeDns:
    """nameservers: the cluster DNS addresses. upstream: nameservers of the node itself (dnsPolicy Default)."""

    nameservers: tuple[str, ...]
    domain: str = "cluster.local"
    upstream: tuple[str, ...] = ()


def image_name(image: str) -> str:
    """Return the repository of an image reference, without tag and digest."""
    tagged = image.split("@", 1)[0]
    return tagged.rsplit(":", 1)[0] if ":" in tagged.rsplit("/", 1)[-1] else tagged


def entrypoint(image: str, echo: list[str]) -> list[str]:
    """Return the default command of an image. Raises Refused for an image that the netns runtime does not have. echo:
    the command of podwire-echo in the container.
    """
    repository = image_name(image)
    if repository == ECHO:
        return echo
    if repository == HOST:
        return []
    raise Refused(
        "ErrImageNeverPull",
        f"the netns runtime has no image {image!r}: it runs podwire.io/echo (the test "
        "server) and podwire.io/host (the machine's own files, read-only, with a command that the pod gives)",
    )


def expand(text: str, env: dict[str, str]) -> str:
    """Replace each $(NAME) by its value in `env`. $$(NAME) becomes the literal $(NAME), and a reference to an unknown
    name stays unchanged (core/v1 Container.command).
    """

    def replace(match: re.Match[str]) -> str:
        if match[1]:
            return match[0][1:]
        return env.get(match[2], match[0])

    return _REFERENCE.sub(replace, text)


def field_ref(pod: Object, path: str, address: str, host_address: str) -> str:
    """Return the value of a field of the pod (core/v1 ObjectFieldSelector). address: the pod's addresses, with commas
    between them. Raises Refused.
    """
    if path in ("metadata.labels", "metadata.annotations"):
        source = labels(pod) if path == "metadata.labels" else annotations_of(pod)
        return "\n".join(f"{key}={json.dumps(value)}" for key, value in sorted(source.items()))
    if match := re.match(r"^metadata\.(labels|annotations)\['(.+)'\]$", path):
        source = labels(pod) if match[1] == "labels" else annotations_of(pod)
        return source.get(match[2], "")
    known: dict[str, str] = {
        "metadata.name": name(pod),
        "metadata.namespace": namespace(pod),
        "metadata.uid": uid(pod),
        "spec.nodeName": pod["spec"].get("nodeName", ""),
        "spec.serviceAccountName": pod["spec"].get("serviceAccountName") or "default",
        "status.podIP": address.split(",", maxsplit=1)[0],
        "status.podIPs": address,
        "status.hostIP": host_address,
        "status.hostIPs": host_address,
    }
    if path not in known:
        raise Refused("CreateContainerConfigError", f"fieldRef {path!r} is not supported; one of {', '.join(known)}")
    return known[path]


def server_variables(service: Object) -> dict[str, str]:
    """Return the variables of the Service default/kubernetes, by which clients in pods find the API server."""
    address, port = str(service["spec"]["clusterIP"]), str(service["spec"]["ports"][0]["port"])
    host = f"[{address}]" if ":" in address else address
    prefix = f"KUBERNETES_PORT_{port}_TCP"
    return {
        "KUBERNETES_SERVICE_HOST": address,
        "KUBERNETES_SERVICE_PORT": port,
        "KUBERNETES_SERVICE_PORT_HTTPS": port,
        "KUBERNETES_PORT": f"tcp://{host}:{port}",
        prefix: f"tcp://{host}:{port}",
        f"{prefix}_PROTO": "tcp",
        f"{prefix}_PORT": port,
        f"{prefix}_ADDR": address,
    }


def command(container: Object, env: dict[str, str], echo: list[str]) -> list[str]:
    """Return the container's argv: `command`, or the image's default command without it, followed by `args`."""
    base = entrypoint(str(container["image"]), echo)
    words = [*(container.get("command") or base), *(container.get("args") or [])]
    if not words:
        raise Refused(
            "CreateContainerConfigError",
            f"container {container['name']}: image {container['image']} has no command of its own; set `command`",
        )
    return [expand(w, env) for w in words]


def host_ports(pod: Object) -> list[dict[str, Any]]:
    """Return the pod's hostPorts in the form of CNI's capability portMappings. A pod with hostNetwork has none, because
    its ports are already ports of the node.
    """
    if pod["spec"].get("hostNetwork"):
        return []
    containers = [*(pod["spec"].get("initContainers") or []), *pod["spec"]["containers"]]
    return [
        {
            "hostPort": port["hostPort"],
            "containerPort": port["containerPort"],
            "protocol": str(port.get("protocol") or "TCP").lower(),
            "hostIP": port.get("hostIP") or "",
        }
        for container in containers
        for port in container.get("ports") or []
        if port.get("hostPort")
    ]


def bandwidth(pod: Object) -> dict[str, int]:
    """Return the annotations kubernetes.io/ingress-bandwidth and egress-bandwidth in the form of CNI's capability
    bandwidth. Rates are in bits per second. Bursts are in bits: the amount of a tenth of a second at the rate. Raises
    Refused if an annotation is not a rate from 1k to 1P.
    """
    asked: dict[str, int] = {}
    for way in ("ingress", "egress"):
        text = annotations_of(pod).get(f"kubernetes.io/{way}-bandwidth")
        if text is None:
            continue
        try:
            rate = ceil(parse(text))
        except BadQuantity:
            rate = 0
        if not 1000 <= rate <= 10**15:
            raise Refused(
                "FailedCreatePodSandBox",
                f"annotation kubernetes.io/{way}-bandwidth: {text!r} is not a rate from 1k to "
                "1P bits a second; write it as 10M",
            )
        asked[f"{way}Rate"], asked[f"{way}Burst"] = rate, rate // 10
    return asked


def hostname(pod: Object) -> str:
    """Return the pod's host name, truncated to 63 characters as the kubelet does."""
    return str(pod["spec"].get("hostname") or name(pod))[:63].rstrip("-.")


def _plain(field: str, words: Iterable[str]) -> None:
    """Raise Refused for a word that would not stay one word of a line in /etc/hosts or /etc/resolv.conf. The API server
    refuses most of them already; upstream's validation lets the options of dnsConfig pass.
    """
    for word in words:
        if any(letter.isspace() or not letter.isprintable() for letter in word):
            raise Refused(
                "CreateContainerConfigError",
                f"spec.{field}: {word!r} has white space or a control character; write one word",
            )


def _unique(items: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(i for i in items if i))


def resolv_conf(pod: Object, dns: NodeDns) -> str:
    """Return the text of /etc/resolv.conf for the pod's dnsPolicy and dnsConfig, as the kubelet writes it."""
    spec, space = pod["spec"], namespace(pod)
    policy = spec.get("dnsPolicy", "ClusterFirst")
    if policy == "ClusterFirst" and spec.get("hostNetwork"):
        policy = "Default"
    servers: list[str] = []
    search: list[str] = []
    options: dict[str, str | None] = {}
    if policy in ("ClusterFirst", "ClusterFirstWithHostNet"):
        servers = list(dns.nameservers)
        search = [f"{space}.svc.{dns.domain}", f"svc.{dns.domain}", dns.domain]
        options = {"ndots": "5"}
    elif policy == "Default":
        servers = list(dns.upstream)
    extra = spec.get("dnsConfig") or {}
    _plain("dnsConfig.nameservers", extra.get("nameservers") or [])
    _plain("dnsConfig.searches", extra.get("searches") or [])
    for option in extra.get("options") or []:
        _plain("dnsConfig.options", [str(option["name"]), str(option.get("value") or "")])
    servers = _unique([*servers, *(extra.get("nameservers") or [])])
    search = _unique([*search, *(extra.get("searches") or [])])
    options |= {o["name"]: o.get("value") for o in extra.get("options") or []}
    lines = [f"search {' '.join(search)}"] if search else []
    lines += [f"nameserver {s}" for s in servers[:3]]
    if options:
        lines.append("options " + " ".join(k if v is None else f"{k}:{v}" for k, v in options.items()))
    return "\n".join(lines) + "\n"


def hosts(pod: Object, addresses: Sequence[str], domain: str) -> str:
    """Return the text of /etc/hosts with the pod's host name and its hostAliases."""
    own = hostname(pod)
    _plain("hostname", [own])
    _plain("subdomain", [str(pod["spec"].get("subdomain") or "")])
    for alias in pod["spec"].get("hostAliases") or []:
        _plain("hostAliases", [str(alias.get("ip")), *(alias.get("hostnames") or [])])
    if pod["spec"].get("subdomain"):
        own = f"{own}.{pod['spec']['subdomain']}.{namespace(pod)}.svc.{domain}\t{own}"
    lines = ["# made by podwire for this pod", "127.0.0.1\tlocalhost", "::1\tlocalhost ip6-localhost ip6-loopback"]
    lines += [f"{address}\t{own}" for address in addresses]
    lines += [
        f"{alias['ip']}\t{' '.join(alias.get('hostnames') or [])}" for alias in pod["spec"].get("hostAliases") or []
    ]
    return "\n".join(lines) + "\n"
