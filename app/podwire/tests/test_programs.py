"""Every command where no program is found: a clear message, never a traceback. As in a slim image, or under cron.

Each command runs in a child that is forked from this process, where everything is imported already.
netns-tests/test_publish.py does the same with a cluster.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from podwire.main import cli
from podwire_base.kernel.netns import CLONE_NEWNET, unshare
from podwire_controlplane.testing.servers import Server

# Command -> the words behind it, and a part of what it says without programs and without a cluster of this machine.
# {0}: a folder without manifests. None: what starts and stays; its --help says that it loads.
WORDS: dict[str, tuple[tuple[str, ...], str] | None] = {
    "up": (("--name", "no-path"), "nsenter is missing: install util-linux"),
    "down": (("--name", "no-path"), "cluster no-path is down"),
    "status": ((), "! the cluster has no nodes"),
    "check": (("--list",), "same-node"),
    "apply": (("-f", "{0}"), "error: {0}: no"),
    "get": (("pods",), "no pods found"),
    "delete": (("pod", "none"), 'pods "none" not found'),
    "exec": (("none", "--", "true"), "its cluster is not on this machine"),
    "logs": (("none",), "its cluster is not on this machine"),
    "publish": (("8080:web:80",), "its cluster is not on this machine"),
    "tunnel": ((), "its cluster is not on this machine"),
    "open": (("kubernetes",), "its cluster is not on this machine"),
    "explain": (("node1", "kubernetes:443"), "no pod 'node1'"),
    "flows": ((), "its cluster is not on this machine"),
    "ui": ((), "its cluster is not on this machine"),
    "policy list": ((), "no policies found"),
    "policy show": (("none",), "no pod default/none"),
    "policy test": (("none", "other:80"), "no pod default/none"),
    "nft list": ((), "there is no nftables table of podwire here"),
    "report": (("--file", "{0}/r.tar.gz", "--run-dir", "{0}"), "files; look at it before you publish it"),
    "cleanup": ((), "nothing of the proxy is here"),
    "node": (("node1", "--", "true"), "its cluster is not on this machine"),
    "list": ((), ""),
    "nodes add": ((), "its cluster is not on this machine"),
    "nodes list": ((), "its cluster is not on this machine"),
    **{
        f"nodes {verb}": (("node1",), "its cluster is not on this machine")
        for verb in ("cordon", "rm", "start", "stop", "uncordon")
    },
    "kubeconfig": (("--name", "no-path"), "no cluster 'no-path'"),
    "completion": (("bash",), "_PODWIRE_COMPLETE"),
    "init": (("--data-dir", "{0}/data", "--advertise", "127.0.0.1"), ""),
    "token": (("--data-dir", "{0}"), "has no control plane"),
    "revoke": (("node1",), "error: "),
    "store backup": (("{0}/b",), "error: "),
    "store restore": (("{0}/file", "--data", "{0}"), "error: "),
    "install": (("--dry-run", "--root", "{0}"), "write /"),
    "uninstall": (("--dry-run", "--root", "{0}"), ""),
    "image build": (("-o", "{0}/i.tar", "--wheel", "{0}/podwire-0-py3-none-any.whl"), "mmdebstrap is not installed"),
    "image load": (("{0}/file", "--name", "none"), "no cluster 'none'"),
    **dict.fromkeys(("image pull", "image rm"), (("app:1", "--name", "none"), "no cluster 'none'")),
    "image list": (("--name", "none"), "no cluster 'none'"),
    "pause-image": (("--output", "{0}/p.tar"), ""),
    "dns cleanup": ((), "nothing to remove"),
    "dns query": (("a.b", "--listen", "127.0.0.1", "--port", "9"), "127.0.0.1"),
    **dict.fromkeys(
        ("demo", "drops", "join", "node-walk", "agent", "apiserver", "controllers", "wiring", "proxy", "lb")
    ),
    **dict.fromkeys(("dns feeder", "dns serve", "dns server")),
}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as made:
        yield made


def leaves(command: click.Command = cli, path: tuple[str, ...] = ()) -> Iterator[str]:
    if isinstance(command, click.Group):
        for name in command.list_commands(click.Context(command)):
            found = command.get_command(click.Context(command), name)
            assert found is not None
            yield from leaves(found, (*path, name))
    else:
        yield " ".join(path)


def alone(words: list[str], env: dict[str, str], *, changes: bool) -> tuple[int, str]:
    """Return exit status and output of a command in a child. changes: it may change the network, so it gets its own."""
    ours, its = os.pipe()
    pid = os.fork()
    if not pid:
        code = 70
        try:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            sys.stdout = sys.stderr = os.fdopen(os.dup2(its, 1), "w")
            os.dup2(its, 2)
            os.environ.update(env)
            if changes and os.geteuid() == 0:
                unshare(CLONE_NEWNET)
            cli.main(words, prog_name="podwire")
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    os.close(its)
    with os.fdopen(ours) as pipe:
        said = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), said


def test_the_table_has_every_command() -> None:
    assert set(WORDS) == set(leaves())


@pytest.mark.parametrize("name", list(WORDS))
def test_a_command_without_programs(name: str, server: Server, tmp_path: Path) -> None:
    words, text = WORDS[name] or (("--help",), f"Usage: podwire {name}")
    folder = tmp_path / "empty"
    folder.mkdir()
    for file in ("file", "podwire-0-py3-none-any.whl"):
        (folder / file).touch()
    env = {"PATH": str(tmp_path / "none"), "KUBECONFIG": str(server.kubeconfig(tmp_path / "k")), "COLUMNS": "80"}
    status, said = alone([*name.split(), *(word.format(folder) for word in words)], env, changes="cleanup" in name)
    assert status in (0, 1, 2) and "Traceback" not in said, said
    assert "".join(text.format(folder).split()) in "".join(said.split()), said  # wherever the lines are broken
    assert "Try 'podwire" not in said  # the words of the table are right
