"""From a pod's spec to the messages of CRI v1: pure, printable, in the JSON form of their protobuf messages.

Source: k8s.io/cri-api runtime/v1 api.proto; the kubelet's choices (labels, cgroup numbers, OOM scores) are those that
Kubernetes documents for "Pod QoS", "Resource Management" and "Configure a Security Context".
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from podwire_base.kube.meta import Object, annotations_of, labels, name, namespace, uid

from .. import resources
from ..launch import Bind, Launch
from ..podspec import Refused, expand, host_ports, hostname

CONFIG_ERROR = "CreateContainerConfigError"
POD_NAME, POD_SPACE, POD_UID = "io.kubernetes.pod.name", "io.kubernetes.pod.namespace", "io.kubernetes.pod.uid"
CONTAINER_NAME = "io.kubernetes.container.name"
_TAGGED = re.compile(r":[\w][\w.-]{0,127}$")
_NAME = re.compile(
    r"^(?:(?:[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?|\[[0-9a-fA-F:]+\])(?::\d+)?/)?"
    r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*"
    r"(?::[\w][\w.-]{0,127})?(?:@[a-z0-9]+:[0-9a-fA-F]{32,})?$"
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where the pods of a node are. directory: of the pod's files. cgroup: of all pods of the node. memory: bytes that
    the node has, of which the OOM score of a Burstable pod is a part.
    """

    directory: str
    cgroup: str
    memory: int


def full_name(image: str) -> str:
    """Return an image's name as runtimes store it: with registry and tag. Raises Refused for what is no name."""
    if not _NAME.match(image):
        raise Refused(
            "InvalidImageName",
            f'Failed to apply default image tag "{image}": couldn\'t parse image name "{image}": '
            "invalid reference format",
        )
    first, slash, _ = image.partition("/")
    if not slash:
        image = f"docker.io/library/{image}"
    elif not ("." in first or ":" in first or first == "localhost"):
        image = f"docker.io/{image}"
    return image if "@" in image or _TAGGED.search(image) else f"{image}:latest"


def pull_policy(container: Object) -> str:
    """Return Always, IfNotPresent or Never; without a word, Always for the tag latest (core/v1 Container)."""
    if policy := container.get("imagePullPolicy"):
        return str(policy)
    whole = full_name(str(container["image"]))
    return "Always" if whole.endswith(":latest") and "@" not in whole else "IfNotPresent"


def _namespaces(pod: Object) -> Object:
    spec = pod["spec"]
    return {
        "network": "NODE" if spec.get("hostNetwork") else "POD",
        "pid": "POD" if spec.get("shareProcessNamespace") else "CONTAINER",
        "ipc": "POD",
    }


def refuse(pod: Object) -> None:
    """Raise Refused for what would leave the confinement of a pod on the user's own machine."""
    spec = pod["spec"]
    for field in ("hostPID", "hostIPC"):
        if spec.get(field):
            raise Refused("Refused", f"spec.{field}: podwire's nodes share the machine's processes; it is refused")
    if spec.get("hostUsers") is False:
        raise Refused("Refused", "spec.hostUsers: false: user namespaces are not supported")
    if spec.get("runtimeClassName"):
        raise Refused("Refused", f"spec.runtimeClassName: {spec['runtimeClassName']}: podwire has only runc")


def sandbox_config(pod: Object, place: Place, attempt: int = 0) -> Object:
    """Return the PodSandboxConfig. Raises Refused. Each container gets its own /etc/resolv.conf as a file, so CRI's DNS
    configuration stays empty.
    """
    refuse(pod)
    security = pod["spec"].get("securityContext") or {}
    context: Object = {"namespace_options": _namespaces(pod), "seccomp": {"profile_type": "RuntimeDefault"}}
    groups = [*(security.get("supplementalGroups") or []), *_fs_group(security)]
    if groups:
        context["supplemental_groups"] = groups
    config: Object = {
        "metadata": {"name": name(pod), "uid": uid(pod), "namespace": namespace(pod), "attempt": attempt},
        "log_directory": place.directory,
        "dns_config": {},
        "port_mappings": [
            {
                "protocol": port["protocol"].upper(),
                "container_port": port["containerPort"],
                "host_port": port["hostPort"],
                "host_ip": port["hostIP"],
            }
            for port in host_ports(pod)
        ],
        "labels": {**labels(pod), POD_NAME: name(pod), POD_SPACE: namespace(pod), POD_UID: uid(pod)},
        "annotations": dict(annotations_of(pod)),
        "linux": {
            "cgroup_parent": cgroup(pod, place),
            "security_context": context,
            "sysctls": {row["name"]: str(row["value"]) for row in security.get("sysctls") or []},
        },
    }
    if not pod["spec"].get("hostNetwork"):
        config["hostname"] = hostname(pod)
    return config


def cgroup(pod: Object, place: Place) -> str:
    return f"{place.cgroup}/pod{uid(pod)}"


def _fs_group(security: Object) -> list[int]:
    return [] if security.get("fsGroup") is None else [int(security["fsGroup"])]


def container_config(pod: Object, container: Object, launch: Launch, place: Place, files: Sequence[Bind]) -> Object:
    """Return the ContainerConfig. files: the launch's files, written on the node. Raises Refused."""
    mounts = [*launch.binds, *files]
    own = container["name"]
    return {
        "metadata": {"name": own, "attempt": launch.attempt},
        "image": {
            "image": str(launch.image.get("id") or container["image"]),
            "user_specified_image": container["image"],
        },
        "command": [expand(word, dict(launch.env)) for word in container.get("command") or []],
        "args": [expand(word, dict(launch.env)) for word in container.get("args") or []],
        "working_dir": container.get("workingDir") or "",
        "envs": [{"key": key, "value": value} for key, value in launch.env.items()],
        "mounts": [
            {"container_path": bind.path, "host_path": bind.source, "readonly": bind.read_only} for bind in mounts
        ],
        "labels": {POD_NAME: name(pod), POD_SPACE: namespace(pod), POD_UID: uid(pod), CONTAINER_NAME: own},
        "annotations": {"io.kubernetes.container.restartCount": str(launch.attempt)},
        "log_path": f"containers/{own}/log",
        "stdin": bool(container.get("stdin")),
        "stdin_once": bool(container.get("stdinOnce")),
        "tty": bool(container.get("tty")),
        "linux": {
            "resources": resources.linux(pod, container, place.memory),
            "security_context": security_context(pod, container, launch.image),
        },
    }


def security_context(pod: Object, container: Object, image: Mapping[str, object]) -> Object:
    """Return the LinuxContainerSecurityContext. The container's words win over the pod's. image: CRI's Image, whose
    uid or username is the user where the pod names none. Raises Refused.
    """
    above, own = pod["spec"].get("securityContext") or {}, container.get("securityContext") or {}
    if own.get("privileged"):
        raise Refused(
            CONFIG_ERROR,
            f"container {container['name']}: securityContext.privileged is refused: such a container is root on this "
            "machine",
        )
    both = {**above, **{key: value for key, value in own.items() if value is not None}}
    user = both.get("runAsUser")
    made: Object = {
        "namespace_options": _namespaces(pod),
        "readonly_rootfs": bool(own.get("readOnlyRootFilesystem")),
        "no_new_privs": own.get("allowPrivilegeEscalation") is False,
        "seccomp": _seccomp(both.get("seccompProfile") or {}),
    }
    if both.get("runAsNonRoot"):
        _not_root(container, user, image)
    if user is not None:
        made["run_as_user"] = {"value": int(user)}
    elif (of_image := image.get("uid")) is not None:
        made["run_as_user"] = {"value": int(str(dict(of_image).get("value", 0)))}  # type: ignore[call-overload]  # a dict
    elif image.get("username"):
        made["run_as_username"] = image["username"]
    if both.get("runAsGroup") is not None:
        made["run_as_group"] = {"value": int(both["runAsGroup"])}
    if groups := [*(above.get("supplementalGroups") or []), *_fs_group(above)]:
        made["supplemental_groups"] = groups
    if capabilities := own.get("capabilities"):
        made["capabilities"] = _capabilities(container, capabilities)
    return made


# Each of these is root on the machine, or reads and writes what is not the container's.
STRONGEST = frozenset(f"SYS_{own}" for own in ("ADMIN", "MODULE", "RAWIO", "PTRACE", "BOOT", "TIME")) | {
    "ALL",
    "DAC_READ_SEARCH",
    "BPF",
    "PERFMON",
    "SYSLOG",
}


def _capabilities(container: Object, wanted: Object) -> Object:
    add = [str(one).upper().removeprefix("CAP_") for one in wanted.get("add") or []]
    if refused := sorted(STRONGEST & set(add)):
        raise Refused(
            CONFIG_ERROR,
            f"container {container['name']}: securityContext.capabilities.add: {', '.join(refused)} reaches beyond the "
            "container to this machine; it is refused",
        )
    drop = [str(one).upper().removeprefix("CAP_") for one in wanted.get("drop") or []]
    return {"add_capabilities": add, "drop_capabilities": drop}


def _seccomp(profile: Object) -> Object:
    kind = profile.get("type") or "Unconfined"
    if kind == "Localhost":
        raise Refused(CONFIG_ERROR, "seccompProfile.type: Localhost: podwire's nodes have no profiles of their own")
    return {"profile_type": kind}


def _not_root(container: Object, user: int | None, image: Mapping[str, Any]) -> None:
    """Raise Refused where runAsNonRoot does not hold, with the kubelet's words."""
    about = f'pod: "{container["name"]}"'
    if user == 0:
        raise Refused(CONFIG_ERROR, f"container's runAsUser breaks non-root policy ({about})")
    if user is not None:
        return
    if image.get("username"):
        raise Refused(
            CONFIG_ERROR,
            f"container has runAsNonRoot and image has non-numeric user ({image['username']}), cannot verify user is "
            f"non-root ({about})",
        )
    if int((image.get("uid") or {}).get("value", 0)) == 0:
        raise Refused(CONFIG_ERROR, f"container has runAsNonRoot and image will run as root ({about})")


def auths(image: str, secrets: Sequence[Object]) -> list[Object]:
    """Return the AuthConfigs of pull Secrets (kubernetes.io/dockerconfigjson, decoded) that are for the image's
    registry, the longest match first. They have no server_address: containerd compares it with the host that it asks.
    """
    registry = full_name(image).split("/", 1)[0]
    found = []
    for secret in secrets:
        rows = secret.get("auths", secret)
        for host, entry in rows.items() if isinstance(rows, dict) else ():
            place = re.sub(r"^https?://", "", str(host)).rstrip("/")
            own = place.split("/", 1)[0].replace("index.docker.io", "docker.io")
            if own == registry and isinstance(entry, dict):
                words = {key: entry.get(key) for key in ("username", "password", "auth") if entry.get(key)}
                found.append((len(place), words))
    return [row for _, row in sorted(found, key=lambda item: -item[0])]


def verbose(info: Mapping[str, str]) -> Object:
    """Return the JSON in the `info` map of a verbose status, {} where there is none."""
    try:
        found = json.loads(info.get("info", "{}"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
