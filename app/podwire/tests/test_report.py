"""`podwire report`: what leaves the machine and what does not."""

from __future__ import annotations

import json
import tarfile
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from podwire.main import cli
from podwire.report import collect
from podwire.report.redact import KINDS, REDACTED, redact, scrub
from podwire_base.kube.meta import Object
from podwire_controlplane.testing.servers import Server

JWT = "eyJhbGciOiJSUzI1NiIsImtpZCI6IngifQ.eyJzdWIiOiJzeXN0ZW06c2EifQ.c2lnbmF0dXJl"
KEY = "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIB\n-----END EC PRIVATE KEY-----"


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        (f"Authorization: Bearer {JWT}", JWT),
        (f"a token {JWT} in a log", JWT),
        (f"x\n{KEY}\ny", "MHcCAQEEIB"),
        ("join with abcdef.0123456789abcdef now", "0123456789abcdef"),
        ("password=hunter2 user=me", "hunter2"),
        ('{"client-key-data": "c2VjcmV0"}', "c2VjcmV0"),
        ("DB_PASSWORD: 'hun ter2'", "ter2"),
        ("https://me:hunter2@example.com/x", "hunter2"),
        ("Authorization: Basic bWU6aHVudGVyMg==", "bWU6aHVudGVyMg=="),
        (KEY[:50], "MHcCAQEEIB"),  # a log that was cut
    ],
)
def test_secrets_are_scrubbed_from_text(text: str, secret: str) -> None:
    assert secret in text
    assert secret not in scrub(text) and REDACTED in scrub(text)


@pytest.mark.parametrize(
    "text", ["x" * 300_000, "a." * 150_000, "token" * 60_000, "eyJ" * 100_000, "http://" * 40_000], ids=len
)
def test_scrubbing_takes_linear_time(text: str) -> None:
    began = time.process_time()
    scrub(text)
    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    "text", ["synced 12 Services", "10.244.0.4 -> 10.96.0.1:443", "node1 Ready", "2026-11-30T10:00:00Z"]
)
def test_other_text_stays(text: str) -> None:
    assert scrub(text) == text


POD: Object = {
    "kind": "Pod",
    "metadata": {
        "name": "p",
        "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "hunter2", "kept": "yes"},
        "managedFields": ["hunter2"],
    },
    "spec": {
        "initContainers": [{"name": "i", "args": ["--password", "hunter2"]}],
        "containers": [
            {
                "name": "c",
                "image": "nginx",
                "env": [
                    {"name": "PW", "value": "hunter2"},
                    {"name": "S", "valueFrom": {"secretKeyRef": {"name": "s"}}},
                ],
                "command": ["run", "hunter2"],
                "livenessProbe": {"exec": {"command": ["check", "hunter2"]}, "periodSeconds": 3},
                "lifecycle": {"preStop": {"exec": {"command": ["hunter2"]}}},
            }
        ],
    },
}


def test_objects_are_redacted_and_stay_useful() -> None:
    made = redact(POD, frozenset())
    assert made is not None and "hunter2" not in json.dumps(made)
    (container,) = made["spec"]["containers"]
    assert container["image"] == "nginx" and [e["name"] for e in container["env"]] == ["PW", "S"]
    assert container["livenessProbe"]["periodSeconds"] == 3 and made["metadata"]["annotations"]["kept"] == "yes"
    deployment = {"kind": "Deployment", "metadata": {"name": "d"}, "spec": {"template": {"spec": POD["spec"]}}}
    assert "hunter2" not in json.dumps(redact(deployment, frozenset()))
    assert redact({"kind": "Secret", "metadata": {"name": "s"}}, frozenset(KINDS)) is None
    config = {"kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"a": "hunter2"}}
    assert redact(config, frozenset()) == {**config, "data": {"a": REDACTED}}


def test_include_keeps_what_it_names_and_no_more() -> None:
    text = json.dumps(redact(POD, frozenset(("environment",))))
    assert '"value": "hunter2"' in text and '["run", "hunter2"]' not in text
    text = json.dumps(redact(POD, frozenset(("command-lines",))))
    assert '"value": "hunter2"' not in text and '["run", "hunter2"]' in text
    config = {"kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"a": "b"}}
    assert redact(config, frozenset(("configmaps",))) == config


def test_a_run_directory_gives_states_and_logs_but_no_keys(tmp_path: Path) -> None:
    for name in (
        "api/server-key.pem",
        "api/tokens.json",
        "kubeconfig",
        "cluster.json",
        "log/x.log",
        "status/proxy.json",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"content of {name}")
    (tmp_path / "log/link.log").symlink_to(tmp_path / "kubeconfig")
    (tmp_path / "log/long.log").write_bytes(b"x" * collect.LOG_BYTES + b"the end")
    archive = collect.Archive()
    collect.run_dir(archive, "c", tmp_path)
    assert set(archive.files) == {"c/cluster.json", "c/log/x.log", "c/log/long.log", "c/status/proxy.json"}
    assert archive.files["c/log/long.log"].endswith(b"the end")


def test_the_file_is_private_and_new(tmp_path: Path) -> None:
    file = tmp_path / "r.tar.gz"
    with Server() as server:
        kubeconfig = server.kubeconfig(tmp_path / "kubeconfig")
        words = ["report", "--file", str(file), "--run-dir", str(tmp_path / "none"), "--kubeconfig", str(kubeconfig)]
        done = CliRunner().invoke(cli, words)
        again = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, done.output
    assert file.stat().st_mode & 0o777 == 0o600
    with tarfile.open(file) as tar:
        names = {entry.name for entry in tar.getmembers()}
        assert all(entry.mode == 0o600 for entry in tar.getmembers())
        services = tar.extractfile("r/api/services.json")
        assert services is not None and json.load(services) == []
    assert {"r/versions.txt", "r/processes.txt", "r/errors.txt", "r/api/nodes.json"} <= names
    assert "r/api/secrets.json" not in names
    assert again.exit_code == 1 and "is there already" in " ".join(again.output.split())


def test_without_a_cluster_it_still_says_what_it_can(tmp_path: Path) -> None:
    words = [
        "report",
        "--file",
        str(tmp_path / "r.tar.gz"),
        "--kubeconfig",
        "/none",
        "--run-dir",
        str(tmp_path / "none"),
    ]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0
    with tarfile.open(tmp_path / "r.tar.gz") as tar:
        errors = tar.extractfile("r/errors.txt")
        assert errors is not None and "/none" in errors.read().decode()
