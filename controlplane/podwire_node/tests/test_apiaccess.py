"""The projected volumes of a pod: the token of its ServiceAccount, the authority, its namespace."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from podwire_base.kube.errors import Refused
from podwire_base.kube.meta import Object
from podwire_node import apiaccess, projected
from podwire_node.apiaccess import ApiAccess
from podwire_node.podspec import Refused as NotRun

TARGET = "/var/run/secrets/kubernetes.io/serviceaccount"
SOURCES: list[Object] = [
    {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
    {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
    {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}},
]
CONTAINER: Object = {"name": "c", "volumeMounts": [{"name": "kube-api-access-x", "mountPath": TARGET}]}


def pod(*sources: Object) -> Object:
    volume = {"name": "kube-api-access-x", "projected": {"sources": list(sources or SOURCES), "defaultMode": 0o644}}
    spec = {"serviceAccountName": "robot", "volumes": [volume], "containers": [CONTAINER]}
    return {"metadata": {"name": "p", "namespace": "shop", "uid": "u"}, "spec": spec}


class Api:
    """Answers as the API server; each token is another one."""

    def __init__(self) -> None:
        self.maps: dict[str, Object] = {"kube-root-ca.crt": {"metadata": {}, "data": {"ca.crt": "PEM"}}}
        self.asked: list[tuple[str, Object]] = []

    async def get(self, path: str) -> Object:
        found = self.maps.get(path.rpartition("/")[2])
        if found is None:
            raise Refused(404, "NotFound", "none")
        return found

    async def create(self, path: str, body: Object) -> Object:
        self.asked.append((path, body["spec"]))
        return {"status": {"token": f"t{len(self.asked)}"}}


def prepared(api: Api, folder: Path, made: Object, now: list[float]) -> tuple[ApiAccess, Path]:
    access = ApiAccess(cast(Any, api), folder, lambda: now[0])
    asyncio.run(access.prepare(made, ["kube-api-access-x"], lambda path: made["metadata"]["namespace"]))
    return access, folder / "volumes" / "kube-api-access-x"


def test_a_pod_has_its_token_the_authority_and_its_namespace(tmp_path: Path) -> None:
    api = Api()
    _, source = prepared(api, tmp_path, pod(), [0.0])
    assert {own: (source / own).read_text() for own in ("token", "ca.crt", "namespace")} == {
        "token": "t1",
        "ca.crt": "PEM",
        "namespace": "shop",
    }
    ((where, spec),) = api.asked
    assert where == "/api/v1/namespaces/shop/serviceaccounts/robot/token"
    bound = {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u"}
    assert spec == {"expirationSeconds": 3607, "boundObjectRef": bound}


def test_a_token_is_renewed_before_its_end(tmp_path: Path) -> None:
    api, now, made = Api(), [0.0], pod()
    access, source = prepared(api, tmp_path, made, now)
    token = source / "token"
    for seconds, text in ((3607 * 0.79, "t1"), (3607 * 0.81, "t2")):
        now[0] = seconds
        asyncio.run(access._write(made, "kube-api-access-x", lambda path: "shop"))
        assert token.read_text() == text
    assert len([entry for entry in source.iterdir() if entry.name.startswith("..2") or entry.is_dir()]) <= 3
    assert 0 < access._wait() <= apiaccess.REFRESH_SECONDS


def test_a_reader_sees_a_whole_state(tmp_path: Path) -> None:
    assert apiaccess.write(tmp_path, {"a": (b"1", 0o644), "d/b": (b"2", 0o600)})
    assert not apiaccess.write(tmp_path, {"a": (b"1", 0o644), "d/b": (b"2", 0o600)}), "nothing changed"
    opened = (tmp_path / "..data").resolve()
    assert apiaccess.write(tmp_path, {"a": (b"3", 0o644), "c": (b"4", 0o644)})
    assert (tmp_path / "a").read_text() == "3" and (tmp_path / "c").read_text() == "4" and not opened.exists()
    assert sorted(entry.name for entry in tmp_path.iterdir() if not entry.name.startswith("..")) == ["a", "c"]


def test_what_is_absent_is_told(tmp_path: Path) -> None:
    api = Api()
    api.maps.clear()
    with pytest.raises(NotRun, match=r'"kube-api-access-x" : configmap "kube-root-ca\.crt" not found'):
        prepared(api, tmp_path, pod(), [0.0])
    optional = {"configMap": {"name": "none", "optional": True}}
    _, source = prepared(api, tmp_path, pod(optional), [0.0])
    assert [entry.name for entry in source.iterdir() if not entry.name.startswith("..")] == []


@pytest.mark.parametrize("path", ["../x", "/etc/x", "a/../../x", "."])
def test_no_file_leaves_the_volume(path: str) -> None:
    made = pod({"serviceAccountToken": {"path": path}})
    with pytest.raises(NotRun, match="not inside the volume"):
        projected.files(made, "kube-api-access-x", {projected.Token("", 3600): "t"}, lambda _: "")


def test_a_source_that_is_not_known_is_refused() -> None:
    with pytest.raises(NotRun, match="clusterTrustBundle is not supported"):
        list(projected.needs(pod({"clusterTrustBundle": {"path": "x"}}), "kube-api-access-x"))
