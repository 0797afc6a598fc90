"""A cluster with the runtime cri: Debian's containerd runs ordinary images on nodes that are network namespaces.

The steps share one node. Images are made from Debian's busybox-static; nothing is fetched from a registry of others.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab import debian, registry
from lab.cluster import cluster, machine
from lab.patience import patient
from podwire.cluster import images
from podwire.cluster.config import DATA, ClusterConfig
from podwire.commands.cluster import free_port
from podwire.demo.lab import DemoLab, NotYet, wait_for
from podwire_base.kube.client import config as client_config
from podwire_base.kube.meta import Object
from podwire_node.cri.bundles import initial_processes
from podwire_node.runtime import read

pytestmark = [pytest.mark.runtimes, pytest.mark.alone, pytest.mark.story]  # cgroups have names that the machine shares
BOX = "box:1"
PROGRAMS = ("sh", "cat", "id", "ls", "sleep", "touch", "wget", "httpd", "dd", "test", "true", "kill", "env", "echo")


class World:
    def __init__(self, lab: DemoLab, archive: Path) -> None:
        self.lab, self.archive = lab, archive
        self.node = lab.config.node_names()[0]

    def apply(self, *objects: Object) -> None:
        self.lab.run_tool("apply", "-f", "-", stdin=yaml.safe_dump_all(objects))

    def pod(self, own: str, container: Object, **spec: Any) -> None:
        one = {"name": "c", "image": BOX, **container}
        spec = {"terminationGracePeriodSeconds": 0, "restartPolicy": "Never", "containers": [one], **spec}
        self.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": own, "labels": {"app": own}}, "spec": spec})

    def state(self, own: str, container: str = "c") -> Object:
        rows = self.lab.get("Pod", own).get("status", {}).get("containerStatuses") or []
        return next((row for row in rows if row["name"] == container), {})

    def wait(self, own: str, what: str, look: Callable[[Object], Any], container: str = "c") -> Object:
        """Wait until a container's status is as `look` wants it."""

        def looked() -> Object:
            found = self.state(own, container)
            return found if found and look(found) else {}

        looked.__doc__ = f"{own}: {what}"
        return wait_for(looked, 40)

    def waiting(self, own: str, reason: str) -> Object:
        return self.wait(own, reason, lambda row: row["state"].get("waiting", {}).get("reason") == reason)

    def told(self, own: str, message: str) -> Object:
        """Wait until a container waits with a message."""
        return self.wait(own, message, lambda row: message in row["state"].get("waiting", {}).get("message", ""))

    def ended(self, own: str) -> Object:
        found = self.wait(own, "ended", lambda row: "terminated" in row["state"])
        return dict(found["state"]["terminated"])

    def events(self, own: str) -> list[str]:
        rows = [row for row in self.lab.items("Event") if row["involvedObject"]["name"] == own]
        return [f"{row['reason']}: {row['message']}" for row in rows]

    def log(self, own: str, container: str = "c") -> list[str]:
        uid = self.lab.get("Pod", own)["metadata"]["uid"]
        file = self.lab.config.node_dir(self.node) / "pods" / uid / "containers" / container / "log"
        return [line.split(" ", 3)[3] for line in file.read_text().splitlines()]

    def served(self, own: str, query: str) -> list[str]:
        """Return the lines of a log as the API server sends it."""
        client = client_config.load(str(self.lab.config.kubeconfig))
        path = f"{client.server}/api/v1/namespaces/default/pods/{own}/log?{query}"
        with urllib.request.urlopen(path, timeout=patient(30), context=client.ssl) as answer:
            return str(answer.read().decode()).splitlines()

    def podwire(self, *words: str, status: int = 0) -> str:
        done = subprocess.run(
            [f"{sys.prefix}/bin/podwire", *words, "--name", self.lab.config.name] if "--" not in words else
            [f"{sys.prefix}/bin/podwire", words[0], "--name", self.lab.config.name, *words[1:]],
            capture_output=True, text=True, timeout=patient(60), check=False,
        )  # fmt: skip
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def undo() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture(scope="module")
def world(undo: contextlib.ExitStack, tmp_path_factory: pytest.TempPathFactory) -> World:
    root = debian.unpack(*debian.TOOLS["cri cluster"])
    environment = undo.enter_context(pytest.MonkeyPatch.context())
    found = debian.environment(root)
    environment.setenv("PATH", found["PATH"])
    environment.setenv("LD_LIBRARY_PATH", found["LD_LIBRARY_PATH"])
    folder = tmp_path_factory.mktemp("image")
    (folder / "root/bin").mkdir(parents=True)
    shutil.copy(debian.program(root, "busybox"), folder / "root/bin/busybox")
    for program in PROGRAMS:
        (folder / "root/bin" / program).symlink_to("busybox")
    archive = folder / "box.tar"
    config = images.image_config(["/bin/sh", "-c"], ["echo of the image"], ["OF=image"], "")
    images.build(folder / "root", archive, BOX, config)
    lab = undo.enter_context(
        cluster(config=ClusterConfig(name=f"cri{os.getpid()}", nodes=1, api_port=free_port(0), runtime="cri"))
    )
    return World(lab, archive)


def test_images_come_from_files(world: World) -> None:
    told = world.podwire("image", "load", str(world.archive))
    assert f"loaded docker.io/library/{BOX} into {world.node}" in told
    found = json.loads(world.podwire("image", "list", "-o", "json"))["images"]
    assert {row["name"] for row in found} == {f"docker.io/library/{BOX}", "podwire.io/pause:latest"}
    info = world.lab.get("Node", world.node)["status"]["nodeInfo"]
    assert info["containerRuntimeVersion"].startswith("containerd://")


def test_a_pod_has_its_files_variables_network_and_user(world: World) -> None:
    service = {"ports": [{"port": 80, "targetPort": "web"}], "selector": {"app": "p"}}
    held = {"name": "held"}
    world.apply(
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": service},
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": held, "data": {"A": "1", "file": "of the map\n"}},
        {"apiVersion": "v1", "kind": "Secret", "metadata": held, "stringData": {"pw": "hun"}},
    )
    mounts = [{"name": "e", "mountPath": "/e"}, {"name": "m", "mountPath": "/m"}, {"name": "s", "mountPath": "/s"}]
    script = 'cat /e/of-init /m/file /s/pw; echo " $A $B $OF"; id -u; sleep 600'
    web = {
        "name": "web",
        "image": BOX,
        "command": ["httpd", "-f", "-p", "8080", "-h", "/e"],
        "ports": [{"name": "web", "containerPort": 8080}],
        "volumeMounts": mounts[:1],
        "readinessProbe": {"httpGet": {"port": "web", "path": "/of-init"}, "periodSeconds": 1},
        "livenessProbe": {"exec": {"command": ["test", "-e", "/e/of-init"]}},
    }
    main = {
        "name": "c",
        "image": BOX,
        "command": ["sh", "-c", script],
        "envFrom": [{"configMapRef": held}],
        "env": [{"name": "B", "valueFrom": {"secretKeyRef": {**held, "key": "pw"}}}],
        "securityContext": {"runAsUser": 7},
        "volumeMounts": mounts,
    }
    init = {"name": "i", "image": BOX, "args": ["echo init > /e/of-init"], "volumeMounts": mounts[:1]}
    volumes = [
        {"name": "e", "emptyDir": {}},
        {"name": "m", "configMap": held},
        {"name": "s", "secret": {"secretName": "held"}},
    ]
    world.pod("p", {}, initContainers=[init], containers=[main, web], volumes=volumes)
    world.lab.wait_pods("p", 1)
    assert wait_for(lambda: len(world.log("p")) == 4 and world.log("p"), 20) == [
        "init", "of the map", "hun 1 hun image", "7",
    ]  # fmt: skip
    status = world.lab.get("Pod", "p")["status"]
    (ended,) = status["initContainerStatuses"]
    assert ended["state"]["terminated"]["reason"] == "Completed" and ended["ready"] is True
    assert world.state("p")["containerID"].startswith("containerd://") and world.state("p")["imageID"]
    told = world.podwire(
        "exec", "p", "-c", "c", "--", "sh", "-c", 'wget -qO- "http://$WEB_SERVICE_HOST/of-init"; id -u'
    )
    assert told.split() == ["init", "7"], "the Service leads to the other container of the pod"


def test_sidecars_run_beside_the_others_and_end_last(world: World) -> None:
    """Each waits for its predecessor to have started; the pod's own container ends the pod (KEP-753)."""
    mounts = [{"name": "e", "mountPath": "/e"}]
    beside = "trap '{}; exit 0' TERM; test -e /e/{} && echo up > /e/{}; sleep 600 & wait"

    def sidecar(own: str, end: str, before: str) -> Object:
        probe = {"exec": {"command": ["test", "-e", f"/e/{own}"]}, "periodSeconds": 1}
        args = [beside.format(end, before, own)]
        return {"name": own, "image": BOX, "args": args, "restartPolicy": "Always", "startupProbe": probe,
                "volumeMounts": mounts}  # fmt: skip

    init = [
        {"name": "i", "image": BOX, "args": ["echo > /e/i"], "volumeMounts": mounts},
        sidecar("s1", "cat /e/ends", "i"),
        sidecar("s2", "echo s2 > /e/ends", "s1"),
    ]
    main = {"name": "c", "image": BOX, "args": ["cat /e/s2; sleep 3; test ! -e /e/ends && echo alone"]}
    world.pod(
        "beside",
        {},
        initContainers=init,
        containers=[{**main, "volumeMounts": mounts}],
        volumes=[{"name": "e", "emptyDir": {}}],
        terminationGracePeriodSeconds=20,
    )
    assert world.wait("beside", "runs", lambda row: "running" in row["state"])["ready"] is True
    rows = {row["name"]: row for row in world.lab.get("Pod", "beside")["status"]["initContainerStatuses"]}
    assert {own: row["state"].keys() for own, row in rows.items()} == {
        "i": {"terminated"},
        "s1": {"running"},
        "s2": {"running"},
    }

    def over() -> bool:
        """beside: the pod has succeeded."""
        return bool(world.lab.get("Pod", "beside")["status"]["phase"] == "Succeeded")

    wait_for(over, 40)
    assert world.log("beside") == ["up", "alone"]
    assert world.log("beside", "s1") == ["s2"], "the last one stops first"
    for row in world.lab.get("Pod", "beside")["status"]["initContainerStatuses"]:
        assert (row["state"]["terminated"]["exitCode"], row["restartCount"]) == (0, 0), row["name"]


def test_why_a_container_waits(world: World) -> None:
    """One row for each reason, as the kubelet has them. 127.0.0.1:1 is a registry that nobody serves."""
    away = "127.0.0.1:1/x:1"
    world.pod("away", {"image": away})
    world.pod("never", {"image": "absent:1", "imagePullPolicy": "Never"})
    world.pod("name", {"image": "Not/A/Name"})
    world.pod("config", {"envFrom": [{"configMapRef": {"name": "later"}}], "args": ["echo got $K"]})
    world.pod("root", {"securityContext": {"runAsNonRoot": True}})
    world.pod("strong", {"securityContext": {"capabilities": {"add": ["SYS_ADMIN"]}}})
    world.pod(
        "volume",
        {"volumeMounts": [{"name": "v", "mountPath": "/v"}]},
        volumes=[{"name": "v", "secret": {"secretName": "no"}}],
    )
    found = world.waiting("away", "ImagePullBackOff")["state"]["waiting"]["message"]
    assert found.startswith(f'Back-off pulling image "{away}": ErrImagePull: ')
    wait_for(lambda: "Failed: Error: ImagePullBackOff" in world.events("away"), 20)
    told = world.events("away")
    assert f'Pulling: Pulling image "{away}"' in told and "Failed: Error: ErrImagePull" in told
    assert f'BackOff: Back-off pulling image "{away}"' in told and "Failed: Error: ImagePullBackOff" in told
    assert any(row.startswith(f'Failed: Failed to pull image "{away}": ') for row in told)
    for own, reason, message in (
        ("never", "ErrImageNeverPull", 'Container image "absent:1" is not present with pull policy of Never'),
        ("name", "InvalidImageName", "couldn't parse image name"),
        ("config", "CreateContainerConfigError", 'configmap "later" not found'),
        ("root", "CreateContainerConfigError", "container has runAsNonRoot and image will run as root"),
        ("strong", "CreateContainerConfigError", "SYS_ADMIN reaches beyond the container"),
        ("volume", "ContainerCreating", 'MountVolume.SetUp failed for volume "v" : secret "no" not found'),
    ):
        row = world.told(own, message)
        assert row["state"]["waiting"]["reason"] == reason, own
    wait_for(lambda: 'Failed: Error: configmap "later" not found' in world.events("config"), 20)
    later = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "later"}, "data": {"K": "v"}}
    world.apply(later)
    assert world.ended("config")["exitCode"] == 0 and world.log("config") == ["got v"]


def test_how_a_container_ends(world: World) -> None:
    full = {"resources": {"limits": {"memory": "16Mi"}}, "command": ["dd", "if=/dev/zero", "of=/dev/null", "bs=100M"]}
    world.pod("oom", full)
    world.pod("nothing", {"command": ["nosuch"]})
    world.pod("words", {"args": ["echo last > /dev/termination-log; exit 3"]})
    world.pod("again", {"args": ["exit 2"]}, restartPolicy="Always")
    assert {key: world.ended("oom")[key] for key in ("exitCode", "reason")} == {"exitCode": 137, "reason": "OOMKilled"}
    nothing = world.ended("nothing")
    assert (nothing["exitCode"], nothing["reason"]) == (128, "StartError") and '"nosuch"' in nothing["message"]
    words = world.ended("words")
    assert (words["exitCode"], words["reason"], words["message"]) == (3, "Error", "last\n")
    row = world.wait("again", "restarts", lambda row: row["restartCount"] > 1)
    assert row["lastState"].get("terminated", row["state"].get("terminated"))["exitCode"] == 2
    assert world.lab.get("Pod", "nothing")["status"]["phase"] == "Failed"


def test_the_api_shows_logs(world: World) -> None:
    world.pod("talks", {"args": ["cat /proc/uptime; echo end; sleep 3; exit 1"]}, restartPolicy="Always")
    world.wait("talks", "has restarted", lambda row: row["restartCount"] > 0 and "running" in row["state"])
    before, followed = world.served("talks", "previous=true"), world.served("talks", "follow=true")
    assert [len(run) for run in (before, followed)] == [2, 2], "a followed log ends with its container"
    lines = world.log("talks")
    first, then = lines.index(before[0]), lines.index(followed[0])
    assert first < then and lines[first : first + 2] == before and lines[then : then + 2] == followed
    assert world.served("talks", "previous=true&tailLines=1") == ["end"]


def test_a_pull_has_the_credentials_of_its_secret(world: World) -> None:
    with registry.serving(world.lab.node_netns(world.node), world.archive.read_bytes(), "u", "pw") as served:
        place = f"127.0.0.1:{served.port}"
        config = {"auths": {place: {"auth": base64.b64encode(b"u:pw").decode()}}}
        world.apply(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": "pulls"},
                "type": "kubernetes.io/dockerconfigjson",
                "stringData": {".dockerconfigjson": json.dumps(config)},
            }
        )
        world.pod("refused", {"image": f"{place}/team/box:1"})
        late = ("ErrImagePull", "ImagePullBackOff")
        row = world.wait("refused", "waits", lambda row: row["state"].get("waiting", {}).get("reason") in late)
        assert not row["imageID"] and not served.asked, "what is on the node later is for every pod"
        world.pod("pulled", {"image": f"{place}/team/box:1"}, imagePullSecrets=[{"name": "pulls"}])
        assert world.ended("pulled")["exitCode"] == 0 and world.log("pulled") == ["of the image"]
        assert any("/manifests/" in path for path in served.asked)


def test_containers_outlive_the_agent_and_containerd(world: World) -> None:
    before = {own: world.state("p", own)["containerID"] for own in ("c", "web")}
    world.pod("ends", {"args": ["sleep 600; exit 5"]})
    world.wait("ends", "runs", lambda row: "running" in row["state"])
    uid = world.lab.get("Pod", "ends")["metadata"]["uid"]
    folder = world.lab.config.node_dir(world.node)
    process = read(folder / "pods" / uid / "containers" / "c" / "state.json")
    daemon = read(folder / "containerd.json")
    assert process and daemon
    agent = world.lab.supervised(world.node, "node")
    os.kill(agent, signal.SIGSTOP)  # it sees nothing of what happens now
    os.kill(daemon["pid"], signal.SIGKILL)
    os.kill(process["pid"], signal.SIGKILL)
    os.kill(agent, signal.SIGKILL)
    assert world.ended("ends")["exitCode"] == 137

    def started() -> bool:
        """containerd is started again."""
        return bool((found := read(folder / "containerd.json")) and found["pid"] != daemon["pid"])

    wait_for(started, 30)
    assert {own: world.state("p", own)["containerID"] for own in ("c", "web")} == before
    assert world.state("p", "web")["restartCount"] == 0
    assert world.podwire("exec", "p", "-c", "c", "--", "id", "-u").strip() == "7"
    world.pod("new", {})
    assert world.ended("new")["exitCode"] == 0 and world.log("new") == ["of the image"]


def test_a_deleted_pod_leaves_no_container(world: World) -> None:
    def running() -> set[int]:
        return set(initial_processes(world.lab.config.cri_dir(world.node) / "state"))

    uid = world.lab.get("Pod", "p")["metadata"]["uid"]
    before = running()
    world.lab.run_tool("delete", "pod", "p")

    def gone() -> bool:
        """The object and the files are gone."""
        with contextlib.suppress(NotYet):
            world.lab.get("Pod", "p")
            return False
        return not (world.lab.config.node_dir(world.node) / "pods" / uid).exists()

    wait_for(gone, 30)
    assert len(before - running()) == 3, "pause and two containers"


def test_down_leaves_nothing(world: World, undo: contextlib.ExitStack) -> None:
    own = world.lab.config
    assert list(initial_processes(own.cri_dir(world.node) / "state")), "pods run while the cluster ends"
    undo.close()
    left = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            told = (entry / "cmdline").read_text()
            if f"podwire-{own.name}/" in (entry / "cgroup").read_text() or str(own.data_dir) in told:
                left.append(told)
    assert left == []
    assert not own.data_dir.exists() and not own.run_dir.exists()
    assert not list(Path("/sys/fs/cgroup").glob(f"**/podwire-{own.name}"))
    assert not [row for row in machine(own.name)["mounts"] if str(DATA) in row]
