"""Environment and volumes: what the plan says, and what is made on the node."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from podwire_base.kube.meta import Object
from podwire_node import environment, projected, termination, volumefiles, volumes
from podwire_node.environment import Room
from podwire_node.podspec import Refused
from podwire_node.projected import Held
from podwire_node.volumes import Mount, Places

ROOM = Room(4, 8 << 30)
MAP = Held("ConfigMap", "m", False)
SECRET = Held("Secret", "s", False)
FOUND: dict[Held, Any] = {
    MAP: {"data": {"A": "1", "B": "2"}, "binaryData": {"X": "AAE="}},
    SECRET: {"data": {"pw": "aHVu"}},
}


def pod(*mounts: Object, **spec: Any) -> tuple[Object, Object]:
    container: Object = {"name": "c", "image": "x", "volumeMounts": list(mounts)}
    whole = {"metadata": {"name": "p", "namespace": "shop", "uid": "u"}, "spec": {"containers": [container], **spec}}
    return whole, container


def env(container: Object, found: dict[Held, Object] | None = None) -> dict[str, str]:
    whole, own = pod()
    own.update(container)
    return environment.environment(whole, own, {"L": "link"}, FOUND if found is None else found, lambda _: "f", ROOM)


def test_the_last_source_of_a_variable_wins() -> None:
    container = {
        "envFrom": [{"configMapRef": {"name": "m"}}, {"prefix": "S_", "secretRef": {"name": "s"}}],
        "env": [
            {"name": "B", "value": "own"},
            {"name": "C", "value": "$(A)-$(S_pw)-$(B)-$(L)"},
            {"name": "D", "valueFrom": {"secretKeyRef": {"name": "s", "key": "pw"}}},
            {"name": "E", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "Z", "optional": True}}},
        ],
    }
    optional = {Held("ConfigMap", "m", True): FOUND[MAP], **FOUND}
    assert env(container, optional) == {
        "L": "link", "A": "1", "S_pw": "hun", "B": "own", "C": "1-hun-own-link", "D": "hun",
    }  # fmt: skip
    assert environment.needs(container) == [MAP, SECRET, Held("ConfigMap", "m", True)]


@pytest.mark.parametrize(
    ("container", "message"),
    [
        ({"envFrom": [{"configMapRef": {"name": "none"}}]}, 'configmap "none" not found'),
        ({"envFrom": [{"secretRef": {"name": "none"}}]}, 'secret "none" not found'),
        (
            {"env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "k"}}}]},
            "couldn't find key k in ConfigMap shop/m",
        ),
        (
            {"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]},
            "couldn't find key k in Secret shop/s",
        ),
    ],
)
def test_what_is_missing_is_named_as_the_kubelet_names_it(container: Object, message: str) -> None:
    with pytest.raises(Refused) as caught:
        env(container)
    assert (caught.value.reason, str(caught.value)) == ("CreateContainerConfigError", message)


def test_what_is_optional_may_be_missing() -> None:
    assert env({"envFrom": [{"configMapRef": {"name": "none", "optional": True}}]}) == {"L": "link"}


@pytest.mark.parametrize(
    ("ref", "value"),
    [
        ({"resource": "limits.cpu"}, "2"),
        ({"resource": "limits.cpu", "divisor": "1m"}, "1500"),
        ({"resource": "limits.memory", "divisor": "1Mi"}, "8192"),
        ({"resource": "requests.memory"}, "1048576"),
        ({"resource": "requests.cpu"}, "0"),
    ],
)
def test_fields_of_resources(ref: Object, value: str) -> None:
    part = {"limits": {"cpu": "1500m"}, "requests": {"memory": "1Mi"}}
    whole, container = pod()
    container["resources"] = part
    assert environment.resource(whole, container, ref, ROOM) == value


def test_links_of_services() -> None:
    ports = [{"port": 6379, "name": "re-dis"}, {"port": 53, "name": "d", "protocol": "UDP"}]
    made = environment.service_links(
        [
            {"metadata": {"name": "my-db"}, "spec": {"clusterIP": "10.0.0.1", "ports": ports}},
            {"metadata": {"name": "head"}, "spec": {"clusterIP": "None", "ports": ports}},
        ]
    )
    assert made["MY_DB_SERVICE_HOST"] == "10.0.0.1" and made["MY_DB_SERVICE_PORT"] == "6379"
    assert made["MY_DB_SERVICE_PORT_RE_DIS"] == "6379" and made["MY_DB_PORT"] == "tcp://10.0.0.1:6379"
    assert made["MY_DB_PORT_53_UDP"] == "udp://10.0.0.1:53" and made["MY_DB_PORT_53_UDP_ADDR"] == "10.0.0.1"
    assert not [name for name in made if name.startswith("HEAD")]


PLACES = Places("/pod/empty", "/pod/memory", "/pod/api", "/node/host")


@pytest.mark.parametrize(
    ("volume", "mount", "expected"),
    [
        ({"emptyDir": {}}, {}, ("/pod/empty/v", False, "")),
        ({"emptyDir": {"medium": "Memory"}}, {"readOnly": True}, ("/pod/memory/v", True, "")),
        ({}, {}, ("/pod/empty/v", False, "")),
        ({"secret": {"secretName": "s"}}, {}, ("/pod/api/v", True, "")),
        ({"configMap": {"name": "s"}}, {"subPath": "a/./b"}, ("/pod/api/v", True, "a/b")),
        ({"emptyDir": {}}, {"subPathExpr": "$(N)/x"}, ("/pod/empty/v", False, "n/x")),
        ({"hostPath": {"path": "/data/../data/x"}}, {}, ("/node/host/data/x", False, "")),
        ({"hostPath": {"path": "/../../etc"}}, {}, ("/node/host/etc", False, "")),
    ],
)
def test_where_a_volume_is(volume: Object, mount: Object, expected: tuple[str, bool, str]) -> None:
    whole, container = pod({"name": "v", "mountPath": "/m", **mount}, volumes=[{"name": "v", **volume}])
    (found,) = volumes.mounts(whole, container, PLACES, {"N": "n"})
    assert (found.source, found.read_only, found.sub) == expected and found.path == "/m"


@pytest.mark.parametrize(
    ("volume", "mount", "word"),
    [
        ({"persistentVolumeClaim": {"claimName": "data"}}, {}, "no provisioner"),
        ({"nfs": {"server": "x", "path": "/"}}, {}, "nfs is not supported"),
        ({"emptyDir": {}}, {"name": "other"}, "not in spec.volumes"),
        ({"emptyDir": {}}, {"subPath": "../x"}, "not inside the volume"),
        ({"emptyDir": {}}, {"subPathExpr": "$(N)"}, "not inside the volume"),
    ],
)
def test_volumes_that_no_container_gets(volume: Object, mount: Object, word: str) -> None:
    whole, container = pod({"name": "v", "mountPath": "/m", **mount}, volumes=[{"name": "v", **volume}])
    with pytest.raises(Refused, match=word):
        volumes.mounts(whole, container, PLACES, {"N": "../../etc"})


def test_a_path_is_mounted_before_those_below_it() -> None:
    rows = [{"name": "v", "mountPath": path} for path in ("/a/b/c", "/a", "/a/b/")]
    whole, container = pod(*rows, volumes=[{"name": "v", "emptyDir": {}}])
    assert [found.path for found in volumes.mounts(whole, container, PLACES, {})] == ["/a", "/a/b/", "/a/b/c"]


def test_an_empty_directory_is_everybodys_or_its_groups(tmp_path: Path) -> None:
    (bind,) = volumefiles.make([Mount("e", "emptyDir", str(tmp_path / "x/e"), "/e", False)], None)
    assert Path(bind.source).stat().st_mode & 0o7777 == 0o777
    (Path(bind.source) / "kept").touch()
    (again,) = volumefiles.make([Mount("e", "emptyDir", bind.source, "/e", False, "sub/dir")], None)
    assert again.source == f"{bind.source}/sub/dir" and (Path(bind.source) / "kept").exists()
    (own,) = volumefiles.make([Mount("g", "emptyDir", str(tmp_path / "g"), "/g", False)], os.getgid())
    assert Path(own.source).stat().st_mode & 0o7777 == 0o2777


def test_no_link_of_a_pod_leads_out_of_its_volume(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    (tmp_path / "v/etc").symlink_to("/etc")
    (tmp_path / "v/up").symlink_to("..")
    for sub in ("etc", "etc/ssl", "up/other"):
        with pytest.raises(Refused, match="leads out of the volume"):
            volumefiles.make([Mount("v", "emptyDir", str(tmp_path / "v"), "/m", False, sub)], None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v"]


@pytest.mark.parametrize(
    ("kind", "there", "result"),
    [
        ("", "", "directory"),
        ("DirectoryOrCreate", "", "directory"),
        ("FileOrCreate", "", "file"),
        ("Directory", "", "is not a directory"),
        ("File", "", "is not a file"),
        ("Directory", "file", "is not a directory"),
        ("Socket", "file", "is not a socket file"),
        ("File", "file", "file"),
        ("CharDevice", "", "no devices"),
    ],
)
def test_types_of_host_paths(tmp_path: Path, kind: str, there: str, result: str) -> None:
    place = tmp_path / "host/data"
    if there:
        place.parent.mkdir()
        place.touch()
    mount = Mount("h", "hostPath", str(place), "/h", False, "", kind)
    if result in ("directory", "file"):
        volumefiles.make([mount], None)
        assert place.is_dir() is (result == "directory") and place.is_file() is (result == "file")
    else:
        with pytest.raises(Refused, match=result):
            volumefiles.make([mount], None)


def test_volumes_of_one_object_are_projected_ones() -> None:
    whole, _ = pod(
        volumes=[
            {"name": "m", "configMap": {"name": "m", "defaultMode": 0o400, "items": [{"key": "A", "path": "x/a"}]}},
            {"name": "s", "secret": {"secretName": "s", "optional": True}},
            {"name": "d", "downwardAPI": {"items": [{"path": "c", "resourceFieldRef": {"resource": "limits.cpu"}}]}},
        ]
    )
    assert list(projected.needs(whole, "m")) == [MAP] and list(projected.needs(whole, "d")) == []
    assert projected.files(whole, "m", {MAP: FOUND[MAP]}, lambda _: "") == {"x/a": (b"1", 0o400)}
    assert projected.files(whole, "s", {Held("Secret", "s", True): FOUND[SECRET]}, lambda _: "") == {
        "pw": (b"hun", 0o644)
    }
    assert projected.files(whole, "s", {}, lambda _: "") == {}
    assert projected.files(whole, "d", {}, lambda _: "", lambda ref: str(ref["resource"])) == {
        "c": (b"limits.cpu", 0o644)
    }
    with pytest.raises(Refused, match=r'MountVolume\.SetUp failed for volume "m" : configmap "m" not found'):
        projected.files(whole, "m", {}, lambda _: "")


def test_last_words(tmp_path: Path) -> None:
    bind = termination.file(tmp_path, {"terminationMessagePath": "/t"})
    assert bind.path == "/t" and Path(bind.source).stat().st_mode & 0o777 == 0o666
    (tmp_path / "log").write_text("2026-01-01T00:00:00Z stderr F last\n")
    fallback = {"terminationMessagePolicy": "FallbackToLogsOnError"}
    assert termination.message(tmp_path, fallback, {"code": 1}) == "last"
    assert termination.message(tmp_path, fallback, {"code": 0}) == ""
    assert termination.message(tmp_path, {}, {"code": 1}) == ""
    Path(bind.source).write_text("x" * 5000)
    assert termination.message(tmp_path, fallback, {"code": 1}) == "x" * 4096
