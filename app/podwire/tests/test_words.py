"""The words on the screen: help, completion, colours, widths, names of pods, commands that are not there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType, ModuleType

import click
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner

from podwire.commands.choosing import selector_of
from podwire.commands.common import wrapped
from podwire.commands.pods import exec_
from podwire.main import COMMANDS, INSTEAD, cli, instead
from podwire_base.kube.meta import Object
from podwire_controlplane.testing.servers import Server


def everything(command: click.Command = cli, path: str = "podwire") -> Iterator[tuple[str, click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        for name in command.list_commands(click.Context(command)):
            found = command.get_command(click.Context(command), name)
            assert found is not None
            yield from everything(found, f"{path} {name}")


ALL = list(everything())


@pytest.mark.parametrize(("path", "command"), ALL, ids=[path for path, _ in ALL])
def test_one_style_of_help(path: str, command: click.Command) -> None:
    """Sentences that begin with a capital and end with a full stop; lines that fit 80 columns."""
    texts = [("", command.help or "")] + [
        (str(p.name), p.help or "") for p in command.params if isinstance(p, click.Option) and not p.hidden
    ]
    for name, text in texts:
        first = text.strip().split("\n\n")[0].strip()
        plain = re.sub(r"\s*\[[^]]*\]$", "", first).strip()
        assert re.match(r"[A-Z`/'0-9-]|net\.|podwire", plain), f"{path} {name}: {first!r} begins small"
        assert plain.endswith((".", ":", ".)")) or ":" in plain.split("Default")[-1], (
            f"{path} {name}: {first!r} has no full stop"
        )
    shown = CliRunner().invoke(command, ["--help"], env={"COLUMNS": "80"}).output
    assert [line for line in shown.splitlines() if len(line) > 80] == []


@pytest.mark.parametrize("name", [*INSTEAD, "stauts", "frobnicate"])
def test_a_command_that_is_not_there_names_the_one_that_does_it(name: str) -> None:
    done = CliRunner().invoke(cli, [name, "x"])
    assert done.exit_code == 2 and name not in COMMANDS
    assert instead(name) in " ".join(done.output.split())
    for named in re.findall(r"`podwire ([a-z]+)", instead(name)):
        assert named in COMMANDS


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as made:
        yield made


def test_unknown_kinds_say_what_is_meant(server: Server, tmp_path: Path) -> None:
    env = {"KUBECONFIG": str(server.kubeconfig(tmp_path / "k"))}
    done = CliRunner().invoke(cli, ["get", "servises"], env=env)
    assert done.exit_code == 1 and "did you mean services?" in " ".join(done.output.split())


COMPLETED = [
    (["get"], "serv", {"services", "serviceaccounts", "servicecidrs"}),
    (["get", "services"], "", {"kubernetes-test"}),
    (["delete", "services"], "kube", {"kubernetes-test"}),
    (["exec"], "deploy/", {"deploy/web"}),
    (["exec"], "dep", {"deploy/"}),
    (["open"], "kub", {"kubernetes-test"}),
    ([], "publ", {"publish"}),
    (["check"], "--out", {"--output", "--outside"}),
]


@pytest.mark.parametrize(
    ("before", "begun", "wanted"), COMPLETED, ids=[" ".join([*row[0], row[1]]) for row in COMPLETED]
)
def test_completion(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: list[str], begun: str, wanted: set[str]
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path / "k")))
    manifest = (
        "{apiVersion: v1, kind: Service, metadata: {name: kubernetes-test}, spec: {ports: [{port: 80}]}}\n---\n"
        "{apiVersion: apps/v1, kind: Deployment, metadata: {name: web}, spec: {selector: {matchLabels: {a: b}}, "
        "template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: i}]}}}}\n"
    )
    assert CliRunner().invoke(cli, ["apply", "-f", "-"], input=manifest).exit_code == 0
    found = {item.value for item in ShellComplete(cli, {}, "podwire", "X").get_completions(before, begun)}
    assert wanted <= found and all(value.startswith(begun) for value in found)


def test_a_dead_cluster_completes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", "/none")
    assert ShellComplete(cli, {}, "podwire", "X").get_completions(["get", "pods"], "") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_each_shell(shell: str) -> None:
    done = CliRunner().invoke(cli, ["completion", shell])
    assert done.exit_code == 0 and "_PODWIRE_COMPLETE" in done.output
    if shell == "bash":
        assert subprocess.run(["bash", "-n"], input=done.output, text=True, check=False).returncode == 0


@pytest.mark.parametrize("words", [["get", "services"], ["get", "nope"], ["status"], ["--help"]])
def test_colours_are_for_terminals(server: Server, tmp_path: Path, words: list[str]) -> None:
    """A pipe gets no escape sequences."""
    env = {k: v for k, v in os.environ.items() if k not in ("FORCE_COLOR", "COLUMNS")}
    env["KUBECONFIG"] = str(server.kubeconfig(tmp_path / "k"))
    done = subprocess.run(
        [sys.executable, "-m", "podwire.main", *words], capture_output=True, text=True, check=False, env=env
    )
    assert done.stdout + done.stderr and "\x1b" not in done.stdout + done.stderr


def test_messages_are_broken_between_words() -> None:
    text = "several clusters are up: " + ", ".join(f"/run/podwire/number-{n}/kubeconfig" for n in range(8))
    lines = wrapped(text, 80, 7).split("\n")
    assert len(lines[0]) <= 73 and all(len(line) <= 80 for line in lines) and len(lines) > 3
    assert " ".join(" ".join(lines).split()) == text
    assert wrapped("a " + "x" * 100, 80) == "a\n" + "x" * 100  # a path stays whole


@pytest.mark.parametrize(
    "words", [["get", "widgets"], ["logs"], ["publish", "nonsense"], ["open", "A/B/C"], ["explain", "a", "b"]]
)
def test_errors_fit_80_columns(words: list[str]) -> None:
    done = CliRunner().invoke(cli, words, env={"KUBECONFIG": "/none/kubeconfig"})
    assert done.exit_code == 1 and done.output.startswith("error: ")
    assert all(len(line) <= 80 or " " not in line for line in done.output.splitlines())


# ---- pods by other names


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        ({"selector": {"matchLabels": {"a": "b", "c": "d"}}}, "a=b,c=d"),
        ({"selector": {"app": "web"}}, "app=web"),
        (
            {
                "selector": {
                    "matchExpressions": [
                        {"key": "a", "operator": "In", "values": ["x", "y"]},
                        {"key": "z", "operator": "DoesNotExist"},
                    ]
                }
            },
            "a in (x,y),!z",
        ),
        ({"selector": None}, ""),
        ({}, ""),
    ],
)
def test_selectors(spec: Object, wanted: str) -> None:
    assert selector_of({"spec": spec}) == wanted


@pytest.mark.parametrize(
    ("words", "pod", "command", "interactive"),
    [
        (["-it", "p", "--", "sh", "-c", "x"], "p", ("sh", "-c", "x"), True),
        (["p", "-it", "-n", "s", "--", "grep", "-i", "x"], "p", ("grep", "-i", "x"), True),
        (["p", "grep", "-i", "x"], "p", ("grep", "-i", "x"), False),
        (["p", "--", "sh", "--", "y"], "p", ("sh", "--", "y"), False),
        (["-n", "s", "deploy/web", "ls"], "deploy/web", ("ls",), False),
    ],
)
def test_words_of_exec(words: list[str], pod: str, command: tuple[str, ...], interactive: bool) -> None:
    context = exec_.make_context("exec", list(words))
    assert (context.params["pod"], context.params["command"]) == (pod, command)
    assert context.params["interactive"] is interactive


def test_exec_and_logs_say_what_is_missing() -> None:
    for words, text in (
        (["exec", "p", "-n", "s", "ls"], "write -- before the command"),
        (["logs"], "one of the two"),
        (["logs", "p", "-l", "a=b"], "one of the two"),
    ):
        done = CliRunner().invoke(cli, words)
        assert done.exit_code == 1 and text in " ".join(done.output.split())


def prints_a_table(code: CodeType, module: ModuleType, seen: frozenset[str] = frozenset()) -> bool:
    """Whether a function, or one of its module that it names, prints a table."""
    if "print_table" in code.co_names:
        return True
    inner = [const for const in code.co_consts if isinstance(const, CodeType)]
    named = {n: getattr(module, n, None) for n in code.co_names if n not in seen}
    inner += [f.__code__ for f in named.values() if isinstance(f, FunctionType) and f.__module__ == module.__name__]
    return any(prints_a_table(one, module, seen | set(named)) for one in inner)


def test_every_table_has_json() -> None:
    """Each command that prints a table takes `-o json`."""
    found = []
    for path, command in ALL:
        if not isinstance(command.callback, FunctionType) or isinstance(command, click.Group):
            continue
        if prints_a_table(command.callback.__code__, sys.modules[command.callback.__module__]):
            found.append(path)
            options = [option for p in command.params for option in p.opts]
            assert "-o" in options or "--json" in options, path
    assert {"podwire get", "podwire publish", "podwire check", "podwire list"} <= set(found)
    status = dict(ALL)["podwire status"]  # its sections are its own, not those of print_table
    assert "-o" in [option for p in status.params for option in p.opts]
    assert isinstance(json.loads(CliRunner().invoke(cli, ["list", "-o", "json"]).output), dict)
