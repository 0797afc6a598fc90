"""`podwire get|apply|delete` against a real server; error messages for people, manifests, logs and status files."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from podwire.main import COMMANDS, cli
from podwire_base.kube import manifestfiles, manifests, patch
from podwire_base.kube.meta import Object
from podwire_base.role import logs
from podwire_base.role.status import RoleStatus, read_all
from podwire_base.testing.builders import deployment, service
from podwire_controlplane.testing.servers import Server


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as shared:
        yield shared


@pytest.fixture
def podwire(server: Server, tmp_path: Path) -> Any:
    kubeconfig = server.kubeconfig(tmp_path / "kubeconfig")

    def call(*words: str, stdin: str | None = None) -> Result:
        result = CliRunner().invoke(cli, words, input=stdin, env={"KUBECONFIG": str(kubeconfig), "COLUMNS": "200"})
        assert "Traceback" not in result.output and (
            result.exception is None or isinstance(result.exception, SystemExit)
        )
        return result

    return call


def test_help_names_every_command(podwire: Any) -> None:
    text = podwire("--help").output
    assert all(f"  {name} " in text for name in COMMANDS)
    for name in COMMANDS:
        shown = podwire(name, "--help")
        assert shown.exit_code == 0 and "Usage:" in shown.output
    assert podwire("nonsense").exit_code == 2


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("get",), "name a kind"),
        (("get", "widgets"), "kind 'widgets' is unknown"),
        (("get", "pods", "none"), '"none" not found'),
        (("get", "pod", "pod/p"), "leave 'pod' out"),
        (("get", "pods", "p", "-A"), "one namespace"),
        (("get", "pods", "-l", "a b"), "unable to parse requirement"),
        (("delete",), "name a kind"),
        (("delete", "pods"), "name the pod"),
        (("delete", "svc", "none"), '"none" not found'),
        (("apply", "-f", "/none.yaml"), "/none.yaml: cannot be read"),
        (("get", "pods", "--kubeconfig", "/none"), "/none"),
        (("delete", "-f", "/none.yaml"), "cannot be read"),
    ],
    ids=str,
)
def test_bad_words_get_one_clear_line(podwire: Any, words: tuple[str, ...], text: str) -> None:
    result = podwire(*words)
    assert result.exit_code == 1 and result.output.startswith("error:") and text in result.output.replace("\n", " ")


def test_apply_get_delete(podwire: Any) -> None:
    text = yaml.safe_dump_all([deployment("shop"), service("shop", type="NodePort", selector={"app": "shop"})])
    assert [podwire("apply", "-f", "-", stdin=text).output.splitlines() for _ in range(2)] == [
        ["deployment.apps/shop created", "service/shop created"],
        ["deployment.apps/shop unchanged", "service/shop unchanged"],
    ]
    changed = text.replace("replicas: 3", "replicas: 4")
    assert podwire("apply", "-f", "-", stdin=changed).output.splitlines() == [
        "deployment.apps/shop configured",
        "service/shop unchanged",
    ]
    assert "shop" in podwire("get", "deploy,svc", "-o", "wide").output
    made = yaml.safe_load(podwire("get", "deploy", "shop", "-o", "yaml").output)
    assert made["spec"]["replicas"] == 4 and made["metadata"]["generation"] == 2
    assert json.loads(podwire("get", "svc/shop", "-o", "json").output)["spec"]["type"] == "NodePort"
    assert podwire("get", "svc", "shop", "-o", "name").output == "service/shop\n"
    assert podwire("delete", "-f", "-", stdin=text).output.splitlines() == [
        "deployment.apps/shop deleted",
        "service/shop deleted",
    ]
    assert podwire("delete", "svc", "shop", "--ignore-not-found").exit_code == 0
    assert "no services found in namespace default" in podwire("get", "svc").output


@pytest.mark.parametrize(
    "own", ["../services/innocent", "../services?x=", "a?b#c", "..", "%2e%2e/services/innocent", "innocent/status"]
)
def test_a_name_is_one_name_whatever_is_in_it(podwire: Any, own: str) -> None:
    """A name is not a path: only the object of exactly that name may be read or deleted."""
    podwire("apply", "-f", "-", stdin=yaml.safe_dump(service("innocent")))
    for words in (
        ("get", "cm", own),
        ("delete", "cm", own),
        ("get", "cm", "x", "-n", own),
        ("delete", "cm", "x", "-n", own),
    ):
        result = podwire(*words)
        assert result.exit_code == 1 and result.output.startswith("error:"), result.output
    assert podwire("get", "svc", "innocent").exit_code == 0
    podwire("delete", "svc", "innocent")


def test_one_bad_object_does_not_keep_the_others_out(podwire: Any) -> None:
    bad = service("bad", type="NodePort", ports=[{"port": 80, "nodePort": 5}])
    misspelt = {**service("misspelt"), "spec": {"prots": []}}
    result = podwire("apply", "-f", "-", stdin=yaml.safe_dump_all([bad, misspelt, service("good")]))
    assert result.exit_code == 1 and "service/good created" in result.output
    assert "spec.ports[0].nodePort" in result.output and 'unknown field "spec.prots"' in result.output


# ---- manifests


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "here: not YAML"),
        ("- a", "expected an object"),
        ("kind: Pod", "apiVersion is missing"),
        ("apiVersion: v1", "kind is missing"),
        ("apiVersion: v1\nkind: Pod", "metadata.name is missing"),
        ("apiVersion: v2\nkind: Pod\nmetadata: {name: x}", "known: "),
        ("---\napiVersion: v1\nkind: Pod\nmetadata: {name: x}\n---\nx: 1", "document 2"),
        ("[" * 900, "not YAML"),
        ("apiVersion: v1\nkind: PodList\nitems: [5]", "expected an object"),
    ],
    ids=lambda t: t[:20],
)
def test_bad_manifests_name_file_and_document(text: str, words: str) -> None:
    with pytest.raises(manifests.BadManifest, match=words) as caught:
        list(manifests.parse(text, "here"))
    assert str(caught.value).startswith("here")


def test_lists_and_dates_and_folders(tmp_path: Path) -> None:
    listed = {"apiVersion": "v1", "kind": "List", "items": [service("a"), service("b")]}
    assert [o["metadata"]["name"] for o in manifests.parse(yaml.safe_dump(listed), "x")] == ["a", "b"]
    (dated,) = manifests.parse("apiVersion: v1\nkind: Pod\nmetadata: {name: x, annotations: {on: 2026-01-01}}", "x")
    assert manifests.with_record(dated)["metadata"]["annotations"]["true"] == "2026-01-01"
    for name in ("2.yaml", "1.yml", "3.txt"):
        (tmp_path / name).write_text(yaml.safe_dump(service(f"s{name[0]}")))
    assert [o["metadata"]["name"] for o in manifestfiles.read_files([str(tmp_path)])] == ["s1", "s2"]


def _apply(obj: Object, live: Object) -> Object:
    merged: Object = patch.merge(live, manifests.three_way(obj, live))
    return merged


def test_three_way_keeps_what_others_set_and_removes_what_is_left_out() -> None:
    first = service(labels={"a": "1", "b": "2"}, selector={"x": "1", "y": "2"}, externalIPs=["1.2.3.4"])
    live = manifests.with_record(first)
    live = patch.merge(
        live, {"spec": {"clusterIP": "10.96.0.9"}, "status": {"s": 1}, "metadata": {"labels": {"other": "x"}}}
    )
    assert _apply(first, live) == live, "twice is unchanged"
    second = service(labels={"a": "1"}, selector={"x": "9"})
    after = _apply(second, live)
    assert after["metadata"]["labels"] == {"a": "1", "other": "x"} and after["spec"]["selector"] == {"x": "9"}
    assert (
        "externalIPs" not in after["spec"] and after["spec"]["clusterIP"] == "10.96.0.9" and after["status"] == {"s": 1}
    )
    record = json.loads(after["metadata"]["annotations"][manifests.LAST_APPLIED])
    assert record == {**second, "metadata": {**second["metadata"], "annotations": {}}}
    broken = patch.merge(live, {"metadata": {"annotations": {manifests.LAST_APPLIED: "{"}}})
    assert _apply(second, broken)["spec"]["externalIPs"] == ["1.2.3.4"], "without a record no file counts as ours"


def test_the_record_does_not_hold_an_older_record() -> None:
    live = manifests.with_record(service())
    again = manifests.with_record(live)
    assert again["metadata"]["annotations"] == live["metadata"]["annotations"]


# ---- logs and status files


def test_log_lines() -> None:
    stream = io.StringIO()
    logs.configure(stream=stream, node="n1")
    try:
        log = logs.get("proxy")
        log.info("synced", services=12, took=1.23456, note="two words", empty="", rows=["a"])
        log.debug("hidden")
        logs.configure(stream=stream, json_lines=True, level="debug")
        log.debug("shown", path=Path("/x"))
        first, second = stream.getvalue().splitlines()
        assert first.split(" ", 1)[1] == (
            'info proxy synced node=n1 services=12 took=1.235 note="two words" empty="" rows="[\\"a\\"]"'
        )
        assert json.loads(second) | {"time": ""} == {
            "time": "",
            "level": "debug",
            "role": "proxy",
            "event": "shown",
            "path": "/x",
        }
        stream.close()
        log.error("to a closed stream")
    finally:
        logs.configure()


def test_role_status(tmp_path: Path) -> None:
    status = RoleStatus(tmp_path, "proxy")
    status.update(ready=False, message="starting")
    (tmp_path / "status" / "torn.json").write_text("{")
    first = read_all(tmp_path)
    assert list(first) == ["proxy"] and first["proxy"]["reason"] == "NotReady" and not first["proxy"]["ready"]
    status.update(ready=False, message="starting")
    assert read_all(tmp_path) == first, "unchanged content is not written again"
    status.update(ready=True, message="3 Services", reason="Synced", services=3)
    assert read_all(tmp_path)["proxy"]["figures"] == {"services": 3} and read_all(tmp_path / "none") == {}


def test_the_record_of_an_apply_is_kubectls_own() -> None:
    """The record is identical byte for byte, so that podwire and kubectl can be used in turn and both find
    "unchanged".
    """
    obj = {
        "kind": "ConfigMap",
        "apiVersion": "v1",
        "metadata": {"namespace": "default", "name": "m"},
        "data": {"k": "<ä&>"},
    }
    assert manifests.with_record(obj)["metadata"]["annotations"][manifests.LAST_APPLIED] == (
        '{"apiVersion":"v1","data":{"k":"\\u003cä\\u0026\\u003e"},"kind":"ConfigMap",'
        '"metadata":{"annotations":{},"name":"m","namespace":"default"}}\n'
    )


@pytest.mark.parametrize("text", ["10.96.0.1", "10.96.0.1:", "10.96.0.1:0", "10.96.0.1:65536", "10.96.0.1:²"])
def test_explain_names_a_destination_without_a_port(text: str) -> None:
    done = CliRunner().invoke(cli, ["explain", "127.0.0.1", text])
    assert done.exit_code != 0 and isinstance(done.exception, SystemExit) and "expected DST:PORT" in done.output
