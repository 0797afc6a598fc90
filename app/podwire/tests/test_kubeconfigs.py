"""Several clusters: one kubeconfig of several files, contexts, and the user's own file."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from podwire.cluster import config, credentials, merging, record, teardown
from podwire.cluster.config import ClusterConfig
from podwire.cluster.merging import CannotMerge
from podwire.commands import common, pods
from podwire.main import cli
from podwire_base.kube.client import config as client_config
from podwire_base.kube.client import kubeconfigs
from podwire_base.kube.errors import ConfigError
from podwire_controlplane.server import pki


def document(name: str, **more: Any) -> dict[str, Any]:
    return {
        "current-context": name,
        "clusters": [{"name": name, "cluster": {"server": f"http://{name}:1"}}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": f"{name}-admin"}}],
        "users": [{"name": f"{name}-admin", "user": {"token": name}}],
        **more,
    }


def put(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


# ---- several files


def test_the_first_file_wins_and_names_of_files_stay_right(tmp_path: Path) -> None:
    a = document("a", users=[{"name": "a-admin", "user": {"tokenFile": "token"}}])
    b = document("b", users=[{"name": "a-admin", "user": {"token": "wrong"}}, {"name": "b-admin", "user": {}}])
    first, second = put(tmp_path / "x" / "a", a), put(tmp_path / "b", b)
    put(tmp_path / "x" / "token", "secret\n")
    both = f"{first}:{tmp_path}/missing:{second}"
    assert client_config.load(both).server == "http://a:1"
    assert client_config.load(both).token == "secret"
    assert client_config.load(both, context="b").server == "http://b:1"
    assert client_config.load(f"{second}:{first}").server == "http://b:1"
    assert set(client_config.load(both).files) >= {first, second, tmp_path / "x" / "token"}
    again = client_config.load(both, context="b").again
    assert again is not None and again().server == "http://b:1"


def test_an_empty_current_context_comes_from_the_next_file(tmp_path: Path) -> None:
    first = put(tmp_path / "a", document("a", **{"current-context": ""}))
    assert client_config.load(f"{first}:{put(tmp_path / 'b', document('b'))}").server == "http://b:1"
    assert client_config.load(f"{put(tmp_path / 'empty', '')}:{first}", context="a").server == "http://a:1"


def test_mistakes_are_named(tmp_path: Path) -> None:
    first = put(tmp_path / "a", document("a"))
    for given, context, text in (
        (first, "c", "there is no context 'c'; there are: a"),
        (tmp_path / "no", "", "no such file"),
        (f"{tmp_path}/no:{tmp_path}/none", "", "no such file"),
        (put(tmp_path / "n", document("n", **{"current-context": ""})), "", "pass --context"),
        (f"{first}:{put(tmp_path / 'bad', '[]')}", "", "bad: it is not a YAML mapping"),
    ):
        with pytest.raises(ConfigError, match=text):
            client_config.load(given, context=context)


def test_a_name_with_a_colon_is_one_file(tmp_path: Path) -> None:
    file = put(tmp_path / "a:b", document("a"))
    assert client_config.paths(str(file)) == [file]
    assert client_config.paths("/x/a:/x/b::") == [Path("/x/a"), Path("/x/b")]


# ---- clusters of this machine


@pytest.fixture
def clusters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Two clusters, "podwire" and "dev", and an empty home."""
    base = tmp_path / "run"
    for module in (config, common, merging, pods):
        monkeypatch.setattr(module, "BASE", base)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("KUBECONFIG", "PODWIRE_NAME", "SUDO_UID", "SUDO_USER", "SUDO_GID"):
        monkeypatch.delenv(name, raising=False)
    for number, name in enumerate(("podwire", "dev")):
        made = ClusterConfig(name=name, nodes=1, api_port=1000 + number)
        made.run_dir.mkdir(parents=True)
        record.save(made)
        credentials.make(made)
    yield base


def command(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(cli, words)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, " ".join(done.output.split())


def test_names_of_two_clusters_do_not_meet(clusters: Path) -> None:
    found = [yaml.safe_load((clusters / name / "kubeconfig").read_text()) for name in ("podwire", "dev")]
    names = [{row["name"] for table in kubeconfigs.LISTS for row in one[table]} for one in found]
    assert names == [{"podwire", "podwire-admin"}, {"podwire-dev", "podwire-dev-admin"}]


def test_the_controllers_of_an_earlier_cluster_get_their_own_user(clusters: Path) -> None:
    """They were of the group system:masters. Other kubeconfigs stay as they are."""
    made = ClusterConfig(name="dev", nodes=1, api_port=1001)
    admin, controllers = made.kubeconfig.read_text(), made.run_dir / "api/controllers.kubeconfig"
    assert pki.acts_as(controllers, "system:kube-controller-manager", [])
    shutil.copyfile(made.kubeconfig, controllers)
    assert pki.acts_as(controllers, "admin", ["system:masters"])
    credentials.make(made)
    assert pki.acts_as(controllers, "system:kube-controller-manager", [])
    assert made.kubeconfig.read_text() == admin
    controllers.write_text("no kubeconfig")
    credentials.make(made)
    assert pki.acts_as(controllers, "system:kube-controller-manager", [])


def test_name_chooses_a_cluster_on_every_command(clusters: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for words in (("get", "pods"), ("status",), ("apply", "-f", str(put(clusters.parent / "x.yaml", POD)))):
        assert "127.0.0.1:1001" in command(*words, "--name", "dev")[1], words
        assert "127.0.0.1:1000" in command(*words)[1], words
    monkeypatch.setenv("KUBECONFIG", str(clusters / "podwire" / "kubeconfig"))
    assert "127.0.0.1:1001" in command("get", "pods", "--name", "dev")[1]
    assert "leave one out" in command("get", "pods", "--name", "dev", "--kubeconfig", "x")[1]
    assert "there are: dev, podwire" in command("get", "pods", "--name", "none")[1]
    monkeypatch.setenv("PODWIRE_NAME", "dev")  # for all commands of a shell, and for `make up`
    assert "127.0.0.1:1001" in command("get", "pods")[1]
    assert command("kubeconfig")[1] == str(clusters / "dev" / "kubeconfig")
    assert "127.0.0.1:1000" in command("get", "pods", "--name", "podwire")[1]
    assert "127.0.0.1:1000" in command("get", "pods", "--kubeconfig", str(clusters / "podwire" / "kubeconfig"))[1]


POD = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: c, image: i}]}\n"


def test_contexts_and_several_files_on_the_command_line(clusters: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = f"{clusters}/podwire/kubeconfig:{clusters}/dev/kubeconfig"
    monkeypatch.setenv("KUBECONFIG", both)
    assert "127.0.0.1:1000" in command("get", "pods")[1]
    assert "127.0.0.1:1001" in command("get", "pods", "--context", "podwire-dev")[1]
    assert "there are: podwire, podwire-dev" in command("get", "pods", "--context", "x")[1]
    assert 'cluster "podwire"' in command("exec", "p", "--", "true")[1]


def test_a_merged_file_leads_to_its_cluster(clusters: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Path(os.environ["HOME"])
    for name in ("podwire", "dev"):
        made = record.load(name)
        assert made is not None
        merging.merge(made, yaml.safe_load(made.kubeconfig.read_text()), (0, 0, home), "")
    monkeypatch.setenv("KUBECONFIG", str(home / ".kube" / "config"))
    assert 'cluster "dev"' in command("exec", "p", "--", "true")[1]
    put(home / "other", document("other"))
    monkeypatch.setenv("KUBECONFIG", str(home / "other"))
    assert "not on this machine; pass --name" in command("exec", "p", "--", "true")[1]


def test_list_shows_every_cluster(clusters: Path) -> None:
    rows = json.loads(command("list", "-o", "json")[1])["clusters"]
    assert [(r["name"], r["status"], r["nodes"], r["server"]) for r in rows] == [
        ("dev", "process ended", 1, "https://127.0.0.1:1001"),
        ("podwire", "process ended", 1, "https://127.0.0.1:1000"),
    ]
    assert "`podwire up --name dev` takes it up again" in command("list")[1]
    (clusters / "dev" / "cluster.json").write_text("{")
    assert "damaged record" in command("list")[1]


@pytest.mark.parametrize(("role", "group"), [("viewer", "podwire:readers"), ("admin", "system:masters")])
def test_a_new_user_gets_a_certificate_of_his_own(clusters: Path, role: str, group: str) -> None:
    done = CliRunner().invoke(cli, ["kubeconfig", "--name", "dev", "--user", "alice", "--role", role])
    found = yaml.safe_load(done.stdout)
    from base64 import b64decode

    from cryptography import x509

    (user,) = found["users"]
    certificate = b64decode(user["user"]["client-certificate-data"]).decode()
    assert (user["name"], pki.facts(certificate).user) == ("podwire-dev-alice", "alice")
    assert f"O={group}" in x509.load_pem_x509_certificate(certificate.encode()).subject.rfc4514_string()
    assert found["current-context"] == "podwire-dev-alice"


@pytest.mark.parametrize("user", ["system:admin", "", "a b", "-x", "x" * 64])
def test_names_of_users_are_plain(clusters: Path, user: str) -> None:
    code, told = command("kubeconfig", "--user", user, "--role", "admin")
    assert code == 1 and "--user" in told
    assert "--user" in command("kubeconfig", "--role", "admin")[1]


# ---- merging


OTHERS = {
    "apiVersion": "v1",
    "kind": "Config",
    "preferences": {"colors": True},
    **document("work"),
    "extensions": [{"name": "x", "extension": {"n": 1}}],
}


def test_merged_and_taken_out_again(clusters: Path) -> None:
    home = Path(os.environ["HOME"])
    file = put(home / ".kube" / "config", OTHERS)
    file.chmod(0o640)
    os.chown(file, 12345, 54321)
    before = file.stat()
    for words in ((), ("--user", "alice")):
        code, told = command("kubeconfig", "--name", "dev", "--merge", *words)
        assert code == 0, told
    found = yaml.safe_load(file.read_text())
    assert found["current-context"] == "podwire-dev-alice"
    assert [row["name"] for row in found["contexts"]] == ["work", "podwire-dev", "podwire-dev-alice"]
    assert [row["name"] for row in found["clusters"]] == ["work", "podwire-dev"]
    now = file.stat()
    assert (now.st_mode, now.st_uid, now.st_gid) == (before.st_mode, 12345, 54321)
    assert client_config.load(file, context="work").token == "work"
    made = record.load("dev")
    assert made is not None and merging.take_out(made) == []
    assert yaml.safe_load(file.read_text()) == {**OTHERS, "current-context": ""}
    assert (file.stat().st_mode, file.stat().st_uid) == (before.st_mode, 12345)
    assert [p.name for p in file.parent.iterdir()] == ["config"]


def test_down_takes_the_context_out(clusters: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = put(Path(os.environ["HOME"]) / ".kube" / "config", OTHERS)
    assert command("kubeconfig", "--merge")[0] == 0
    made = record.load("podwire")
    assert made is not None
    monkeypatch.setattr(teardown, "BASE", clusters)
    monkeypatch.setattr(teardown, "NETNS", clusters.parent / "netns")
    assert teardown.teardown(made) == []
    assert yaml.safe_load(file.read_text()) == {**OTHERS, "current-context": ""}


def test_a_lock_of_kubectl_is_waited_for_and_named(clusters: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "LOCK_SECONDS", 0.2)
    home = Path(os.environ["HOME"])
    file, lock = put(home / ".kube" / "config", OTHERS), put(home / ".kube" / "config.lock", "")
    code, told = command("kubeconfig", "--merge")
    assert code == 1 and f"`rm {lock}`" in told
    assert yaml.safe_load(file.read_text()) == OTHERS
    made = record.load("podwire")
    assert made is not None
    assert "delete-context podwire" in merging.take_out(made)[0]


@pytest.mark.parametrize("content", ["[]", "{", "contexts: 3", "a: b: c", "\x00"])
def test_a_file_that_is_no_kubeconfig_stays(clusters: Path, content: str) -> None:
    file = put(Path(os.environ["HOME"]) / ".kube" / "config", content)
    code, told = command("kubeconfig", "--merge")
    assert code == 1 and "not a kubeconfig" in told
    assert file.read_text() == content


def test_a_cluster_of_another_machine_is_not_replaced(clusters: Path) -> None:
    own = document("podwire")
    with pytest.raises(CannotMerge, match="has a cluster 'podwire' at http://podwire:1"):
        merging.with_entries(own, own)
    assert merging.without(own, "podwire", "another authority") is None


def test_the_file_to_change(tmp_path: Path, clusters: Path) -> None:
    there = put(tmp_path / "there", "")
    assert merging.target(tmp_path, "") == tmp_path / ".kube" / "config"
    assert merging.target(tmp_path, f"/no/a:{there}:/no/b") == there
    assert merging.target(tmp_path, "/no/a:/no/b") == Path("/no/b")
    assert merging.target(tmp_path, f"{clusters}/podwire/kubeconfig") == tmp_path / ".kube" / "config"


def test_a_link_to_the_file_stays(clusters: Path) -> None:
    home = Path(os.environ["HOME"])
    real = put(home / "dotfiles" / "kube", OTHERS)
    (home / ".kube").mkdir()
    (home / ".kube" / "config").symlink_to(real)
    assert command("kubeconfig", "--merge")[0] == 0
    assert (home / ".kube" / "config").is_symlink()
    assert "podwire" in real.read_text()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, as sudo does")
def test_under_sudo_the_file_is_the_users(clusters: Path, tmp_path: Path) -> None:
    """The file is made and written with the user's rights: a link in his directory leads root nowhere."""
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_mode & 0o005 != 0o005 and folder.is_relative_to("/tmp"):
            folder.chmod(0o755)
    home, user = tmp_path / "user", (65534, 65534)
    home.mkdir()
    os.chown(home, *user)
    made = record.load("podwire")
    assert made is not None
    own = yaml.safe_load(made.kubeconfig.read_text())
    file = merging.merge(made, own, (*user, home), "")
    assert (file.stat().st_uid, file.stat().st_mode & 0o777, file.parent.stat().st_uid) == (65534, 0o600, 65534)
    assert os.geteuid() == 0 and merging.take_out(made) == []
    assert yaml.safe_load(file.read_text())["contexts"] == []
    secret = put(tmp_path / "roots", OTHERS)
    secret.chmod(0o600)
    file.unlink()
    file.symlink_to(secret)
    with pytest.raises(CannotMerge, match="Permission denied"):
        merging.merge(made, own, (*user, home), "")
    assert yaml.safe_load(secret.read_text()) == OTHERS


def test_the_calling_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("SUDO_UID", "65534")
    uid, _, home = merging.caller()
    assert (uid, str(home)) == (65534, "/nonexistent")
    monkeypatch.setenv("SUDO_UID", "99999999")
    assert merging.caller()[0] == 0


def test_names_complete(clusters: Path) -> None:
    def complete(line: str) -> list[str]:
        script = (
            "from pathlib import Path; from podwire.commands import common\n"
            f"common.BASE = Path({str(clusters)!r})\n"
            "from podwire.main import cli; cli(prog_name='podwire')"
        )
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                script,
            ],
            env={
                **os.environ,
                "_PODWIRE_COMPLETE": "bash_complete",
                "COMP_WORDS": line,
                "COMP_CWORD": str(len(line.split()) - 1),
            },
            capture_output=True,
            text=True,
            check=False,
        )
        return [row.partition(",")[2] for row in done.stdout.splitlines()]

    assert complete("podwire get --name d") == ["dev"]
    assert complete("podwire down --name p") == ["podwire"]
    assert complete("podwire status --context podwire") == ["podwire"]


AS_NOBODY = """set -e
mount --bind {0}/passwd /etc/passwd
mount --bind {0}/sudoers /etc/sudoers
setpriv --reuid 65534 --regid 65534 --clear-groups env HOME={0}/home sudo {1} -c "$SCRIPT" kubeconfig --name dev --merge
"""


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("sudo"), reason="needs root and sudo")
def test_merging_through_a_real_sudo(clusters: Path) -> None:
    """sudo itself says who called, and sets HOME as its policy is. Its files are others' in a mount namespace alone."""
    with tempfile.TemporaryDirectory(dir="/tmp") as made:  # a path that nobody else's user may pass
        folder = Path(made)
        folder.chmod(0o755)
        own = put(folder / "home" / ".kube" / "config", document("other"))
        own.chmod(0o640)
        for path in (own, own.parent, own.parent.parent):
            os.chown(path, 65534, 65534)
        put(folder / "passwd", f"root:x:0:0:r:/root:/bin/sh\nnobody:x:65534:65534:n:{folder}/home:/bin/sh\n")
        put(folder / "sudoers", "nobody ALL=(ALL) NOPASSWD: ALL\n").chmod(0o440)
        patches = "".join(f"{module.__name__}.BASE = Path({str(clusters)!r})\n" for module in (common, merging, config))
        script = (
            "from pathlib import Path\n"
            "import podwire.commands.common, podwire.cluster.merging, podwire.cluster.config\n"
            f"{patches}from podwire.main import cli\ncli(prog_name='podwire')"
        )
        done = subprocess.run(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", AS_NOBODY.format(folder, sys.executable)],
            env={"PATH": os.environ["PATH"], "SCRIPT": script},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0 and f"context podwire-dev is in {own}" in " ".join(done.stdout.split()), done
        found = own.stat()
        assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (65534, 65534, 0o640)
        rows = yaml.safe_load(own.read_text())
        assert [row["name"] for row in rows["contexts"]] == ["other", "podwire-dev"]
        assert not list(own.parent.glob("*.lock"))
