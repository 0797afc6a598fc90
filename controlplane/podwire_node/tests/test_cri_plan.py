"""From a pod's spec to CRI's messages, without a runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from podwire_base.kube.meta import Object
from podwire_node import resources
from podwire_node.cri import daemonconfig, plan
from podwire_node.launch import Bind, Launch
from podwire_node.podspec import Refused

PLACE = plan.Place("/run/p/pods/u", "/podwire-t/node1", 1000 * 2**20)


def pod(container: Object | None = None, **spec: Any) -> Object:
    own = {"name": "c", "image": "nginx", **(container or {})}
    return {
        "metadata": {"name": "p", "namespace": "shop", "uid": "u", "labels": {"app": "web"}},
        "spec": {"containers": [own], **spec},
    }


def made(container: Object, launch: Launch | None = None, **spec: Any) -> Object:
    whole = pod(container, **spec)
    return plan.container_config(whole, whole["spec"]["containers"][0], launch or Launch({}, {}), PLACE, [])


@pytest.mark.parametrize(
    ("image", "whole", "policy"),
    [
        ("nginx", "docker.io/library/nginx:latest", "Always"),
        ("nginx:1", "docker.io/library/nginx:1", "IfNotPresent"),
        ("org/app", "docker.io/org/app:latest", "Always"),
        ("localhost/app:2", "localhost/app:2", "IfNotPresent"),
        ("host:5000/app", "host:5000/app:latest", "Always"),
        ("a.io/b@sha256:" + "0" * 64, "a.io/b@sha256:" + "0" * 64, "IfNotPresent"),
    ],
)
def test_names_of_images(image: str, whole: str, policy: str) -> None:
    assert plan.full_name(image) == whole
    assert plan.pull_policy({"image": image}) == policy


@pytest.mark.parametrize("image", ["Nginx", "a b", "nginx:", "http://x/y", "a//b", ""])
def test_what_is_no_name_of_an_image(image: str) -> None:
    with pytest.raises(Refused, match="couldn't parse image name") as caught:
        plan.full_name(image)
    assert caught.value.reason == "InvalidImageName"


def test_a_sandbox_has_the_pods_names_ports_and_namespaces() -> None:
    ports = [{"containerPort": 80, "hostPort": 8080, "hostIP": "127.0.0.1"}]
    config = plan.sandbox_config(pod({"ports": ports}, securityContext={"fsGroup": 7}), PLACE, 2)
    assert config["metadata"] == {"name": "p", "namespace": "shop", "uid": "u", "attempt": 2}
    assert config["labels"] == {"app": "web", plan.POD_NAME: "p", plan.POD_SPACE: "shop", plan.POD_UID: "u"}
    assert config["port_mappings"] == [
        {"protocol": "TCP", "container_port": 80, "host_port": 8080, "host_ip": "127.0.0.1"}
    ]
    assert config["linux"]["cgroup_parent"] == "/podwire-t/node1/podu" and config["hostname"] == "p"
    assert config["linux"]["security_context"]["supplemental_groups"] == [7]
    host = plan.sandbox_config(pod(hostNetwork=True, shareProcessNamespace=True), PLACE)
    assert host["linux"]["security_context"]["namespace_options"] == {"network": "NODE", "pid": "POD", "ipc": "POD"}
    assert "hostname" not in host and host["port_mappings"] == []


def test_a_container_replaces_what_the_image_says_only_where_the_pod_does() -> None:
    launch = Launch({"A": "1"}, {}, (Bind("/n/e", "/e", True),), (), 3, {"id": "sha256:x"})
    config = made({"command": ["sh", "$(A)"], "tty": True}, launch)
    assert (config["command"], config["args"], config["envs"]) == (["sh", "1"], [], [{"key": "A", "value": "1"}])
    assert config["image"] == {"image": "sha256:x", "user_specified_image": "nginx"}
    assert config["mounts"] == [{"container_path": "/e", "host_path": "/n/e", "readonly": True}]
    assert config["metadata"] == {"name": "c", "attempt": 3} and config["log_path"] == "containers/c/log"
    assert made({})["command"] == [] and made({})["envs"] == []


def test_the_messages_are_those_of_cri() -> None:
    """A field that CRI does not have would be an error of the parser."""
    api = pytest.importorskip("cri_api.v1.api_pb2")
    json_format = pytest.importorskip("google.protobuf.json_format")
    security = {"runAsUser": 5, "capabilities": {"add": ["NET_ADMIN"]}, "seccompProfile": {"type": "RuntimeDefault"}}
    container = {
        "securityContext": security,
        "resources": {"limits": {"cpu": "1", "memory": "1Gi"}},
        "ports": [{"hostPort": 1, "containerPort": 1}],
    }
    whole = pod(container, securityContext={"sysctls": [{"name": "a", "value": "1"}], "fsGroup": 3})
    json_format.ParseDict(plan.sandbox_config(whole, PLACE), api.PodSandboxConfig())
    json_format.ParseDict(made(container, Launch({"A": "b"}, {}, (Bind("/a", "/b"),))), api.ContainerConfig())


def test_the_containers_security_wins_over_the_pods() -> None:
    above = {"runAsUser": 1, "runAsGroup": 2, "fsGroup": 3, "supplementalGroups": [4], "runAsNonRoot": True}
    context = made({"securityContext": {"runAsUser": 9, "readOnlyRootFilesystem": True}}, securityContext=above)[
        "linux"
    ]["security_context"]
    assert (context["run_as_user"], context["run_as_group"]) == ({"value": 9}, {"value": 2})
    assert context["supplemental_groups"] == [4, 3] and context["readonly_rootfs"] is True
    dropped = {"capabilities": {"add": ["CAP_NET_ADMIN"], "drop": ["all"]}, "allowPrivilegeEscalation": False}
    context = made({"securityContext": dropped})["linux"]["security_context"]
    assert context["capabilities"] == {"add_capabilities": ["NET_ADMIN"], "drop_capabilities": ["ALL"]}
    assert context["no_new_privs"] is True and context["seccomp"] == {"profile_type": "Unconfined"}


@pytest.mark.parametrize(
    ("security", "image", "word"),
    [
        ({"runAsNonRoot": True, "runAsUser": 0}, {}, "container's runAsUser breaks non-root policy"),
        ({"runAsNonRoot": True}, {}, "container has runAsNonRoot and image will run as root"),
        ({"runAsNonRoot": True}, {"username": "www"}, r"image has non-numeric user \(www\)"),
        ({"privileged": True}, {}, "privileged is refused"),
        ({"capabilities": {"add": ["SYS_ADMIN"]}}, {}, "SYS_ADMIN reaches beyond"),
        ({"capabilities": {"add": ["ALL"]}}, {}, "ALL reaches beyond"),
        ({"seccompProfile": {"type": "Localhost", "localhostProfile": "x"}}, {}, "no profiles of their own"),
    ],
)
def test_what_no_container_gets(security: Object, image: Object, word: str) -> None:
    with pytest.raises(Refused, match=word) as caught:
        made({"securityContext": security}, Launch({}, {}, image=image))
    assert caught.value.reason == "CreateContainerConfigError"


def test_the_user_of_the_image_is_not_root() -> None:
    context = made({"securityContext": {"runAsNonRoot": True}}, Launch({}, {}, image={"uid": {"value": "33"}}))
    assert context["linux"]["security_context"]["run_as_user"] == {"value": 33}


@pytest.mark.parametrize(
    "spec", [{"hostPID": True}, {"hostIPC": True}, {"hostUsers": False}, {"runtimeClassName": "x"}]
)
def test_what_no_pod_gets(spec: Object) -> None:
    with pytest.raises(Refused, match=rf"spec\.{next(iter(spec))}"):
        plan.sandbox_config(pod(**spec), PLACE)


@pytest.mark.parametrize(
    ("part", "numbers", "quality"),
    [
        ({}, {"cpu_shares": 2, "oom_score_adj": 1000}, "BestEffort"),
        (
            {"limits": {"cpu": "500m", "memory": "64Mi"}},
            {
                "cpu_shares": 512,
                "cpu_period": 100000,
                "cpu_quota": 50000,
                "memory_limit_in_bytes": 64 << 20,
                "oom_score_adj": -997,
            },
            "Guaranteed",
        ),
        ({"requests": {"cpu": "1", "memory": "100Mi"}}, {"cpu_shares": 1024, "oom_score_adj": 900}, "Burstable"),
        (
            {"requests": {"cpu": "1m"}, "limits": {"cpu": "1m"}},
            {"cpu_shares": 2, "cpu_period": 100000, "cpu_quota": 1000, "oom_score_adj": 999},
            "Burstable",
        ),
    ],
)  # fmt: skip
def test_numbers_of_the_cgroup(part: Object, numbers: Object, quality: str) -> None:
    whole = pod({"resources": part}) | {"status": {"qosClass": quality}}
    assert resources.linux(whole, whole["spec"]["containers"][0], PLACE.memory) == numbers


def test_credentials_of_the_images_registry_and_no_other() -> None:
    secret = {"auths": {"https://r.io/v1/": {"auth": "eA=="}, "other.io": {"auth": "b"}, "r.io": {"username": "u"}}}
    assert plan.auths("r.io/app:1", [secret]) == [
        {"auth": "eA=="},
        {"username": "u"},
    ]
    assert plan.auths("nginx", [{"auths": {"https://index.docker.io/v1/": {"auth": "z"}}}])[0]["auth"] == "z"
    assert plan.auths("nginx", [secret]) == []


def test_the_daemon_joins_the_mounts_of_pods_that_run() -> None:
    daemon = daemonconfig.Daemon(Path("/d"), Path("/r"), Path("/r"), Path("/c"), "native", True)
    fresh = daemonconfig.command(daemon, "containerd")
    assert fresh[:2] == ["unshare", "--mount"] and fresh[-2:] == ["--config", "/d/config.toml"]
    assert daemonconfig.command(daemon, "containerd", 7)[:2] == ["nsenter", "--mount=/proc/7/ns/mnt"]
    tomllib = pytest.importorskip("tomllib")
    found = tomllib.loads(daemonconfig.text(daemon))
    cri = found["plugins"]["io.containerd.grpc.v1.cri"]
    assert cri["restrict_oom_score_adj"] is True and cri["containerd"]["snapshotter"] == "native"
    assert found["state"] == "/d/state" and cri["cni"]["conf_dir"] == "/r/cni/net.d"
